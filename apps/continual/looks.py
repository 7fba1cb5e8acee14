"""Looks: named changes of all images, by which classes that are known come again under other conditions."""

# N images, C channels, H height, W width

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image
from scipy import ndimage

from atom.data.image_set import Images
from atom.streams import stream

ROTATE_DEGREES, BLUR_SIDE_FRAC, CONTRAST, NOISE = 45.0, 1 / 16, 0.3, 50.0
"""Strengths, chosen: largest angle, width of the blur as a share of the side, the contrast that is left, standard
deviation of the noise in levels."""


def _plain(images_NCHW: Images, rng: np.random.Generator) -> Images:
    return images_NCHW


def _invert(images_NCHW: Images, rng: np.random.Generator) -> Images:
    return 255 - images_NCHW


def _rotate(images_NCHW: Images, rng: np.random.Generator) -> Images:
    turned_NCHW = np.empty_like(images_NCHW)
    angles_N = rng.uniform(-ROTATE_DEGREES, ROTATE_DEGREES, len(images_NCHW))
    for image_CHW, turned_CHW, angle in zip(images_NCHW, turned_NCHW, angles_N, strict=True):
        for channel, picture_HW in enumerate(image_CHW):
            picture = Image.fromarray(picture_HW).rotate(float(angle), Image.Resampling.BILINEAR)
            turned_CHW[channel] = np.asarray(picture)
    return turned_NCHW


def _blur(images_NCHW: Images, rng: np.random.Generator) -> Images:
    sigma = max(images_NCHW.shape[2:]) * BLUR_SIDE_FRAC
    return ndimage.gaussian_filter(images_NCHW, sigma=(0, 0, sigma, sigma), mode="nearest")


def _contrast(images_NCHW: Images, rng: np.random.Generator) -> Images:
    values_NCHW = images_NCHW.astype(np.float32)
    mean_N111 = values_NCHW.mean(axis=(1, 2, 3), keepdims=True)
    return _levels(mean_N111 + CONTRAST * (values_NCHW - mean_N111))


def _noise(images_NCHW: Images, rng: np.random.Generator) -> Images:
    return _levels(images_NCHW + NOISE * rng.standard_normal(images_NCHW.shape, np.float32))


def _levels(values_NCHW: np.ndarray) -> Images:
    return values_NCHW.round().clip(0, 255).astype(np.uint8)


LOOKS: Mapping[str, Callable[[Images, np.random.Generator], Images]] = {
    "plain": _plain,
    "invert": _invert,
    "rotate": _rotate,
    "blur": _blur,
    "contrast": _contrast,
    "noise": _noise,
}
"""plain: as they are. invert: 255 less the value. rotate: each by an angle of its own, black behind it. blur: Gaussian.
contrast: nearer to the mean of the image. noise: Gaussian, of each value."""


def under_look(images_NCHW: Images, look: str, *, counter: int) -> Images:
    """The images under a look, uint8 [N, C, H, W]: before any preprocessing.

    Args:
        images_NCHW: uint8.
        look: one of LOOKS.
        counter: of the random numbers, stream "continual/look/LOOK": another one for each part of a source.

    Example:
        >>> under_look(np.full((1, 1, 2, 2), 250, np.uint8), "invert", counter=0)[0, 0, 0].tolist()
        [5, 5]
    """
    return LOOKS[look](images_NCHW, stream(0, f"continual/look/{look}", counter))


__all__ = ["LOOKS", "under_look"]
