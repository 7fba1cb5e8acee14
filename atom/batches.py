"""How the images of an epoch are cut into batches.

Shapes: N images, B images of a batch, C channels, H height, W width.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atom.errors import ConfigError


def batches_of(order_N: np.ndarray, batch: int, *, pairs: bool) -> Iterator[np.ndarray]:
    """The rows of an epoch in its order, a batch at a time; with `pairs` a last batch of one has the first row too.

    Example:
        >>> [rows.tolist() for rows in batches_of(np.arange(5), 2, pairs=True)]
        [[0, 1], [2, 3], [4, 0]]
    """
    for start in range(0, len(order_N), batch):
        rows_B = order_N[start : start + batch]
        yield np.append(rows_B, order_N[0]) if pairs and len(rows_B) == 1 else rows_B


def needs_pairs(net: nn.Module, images_NCHW: Tensor, batch: int) -> bool:
    """Whether an epoch ends in a batch of one image that BatchNorm refuses, as it gets a single value a channel.

    Elsewhere a batch of one stays what it is. The network, the images and torch's generators are left as they are.

    Raises:
        ConfigError: no batch has a second image.
    """
    num_images = len(images_NCHW)
    if (num_images % batch != 1 and batch != 1) or not _refuses_one_image(net, images_NCHW):
        return False
    if min(num_images, batch) == 1:
        raise ConfigError(
            f"training: batches of {batch} from {num_images} images hold one image each, and a BatchNorm of the"
            " network sees one value a channel of it; pass a batch of at least 2, or another network."
        )
    return True


@torch.no_grad()
def _refuses_one_image(net: nn.Module, images_NCHW: Tensor) -> bool:
    found: list[bool] = []

    def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].numel() == inputs[0].size(1))

    modes = [(module, module.training) for module in net.modules()]
    norms = [module for module, _ in modes if isinstance(module, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    device = images_NCHW.device
    net.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if norms:
                net(images_NCHW[:1])
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return any(found)
