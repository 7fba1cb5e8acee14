"""The loss of images after a training on a tiny set: what a network knows about images that it has never seen."""

# N training images, T images asked about, C channels, H height, W width, K classes

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from atom import nets
from atom.device import deterministic, use_threads
from atom.evaluate import start_seed
from atom.settings import EvaluateSettings
from atom.streams import stream
from atom.train import compute_dtype, predict, train_network


def losses_after_training(
    train_NCHW: Tensor,
    targets: Tensor,
    *,
    asked_TCHW: Tensor,
    asked_labels_T: Tensor,
    network: str,
    num_classes: int,
    seed: int,
    settings: EvaluateSettings,
    device: torch.device,
    threads: int,
) -> np.ndarray:
    """Cross-entropy of every image, float32 [T], after one training as evaluation trains.

    Args:
        train_NCHW: the tiny set, decoded and preprocessed, float32.
        targets: its labels int64 [N], or class probabilities float [N, K].
        asked_TCHW: real images, float32, preprocessed in the same way.
        asked_labels_T: their classes, int64.
        network: a name `atom.nets.build` knows.
        num_classes: K.
        seed: of the weights, the order and the augmentation; equal seeds of `atom.evaluate` train the same network.
        settings: of the training, resolved.
        device, threads: where to compute, and on how many CPU threads.

    Raises:
        NotFiniteError: the training diverged.
        ConfigError: the network is unknown or does not fit the images.
    """
    channels, height, width = train_NCHW.shape[1:]
    build = partial(
        nets.build, network, channels=channels, image_size=(height, width), num_classes=num_classes
    )
    with use_threads(threads), deterministic(device):
        net = nets.begin(
            build,
            stream(start_seed(settings, seed), "evaluate/weights"),
            own=nets.is_own(network),
            initial_weights=settings.initial_weights,
        )
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        net = net.to(device).to(memory_format=layout)
        train_network(net, train_NCHW.to(device), targets.to(device), settings=settings, seed=seed)
        logits_TK = predict(net, asked_TCHW.to(device), dtype=compute_dtype(settings))
    return cross_entropy(logits_TK, asked_labels_T.long(), reduction="none").numpy()
