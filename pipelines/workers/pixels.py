"""Images of a class as Ray's object store holds them before anybody has preprocessed them."""

# N images, C channels, H height, W width

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from atom.preprocess import Preprocess


@dataclass(frozen=True)
class Pixels:
    """Images and what is to be done to them: a quarter of the bytes that they have preprocessed.

    Attributes:
        images_NCHW: uint8.
        preprocess: without whitening, so that who applies it, and to how many at once, decides no bit.
    """

    images_NCHW: np.ndarray
    preprocess: "Preprocess"

    def preprocessed(self) -> "Tensor":
        """Float32 [N, C, H, W], in memory of its own."""
        return self.preprocess.apply(self.images_NCHW)


__all__ = ["Pixels"]
