"""Coresets of equal storage: what a distilled set is measured against."""

# N images, C channels, H height, W width, K classes

from collections.abc import Sequence

import numpy as np
import torch

from atom import coreset
from atom.device import use_threads
from atom.embedding import embed
from pipelines.evaluation import SmallSet

THREADS = 4
"""CPU threads that features are computed on. Chosen: a minute for CIFAR-10, and no burden for two cores."""


def coresets(
    methods: Sequence[str],
    white_NCHW: np.ndarray,
    labels_N: np.ndarray,
    *,
    ipc: int,
    num_classes: int,
    seed: int,
    seeds: Sequence[int],
    network: str = "convnet",
) -> list[SmallSet]:
    """Coresets of `ipc` real images a class: the same storage as a distilled set of that ipc.

    Herding and k-center choose in the embedding of one random network; they are one set for all training
    seeds. It is computed on the CPU, in float32, on a fixed number of threads: another machine would be measured
    against other images otherwise. Random is drawn anew for each seed, so its spread holds that of the draw.

    Args:
        methods: names of `atom.coreset.METHODS`.
        white_NCHW, labels_N: the preprocessed training images.
        ipc, num_classes: size of the coreset.
        seed: of the run; decides the features and the draws.
        seeds: training seeds to draw random coresets for.
        network: whose random features are used.
    """
    features_ND = np.zeros((len(labels_N), 1), dtype=np.float32)
    if set(methods) - {"random"}:
        images = torch.from_numpy(white_NCHW)
        with use_threads(THREADS):
            features_ND = embed(images, network, num_classes=num_classes, seed=seed).numpy()

    def draw(method: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rows = coreset.select_per_class(
            method, features_ND, labels_N, ipc=ipc, num_classes=num_classes, seed=seed
        )
        return white_NCHW[rows], labels_N[rows]

    sets = []
    for method in methods:
        draws: dict[int | None, tuple[np.ndarray, np.ndarray]] = {}
        if method == "random":
            # Distinct run seeds far apart, so that no draw of one run is a draw of the next.
            for s in seeds:
                draws[s] = draw(method, 1000 * seed + s)
        else:
            draws[None] = draw(method, seed)
        sets.append(SmallSet(method, draws, stored_images=ipc * num_classes))
    return sets
