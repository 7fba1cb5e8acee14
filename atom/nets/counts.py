"""Size and cost of a network: parameters, and multiply-adds of one image's forward pass."""

import functools
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atom.nets.cell_spec import CellSpec
from atom.nets.cells import STAGE_WIDTHS
from atom.nets.shapes import Size, plan_halving, stem_size
from atom.nets.spec import ConvNetSpec


def count_parameters(
    net: nn.Module | ConvNetSpec | CellSpec, channels: int, image_size: Size, *, num_classes: int = 10
) -> int:
    """Number of parameters: of a network, by counting; of a spec, by arithmetic.

    A network has its sizes, and the other arguments are not read for it.

    Example:
        >>> count_parameters(ConvNetSpec(), 3, (32, 32))
        320010
    """
    if isinstance(net, CellSpec):
        return _cell_counts(net, channels, image_size)[0] + (STAGE_WIDTHS[-1] + 1) * num_classes
    if not isinstance(net, ConvNetSpec):
        return sum(parameter.numel() for parameter in net.parameters())
    total = (_num_features(net, image_size) + 1) * num_classes
    for in_channels, (height, width) in _blocks(net, channels, image_size):
        places = height * width if net.norm == "layer" else 1
        affine = 0 if net.norm == "none" else 2 * net.width * places
        total += (9 * in_channels + 1) * net.width + affine
    return total


def count_multiply_adds(
    net: nn.Module | ConvNetSpec | CellSpec, channels: int, image_size: Size, *, num_classes: int = 10
) -> int:
    """Multiply-adds of one image's forward pass in convolutions and matrix products; the rest is not counted.

    Of a spec by arithmetic; of a network by running it once on a blank image.

    Example:
        >>> count_multiply_adds(ConvNetSpec(), 3, (32, 32))
        50745344
    """
    if isinstance(net, CellSpec):
        return _cell_counts(net, channels, image_size)[1] + STAGE_WIDTHS[-1] * num_classes
    if not isinstance(net, ConvNetSpec):
        return _measured_multiply_adds(net, channels, image_size)
    convolutions = sum(
        9 * in_channels * net.width * height * width
        for in_channels, (height, width) in _blocks(net, channels, image_size)
    )
    return convolutions + _num_features(net, image_size) * num_classes


def largest_map(net: nn.Module, channels: int, image_size: Size) -> int:
    """Numbers of the largest activation of one image's forward pass, by running it once on a blank image.

    Example:
        >>> largest_map(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)), 3, (8, 6))
        192
    """
    sizes = [0]

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel())

    hooks = [module.register_forward_hook(note) for module in net.modules()]
    try:
        _run_once(net, channels, image_size)
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)


def _halving(spec: ConvNetSpec, image_size: Size) -> tuple[list[bool], Size]:
    depth = spec.for_size(image_size).depth or 0
    return plan_halving(stem_size(image_size), [spec.pooling != "none"] * depth)


def _blocks(spec: ConvNetSpec, channels: int, image_size: Size) -> Iterator[tuple[int, Size]]:
    """Input channels and map size of every convolution."""
    in_channels, (height, width) = channels, stem_size(image_size)
    for half in _halving(spec, image_size)[0]:
        yield in_channels, (height, width)
        in_channels = spec.width
        height, width = (height // 2, width // 2) if half else (height, width)


def _num_features(spec: ConvNetSpec, image_size: Size) -> int:
    height, width = _halving(spec, image_size)[1]
    return spec.width * height * width


@functools.cache
def _before_classifier(
    cells: int, ones: int, threes: int, channels: int, image_size: Size
) -> tuple[int, int]:
    """Parameters and multiply-adds of a network of so many cells with so many 1x1 and 3x3 convolutions in each."""
    (height, width), narrow = image_size, STAGE_WIDTHS[0]
    parameters = weights = 9 * channels * narrow
    products, norms = weights * height * width, narrow
    for stage, wide in enumerate(STAGE_WIDTHS):
        weights = cells * (ones + 9 * threes) * wide * wide
        norms += cells * (ones + threes) * wide
        if stage:
            height, width = (height + 1) // 2, (width + 1) // 2
            weights += (
                9 * narrow * wide + 9 * wide * wide + narrow * wide
            )  # the last is the shortcut's, without a norm
            norms += 2 * wide
        parameters, products, narrow = parameters + weights, products + weights * height * width, wide
    return parameters + 2 * (norms + narrow), products  # the head begins with a norm


def _cell_counts(spec: CellSpec, channels: int, image_size: Size) -> tuple[int, int]:
    ones, threes = (spec.operations.count(name) for name in ("nor_conv_1x1", "nor_conv_3x3"))
    return _before_classifier(spec.cells, ones, threes, channels, tuple(image_size))


def _measured_multiply_adds(net: nn.Module, channels: int, image_size: Size) -> int:
    with FlopCounterMode(display=False) as counter:
        _run_once(net, channels, image_size)
    # torch counts a multiply-add as two operations.
    return counter.get_total_flops() // 2


@torch.no_grad()
def _run_once(net: nn.Module, channels: int, image_size: Size) -> None:
    parameter = next(net.parameters())
    training = net.training
    net.eval()
    try:
        net(torch.zeros(1, channels, *image_size, dtype=parameter.dtype, device=parameter.device))
    finally:
        net.train(training)
