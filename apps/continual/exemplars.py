"""The images a memory keeps of one class, the most important first, and the forms they are stored in."""

# N stored images, M decoded images, C channels, H height, W width

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from apps.continual import lossless
from atom import formation
from atom.errors import ConfigError, ShapeError
from atom.preprocess import Preprocess

Storage = Literal["uint8", "uint8-scaled", "float32"]
STORAGES: tuple[Storage, ...] = ("uint8", "uint8-scaled", "float32")
"""uint8: pixels, preprocessing undone, as real images are kept. Optimised images leave the range of pixels, and what
lies outside is cut off.
uint8-scaled: preprocessed values in 256 levels between the smallest and the largest of the image; two float32 more
an image.
float32: preprocessed values as they are.

Measured on CIFAR-10 with ZCA, IPC 1, ConvNet of width 32 with InstanceNorm, 300 epochs, 2 trainings: test accuracy
25.1 % as float32, 24.9 % as uint8-scaled, 25.2 % as uint8, which lose 1 % and 5 % of the norm. Before images were put
to the scale of real ones uint8 lost 75 %, and came to 20.0 %."""

_RANGE_BYTES = 8

_NOISE_FRAC, _GRID_NOISE_FRAC = 0.4, 0.6
"""Where the lossless file of a distilled image is expected between those of its class's real images and bare values,
without and with a factor above 1. Chosen, measured on FashionMNIST (300 iterations): 0.36 to 0.50 over ten classes as
uint8, 0.50 and 0.71 of two with factor 2; on two classes of CIFAR-10 (100 iterations) 0.40 and 0.45."""


def image_bytes(shape_CHW: tuple[int, ...], *, storage: Storage) -> int:
    """Bytes of one stored image: its values, and the two numbers of its range with uint8-scaled."""
    num_values = int(np.prod(shape_CHW))
    if storage == "float32":
        return 4 * num_values
    return num_values + (_RANGE_BYTES if storage == "uint8-scaled" else 0)


def expected_bytes(real_NCHW: np.ndarray, *, storage: Storage, factor: int, most: int = 25) -> int:
    """Bytes that a distilled image of a class is expected to take compressed, by which is decided how many are made.

    Args:
        real_NCHW: uint8, the class's real images, of which `most` are looked at, evenly spaced.
        storage, factor: of the distilled images.
    """
    sample_nCHW = real_NCHW[:: -(-len(real_NCHW) // most)]
    of_real = sum(len(lossless.encode(image_CHW)) for image_CHW in sample_nCHW) / len(sample_nCHW)
    frac = _NOISE_FRAC if factor == 1 else _GRID_NOISE_FRAC
    ranges = _RANGE_BYTES if storage == "uint8-scaled" else 0
    return round(of_real + frac * (sample_nCHW[0].size - of_real)) + ranges


@dataclass(frozen=True, eq=False)
class Exemplars:
    """Stored images of one class in order of importance, so that every prefix is the best memory of its size.

    `Exemplars(pixels)` keeps real images; `from_white` stores preprocessed ones.
    """

    images_NCHW: np.ndarray
    """uint8 pixels, uint8 levels if there are ranges, or float32 preprocessed values."""
    factor: int = 1
    """A stored image holds factor x factor smaller ones, see `atom.formation`."""
    ranges_N2: np.ndarray | None = None
    """Lowest value and width of a level of each image, float32; only with uint8-scaled."""
    files: tuple[bytes, ...] | None = None
    """Each image as `lossless.encode` has it, where these are what is stored; see `compressed`."""
    soft_NK: np.ndarray | None = None
    """Soft label of each image over the K classes of the stream, float32; None: the class alone."""

    def __post_init__(self) -> None:
        """Refuse arrays that are not what they must be.

        Raises:
            ShapeError: wrong type or shape, values that are not finite, or a factor below 1.
        """
        images, ranges = self.images_NCHW, self.ranges_N2
        sound = images.ndim == 4 and images.dtype in (np.uint8, np.float32) and self.factor >= 1
        if ranges is not None:
            sound &= images.dtype == np.uint8 and ranges.dtype == np.float32
            sound &= ranges.shape == (len(images), 2) and bool(np.isfinite(ranges).all())
        if self.soft_NK is not None:
            sound &= self.soft_NK.dtype == np.float32 and self.soft_NK.ndim == 2
            sound &= len(self.soft_NK) == len(images) and bool(np.isfinite(self.soft_NK).all())
        if self.files is not None:
            sound &= images.dtype == np.uint8 and len(self.files) == len(images)
        if not sound or not np.isfinite(images).all():
            received = f"{images.dtype} {images.shape} with factor {self.factor}"
            if ranges is not None:
                received += f" and ranges {ranges.dtype} {ranges.shape}"
            raise ShapeError(
                f"exemplars: received {received}; expected finite uint8 or float32 [N, C, H, W] with a factor of 1"
                " or more, and if any, ranges as float32 [N, 2] beside uint8, and soft labels as float32 [N, K]."
            )

    @classmethod
    def from_white(
        cls,
        white_NCHW: Tensor,
        storage: Storage,
        *,
        preprocess: Preprocess,
        factor: int = 1,
        soft_NK: np.ndarray | None = None,
    ) -> "Exemplars":
        """Preprocessed images in the form of `storage`, in the order given.

        Args:
            white_NCHW: float32, as stored, that is not decoded.
            storage: one of STORAGES.
            preprocess: what made them, to undo for uint8.
            factor, soft_NK: see there.

        Raises:
            ConfigError: an unknown storage.
        """
        if storage not in STORAGES:
            raise ConfigError(f"memory storage {storage!r} is unknown; known are {', '.join(STORAGES)}.")
        if storage == "uint8":
            return cls(as_pixels(white_NCHW, preprocess), factor, soft_NK=soft_NK)
        values_NCHW = white_NCHW.detach().cpu().float().numpy().copy()
        if storage == "float32":
            return cls(values_NCHW, factor, soft_NK=soft_NK)
        levels_NCHW, ranges_N2 = _to_levels(values_NCHW)
        return cls(levels_NCHW, factor, ranges_N2, soft_NK=soft_NK)

    @property
    def storage(self) -> Storage:
        """The form they are stored in."""
        if self.images_NCHW.dtype == np.float32:
            return "float32"
        return "uint8" if self.ranges_N2 is None else "uint8-scaled"

    @property
    def num_images(self) -> int:
        """N, stored images, whatever the factor."""
        return len(self.images_NCHW)

    @property
    def num_bytes(self) -> int:
        """Bytes as stored: N times `image_bytes`, or those of the files and ranges; with those of soft labels."""
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each image as stored."""
        if self.files is None:
            whole = image_bytes(self.images_NCHW.shape[1:], storage=self.storage) + self._label_bytes
            return [whole] * self.num_images
        return [len(file) + self._range_bytes + self._label_bytes for file in self.files]

    def head(self, number: int, num_bytes: int | None = None) -> "Exemplars":
        """The `number` most important ones, or the fewer that fit into bytes; a copy, so the rest is freed."""
        if num_bytes is not None:
            number = min(number, sum(total <= num_bytes for total in accumulate(self.sizes)))
        return self.at(np.arange(min(number, self.num_images)))

    def at(self, rows: np.ndarray) -> "Exemplars":
        """A copy of those at some places, in that order."""
        ranges = None if self.ranges_N2 is None else self.ranges_N2[rows]
        files = None if self.files is None else tuple(self.files[row] for row in rows)
        soft = None if self.soft_NK is None else self.soft_NK[rows]
        return Exemplars(self.images_NCHW[rows], self.factor, ranges, files, soft)

    def joined(self, other: "Exemplars") -> "Exemplars":
        """These, then those of another lot of the class, of one storage and factor, neither compressed.

        Raises:
            ShapeError: they are of another shape or form.
        """
        alike = (self.storage, self.factor, self.images_NCHW.shape[1:]) == (
            other.storage,
            other.factor,
            other.images_NCHW.shape[1:],
        )
        if not alike or None not in (self.files, other.files):
            raise ShapeError(
                f"exemplars: {self.storage} {self.images_NCHW.shape[1:]} with factor {self.factor} and {other.storage}"
                f" {other.images_NCHW.shape[1:]} with factor {other.factor}; a class keeps images of one form."
            )
        images_NCHW = np.concatenate([self.images_NCHW, other.images_NCHW])
        ranges = [kept.ranges_N2 for kept in (self, other) if kept.ranges_N2 is not None]
        soft = [kept.soft_NK for kept in (self, other) if kept.soft_NK is not None]
        return Exemplars(
            images_NCHW,
            self.factor,
            np.concatenate(ranges) if ranges else None,
            soft_NK=np.concatenate(soft) if len(soft) == 2 else None,
        )

    def compressed(self, num_bytes: int | None = None) -> "Exemplars":
        """The same with files, which are what is counted from now on; given bytes, as many of the first as fit.

        Raises:
            ConfigError: float32 images, of which there is no such file.
        """
        if self.storage == "float32":
            raise ConfigError(
                "float32 images cannot be compressed; choose the storage uint8 or uint8-scaled."
            )
        files, left = [], num_bytes
        for image_CHW in self.images_NCHW:
            file = lossless.encode(image_CHW)
            if left is not None:
                left -= len(file) + self._range_bytes + self._label_bytes
                if left < 0:
                    break
            files.append(file)
        return replace(self.at(np.arange(len(files))), files=tuple(files))

    @property
    def _range_bytes(self) -> int:
        return 0 if self.ranges_N2 is None else _RANGE_BYTES

    @property
    def _label_bytes(self) -> int:
        return 0 if self.soft_NK is None else self.soft_NK.shape[1] * self.soft_NK.itemsize

    def white(self, preprocess: Preprocess) -> Tensor:
        """What a network trains on: float32 [M, C, H, W], preprocessed, then decoded as in `DistilledSet`."""
        if self.storage == "uint8":
            stored_NCHW = preprocess.apply(self.images_NCHW)
        elif self.ranges_N2 is None:
            stored_NCHW = torch.from_numpy(self.images_NCHW.copy())
        else:
            low_N111, width_N111 = np.moveaxis(self.ranges_N2[..., None, None, None], 1, 0)
            stored_NCHW = torch.from_numpy(low_N111 + width_N111 * self.images_NCHW)
        return formation.decode(stored_NCHW, self.factor)


def as_pixels(white_NCHW: Tensor, preprocess: Preprocess) -> np.ndarray:
    """Preprocessed images as uint8 pixels: preprocessing undone, clipped to [0, 1], rounded to 256 levels.

    Of preprocessed real images it gives their pixels back. Stored images of a factor above 1 are taken as
    they lie: a whitening does not fit a grid of smaller images, so their pixels need not look like them.
    """
    pixels_NCHW = preprocess.invert(white_NCHW.detach().cpu()).clamp(0, 1)
    return (pixels_NCHW * 255).round().to(torch.uint8).numpy()


def _to_levels(values_NCHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels uint8 [N, C, H, W] between the extremes of each image, and ranges float32 [N, 2]."""
    flat_ND = values_NCHW.reshape(len(values_NCHW), -1)
    low_N = flat_ND.min(axis=1)
    width_N = (flat_ND.max(axis=1) - low_N) / np.float32(255)
    # A constant image has no width; any other than 0 keeps its levels at 0.
    divisor_N1 = np.where(width_N > 0, width_N, np.float32(1))[:, None]
    levels_ND = np.rint((flat_ND - low_N[:, None]) / divisor_N1).clip(0, 255).astype(np.uint8)
    return levels_ND.reshape(values_NCHW.shape), np.stack([low_N, width_N], axis=1)


__all__ = ["STORAGES", "Exemplars", "Storage", "as_pixels", "expected_bytes", "image_bytes"]
