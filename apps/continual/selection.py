"""Which images of a class a memory keeps, and in which order: a prefix is the choice of that smaller size."""

# N images, C channels, H height, W width, D features, M = N*factor**2 decoded images

import numpy as np
import torch
from torch import Tensor

from apps.continual.exemplars import Exemplars, Storage
from atom import coreset, formation
from atom.embedding import embed
from atom.errors import ConfigError
from atom.preprocess import Preprocess
from atom.settings import Precision
from atom.streams import stream

KINDS = coreset.METHODS
"""Memories of real images by class: random, herding, kcenter."""


def select(
    kind: str,
    white_NCHW: Tensor,
    *,
    number: int,
    seed: int,
    class_id: int,
    network: str = "convnet",
    device: torch.device | None = None,
    precision: Precision = "float32",
) -> np.ndarray:
    """Rows of the images of one class to keep, int64, most important first.

    The choice of a smaller number is a prefix of the choice of a larger one, with every kind: herding and
    k-center take one image after the other, and random takes the beginning of one permutation.

    Args:
        kind: one of KINDS.
        white_NCHW: preprocessed training images of the class, float32.
        number: 1 or more; all images, in order, if the class has fewer.
        seed: of the network of random weights that embeds the images, the same for all classes, and of the
            permutation, stream "continual/random" counted by class.
        class_id: the class.
        network, device, precision: of the embedding, see `atom.embedding.embed`; random needs none. The default
            precision is float32, because "auto" would let the machine decide the memory.

    Raises:
        ConfigError: unknown kind, or a number below 1.
    """
    if kind not in KINDS:
        raise ConfigError(f"memory of kind {kind!r} selects no images; known are {', '.join(KINDS)}.")
    if number < 1:
        raise ConfigError(f"memory selection of {number} images for class {class_id}; ask for 1 or more.")
    number = min(number, len(white_NCHW))
    if kind == "random":
        # Not `rng.choice`: its draw of a smaller number is no prefix of its draw of a larger one.
        return _permutation(len(white_NCHW), seed=seed, class_id=class_id)[:number]
    features_ND = _embed(white_NCHW, network, seed=seed, device=device, precision=precision)
    return coreset.select(kind, features_ND, count=number)


def random_places(num_images: int, *, seed: int, class_id: int) -> np.ndarray:
    """Place of each image of a class in the order of the kind "random", int64 [N]: smaller ones are kept longer.

    Example:
        >>> rows = select("random", torch.zeros(5, 1, 2, 2), number=5, seed=0, class_id=3)
        >>> random_places(5, seed=0, class_id=3)[rows].tolist()
        [0, 1, 2, 3, 4]
    """
    return np.argsort(_permutation(num_images, seed=seed, class_id=class_id))


def _permutation(num_images: int, *, seed: int, class_id: int) -> np.ndarray:
    return stream(seed, "continual/random", 0, class_id).permutation(num_images)


def order_distilled(
    white_NCHW: Tensor,
    *,
    seed: int,
    factor: int = 1,
    network: str = "convnet",
    device: torch.device | None = None,
    precision: Precision = "float32",
) -> np.ndarray:
    """All rows of the distilled images of one class, int64, in the order in which a memory keeps them.

    The herding order in the embedding of one random network: each image is the one that brings the mean of
    those so far closest to the mean of all. Distillation matched the mean of the real images, so a prefix
    stands for it as well as its size allows. This is the rule by which distilled memories shrink. Chosen.

    Args:
        white_NCHW: stored images, preprocessed, float32.
        seed: of the random network, the same as in `select`.
        factor: of the stored images; one is embedded as the mean of its decoded ones.
        network, device, precision: of the embedding, see `atom.embedding.embed`.
    """
    white_MCHW = formation.decode(white_NCHW, factor)
    features_MD = _embed(white_MCHW, network, seed=seed, device=device, precision=precision)
    features_ND = features_MD.reshape(len(white_NCHW), factor**2, -1).mean(axis=1)
    return coreset.select("herding", features_ND, count=len(features_ND))


def keep_distilled(
    white_NCHW: Tensor,
    storage: Storage,
    *,
    preprocess: Preprocess,
    seed: int,
    factor: int = 1,
    soft_NK: Tensor | None = None,
    network: str = "convnet",
    device: torch.device | None = None,
    precision: Precision = "float32",
) -> Exemplars:
    """The distilled images of one class as a memory keeps them: in the order of `order_distilled`, as stored.

    Args:
        storage, preprocess: see `Exemplars.from_white`.
        soft_NK: soft labels of the images, which go with them, or None.
        white_NCHW, seed, factor, network, device, precision: see `order_distilled`.

    Raises:
        DataError, ShapeError: images whose embedding or stored form is not finite.
    """
    order_N = order_distilled(
        white_NCHW, seed=seed, factor=factor, network=network, device=device, precision=precision
    )
    ordered_NCHW = white_NCHW[torch.from_numpy(order_N)]
    soft = None if soft_NK is None else soft_NK.numpy()[order_N]
    return Exemplars.from_white(ordered_NCHW, storage, preprocess=preprocess, factor=factor, soft_NK=soft)


def _embed(
    white_NCHW: Tensor, network: str, *, seed: int, device: torch.device | None, precision: Precision
) -> np.ndarray:
    # The head, whose size the classes decide, is not used; 2 keeps the features free of how many there are.
    features_ND = embed(white_NCHW, network, num_classes=2, seed=seed, device=device, precision=precision)
    return features_ND.double().numpy()


__all__ = ["KINDS", "keep_distilled", "order_distilled", "random_places", "select"]
