"""Real images as pixels, preprocessed when rows of them are asked for: a quarter of the bytes."""

# N images, C channels, H height, W width

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atom.data.mapped import is_large
from atom.preprocess import Preprocess

_AT_ONCE = 1000
"""Images that are preprocessed before they are sent to a device. Chosen."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images and what is to be done to them, with the part of a tensor's interface that trainings and tests use.

    Example:
        >>> images = Pixels(np.zeros((3, 1, 8, 8), np.uint8), Preprocess(torch.zeros(1), torch.ones(1)))
        >>> len(images), images.shape, images[1:].shape
        (3, (3, 1, 8, 8), torch.Size([2, 1, 8, 8]))
    """

    images_NCHW: np.ndarray
    """uint8, maybe read-only, and mapped from a file."""
    preprocess: Preprocess
    """Without whitening, so that who applies it, and to how many at once, decides no bit."""

    def __post_init__(self) -> None:
        """Refuse a whitening, whose bits depend on which images are whitened together."""
        assert self.preprocess.zca is None, "see as_stored"

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def __getitem__(self, rows: slice | np.ndarray | Tensor) -> Tensor:
        """Float32 [B, C, H, W], in memory of its own."""
        return self.preprocess.apply(self.images_NCHW[rows.numpy() if isinstance(rows, Tensor) else rows])

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, C, H, W]."""
        return self.images_NCHW.shape

    @property
    def device(self) -> torch.device:
        """Where its rows come from."""
        return torch.device("cpu")

    def to(self, device: torch.device) -> "Images":
        """All images on another device, preprocessed here: a division has other bits there. On a CPU itself."""
        if device.type == "cpu":
            return self
        out_NCHW = torch.empty(self.shape, device=device)
        for start in range(0, len(self), _AT_ONCE):
            out_NCHW[start : start + _AT_ONCE] = self[start : start + _AT_ONCE]
        return out_NCHW


Images = Tensor | Pixels
"""Preprocessed images, float32 [N, C, H, W], or pixels that give them."""


def as_stored(images_NCHW: np.ndarray, preprocess: Preprocess) -> Pixels | np.ndarray:
    """Images as workers take them: pixels, or float32 where they are few, or whitened, which is done to all at once.

    To preprocess a batch of 64 images of 8x8 pixels anew costs a small network a tenth of its step.
    """
    if preprocess.zca is None and is_large(images_NCHW.nbytes):
        return Pixels(images_NCHW, preprocess)
    return preprocess.apply(images_NCHW).numpy()


__all__ = ["Images", "Pixels", "as_stored"]
