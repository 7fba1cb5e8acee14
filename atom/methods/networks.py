"""Networks whose gradients are differentiated again: building them, and which do not suit."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from atom import nets
from atom.errors import ConfigError
from atom.methods.method import Shape
from atom.methods.settings import DistillSettings

SMALLEST_MAP = 4
"""Positions of a map whose InstanceNorm leaves gradients of hardly trained networks mostly noise. Measured by dsa on
digits, a ConvNet of three blocks, the last on maps of 2x2: 22 %; of two blocks, or without pooling, 90 %; real images
70 %. rat-bptt: the loss on real images stays at that of guessing."""

log = logging.getLogger(__name__)


def network_of(settings: DistillSettings, shape: Shape) -> nn.Module:
    """The network of the settings, its weights as they come.

    In evaluation mode: dropout would draw from a global generator.
    DEVIATION(DC's code): the published loops leave dropout active.
    """
    size = (shape.height, shape.width)
    net = nets.build(
        settings.network, channels=shape.channels, image_size=size, num_classes=shape.num_classes
    )
    return net.eval().requires_grad_(True)


@torch.no_grad()
def warn_of_small_maps(settings: DistillSettings, shape: Shape) -> None:
    """Say so where the network normalises maps too small for its gradients to mean anything before it is trained."""
    net, positions = network_of(settings, shape), []

    def look(norm: nn.GroupNorm, inputs: tuple[Tensor, ...]) -> None:
        positions.append(inputs[0].numel() // norm.num_groups)

    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(look)
    net(torch.zeros(1, shape.channels, shape.height, shape.width))
    if min(positions, default=SMALLEST_MAP + 1) <= SMALLEST_MAP:
        log.warning(
            "--network %s: its InstanceNorm sees maps of %d pixels, of which %s makes images worse than random ones;"
            " pass one of fewer blocks, such as convnet-d2, and judge by any with --eval-networks.",
            settings.network,
            min(positions),
            settings.method,
        )


def twice_differentiable() -> AbstractContextManager[object]:
    """Within, attention takes the one form whose gradient can be differentiated again."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def tried_twice(settings: DistillSettings) -> Iterator[None]:
    """Within, the network of the settings is differentiated twice on trial, before any worker starts.

    Raises:
        ConfigError: that fails.
    """
    try:
        with twice_differentiable(), torch.enable_grad():
            yield
    except RuntimeError as error:
        raise ConfigError(
            f"--network {settings.network}: {settings.method} differentiates the network twice, which fails:"
            f" {' '.join(str(error).split())[:200]}; pass another network."
        ) from error


__all__ = ["SMALLEST_MAP", "network_of", "tried_twice", "twice_differentiable", "warn_of_small_maps"]
