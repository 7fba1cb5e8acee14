"""Multi-formation: a stored image is a grid of factor x factor smaller ones (IDC, Kim et al., 2022).

Same storage, factor**2 times the training images. The stored image stays at full size; decoding cuts it into
tiles and brings each to full size by bilinear interpolation, so gradients flow back to the tiles.
"""

# N stored images, C channels, H height, W width, M = N*factor*factor decoded images

import torch
from torch import Tensor
from torch.nn import functional

from atom.device import autocast
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
    enlarge = enlarge_by_matrices if images_NCHW.device.type == "cuda" else _enlarge
    full = [enlarge(tile, height, width) for tile in tiles]
    return torch.stack(full, dim=1).flatten(0, 1)


def _enlarge(tiles_NCHW: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(tiles_NCHW, size=(height, width), mode="bilinear", align_corners=False)


def enlarge_by_matrices(tiles_NCHW: Tensor, height: int, width: int) -> Tensor:
    """Tiles at full size by bilinear interpolation, corners not aligned, as two small matrix products.

    For CUDA, where the gradient of `interpolate` has no fast form that gives the same bits on every run; on a CPU
    `interpolate` has, and its bits are those of earlier sets.
    """
    rows_Hh, columns_Ww = (
        _bilinear_matrix(size, full, tiles_NCHW)
        for size, full in zip(tiles_NCHW.shape[2:], (height, width), strict=True)
    )
    # Not in a caller's bfloat16: the images are float32.
    with autocast(tiles_NCHW.device, torch.float32):
        return rows_Hh @ tiles_NCHW @ columns_Ww.T


def _bilinear_matrix(size: int, full: int, like: Tensor) -> Tensor:
    """Weights [full, size] of the pixels of a tile's axis in those of the whole; beyond its ends, the last one."""
    places = torch.arange(size, dtype=like.dtype, device=like.device)
    read = (torch.arange(full, dtype=like.dtype, device=like.device) + 0.5) * (size / full) - 0.5
    return (1 - (read.clamp(0, size - 1)[:, None] - places).abs()).clamp_min(0)


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
    """Labels of the decoded images, [N] or soft [N, K], in the order of `decode`."""
    return labels_N.repeat_interleave(factor**2, dim=0)
