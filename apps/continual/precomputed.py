"""A distilled set from disk as the memory of a stream: checked, brought to the run's space, and ordered."""

# N stored images, C channels, H height, W width

from collections.abc import Sequence

import torch
from torch import Tensor

from apps.continual.exemplars import Exemplars, Storage
from apps.continual.selection import keep_distilled
from atom.distilled import DistilledSet
from atom.errors import ConfigError
from atom.preprocess import Preprocess
from atom.settings import Precision


def from_distilled(
    distilled: DistilledSet,
    classes: Sequence[int],
    *,
    storage: Storage,
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    preprocess: Preprocess,
    seed: int,
    network: str = "convnet",
    device: torch.device | None = None,
    precision: Precision = "float32",
) -> dict[int, Exemplars]:
    """Exemplars of each of `classes`, in the order of `order_distilled`, with their soft labels if there are any.

    Args:
        distilled: its `ipc` is how many stored images a class has; a memory cannot get more.
        classes: labels to take, such as those of a step.
        storage: see `exemplars.STORAGES`.
        class_names, image_shape: of the real images of the stream; the shape is (C, H, W).
        preprocess: of the run. Images of a set with another one are brought to it without loss.
        seed, network, device, precision: see `order_distilled`.

    Raises:
        ConfigError: other classes, another image shape, a class that the set has not, or a whitening that cannot be
            changed because a stored image holds several smaller ones.
    """
    if distilled.class_names != tuple(class_names):
        raise ConfigError(
            f"the distilled set has the classes {_few(distilled.class_names)}, but the stream has"
            f" {_few(class_names)}; pass a set distilled from the same source."
        )
    shape = tuple(distilled.images_NCHW.shape[1:])
    if shape != tuple(image_shape):
        raise ConfigError(
            f"the distilled set has images of {_times(shape)}, but the stream has {_times(image_shape)} (channels x"
            " height x width); pass a set of that shape, or --image-size."
        )
    white_NCHW = _to_space(distilled, preprocess)
    exemplars = {}
    for class_id in classes:
        rows = torch.nonzero(distilled.labels == class_id).flatten()
        if not len(rows):
            raise ConfigError(f"the distilled set has no images of class {class_id}.")
        white_nCHW = white_NCHW[rows]
        exemplars[class_id] = keep_distilled(
            white_nCHW,
            storage,
            preprocess=preprocess,
            seed=seed,
            factor=distilled.factor,
            soft_NK=None if distilled.soft_labels is None else distilled.soft_labels[rows],
            network=network,
            device=device,
            precision=precision,
        )
    return exemplars


def _to_space(distilled: DistilledSet, preprocess: Preprocess) -> Tensor:
    """The stored images as the run's preprocessing would have made them; pixels are not clipped on the way."""
    own = distilled.preprocess
    if _same(own, preprocess):
        return distilled.images_NCHW
    if distilled.factor > 1 and (own.zca is not None or preprocess.zca is not None):
        # Whitening mixes all pixels of an image, so it does not commute with cutting the grid into tiles.
        raise ConfigError(
            f"the distilled set has factor {distilled.factor} and another ZCA whitening than this run, which cannot"
            " be exchanged under a grid of smaller images; pass a set with factor 1, or one distilled from the same"
            " training images, since the whitening is fitted on them."
        )
    return preprocess.apply_unbounded(own.invert(distilled.images_NCHW))


def _same(one: Preprocess, other: Preprocess) -> bool:
    ones, others = one.tensors(), other.tensors()
    return ones.keys() == others.keys() and all(torch.equal(ones[name], others[name]) for name in ones)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown}, ... ({len(names)})" if len(names) > 4 else shown


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


__all__ = ["from_distilled"]
