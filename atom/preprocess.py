"""From stored pixels to what networks see, and back: normalisation by channel, then optional ZCA whitening."""

# N images, C channels, H height, W width

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atom.errors import ArtifactError, DataError, ShapeError
from atom.whitening import ZCA

OVERSHOOT = 0.5
"""How far outside [0, 1] floating pixels may lie: more than a bicubic resize does, less than another scale. Chosen."""

WHITENED_AT_ONCE = 5000
"""Images a step of the whitening. It decides bits: the sums of a matrix product depend on how many rows it has."""
_STEP_BYTES = 2**24
"""Of float32, a step of what is done value by value, which may take any number of images at once. Chosen."""

_ZCA_NAMES = ("zca_mean", "zca_whiten", "zca_unwhiten")


@dataclass(frozen=True)
class Preprocess:
    """Pixels in [0, 1] -> (pixels - mean) / std -> ZCA whitening, where there is one.

    DEVIATION(DataDAM's code): the whitening is fitted once, on the normalised training set, and never again
    on the few synthetic images. Mean and std are those of the training set at hand, over all its pixels.

    Attributes:
        mean_C: mean of each channel, float32, in [0, 1].
        std_C: standard deviation of each channel, float32, positive.
        zca: whitening of the normalised images, or None.
    """

    mean_C: Tensor
    std_C: Tensor
    zca: ZCA | None = None

    @classmethod
    def fit(cls, images_NCHW: np.ndarray | Tensor, *, zca: bool, zca_eps: float = 0.1) -> "Preprocess":
        """Preprocessing of a training set.

        Args:
            images_NCHW: uint8, [N, C, H, W].
            zca: whether to whiten.
            zca_eps: see `ZCA.fit`.

        Raises:
            ShapeError: images are not uint8 [N, C, H, W].
        """
        _check_uint8(images_NCHW)
        num_channels = images_NCHW.shape[1]
        counts = torch.zeros(num_channels, 256, dtype=torch.int64)
        for part in _parts(images_NCHW, _at_once(images_NCHW)):
            for c in range(num_channels):
                counts[c] += torch.bincount(part[:, c].flatten(), minlength=256)
        # Exact moments from the 256 possible values: no sum over millions of floats, no order to depend on.
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = counts.double()
        mean_C = torch.stack([(count * levels).sum() / count.sum() for count in counts])
        spread = [(count * (levels - mean) ** 2).sum() for count, mean in zip(counts, mean_C, strict=True)]
        std_C = torch.stack([(s / c.sum()).sqrt() for s, c in zip(spread, counts, strict=True)])
        # A constant channel carries nothing; dividing by 1 keeps it finite.
        std_C = torch.where(std_C > 0, std_C, torch.ones_like(std_C))
        normalise = cls(mean_C.float(), std_C.float())
        if not zca:
            return normalise
        return cls(normalise.mean_C, normalise.std_C, ZCA.fit(normalise.apply(images_NCHW), eps=zca_eps))

    def apply(self, images_NCHW: np.ndarray | Tensor) -> Tensor:
        """Preprocessed images, float32, of the same shape.

        Whitened images have the same bits only if the same ones are given together, others have them always.

        Args:
            images_NCHW: uint8 in 0..255, or floating pixels in [0, 1]; a resize may have overshot a little.

        Raises:
            ShapeError: the images do not have the fitted number of channels or size.
            DataError: floating images in 0..255, in [-1, 1], or normalised already.
        """
        if isinstance(images_NCHW, np.ndarray) and images_NCHW.dtype != np.uint8:
            images_NCHW = torch.as_tensor(np.array(images_NCHW))
        if isinstance(images_NCHW, Tensor):
            _check_pixels(images_NCHW)
        return self.apply_unbounded(images_NCHW)

    def apply_unbounded(self, images: np.ndarray | Tensor) -> Tensor:
        """As `apply`, but for pixels that may leave [0, 1], as those of made images do.

        Raises:
            ShapeError: as there.
        """
        self._check_shape(images)
        out_NCHW = torch.empty(tuple(images.shape), dtype=torch.float32)
        at_once, start = _at_once(images) if self.zca is None else WHITENED_AT_ONCE, 0
        for part in _parts(images, at_once):
            pixels = part.float() / 255 if part.dtype == torch.uint8 else part.float()
            normal = (pixels - self.mean_C.view(1, -1, 1, 1)) / self.std_C.view(1, -1, 1, 1)
            out_NCHW[start : start + len(part)] = normal if self.zca is None else self.zca.apply(normal)
            start += len(part)
        return out_NCHW

    def invert(self, images_NCHW: Tensor) -> Tensor:
        """Pixels, float32, of preprocessed images; not clipped, so optimised images may leave [0, 1].

        Raises:
            ShapeError: the images do not have the fitted number of channels or size.
        """
        self._check_shape(images_NCHW)
        normal = images_NCHW.float() if self.zca is None else self.zca.invert(images_NCHW)
        return normal * self.std_C.view(1, -1, 1, 1) + self.mean_C.view(1, -1, 1, 1)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named float32 tensors: `mean`, `std`, and with ZCA its mean, matrix and inverse."""
        named = {"mean": self.mean_C, "std": self.std_C}
        if self.zca is not None:
            parts = (self.zca.mean_D, self.zca.whiten_DD, self.zca.unwhiten_DD)
            named |= dict(zip(_ZCA_NAMES, parts, strict=True))
        return named

    @property
    def digest(self) -> str:
        """Digest of the numbers, as hexadecimal SHA-256."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor]) -> "Preprocess":
        """The inverse of `tensors`.

        Raises:
            ArtifactError: a tensor is missing, unknown, or of the wrong shape.
        """
        expected = {"mean", "std"} | (set(_ZCA_NAMES) if set(named) & set(_ZCA_NAMES) else set())
        if set(named) != expected:
            raise ArtifactError(
                f"preprocessing tensors: received {sorted(named)}, expected {sorted(expected)}; the file is damaged."
            )
        mean_C, std_C = named["mean"], named["std"]
        if mean_C.ndim != 1 or mean_C.shape != std_C.shape or not bool((std_C > 0).all()):
            raise ArtifactError(
                f"preprocessing tensors: mean {tuple(mean_C.shape)} and std {tuple(std_C.shape)}, expected two"
                " vectors of one value a channel with positive std; the file is damaged."
            )
        if len(named) == 2:
            return cls(mean_C, std_C)
        zca = ZCA(*(named[name] for name in _ZCA_NAMES))
        size = len(zca.mean_D)
        if zca.whiten_DD.shape != (size, size) or zca.unwhiten_DD.shape != (size, size):
            raise ArtifactError(
                f"preprocessing tensors: whitening matrix {tuple(zca.whiten_DD.shape)}, expected {(size, size)};"
                " the file is damaged."
            )
        return cls(mean_C, std_C, zca)

    def _check_shape(self, images: np.ndarray | Tensor) -> None:
        if images.dtype not in (torch.uint8, np.uint8) and not _is_floating(images):
            raise ShapeError(
                f"images have type {images.dtype}, expected uint8 in 0..255 or floating pixels in [0, 1]; convert them"
                " first."
            )
        if images.ndim != 4 or images.shape[1] != len(self.mean_C):
            raise ShapeError(
                f"images have shape {tuple(images.shape)}, but this preprocessing was fitted on"
                f" [N, {len(self.mean_C)}, H, W]; pass images of the same source."
            )
        if self.zca is not None and (num_values := math.prod(images.shape[1:])) != len(self.zca.mean_D):
            raise ShapeError(
                f"images have {num_values} values each, but the whitening was fitted on"
                f" {len(self.zca.mean_D)}; pass images of the fitted size."
            )


def _check_pixels(images: Tensor) -> None:
    if not images.is_floating_point() or not images.numel():
        return
    low, high = images.aminmax()
    if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
        raise DataError(
            f"floating images run from {low:.3g} to {high:.3g}, expected pixels in [0, 1], not yet normalised; pass"
            " uint8 images, or divide those in 0..255 by 255."
        )


def _check_uint8(images: np.ndarray | Tensor) -> None:
    if images.ndim != 4 or images.dtype not in (torch.uint8, np.uint8) or not len(images):
        raise ShapeError(
            f"images have shape {tuple(images.shape)} and type {images.dtype}, expected uint8 [N, C, H, W] and at least"
            " one of them."
        )


def _is_floating(images: np.ndarray | Tensor) -> bool:
    if isinstance(images, Tensor):
        return images.is_floating_point()
    return np.issubdtype(images.dtype, np.floating)


def _at_once(images: np.ndarray | Tensor) -> int:
    return max(1, _STEP_BYTES // max(1, 4 * math.prod(images.shape[1:])))


def _parts(images: np.ndarray | Tensor, at_once: int) -> Iterator[Tensor]:
    """All images, some at once; those of an array are copied, which may be mapped from a file, and read-only."""
    for start in range(0, len(images), at_once):
        part = images[start : start + at_once]
        yield torch.from_numpy(np.array(part)) if isinstance(part, np.ndarray) else part
