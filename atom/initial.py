"""Where the synthetic images of a class start: real images, a coreset of them, noise, or an earlier set."""

# n real images of the class, K classes, I images per class, C channels, H height, W width

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from atom import coreset
from atom.embedding import embed
from atom.errors import ConfigError
from atom.formation import encode
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.set_values import SetValues
from atom.settings import INITS
from atom.streams import stream


def initial_images(
    real_NCHW: Tensor, settings: DistillSettings, *, class_id: int, num_classes: int
) -> Tensor:
    """Stored images [I, C, H, W] of one class before the first step, float32, on the CPU.

    With a factor f every stored image begins as a grid of f x f shrunken real ones.

    Args:
        real_NCHW: the class's preprocessed images, float32, on the CPU.
        settings: resolved; init, ipc, factor, network, precision and seed are read.
        class_id: counter of the stream.
        num_classes: of the whole source, for the network that herding and k-center look through.

    Raises:
        ConfigError: the class has fewer images than the start needs, or the start is none of `INITS`.
    """
    if settings.init not in INITS:
        raise ConfigError(
            f"init {settings.init}: starts from an earlier set are made by `initial_from_set`, expected one of"
            f" {', '.join(INITS)} here; pass one of these."
        )
    rng = stream(settings.seed, "distill/init", 0, class_id)
    if settings.init == "noise":
        noise = rng.standard_normal((settings.ipc, *real_NCHW.shape[1:]), dtype=np.float32)
        return torch.from_numpy(noise)
    count = settings.ipc * settings.factor**2
    if count > len(real_NCHW):
        raise ConfigError(
            f"class {class_id} has {len(real_NCHW)} training images, but --ipc {settings.ipc} with --factor"
            f" {settings.factor} starts from {count}; pass a smaller --ipc or --init noise."
        )
    method = "random" if settings.init == "real" else settings.init
    features_ND = real_NCHW.flatten(1)
    if method != "random":
        features_ND = embed(
            real_NCHW,
            settings.network,
            num_classes=num_classes,
            seed=settings.seed,
            precision=settings.precision,
        )
    rows = coreset.select(method, features_ND.numpy(), count=count, rng=rng)
    return encode(real_NCHW[torch.from_numpy(rows)], settings.factor)


def initial_from_set(
    distilled: SetValues, preprocess: Preprocess, *, class_names: Sequence[str], ipc: int, factor: int
) -> Tensor:
    """Stored images [K, I, C, H, W] that begin as the first ones of each class of a set, float32, on the CPU.

    Of the same factor and preprocessing they are the stored images themselves. Otherwise the set's decoded images are
    brought to the new preprocessing and take the place of real ones.

    Args:
        distilled: passes `check_start`; may have more classes, in another order.
        preprocess: of the new images.
        class_names: K names, in the order of the result.
        ipc, factor: of the new images.
    """
    by_class = distilled.images_NCHW.unflatten(0, (distilled.num_classes, -1))
    if (distilled.factor, distilled.preprocess.digest) != (factor, preprocess.digest):
        pixels_MCHW = distilled.preprocess.invert(distilled.decode()[0])
        tiles = preprocess.apply_unbounded(pixels_MCHW).unflatten(0, (distilled.num_classes, -1))
        by_class = torch.stack([encode(of_class[: ipc * factor**2], factor) for of_class in tiles])
    places = {name: place for place, name in enumerate(distilled.class_names)}
    return by_class[[places[name] for name in class_names], :ipc].clone()


def check_start(
    distilled: SetValues, *, class_names: Sequence[str], image_shape: Sequence[int], ipc: int, factor: int
) -> None:
    """Refuse a set that images of these classes cannot start from.

    Args:
        class_names: of the real images.
        image_shape: (C, H, W) of the real images.
        ipc, factor: of the new images.

    Raises:
        ConfigError: the set has other classes, too few images of each, soft labels, or images of another shape.
    """
    missing = [name for name in class_names if name not in distilled.class_names]
    own_shape = tuple(distilled.images_NCHW.shape[1:])
    enough = distilled.ipc * distilled.factor**2 // factor**2
    if missing:
        known = ", ".join(map(repr, distilled.class_names[:3]))
        raise ConfigError(
            f"--init: the set knows no class {missing[0]!r}, only {known}, ...; pass a set that has all classes of"
            " --dataset."
        )
    if own_shape != tuple(image_shape):
        raise ConfigError(
            f"--init: the set's images are {own_shape} (channels, height, width), but those of --dataset are"
            f" {tuple(image_shape)}; pass a set of images like these, or bring these to its size by --image-size."
        )
    if distilled.soft_labels is not None:
        raise ConfigError(
            "--init: the set has soft labels, which its images were made for, and only images are taken from a set;"
            " pass one with hard labels."
        )
    if enough < ipc:
        raise ConfigError(
            f"--init: the set has {distilled.ipc} images a class with factor {distilled.factor}, enough for {enough}"
            f" with factor {factor}, but {ipc} are asked for; "
            + ("pass fewer, or a larger set." if enough else "pass a smaller --factor.")
        )
