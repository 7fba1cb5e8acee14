"""Features of images under one random network: what herding and k-center measure distances in."""

# N images, C channels, H height, W width, D features

import numpy as np
import torch
from torch import Tensor

from atom import nets
from atom.device import autocast, resolve_precision, use_threads
from atom.settings import Precision
from atom.streams import stream


@torch.no_grad()
def embed(
    images_NCHW: Tensor,
    network: str = "convnet",
    *,
    num_classes: int,
    seed: int,
    device: torch.device | None = None,
    batch: int = 100,
    precision: Precision = "float32",
) -> Tensor:
    """Embeddings after the network's last block, for one draw of its random weights.

    DEVIATION(DC, DM): the published coresets used features of networks trained on the whole real set, which
    costs more than the distillation they are compared with; random features need no training. Chosen.

    Args:
        images_NCHW: preprocessed images, float32.
        network: a name `atom.nets.build` knows.
        num_classes: for the network's head, which is not used.
        seed: of the weights, stream "coreset/weights".
        device: where to compute; default CPU.
        batch: images a forward pass.
        precision: arithmetic of the network; "auto" depends on the machine, and so do the features then.

    Returns:
        [N, D], float32, on the CPU.
    """
    device = device or torch.device("cpu")
    channels, height, width = images_NCHW.shape[1:]
    net = nets.build(network, channels=channels, image_size=(height, width), num_classes=num_classes)
    net = nets.require_blocks(net, network)
    nets.fill_weights(net, stream(seed, "coreset/weights"))
    # As in evaluation: eager instance norm on a CPU is slow in channels_last, and its cache holds few images.
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    net = net.eval().to(device).to(memory_format=layout)
    parts = []
    with autocast(device, resolve_precision(precision, device)):
        for part in images_NCHW.split(batch):
            _, features_ND = net.blocks(part.to(device, memory_format=layout))
            parts.append(features_ND.float().cpu())
    return torch.cat(parts)


THREADS = 4
"""CPU threads that a coreset's features are computed on. Chosen: a minute for CIFAR-10, and no burden for two cores."""


def coreset_features(
    images_NCHW: Tensor, *, num_classes: int, seed: int, network: str = "convnet"
) -> np.ndarray:
    """Features [N, D] in which herding and k-center choose of one class, whichever command asks.

    On the CPU, in float32, on a fixed number of threads: another machine would choose other images otherwise.

    Args:
        images_NCHW: all training images of the class, preprocessed, float32, on the CPU.
        num_classes, seed, network: see `embed`.
    """
    with use_threads(THREADS):
        return embed(images_NCHW, network, num_classes=num_classes, seed=seed).numpy()
