"""Differentiable Siamese augmentation (DSA): one function of the images and a dense row of numbers per image.

Source: Zhao and Bilen, *Dataset condensation with differentiable Siamese augmentation*, ICML 2021, mode S:
one operation a call. Drawing and applying are apart: `draw_params` writes one row of magnitudes per image on
the host, `augment` applies whatever the rows say. So one batch can hold classes with different operations,
shapes never change, nothing recompiles, and a CUDA graph can be replayed with new rows. All geometry (flip,
shift, scale, rotation) is one affine map in pixel coordinates, see `atom.warp`.

Shapes: N images, C channels, H height, W width, P numbers of a row, M the rows that an operation touches.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from atom.errors import ConfigError, ShapeError
from atom.settings import DSA_OPERATIONS
from atom.warp import AffineWarp, pixels, source_positions

# Source of the seven strengths: DSA's published parameters, identical in DM and DataDAM.
FLIP_PROBABILITY = 0.5
SCALE_RATIO = 1.2
ROTATE_DEGREES = 15.0
CROP_PAD_RATIO = 0.125
CUTOUT_RATIO = 0.5
BRIGHTNESS = 1.0
SATURATION = 2.0
CONTRAST = 0.5

# A row: three colour magnitudes, the 2x3 affine map (output pixel -> source pixel, about the centre, shift in
# pixels), and the half-open box that is set to zero.
_BRIGHTNESS, _SATURATION, _CONTRAST = 0, 1, 2
_COLOUR, _AFFINE, _BOX = slice(0, 3), slice(3, 9), slice(9, 13)
NUM_PARAMS = 13
_IDENTITY = (0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def draw_params(
    operations: tuple[str, ...], *, num_rows: int, height: int, width: int, rng: np.random.Generator
) -> np.ndarray:
    """Rows for `augment`: one operation for the whole call, magnitudes of its own for every row.

    Args:
        operations: what to choose from, names out of `DSA_OPERATIONS`; empty gives identity rows.
        num_rows: rows wanted; for Siamese use draw one and repeat it over real and synthetic images.
        height: of the images, in pixels.
        width: of the images, in pixels.
        rng: source of the numbers.

    Returns:
        float32 [num_rows, NUM_PARAMS].

    Raises:
        ConfigError: an operation is unknown.
    """
    rows_NP = np.tile(np.array(_IDENTITY, dtype=np.float32), (num_rows, 1))
    if not operations:
        return rows_NP
    unknown = [name for name in operations if name not in _DRAWERS]
    if unknown:
        raise ConfigError(f"DSA: unknown operation {unknown[0]!r}; known are {', '.join(DSA_OPERATIONS)}.")
    chosen = operations[int(rng.integers(len(operations)))]
    _DRAWERS[chosen](rows_NP, height, width, rng)
    return rows_NP


def _draw_color(rows_NP: np.ndarray, height: int, width: int, rng: np.random.Generator) -> None:
    uniform_N3 = rng.random((len(rows_NP), 3))
    rows_NP[:, _BRIGHTNESS] = (uniform_N3[:, 0] - 0.5) * BRIGHTNESS
    rows_NP[:, _SATURATION] = uniform_N3[:, 1] * SATURATION
    rows_NP[:, _CONTRAST] = uniform_N3[:, 2] + CONTRAST


def _draw_crop(rows_NP: np.ndarray, height: int, width: int, rng: np.random.Generator) -> None:
    for column, size in ((5, width), (8, height)):
        pad = int(size * CROP_PAD_RATIO + 0.5)
        rows_NP[:, column] = rng.integers(-pad, pad + 1, size=len(rows_NP))


def _draw_cutout(rows_NP: np.ndarray, height: int, width: int, rng: np.random.Generator) -> None:
    for column, size in ((9, height), (11, width)):
        side = int(size * CUTOUT_RATIO + 0.5)
        # As published: the centre may lie on either border when the side is even.
        centre_N = rng.integers(0, size + 1 - side % 2, size=len(rows_NP))
        start_N = centre_N - side // 2
        rows_NP[:, column] = np.clip(start_N, 0, size)
        rows_NP[:, column + 1] = np.clip(start_N + side, 0, size)


def _draw_flip(rows_NP: np.ndarray, height: int, width: int, rng: np.random.Generator) -> None:
    rows_NP[:, 3] = np.where(rng.random(len(rows_NP)) < FLIP_PROBABILITY, -1.0, 1.0)


def _draw_scale(rows_NP: np.ndarray, height: int, width: int, rng: np.random.Generator) -> None:
    rows_NP[:, [3, 7]] = rng.uniform(1 / SCALE_RATIO, SCALE_RATIO, size=(len(rows_NP), 2))


def _draw_rotate(rows_NP: np.ndarray, height: int, width: int, rng: np.random.Generator) -> None:
    angle_N = np.deg2rad(rng.uniform(-ROTATE_DEGREES, ROTATE_DEGREES, size=len(rows_NP)))
    rows_NP[:, 3] = rows_NP[:, 7] = np.cos(angle_N)
    # As published, the angle is one of the unit square, so oblong images are sheared a little.
    rows_NP[:, 4] = -np.sin(angle_N) * width / height
    rows_NP[:, 6] = np.sin(angle_N) * height / width


_DRAWERS: dict[str, Callable[[np.ndarray, int, int, np.random.Generator], None]] = {
    "color": _draw_color,
    "crop": _draw_crop,
    "cutout": _draw_cutout,
    "flip": _draw_flip,
    "scale": _draw_scale,
    "rotate": _draw_rotate,
}


def augment(images_NCHW: Tensor, params_NP: Tensor) -> Tensor:
    """Apply to every image what its row says: colour, then the affine map, then the cut-out.

    Differentiable in the images, not in the rows. An identity row returns its image unchanged, bit for bit.
    Compiled or on CUDA, all images take one dense path of fixed shapes; eager on a CPU, only the images that
    need an operation are touched, with the same arithmetic.

    Args:
        images_NCHW: floating point.
        params_NP: rows of `draw_params`, [N, NUM_PARAMS], on the device of the images.

    Returns:
        Tensor of the shape and dtype of `images_NCHW`.

    Raises:
        ShapeError: the rows do not fit the images.
    """
    if images_NCHW.dim() != 4 or params_NP.shape != (images_NCHW.shape[0], NUM_PARAMS):
        raise ShapeError(
            f"augment: images {tuple(images_NCHW.shape)} with rows {tuple(params_NP.shape)}; expected images "
            f"[N, C, H, W] and rows [N, {NUM_PARAMS}]: draw the rows with draw_params(num_rows=N)."
        )
    params_NP = params_NP.to(images_NCHW.dtype)
    if not _is_eager_cpu(images_NCHW):
        for operation, _ in _OPERATIONS:
            images_NCHW = operation(images_NCHW, params_NP)
        return images_NCHW
    touched_NP = params_NP != params_NP.new_tensor(_IDENTITY)
    for operation, columns in _OPERATIONS:
        rows_M = touched_NP[:, columns].any(dim=1).nonzero().squeeze(1)
        if len(rows_M) == len(params_NP):
            images_NCHW = operation(images_NCHW, params_NP)
        elif len(rows_M):
            changed_MCHW = operation(images_NCHW.index_select(0, rows_M), params_NP.index_select(0, rows_M))
            images_NCHW = images_NCHW.index_copy(0, rows_M, changed_MCHW)
    return images_NCHW


def _colour(images_NCHW: Tensor, params_NP: Tensor) -> Tensor:
    brightness, saturation, contrast = params_NP[:, :3, None, None, None].unbind(1)
    images_NCHW = images_NCHW + brightness
    # x + (s - 1)(x - mean) is s(x - mean) + mean, and exactly x at s = 1.
    images_NCHW = images_NCHW + (saturation - 1) * (images_NCHW - images_NCHW.mean(1, keepdim=True))
    return images_NCHW + (contrast - 1) * (images_NCHW - images_NCHW.mean((1, 2, 3), keepdim=True))


def _cutout(images_NCHW: Tensor, params_NP: Tensor) -> Tensor:
    rows_H, columns_W = pixels(images_NCHW)
    top, bottom, left, right = params_NP[:, _BOX, None].unbind(1)
    inside_NH = (rows_H >= top) & (rows_H < bottom)
    inside_NW = (columns_W >= left) & (columns_W < right)
    return images_NCHW.masked_fill((inside_NH[:, :, None] & inside_NW[:, None, :])[:, None], 0.0)


def _warp(images_NCHW: Tensor, params_NP: Tensor) -> Tensor:
    affine_N6 = params_NP[:, _AFFINE]
    if not _is_eager_cpu(images_NCHW):
        return AffineWarp.apply(images_NCHW, affine_N6)
    # Several times faster than four eager gathers, and deterministic on a CPU, its gradient too.
    rows_H, columns_W = pixels(images_NCHW)
    y_NHW, x_NHW = source_positions(affine_N6, rows_H[:, None], columns_W[None, :], images_NCHW)
    height, width = images_NCHW.shape[2:]
    grid_NHW2 = torch.stack([(2 * x_NHW + 1) / width - 1, (2 * y_NHW + 1) / height - 1], dim=-1)
    return torch.nn.functional.grid_sample(images_NCHW, grid_NHW2, align_corners=False)


def _is_eager_cpu(images_NCHW: Tensor) -> bool:
    return images_NCHW.device.type == "cpu" and not torch.compiler.is_compiling()


_OPERATIONS = ((_colour, _COLOUR), (_warp, _AFFINE), (_cutout, _BOX))
