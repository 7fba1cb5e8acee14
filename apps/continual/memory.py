"""The memory of a stream: images of every class that has arrived, few enough to keep.

`Memory` keeps a number of images of every class, `Reservoir` a uniform sample of all that came. Both give a
learner the same contents: by class, within a class by importance. What a class loses it loses at the end, so
an image is known for good by its class and its place there, as long as it is kept. A class that comes in parts is
several here, its lots, see `apps.continual.stream`.
"""

# N stored images, M decoded images, C channels, H height, W width

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from apps.continual.exemplars import STORAGES, Exemplars, Storage, as_pixels, image_bytes
from apps.continual.precomputed import from_distilled
from apps.continual.saved import pack, unpack
from apps.continual.selection import KINDS, keep_distilled, order_distilled, select
from atom import formation
from atom.errors import ConfigError, ShapeError
from atom.preprocess import Preprocess
from atom.streams import stream


class Memory:
    """Exemplars by class; `add` and `shrink` change it in place. An empty one is the memory "none"."""

    def __init__(self, exemplars: Mapping[int, Exemplars] | None = None) -> None:
        self._exemplars: dict[int, Exemplars] = {}
        for class_id, kept in (exemplars or {}).items():
            self.add(class_id, kept)

    def add(self, class_id: int, exemplars: Exemplars) -> None:
        """Take the exemplars of a class that has just arrived.

        Raises:
            ConfigError: the class is there already.
            ShapeError: images of another shape than those of the other classes.
        """
        if class_id in self._exemplars:
            raise ConfigError(
                f"memory: class {class_id} is there already; a class arrives at one step of a stream."
            )
        shape = exemplars.images_NCHW.shape[1:]
        for other_id, other in self._exemplars.items():
            if other.images_NCHW.shape[1:] != shape:
                raise ShapeError(
                    f"memory: images of class {class_id} have shape {shape}, those of class {other_id}"
                    f" {other.images_NCHW.shape[1:]}; expected one shape."
                )
        self._exemplars[class_id] = exemplars

    def replace(self, class_id: int, exemplars: Exemplars) -> None:
        """Put other exemplars in the place of those of a class, such as those joined with what came of it again."""
        del self._exemplars[class_id]
        self.add(class_id, exemplars)

    def shrink(self, quota: int) -> None:
        """Keep the first `quota` >= 0 images of every class: the least important ones go, of all classes alike.

        Raises:
            ConfigError: a negative quota.
        """
        if quota < 0:
            raise ConfigError(f"memory: a quota of {quota} images a class; expected 0 or more.")
        for class_id in self.classes:
            self._cut(class_id, quota)

    def _cut(self, class_id: int, number: int) -> None:
        if self[class_id].num_images > number:
            self._exemplars[class_id] = self[class_id].head(number)

    def contents(self, preprocess: Preprocess) -> tuple[Tensor, Tensor] | None:
        """What a learner trains on: images float32 [M, C, H, W], preprocessed, and labels int64 [M].

        By ascending class, then by importance; the decoded images of one stored image are consecutive.
        None if there are no images.
        """
        kept = [(class_id, self[class_id]) for class_id in self.classes if self[class_id].num_images]
        if not kept:
            return None
        images = [exemplars.white(preprocess) for _, exemplars in kept]
        labels = [
            torch.full((len(part),), class_id) for (class_id, _), part in zip(kept, images, strict=True)
        ]
        return torch.cat(images), torch.cat(labels)

    def soft_targets(self, num_classes: int) -> Tensor | None:
        """Probabilities float32 [M, K] of the images of `contents`, where a class has soft labels; else None.

        A class without them has its own at 1.
        """
        kept = [(class_id, self[class_id]) for class_id in self.classes if self[class_id].num_images]
        if all(exemplars.soft_NK is None for _, exemplars in kept):
            return None
        parts = []
        for class_id, exemplars in kept:
            soft_NK = torch.zeros(exemplars.num_images, num_classes)
            soft_NK[:, class_id % num_classes] = 1
            if exemplars.soft_NK is not None:
                soft_NK = torch.from_numpy(exemplars.soft_NK)
            parts.append(formation.label_decoded(soft_NK, exemplars.factor))
        return torch.cat(parts)

    def __getitem__(self, class_id: int) -> Exemplars:
        return self._exemplars[class_id]

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes that have been added, ascending; one may have lost all its images."""
        return tuple(sorted(self._exemplars))

    @property
    def num_images(self) -> int:
        """Stored images, whatever their factor."""
        return sum(kept.num_images for kept in self._exemplars.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the images as stored, and of soft labels; classes and file headers are not counted."""
        return sum(kept.num_bytes for kept in self._exemplars.values())

    def to_bytes(self) -> bytes:
        """Everything, as a safetensors file; equal memories give equal bytes."""
        return pack("memory", self._exemplars)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Memory":
        """The inverse of `to_bytes`.

        Raises:
            ArtifactError: the bytes are damaged, or not those of a memory by class.
        """
        return cls(unpack(data, "memory").exemplars)


class Reservoir:
    """A uniform sample without replacement of all images added so far; the interface of `Memory`.

    Every image draws a random number from its class's stream; those with the smallest ones are kept. So the
    sample does not depend on the order of the classes, and one that was dropped could never return.
    Algorithm R (Vitter, 1985) draws from the same distribution, but its places move. By class the images are
    in the order of their numbers.

    Args:
        capacity: images altogether, 1 or more, see `Budget.capacity`.
        seed: of the numbers, stream "continual/reservoir" counted by class.
        compress: whether images are kept as lossless files, see `Exemplars.compressed`.
        max_bytes: of all of them as stored; the first that does not fit ends the sample, which no later one enters.
    """

    def __init__(
        self, capacity: int, *, seed: int, compress: bool = False, max_bytes: int | None = None
    ) -> None:
        if capacity < 1:
            raise ConfigError(f"reservoir of {capacity} images; expected 1 or more.")
        self.capacity, self.seed, self.compress, self.max_bytes = capacity, seed, compress, max_bytes
        self._memory = Memory()
        self._keys: dict[int, np.ndarray] = {}
        self._end = 1.0

    def add(self, class_id: int, exemplars: Exemplars) -> None:
        """Take part of all images of a class that has just arrived; others leave for them.

        Raises:
            ConfigError, ShapeError: as `Memory.add`.
        """
        keys_N = self.draw(class_id, exemplars.num_images)
        rows = np.argsort(keys_N, kind="stable")[: self.capacity]
        rows = rows[keys_N[rows] < self._end]
        kept = exemplars.at(rows)
        if self.compress:
            kept = kept.compressed(self.max_bytes)
        if kept.num_images < len(rows):
            self._end = float(keys_N[rows[kept.num_images]])
        self._memory.add(class_id, kept)
        self._keys[class_id] = keys_N[rows[: kept.num_images]]
        self._drop()

    def draw(self, class_id: int, number: int) -> np.ndarray:
        """The random numbers of all images of a class, float64 [number], in [0, 1)."""
        return stream(self.seed, "continual/reservoir", 0, class_id).random(number)

    def keys_of(self, class_id: int) -> np.ndarray:
        """The random numbers of the images of a class that are kept, ascending."""
        return self._keys[class_id]

    def contents(self, preprocess: Preprocess) -> tuple[Tensor, Tensor] | None:
        """As `Memory.contents`."""
        return self._memory.contents(preprocess)

    def soft_targets(self, num_classes: int) -> Tensor | None:
        """As `Memory.soft_targets`."""
        return self._memory.soft_targets(num_classes)

    def __getitem__(self, class_id: int) -> Exemplars:
        return self._memory[class_id]

    @property
    def classes(self) -> tuple[int, ...]:
        """As `Memory.classes`."""
        return self._memory.classes

    @property
    def num_images(self) -> int:
        """As `Memory.num_images`."""
        return self._memory.num_images

    @property
    def num_bytes(self) -> int:
        """As `Memory.num_bytes`; the random numbers are not counted."""
        return self._memory.num_bytes

    def to_bytes(self) -> bytes:
        """Everything, as a safetensors file; equal reservoirs give equal bytes."""
        exemplars = {class_id: self[class_id] for class_id in self.classes}
        return pack(
            "reservoir",
            exemplars,
            keys=self._keys,
            capacity=self.capacity,
            seed=self.seed,
            compress=self.compress,
            max_bytes=self.max_bytes,
            end=self._end,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Reservoir":
        """The inverse of `to_bytes`.

        Raises:
            ArtifactError: the bytes are damaged, or not those of a reservoir.
        """
        saved = unpack(data, "reservoir")
        end = saved.header.pop("end")
        reservoir = cls(**saved.header)
        reservoir._memory, reservoir._keys, reservoir._end = Memory(saved.exemplars), saved.keys, end
        return reservoir

    def _drop(self) -> None:
        classes = np.array(self.classes)
        owners_N = np.repeat(classes, [len(self._keys[class_id]) for class_id in self.classes])
        keys_N = np.concatenate([self._keys[class_id] for class_id in self.classes])
        order_N = np.argsort(keys_N, kind="stable")
        number = min(self.capacity, int((keys_N < self._end).sum()))
        if self.max_bytes is not None:
            sizes_N = np.array([size for class_id in self.classes for size in self[class_id].sizes])
            number = min(number, int((np.cumsum(sizes_N[order_N]) <= self.max_bytes).sum()))
        if number < len(order_N):
            self._end = min(self._end, float(keys_N[order_N[number]]))
        owners_n = owners_N[order_N[:number]]
        for class_id in self.classes:
            number = int((owners_n == class_id).sum())
            self._memory._cut(class_id, number)
            self._keys[class_id] = self._keys[class_id][:number]


__all__ = [
    "KINDS",
    "STORAGES",
    "Exemplars",
    "Memory",
    "Reservoir",
    "Storage",
    "as_pixels",
    "from_distilled",
    "image_bytes",
    "keep_distilled",
    "order_distilled",
    "select",
]
