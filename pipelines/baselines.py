"""Coresets of equal storage: what a distilled set is measured against."""

# N images, C channels, H height, W width, K classes

from collections.abc import Sequence

import numpy as np
import torch

from atom import coreset
from atom.embedding import coreset_features
from atom.pixels import Pixels
from pipelines.evaluation import SmallSet

MANY_CLASSES = 200
"""From more classes on random images alone stand beside a set, unless others are asked for. Chosen: as many as
TinyImageNet has; herding and k-center look at every training image, in the driver, while all workers wait."""


def usual(num_classes: int) -> tuple[str, ...]:
    """Coresets beside a set of so many classes where nobody named any."""
    return coreset.METHODS if num_classes <= MANY_CLASSES else ("random",)


def note_on(num_classes: int) -> list[str]:
    """A note where `usual` leaves some out."""
    if num_classes <= MANY_CLASSES:
        return []
    return [
        f"beside a set of {num_classes} classes stand random images alone; herding and kcenter, which look at all"
        " training images in the driver, if --baselines names them."
    ]


def coresets(
    methods: Sequence[str],
    white_NCHW: np.ndarray | Pixels,
    labels_N: np.ndarray,
    *,
    ipc: int | Sequence[int],
    num_classes: int,
    seed: int,
    seeds: Sequence[int],
    network: str = "convnet",
) -> list[SmallSet]:
    """Coresets of `ipc` real images a class, or of so many of each: the same storage as a distilled set like that.

    Herding and k-center choose in the embedding of one random network, see `atom.embedding.coreset_features`; they are
    one set for all training seeds. Random is drawn anew for each seed, so its spread holds that of the draw.

    Args:
        methods: names of `atom.coreset.METHODS`.
        white_NCHW, labels_N: the preprocessed training images, of which a class is asked for at a time.
        ipc, num_classes: size of the coreset; several numbers are one a class, 0 among them.
        seed: of the run; decides the features and the draws.
        seeds: training seeds to draw random coresets for.
        network: whose random features are used.
    """
    features_ND = np.zeros((len(labels_N), 1), dtype=np.float32)
    if set(methods) - {"random"}:
        parts = {c: np.flatnonzero(labels_N == c) for c in range(num_classes)}
        found = {
            c: coreset_features(
                torch.as_tensor(white_NCHW[rows]), num_classes=num_classes, seed=seed, network=network
            )
            for c, rows in parts.items()
            if len(rows)
        }
        features_ND = np.zeros((len(labels_N), next(iter(found.values())).shape[1]), dtype=np.float32)
        for c, features in found.items():
            features_ND[parts[c]] = features

    def draw(method: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rows = coreset.select_per_class(
            method, features_ND, labels_N, ipc=ipc, num_classes=num_classes, seed=seed
        )
        return np.asarray(white_NCHW[rows]), labels_N[rows]

    sets, stored = [], ipc * num_classes if isinstance(ipc, int) else sum(ipc)
    for method in methods:
        draws: dict[int | None, tuple[np.ndarray, np.ndarray]] = {}
        if method == "random":
            for s in seeds:
                draws[s] = draw(method, coreset.draw_seed(seed, s))
        else:
            draws[None] = draw(method, seed)
        sets.append(SmallSet(method, draws, stored_images=stored))
    return sets
