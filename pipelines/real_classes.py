"""The real images of each class in Ray's object store, for as long as somebody works at them."""

# N images, C channels, H height, W width, K classes

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from atom.data import ImageSet
from atom.errors import ClusterError
from atom.pixels import Pixels
from atom.preprocess import Preprocess
from pipelines.workers.cluster import spill_folder


class RealClasses(Mapping[int, Any]):
    """A Ray reference to the images of a class, which are put into the store anew whenever it is asked for.

    A group of classes is distilled from its own images alone, for all its iterations. So the store holds those of the
    groups in work, whoever works at one keeps its references meanwhile, and memory does not grow with the number of
    classes.

    Where images are mapped from a file, each class is compared with what was decoded before it is put: a file that
    somebody changed is refused instead of distilled.

    They are put as `Pixels`, which the worker preprocesses. Whitened ones are put as float32: their bits depend on
    which images are whitened together, so that it is done here, once for all.

    Args:
        images: the training images.
        preprocess: fitted on them.

    Attributes:
        read_bytes: of the images of classes that were asked for, as pixels.
    """

    def __init__(self, images: ImageSet, preprocess: Preprocess) -> None:
        self._images, self._preprocess = images, preprocess
        self.read_bytes = 0

    def __getitem__(self, class_id: int) -> Any:
        if class_id not in range(len(self)):
            raise KeyError(class_id)
        self.read_bytes += len(self._images.indices_of(class_id)) * math.prod(self._images.images.shape[1:])
        if self._preprocess.zca is not None:
            return self._put(class_id, self._of_class(class_id))
        return self._put(class_id, Pixels(self._images.of_class(class_id), self._preprocess))

    def __contains__(self, class_id: object) -> bool:
        # Mapping's own asks for the item, and so would put it.
        return class_id in range(len(self))

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return self._images.num_classes

    @cached_property
    def whole(self) -> Mapping[int, Any]:
        """All classes, float32 [n, C, H, W], in the store from now on: all workers of a node read the same copy."""
        return {class_id: self._put(class_id, self._of_class(class_id)) for class_id in self}

    @cached_property
    def preprocessed(self) -> np.ndarray:
        """All images preprocessed, float32 [N, C, H, W] in the order of the set, in this process from now on."""
        return self._preprocess.apply(self._images.checked()).numpy()

    @cached_property
    def rows(self) -> Pixels | np.ndarray:
        """All images to be had by rows, preprocessed when they are asked for where that can be."""
        if self._preprocess.zca is not None:
            return self.preprocessed
        return Pixels(self._images.checked(), self._preprocess)

    def _put(self, class_id: int, images: "np.ndarray | Pixels") -> Any:
        try:
            return ray.put(images)
        except (ObjectStoreFullError, OutOfDiskError) as error:
            stored = images.images_NCHW if isinstance(images, Pixels) else images
            raise ClusterError(
                f"The images of class {self._images.class_names[class_id]!r}, {stored.nbytes / 1e6:.3g} MB, find no"
                " room in Ray's object store, nor on the disk that it spills to"
                f" ({spill_folder() or 'nobody tells where'}); free some space there, or set RAY_TMPDIR to a folder"
                " on another disk before Ray starts."
            ) from error

    def _of_class(self, class_id: int) -> np.ndarray:
        if self._preprocess.zca is not None:
            return self.preprocessed[self._images.indices_of(class_id)]
        return self._preprocess.apply(self._images.of_class(class_id)).numpy()


def whole(real: Mapping[int, Any]) -> Mapping[int, Any]:
    """References to all classes, as work that reads them all takes them."""
    return real.whole if isinstance(real, RealClasses) else real


__all__ = ["RealClasses", "whole"]
