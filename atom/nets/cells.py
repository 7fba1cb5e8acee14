"""NAS-Bench-201's networks: a stem, three stages of equal cells, a residual block ahead of the later two, a head.

Source of all sizes and of the order within each part: Dong and Yang, NAS-Bench-201, ICLR 2020, and its published code.
Legend: N images, C channels, H height, W width, K classes.
"""

import operator
from functools import reduce

from torch import Tensor, nn
from torch.nn import functional

from atom.nets.cell_spec import EDGES, CellSpec, Operation
from atom.nets.layers import BlockNet
from atom.nets.shapes import Size

STAGE_WIDTHS = (16, 32, 64)
"""Channels of the stages; the later two halve the map."""


class Zero(nn.Module):
    """No connection: zeros of the input's shape, which still hang on it, so that every weight has a gradient."""

    def forward(self, map_NCHW: Tensor) -> Tensor:
        """Zeros; NaN and infinite values give NaN, as published."""
        return map_NCHW * 0.0


class Cell(nn.Module):
    """Four nodes and an operation on each edge; keeps the shape (N, C, H, W)."""

    def __init__(self, operations: tuple[Operation, ...], width: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList([_operation(operation, width) for operation in operations])

    def forward(self, map_NCHW: Tensor) -> Tensor:
        """The last node."""
        values = [map_NCHW]
        for node in (1, 2, 3):
            brought = [
                edge(values[source])
                for edge, (source, target) in zip(self.edges, EDGES, strict=True)
                if target == node
            ]
            values.append(reduce(operator.add, brought))
        return values[-1]


class Reduction(nn.Module):
    """Two 3x3 convolutions, the first of stride 2, beside a pooled 1x1 one: twice the channels, half the map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            relu_conv_norm(in_channels, out_channels, kernel=3, stride=2),
            relu_conv_norm(out_channels, out_channels, kernel=3),
        )
        # DEVIATION(NAS-Bench-201): the published shortcut drops the last row or column of an odd side, and then fits
        # the convolutions no more. Its images have sides that halve twice, for which nothing changes.
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, map_NCHW: Tensor) -> Tensor:
        """Maps (N, 2C, H / 2, W / 2), odd sides rounded up."""
        return self.convs(map_NCHW) + self.shortcut(map_NCHW)


class CellNet(BlockNet):
    """A network of the space, for images of any size: 3x3 stem, stages of 16, 32 and 64 channels, BatchNorm throughout.

    The three stages are its feature blocks, each as the ReLU that comes next shows it; the embedding is the mean over
    positions (64). Where nothing but `none` leads through a cell, the logits do not depend on the image.
    """

    def __init__(self, spec: CellSpec, *, channels: int, image_size: Size, num_classes: int) -> None:
        """`image_size` is not read."""
        super().__init__()
        self.mixes_batch = True
        self.stem = nn.Sequential(
            nn.Conv2d(channels, STAGE_WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(STAGE_WIDTHS[0])
        )
        self.stages = nn.ModuleList()
        for stage, width in enumerate(STAGE_WIDTHS):
            ahead = [Reduction(STAGE_WIDTHS[stage - 1], width)] if stage else []
            cells = [Cell(spec.operations, width) for _ in range(spec.cells)]
            self.stages.append(nn.Sequential(*ahead, *cells))
        self.head = nn.Sequential(nn.BatchNorm2d(STAGE_WIDTHS[-1]), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(STAGE_WIDTHS[-1], num_classes)

    def blocks(self, images_NCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `BlockNet.blocks`."""
        activations, map_NCHW = [], self.stem(images_NCHW)
        for stage in self.stages:
            map_NCHW = stage(map_NCHW)
            activations.append(functional.relu(map_NCHW))
        activations[-1] = self.head(map_NCHW)
        return activations, activations[-1].mean((2, 3))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K)."""
        map_NCHW = self.stem(images_NCHW)
        for stage in self.stages:
            map_NCHW = stage(map_NCHW)
        return self.classifier(self.head(map_NCHW).mean((2, 3)))


def relu_conv_norm(in_channels: int, out_channels: int, *, kernel: int, stride: int = 1) -> nn.Sequential:
    """ReLU, convolution without bias, BatchNorm."""
    return nn.Sequential(
        nn.ReLU(),  # not in place: other edges read the same node
        nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _operation(operation: Operation, width: int) -> nn.Module:
    if operation == "none":
        return Zero()
    if operation == "skip_connect":
        return nn.Identity()
    if operation == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return relu_conv_norm(width, width, kernel=1 if operation == "nor_conv_1x1" else 3)
