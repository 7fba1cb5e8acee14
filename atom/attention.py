"""Spatial and channel attention of a feature map."""

# N images, C channels, H height, W width

import torch
from torch import Tensor

from atom.errors import ShapeError


def power(values: Tensor, exponent: int) -> Tensor:
    """|values|**exponent for a whole exponent >= 1, by multiplication.

    Squaring and multiplying costs a few products where `pow` costs a logarithm and an exponential; and an even
    power needs no absolute value.
    """
    base = values if exponent % 2 == 0 else values.abs()
    result: Tensor | None = None
    while exponent:
        if exponent & 1:
            result = base if result is None else result * base
        exponent >>= 1
        if exponent:
            base = base * base
    assert result is not None, "exponent >= 1 is checked by MatchingSettings"
    return result


def unit(rows_ND: Tensor) -> Tensor:
    """Each row divided by its L2 norm; a row of zeros stays zero, with zero gradient."""
    square_N1 = (rows_ND * rows_ND).sum(dim=1, keepdim=True)
    # The floor is the smallest normal number: below it rsqrt has no finite gradient.
    return rows_ND * torch.rsqrt(square_N1.clamp(min=torch.finfo(rows_ND.dtype).tiny))


def spatial_attention(features_NCHW: Tensor, *, exponent: int = 4) -> Tensor:
    """Unit-norm spatial attention: where in the image the layer is active.

    Sums |feature|**exponent over channels, flattens, divides by the L2 norm of each image.

    Args:
        features_NCHW: activations after the nonlinearity, float32 or float64.
        exponent: p >= 1. Source of the default: DataDAM, hyper-parameter table.

    Returns:
        [N, H*W], each row of norm 1. The row of an image without any activation is zero.

    Raises:
        ShapeError: features are not 4-D.

    Source: DataDAM (Sajedi et al., 2023), spatial attention matching; the spatial half of ATOM.
    """
    return unit(power(_checked(features_NCHW), exponent).sum(dim=1).flatten(1))


def channel_attention(features_NCHW: Tensor, *, exponent: int = 4) -> Tensor:
    """Unit-norm channel attention: which channels of the layer are active.

    Sums |feature|**exponent over positions, divides by the L2 norm of each image. Arguments and errors as in
    `spatial_attention`.

    Returns:
        [N, C], each row of norm 1. The row of an image without any activation is zero.

    Source: ATOM (Khaki et al., 2024), project page, figure of the attention mixer, panel (b).
    """
    return unit(power(_checked(features_NCHW), exponent).sum(dim=(2, 3)))


def _checked(features_NCHW: Tensor) -> Tensor:
    if features_NCHW.ndim != 4:
        raise ShapeError(
            f"attention: features have shape {tuple(features_NCHW.shape)}, expected [N, C, H, W]."
        )
    return features_NCHW
