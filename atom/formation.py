"""Multi-formation: a stored image is a grid of factor x factor smaller ones (IDC, Kim et al., 2022).

Same storage, factor**2 times the training images. The stored image stays at full size; decoding cuts it into
tiles and brings each to full size by bilinear interpolation, so gradients flow back to the tiles.
"""

# N stored images, C channels, H height, W width, M = N*factor*factor decoded images

import torch
from torch import Tensor
from torch.nn import functional

from atom.errors import ConfigError, ShapeError


def tile_bounds(size: int, factor: int) -> list[tuple[int, int]]:
    """Start and end of each of the `factor` tiles of an axis; where it does not divide, the first are longer.

    Raises:
        ConfigError: the axis has fewer pixels than tiles.
    """
    if factor < 1 or size < factor:
        raise ConfigError(
            f"--factor {factor}: an axis of {size} pixels cannot hold {factor} tiles; pass a smaller one."
        )
    short, rest = divmod(size, factor)
    ends = [short * (i + 1) + min(i + 1, rest) for i in range(factor)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def decode(images_NCHW: Tensor, factor: int) -> Tensor:
    """Training images [N*factor**2, C, H, W] of stored images; those of one stored image are consecutive.

    Tiles go row by row. `factor` 1 returns the images themselves.

    Raises:
        ShapeError: images are not 4-D.
        ConfigError: the images are smaller than the grid.

    Source: IDC (Kim et al., 2022), section on multi-formation; bilinear, corners not aligned.
    """
    if images_NCHW.ndim != 4:
        raise ShapeError(f"decode: images have shape {tuple(images_NCHW.shape)}, expected [N, C, H, W].")
    if factor == 1:
        return images_NCHW
    height, width = images_NCHW.shape[2:]
    rows, columns = tile_bounds(height, factor), tile_bounds(width, factor)
    tiles = [images_NCHW[:, :, top:end, left:right] for top, end in rows for left, right in columns]
    full = [
        functional.interpolate(t, size=(height, width), mode="bilinear", align_corners=False) for t in tiles
    ]
    return torch.stack(full, dim=1).flatten(0, 1)


def encode(images_MCHW: Tensor, factor: int) -> Tensor:
    """Stored images [M / factor**2, C, H, W] whose tiles are the given images, shrunk by averaging.

    The start of an optimisation from real images: decoding gives back blurred versions of them.

    Raises:
        ShapeError: M is not a multiple of factor**2.
        ConfigError: the images are smaller than the grid.
    """
    if factor == 1:
        return images_MCHW.clone()
    num_images, channels, height, width = images_MCHW.shape
    if num_images % factor**2:
        raise ShapeError(f"encode: {num_images} images do not fill grids of {factor}x{factor}.")
    rows, columns = tile_bounds(height, factor), tile_bounds(width, factor)
    groups = images_MCHW.view(-1, factor**2, channels, height, width)
    stored = images_MCHW.new_empty(len(groups), channels, height, width)
    places = [(row, column) for row in rows for column in columns]
    for k, ((top, end), (left, right)) in enumerate(places):
        stored[:, :, top:end, left:right] = functional.adaptive_avg_pool2d(
            groups[:, k], (end - top, right - left)
        )
    return stored


def label_decoded(labels_N: Tensor, factor: int) -> Tensor:
    """Labels of the decoded images, in the order of `decode`."""
    return labels_N.repeat_interleave(factor**2)
