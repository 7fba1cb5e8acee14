"""How the images of an epoch are cut into batches.

Shapes: N images, B images of a batch, C channels, H height, W width.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atom.errors import ConfigError
from atom.pixels import Images


def batches_of(order_N: np.ndarray, batch: int) -> list[np.ndarray]:
    """The rows of an epoch in its order, in as few batches as hold at most `batch` each, equal in size but for one row.

    A small rest would weigh as much as a whole batch: 130 images in batches of 64, 64 and 2 gave 72.0 ± 1.6 % where
    44, 43 and 43 gave 75.4 ± 1.0 (FashionMNIST, `benchmarks/last_batch.py`). Nor is a row left alone, which BatchNorm
    may refuse: in pairs, an odd number ends in three.

    Example:
        >>> [rows.tolist() for rows in batches_of(np.arange(5), 4)]
        [[0, 1, 2], [3, 4]]
    """
    return np.array_split(order_N, num_batches(len(order_N), batch))


def num_batches(num_images: int, batch: int) -> int:
    """Of an epoch, as `batches_of` cuts it.

    Example:
        >>> num_batches(5, 4), num_batches(5, 2), num_batches(5, 1)
        (2, 2, 5)
    """
    number = -(-num_images // batch)
    return number if batch == 1 else min(number, max(1, num_images // 2))


def own_parts(num_images: int, steps: int) -> list[np.ndarray]:
    """The rows of each step of an epoch, where a set brings its order; see `atom.settings.OwnTraining`.

    Of images that lie class by class, equally many of each class, every step gets equally many of each class if the
    number of steps divides theirs.

    Example:
        >>> [rows.tolist() for rows in own_parts(6, 2)]
        [[0, 2, 4], [1, 3, 5]]
    """
    return [np.arange(step, num_images, steps) for step in range(steps)]


def check_batches(net: nn.Module, images_NCHW: Images, batch: int) -> None:
    """Refuse batches of one image where BatchNorm does, as it gets a single value a channel.

    Elsewhere a batch of one stays what it is. The network, the images and torch's generators are left as they are.

    Raises:
        ConfigError: there is one image only, or `batch` is 1.
    """
    num_images = len(images_NCHW)
    if min(num_images, batch) > 1 or not _refuses_one_image(net, images_NCHW):
        return
    todo = "a batch size of at least 2" if num_images > 1 else "more images"
    raise ConfigError(
        f"training: a batch holds one of {num_images} images, and a BatchNorm of the network sees one value a channel"
        f" of it; pass {todo}, or another network."
    )


@torch.no_grad()
def _refuses_one_image(net: nn.Module, images_NCHW: Images) -> bool:
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
