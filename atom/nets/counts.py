"""Size and cost of a network: parameters, and multiply-adds of one image's forward pass."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atom.nets.shapes import Size, plan_halving, stem_size
from atom.nets.spec import ConvNetSpec


def count_parameters(
    net: nn.Module | ConvNetSpec, channels: int, image_size: Size, *, num_classes: int = 10
) -> int:
    """Number of parameters: of a network, by counting; of a `ConvNetSpec`, by arithmetic.

    A network has its sizes, and the other arguments are not read for it.

    Example:
        >>> count_parameters(ConvNetSpec(), 3, (32, 32))
        320010
    """
    if not isinstance(net, ConvNetSpec):
        return sum(parameter.numel() for parameter in net.parameters())
    total = (_num_features(net, image_size) + 1) * num_classes
    for in_channels, (height, width) in _blocks(net, channels, image_size):
        places = height * width if net.norm == "layer" else 1
        affine = 0 if net.norm == "none" else 2 * net.width * places
        total += (9 * in_channels + 1) * net.width + affine
    return total


def count_multiply_adds(
    net: nn.Module | ConvNetSpec, channels: int, image_size: Size, *, num_classes: int = 10
) -> int:
    """Multiply-adds of one image's forward pass in convolutions and matrix products; the rest is not counted.

    Of a `ConvNetSpec` by arithmetic; of a network by running it once on a blank image.

    Example:
        >>> count_multiply_adds(ConvNetSpec(), 3, (32, 32))
        50745344
    """
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
