"""ZCA whitening of images: fit, apply, invert, all in float64 until the result."""

# N images, D = C*H*W values of an image

from dataclasses import dataclass

import torch
from torch import Tensor

from atom.errors import ConfigError, ShapeError


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
