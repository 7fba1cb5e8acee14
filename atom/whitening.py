"""ZCA whitening of images: fit, apply, invert, all in float64 until the result."""

# N images, D = C*H*W values of an image

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atom.errors import ConfigError, ShapeError

FLAT_FRAC = 1e-4
"""Share of the largest eigenvalue of the channels' covariance up to which another counts as 0. Chosen: grey CIFAR-10
with errors of one level of 255 in every channel is at 5e-5, CIFAR-10 itself at 2e-2 (measured)."""


def rank_flaw(images_NCHW: np.ndarray, *, chunk: int = 5000) -> str | None:
    """Why the covariance of these images lacks full rank, in words; None where nothing is seen at a glance.

    Whitening blows up what such images do not have: digits stored as colour, distilled with it, lost to random images.

    Args:
        images_NCHW: uint8.
        chunk: images a step, bounds the memory of the float64 copy.
    """
    num_images, num_channels, *size = images_NCHW.shape
    num_values = num_channels * size[0] * size[1]
    if num_images <= num_values:
        return f"{num_images} images are too few for the {num_values} values of each"
    total_C, square_CC = np.zeros(num_channels), np.zeros((num_channels, num_channels))
    for start in range(0, num_images, chunk):
        part_CP = (
            images_NCHW[start : start + chunk].swapaxes(0, 1).reshape(num_channels, -1).astype(np.float64)
        )
        total_C += part_CP.sum(axis=1)
        square_CC += part_CP @ part_CP.T
    pixels = num_images * size[0] * size[1]
    mean_C = total_C / pixels
    values_C = np.linalg.eigvalsh(square_CC / pixels - np.outer(mean_C, mean_C))
    if num_channels > 1 and values_C[-2] <= FLAT_FRAC * values_C[-1]:
        return "all channels hold one grey image"
    if values_C[0] <= FLAT_FRAC * values_C[-1]:
        return "a channel follows from the others"
    if constant := int((images_NCHW.min(axis=0) == images_NCHW.max(axis=0)).sum()):
        return f"{constant} of the {num_values} values are the same in all images"
    return None


@dataclass(frozen=True)
class ZCA:
    """A fitted whitening x -> (x - mean) W with W = U (S + eps)^(-1/2) U^T, and its exact inverse.

    Attributes:
        mean_D: mean of the fitted images, float32.
        whiten_DD: W, float32, symmetric.
        unwhiten_DD: U (S + eps)^(1/2) U^T, float32, symmetric.

    Example:
        >>> images = torch.randn(50, 1, 2, 3, generator=torch.Generator().manual_seed(0))
        >>> zca = ZCA.fit(images, eps=0.1)
        >>> torch.allclose(zca.invert(zca.apply(images)), images, atol=1e-5)
        True
    """

    mean_D: Tensor
    whiten_DD: Tensor
    unwhiten_DD: Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of the two matrices: 75.5 MB for images of 3 x 32 x 32."""
        return self.whiten_DD.nbytes + self.unwhiten_DD.nbytes

    @classmethod
    def fit(cls, images_NCHW: Tensor, *, eps: float, chunk: int = 5000) -> "ZCA":
        """Whitening of the images' own mean and covariance S = X^T X / (N - 1).

        Args:
            images_NCHW: at least two images, any floating type.
            eps: added to the eigenvalues before the inverse root; 0.1 in MTT's and DataDAM's code.
            chunk: images a step, bounds the memory of the float64 copy.

        Raises:
            ShapeError: if images_NCHW is not 4-D.
            ConfigError: fewer than two images.
        """
        if images_NCHW.ndim != 4:
            raise ShapeError(f"ZCA.fit: images have shape {tuple(images_NCHW.shape)}, expected [N, C, H, W].")
        num_images = len(images_NCHW)
        if num_images < 2:
            raise ConfigError(
                f"ZCA.fit: {num_images} image given, a covariance needs at least 2; pass --zca off."
            )
        flat_ND = images_NCHW.reshape(num_images, -1)
        parts = flat_ND.split(chunk)
        mean_D = torch.stack([part.double().sum(0) for part in parts]).sum(0) / num_images
        covariance_DD = torch.zeros(flat_ND.shape[1], flat_ND.shape[1], dtype=torch.float64)
        for part in parts:
            centred_ND = part.double() - mean_D
            covariance_DD.addmm_(centred_ND.T, centred_ND)
        covariance_DD /= num_images - 1
        values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
        root_D = (values_D.clamp(min=0) + eps).sqrt()
        return cls(
            mean_D=mean_D.float(),
            whiten_DD=((vectors_DD / root_D) @ vectors_DD.T).float(),
            unwhiten_DD=((vectors_DD * root_D) @ vectors_DD.T).float(),
        )

    def apply(self, images_NCHW: Tensor) -> Tensor:
        """Whitened images, float32, of the same shape."""
        flat_ND = images_NCHW.reshape(len(images_NCHW), -1).float()
        return ((flat_ND - self.mean_D) @ self.whiten_DD).view(images_NCHW.shape)

    def invert(self, white_NCHW: Tensor) -> Tensor:
        """Images whose whitening is `white_NCHW`, float32, of the same shape."""
        flat_ND = white_NCHW.reshape(len(white_NCHW), -1).float()
        return (flat_ND @ self.unwhiten_DD + self.mean_D).view(white_NCHW.shape)
