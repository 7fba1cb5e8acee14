"""The real images as learners, memories and distillation see them: preprocessed, class by class, in Ray's store."""

# N images, C channels, H height, W width

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

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
        train: Ray reference to the training images of each class, float32 [n, C, H, W].
        judged: the same for the images that accuracies are measured on.
    """

    tensors: Any
    train: Mapping[int, Any]
    judged: Mapping[int, Any]


class Preprocessed:
    """The images under one preprocessing for all class orders, or one for each: fitted at once, applied when asked for.

    Args:
        real: all images.
        judged: those that accuracies are measured on.
        settings: resolved; whether to whiten, and how.
        streams: by class order.
        shared: whether all orders share one, fitted on all training images; else each is fitted on its first step.
        store: the output, which keeps what was fitted.
        cache: directory of whitenings.
    """

    def __init__(
        self,
        real: RealData,
        judged: ImageSet,
        *,
        settings: DistillSettings,
        streams: Mapping[int, ClassStream],
        shared: bool,
        store: Store,
        cache: Path,
    ) -> None:
        self._real, self._judged, self._shared = real, judged, shared
        self._images: dict[str, PreprocessedImages] = {}
        if shared:
            self._fitted = {ALL: preprocessing(real, settings, store, cache)}
        else:
            self._fitted = {
                f"order{order}": preprocessing(
                    first_step(real, stream),
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
            classes = [
                put_classes(preprocess.apply(part.images).numpy(), part.labels, part.num_classes)
                for part in (self._real.train, self._judged)
            ]
            self._images[name] = PreprocessedImages(ray.put(_arrays(preprocess)), *classes)
        return self._images[name]


def _arrays(preprocess: Preprocess) -> dict[str, np.ndarray]:
    return {part: tensor.contiguous().numpy() for part, tensor in sorted(preprocess.tensors().items())}


def first_step(real: RealData, stream: ClassStream) -> RealData:
    """The source as far as the first step knows it: its classes alone, numbered from 0."""
    return real.with_images(*(_only(part, stream.steps[0]) for part in (real.train, real.test)))


def _only(images: ImageSet, classes: tuple[int, ...]) -> ImageSet:
    kept = sorted(classes)
    rows = np.flatnonzero(np.isin(images.labels, kept))
    labels = np.searchsorted(kept, images.labels[rows])
    return ImageSet.create(images.images[rows], labels, tuple(images.class_names[c] for c in kept))


__all__ = ["ALL", "PREPROCESSED_NAME", "Preprocessed", "PreprocessedImages", "first_step"]
