"""Affine warp of images in pixel coordinates, with a gradient that is the same on every run.

Coordinates are pixels about the image's centre, so flips, whole-pixel shifts and the identity are exact. The
gradient is written as a gather over the output pixels that a source pixel can reach: no atomic additions,
hence equal bits on every run, also on CUDA, where the gradient of `grid_sample` has no deterministic form.

Shapes: N images, C channels, H height, W width; an affine row is (xx, xy, shift x, yx, yy, shift y).
"""

import math
from typing import Any

import torch
from torch import Tensor


class AffineWarp(torch.autograd.Function):
    """Bilinear sampling at affine positions, zeros outside; differentiable once, in the images only.

    `AffineWarp.apply(images_NCHW, affine_N6)`; the inverse maps must stretch an axis by no more than `_stretch` says.
    """

    @staticmethod
    def forward(ctx: Any, images_NCHW: Tensor, affine_N6: Tensor) -> Tensor:
        """The sampled images; positions outside read zero."""
        ctx.save_for_backward(affine_N6)
        rows_H, columns_W = pixels(images_NCHW)
        y_NHW, x_NHW = source_positions(affine_N6, rows_H[:, None], columns_W[None, :], images_NCHW)
        top_NHW, left_NHW = y_NHW.floor(), x_NHW.floor()
        warped_NCHW = torch.zeros_like(images_NCHW)
        for dy in (0, 1):
            for dx in (0, 1):
                row_NHW, column_NHW = top_NHW + dy, left_NHW + dx
                weight_NHW = (1 - (y_NHW - row_NHW).abs()) * (1 - (x_NHW - column_NHW).abs())
                warped_NCHW = warped_NCHW + _weighted_pick(images_NCHW, row_NHW, column_NHW, weight_NHW)
        return warped_NCHW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient of the images, [N, C, H, W]; none of the rows."""
        (affine_N6,) = ctx.saved_tensors
        grad_NCHW = grads[0]
        rows_H, columns_W = pixels(grad_NCHW)
        row_H1, column_1W = rows_H[:, None], columns_W[None, :]
        y_NHW, x_NHW = source_positions(_inverse(affine_N6), row_H1, column_1W, grad_NCHW)
        top_NHW, left_NHW = y_NHW.floor(), x_NHW.floor()
        gathered_NCHW = torch.zeros_like(grad_NCHW)
        height, width = grad_NCHW.shape[2:]
        for dy in _reach(height, width):
            for dx in _reach(width, height):
                row_NHW, column_NHW = top_NHW + dy, left_NHW + dx
                read_y_NHW, read_x_NHW = source_positions(affine_N6, row_NHW, column_NHW, grad_NCHW)
                weight_NHW = (1 - (read_y_NHW - row_H1).abs()).clamp_min(0)
                weight_NHW = weight_NHW * (1 - (read_x_NHW - column_1W).abs()).clamp_min(0)
                gathered_NCHW = gathered_NCHW + _weighted_pick(grad_NCHW, row_NHW, column_NHW, weight_NHW)
        return gathered_NCHW, None


def _stretch(size: int, other: int) -> float:
    """By how much an inverse map may stretch an axis of `size` pixels, the other axis having `other`.

    DSA scales by 1.2 at most, and turns by 15 degrees at most, in the unit square: in pixels an oblong image is
    sheared by sin(15 degrees) = 0.259 times its aspect ratio.
    """
    return max(2.0, 1 + 0.26 * size / other)


def _reach(size: int, other: int) -> range:
    """Output pixels to look at along an axis, around where the inverse map takes a source pixel."""
    most = math.ceil(_stretch(size, other))
    return range(1 - most, most + 1)


def pixels(images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers [H] and column numbers [W] of images [N, C, H, W], in their dtype and on their device."""
    height, width = images_NCHW.shape[2:]
    options = {"dtype": images_NCHW.dtype, "device": images_NCHW.device}
    return torch.arange(height, **options), torch.arange(width, **options)


def source_positions(
    affine_N6: Tensor, rows: Tensor, columns: Tensor, images_NCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """Row and column [N, H, W] where the map of each image reads for the given output pixels."""
    centre_y, centre_x = ((size - 1) / 2 for size in images_NCHW.shape[2:])
    xx, xy, shift_x, yx, yy, shift_y = affine_N6[:, :, None, None].unbind(1)
    y, x = rows - centre_y, columns - centre_x
    return yx * x + yy * y + shift_y + centre_y, xx * x + xy * y + shift_x + centre_x


def _inverse(affine_N6: Tensor) -> Tensor:
    xx, xy, shift_x, yx, yy, shift_y = affine_N6.unbind(1)
    determinant = xx * yy - xy * yx
    inverse = (yy, -xy, xy * shift_y - yy * shift_x, -yx, xx, yx * shift_x - xx * shift_y)
    return torch.stack([entry / determinant for entry in inverse], dim=1)


def _weighted_pick(images_NCHW: Tensor, row_NHW: Tensor, column_NHW: Tensor, weight_NHW: Tensor) -> Tensor:
    """weight * image[row, column] per image, all channels alike; zero where the pixel lies outside."""
    height, width = images_NCHW.shape[2:]
    inside_NHW = (row_NHW >= 0) & (row_NHW < height) & (column_NHW >= 0) & (column_NHW < width)
    row_NHW, column_NHW = row_NHW.clamp(0, height - 1).long(), column_NHW.clamp(0, width - 1).long()
    place = torch.arange(images_NCHW.shape[0], device=images_NCHW.device)[:, None, None]
    picked_NHWC = images_NCHW.permute(0, 2, 3, 1)[place, row_NHW, column_NHW]
    return picked_NHWC.permute(0, 3, 1, 2) * torch.where(inside_NHW, weight_NHW, 0.0)[:, None]
