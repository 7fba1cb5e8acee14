"""The real images as learners, memories and distillation see them: preprocessed, class by class, in Ray's store."""

# N images, C channels, H height, W width

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from apps.continual.lots import Lots
from apps.continual.stream import ClassStream
from atom.data import ImageSet, RealData
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from pipelines.output.store import Store
from pipelines.real_images import preprocessing, put_classes

ALL = "all"
"""Name of the preprocessing that all class orders share."""
PREPROCESSED_NAME = "views"
"""Directory, in an output, of the preprocessings of class orders that share none."""


@dataclass(frozen=True, eq=False)
class PreprocessedImages:
    """The images under one preprocessing.

    Attributes:
        tensors: Ray reference to the preprocessing's arrays by name.
        train: Ray reference to the training images of each lot, float32 [n, C, H, W].
        judged: the same for the images that accuracies are measured on.
    """

    tensors: Any
    train: Mapping[int, Any]
    judged: Mapping[int, Any]


class Preprocessed:
    """The images under one preprocessing for all class orders, or one for each: fitted at once, applied when asked for.

    Args:
        lots: all images, and which lot each is in.
        judged: name of those that accuracies are measured on, "test" or "validation".
        settings: resolved; whether to whiten, and how.
        streams: by class order.
        shared: whether all orders share one, fitted on all training images; else each is fitted on its first step.
        store: the output, which keeps what was fitted.
        cache: directory of whitenings.
    """

    def __init__(
        self,
        lots: Lots,
        judged: str,
        *,
        settings: DistillSettings,
        streams: Mapping[int, ClassStream],
        shared: bool,
        store: Store,
        cache: Path,
    ) -> None:
        self._lots, self._judged, self._shared = lots, judged, shared
        real = lots.real
        self._images: dict[str, PreprocessedImages] = {}
        if shared:
            self._fitted = {ALL: preprocessing(real, settings, store, cache)}
        else:
            self._fitted = {
                f"order{order}": preprocessing(
                    first_step(lots, stream),
                    settings,
                    store.inside(f"{PREPROCESSED_NAME}/order{order}"),
                    None,
                )
                for order, stream in streams.items()
            }
        self._digests = {name: fitted.digest for name, fitted in self._fitted.items()}

    def name(self, order: int) -> str:
        """Of the preprocessing of a class order."""
        return ALL if self._shared else f"order{order}"

    def preprocess(self, name: str) -> Preprocess:
        """A preprocessing, fitted."""
        return self._fitted[name]

    def digest(self, name: str) -> str:
        """Digest of the preprocessing's numbers."""
        return self._digests[name]

    def images(self, name: str) -> PreprocessedImages:
        """The images, put into Ray's store at the first call."""
        if name not in self._images:
            preprocess = self._fitted[name]
            by_lot = [
                put_classes(preprocess.apply(images.checked()).numpy(), lots_N, int(lots_N.max()) + 1)
                for images, lots_N in (
                    (self._lots.real.train, self._lots.train()),
                    (getattr(self._lots.real, self._judged), self._lots.judged(self._judged)),
                )
            ]
            self._images[name] = PreprocessedImages(ray.put(_arrays(preprocess)), *by_lot)
        return self._images[name]


def _arrays(preprocess: Preprocess) -> dict[str, np.ndarray]:
    return {part: tensor.contiguous().numpy() for part, tensor in sorted(preprocess.tensors().items())}


def first_step(lots: Lots, stream: ClassStream) -> RealData:
    """The source as far as the first step knows it: its classes alone, numbered from 0."""
    real, kept = lots.real, stream.steps[0]
    return real.with_images(
        _only(real.train, np.isin(lots.train(), kept)),
        _only(real.test, np.isin(real.test.labels, stream.classes_of(kept))),
    )


def _only(images: ImageSet, chosen_N: np.ndarray) -> ImageSet:
    rows = np.flatnonzero(chosen_N)
    kept, labels = np.unique(images.labels[rows], return_inverse=True)
    return ImageSet.create(images.images[rows], labels, tuple(images.class_names[c] for c in kept))


__all__ = ["ALL", "PREPROCESSED_NAME", "Preprocessed", "PreprocessedImages", "first_step"]
