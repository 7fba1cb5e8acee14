"""A storage policy of Avalanche that keeps distilled images of every class seen, within a fixed size."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.storage_policy import ExemplarsBuffer

from apps.avalanche.datasets import Arrived, DsaTransform, check_space, make_dataset, read_experience
from apps.avalanche.distilling import DistilledHere
from apps.avalanche.saved_buffer import (
    FILE,
    SavedBuffer,
    check_empty,
    load_buffer,
    read_options,
    save_buffer,
    settings_of,
)
from apps.avalanche.sources import DistilledBefore, Source
from apps.avalanche.statistics import warn_without_statistics
from apps.continual.budget import Budget, priorities
from apps.continual.exemplars import STORAGES, Exemplars, Storage
from apps.continual.memory import Memory
from atom.device import resolve_device
from atom.distilled import DistilledSet
from atom.errors import ConfigError
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.settings import DeviceKind


class DistilledBuffer(ExemplarsBuffer):
    """Distils the classes of every experience when it ends, and keeps them for `ReplayPlugin` or GDumb.

    **Space.** The images are distilled from what the benchmark's eval transform makes of the real ones, and stay
    in that space, which is the one the model is trained in. They are not normalised again: the buffer has
    transforms of its own, `train_dsa_strategy` in the group "train" and nothing in "eval", frozen. To distil
    whitened images, whiten the data of the benchmark, see `atom.Preprocess`.

    **Size.** With `adaptive_size` all classes seen share `max_size` images: every one gets the same number, those
    seen before shrink when new ones come, and what does not divide stays unused. Without it every class has
    max_size / num_classes images from its first experience to the end, DM's rule. A class is distilled
    into as many images as it may keep when it comes, and never into more than it has real ones.

    **What goes first.** The images of a class are kept in an order of importance, `selection.order_distilled`,
    and leave from its end, as many of every class.

    **A class that comes again** is distilled from its new images alone, and merged: old and new share the room of the
    class in proportion to the real images they stand for, see `apps.continual.budget.apportion`. With `from_set` it
    keeps what it has.

    **Restart.** With `directory`, every experience leaves one safetensors file, and the buffer as it stands another,
    `buffer.safetensors`. A directory that holds some is opened in one of two ways. `restore=True` goes on after the
    last experience without any of its real images: the next ones are `train_stream[buffer.num_experiences:]`;
    `DistilledBuffer.open(directory)` does so with all that the buffer was made with, but for code of yours, which is
    named again.
    `restore=False` runs a script from its start: the buffer is empty, and an experience whose file is found is read,
    bit for bit the same, and not distilled. A file of other images or settings is left alone, and the classes are
    distilled again; a damaged one is refused. What was under way at a kill is lost.

    Equal settings, images and kind of device give equal buffers; neither torch's nor NumPy's global generators
    are used. Soft labels are not: Avalanche's losses take integers.

    Args:
        max_size: stored images of all classes together, the `mem_size` of `ReplayPlugin`.
        num_classes: of the whole benchmark.
        settings: of the distillation. Their ipc, zca and zca_eps are not read: the size decides the first, the
            benchmark's transform the others. Default: those of `DistillSettings`, with a class distilled alone.
            Their `threads_per_actor` is the number of CPU threads here.
        symbols: whether the images show digits, letters and the like, whose mirror images belong to no class; needed
            where the settings leave the augmentation at "auto".
        adaptive_size: see above; the name is that of Avalanche's `ClassBalancedBuffer`.
        storage: how an image is kept, one of `exemplars.STORAGES`.
        preprocess: what the eval transform does with pixels in [0, 1]; needed for the storage uint8, which undoes
            it, and where it is given, the images are checked against it.
        train_dsa_strategy: augmentation of the buffer's images in training, operations joined by "_", or "none".
        device: where to distil, as PyTorch writes it.
        directory: of the files, see above; made if it is not there.
        restore: what to do with what a directory holds, see above. None: refuse one that holds anything; an empty
            buffer that was meant to be a full one would forget all classes in silence.

    Attributes:
        memory: what is kept, an `apps.continual.memory.Memory`; its `num_images` and `num_bytes` are the size as
            stored. The images to train on are held beside it as float32.
        buffer: the same as an AvalancheDataset.
        num_experiences: taken so far, those restored among them.
        buffer_groups, buffer_datasets, seen_classes, total_num_classes, total_num_groups: as of `ClassBalancedBuffer`,
            where plugins look for them: a group a class, whose `buffer` has its images.

    Raises:
        ConfigError: no classes; a size that leaves a class without an image or, without `adaptive_size`, does not
            divide; an unknown storage, device or operation; uint8 without `preprocess`; no word on `symbols`; a
            directory that holds experiences, without `restore`, or with those of another benchmark.
        ArtifactError: what is to be restored is damaged.

    Example:
        >>> buffer = DistilledBuffer(50, num_classes=10, symbols=True, adaptive_size=False)
        >>> buffer.max_size, buffer.quota(2), DistilledBuffer(50, num_classes=10, symbols=True).quota(2)
        (50, 5, 25)
    """

    def __init__(
        self,
        max_size: int,
        *,
        num_classes: int,
        settings: DistillSettings | None = None,
        symbols: bool | None = None,
        adaptive_size: bool = True,
        storage: Storage = "uint8-scaled",
        preprocess: Preprocess | None = None,
        train_dsa_strategy: str = "none",
        device: torch.device | str = "cpu",
        directory: str | Path | None = None,
        restore: bool | None = None,
    ) -> None:
        super().__init__(max_size)
        if storage not in STORAGES:
            raise ConfigError(f"memory storage {storage!r} is unknown; known are {', '.join(STORAGES)}.")
        if storage == "uint8" and preprocess is None:
            raise ConfigError(
                "memory storage 'uint8' keeps pixels, but it is not known how the benchmark's eval transform"
                " normalises them; pass preprocess=Preprocess(mean, std), or another storage."
            )
        self.adaptive_size, self.num_classes = adaptive_size, num_classes
        self.memory = Memory()
        self.total_num_classes = None if adaptive_size else num_classes
        self.buffer_groups: dict[int, ClassGroup] = {}
        self.num_experiences = 0
        # How much each image of a class counts when the class comes again; of all that is in memory.
        self._counts: dict[int, np.ndarray] = {}
        self._budget = self._budget_of(max_size)
        self._preprocess, self._storage = preprocess, storage
        self._train_transform = DsaTransform(train_dsa_strategy)
        # What an item of the training data looks like, see `Arrived`.
        self._tasks: dict[int, int] | None = None
        self._labels_are_tensors = False
        self._directory = None if directory is None else Path(directory).expanduser()
        self._source: Source = DistilledHere(
            settings if settings is not None else DistillSettings(classes_per_group=1),
            num_classes=num_classes,
            storage=storage,
            # Without one only the forms are allowed that do not read it.
            preprocess=preprocess if preprocess is not None else Preprocess(torch.zeros(1), torch.ones(1)),
            device=_device(device),
            directory=self._directory,
            symbols=symbols,
        )
        if self._directory is not None:
            self._open(self._directory, restore)

    @classmethod
    def from_set(
        cls,
        distilled: DistilledSet | str | Path,
        max_size: int,
        *,
        adaptive_size: bool = True,
        storage: Storage = "uint8-scaled",
        preprocess: Preprocess | None = None,
        train_dsa_strategy: str = "none",
        network: str = "convnet",
        seed: int = 0,
    ) -> "DistilledBuffer":
        """A buffer that distils nothing, but takes every class from a set made beforehand.

        A class keeps the label it has in the set. One with fewer images in the set than it may keep stays below.

        Args:
            distilled: the set, or its directory.
            max_size, adaptive_size, storage, train_dsa_strategy: see the class.
            preprocess: what the benchmark's eval transform does with pixels in [0, 1], default that of the set;
                a set of another one is brought to it without loss.
            network, seed: of the order in which images are kept.

        Raises:
            ArtifactError: the directory holds no sound set.
            ConfigError: see the class.
        """
        given = distilled if isinstance(distilled, DistilledSet) else DistilledSet.load(distilled)
        space = preprocess if preprocess is not None else given.preprocess
        buffer = cls(
            max_size,
            num_classes=given.num_classes,
            adaptive_size=adaptive_size,
            storage=storage,
            preprocess=space,
            train_dsa_strategy=train_dsa_strategy,
            symbols=given.symbols,
        )
        buffer._source = DistilledBefore(given, storage=storage, preprocess=space, seed=seed, network=network)
        return buffer

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        network: str | None = None,
        method: str | None = None,
        device: torch.device | str = "cpu",
    ) -> "DistilledBuffer":
        """The buffer of a directory as it stood, made with what it was made with; no real image is needed.

        Args:
            directory: see the class.
            network, method: of its distillation where they are code of yours, "path/to/file.py:name": nothing is run
                because a file names it.
            device: where to distil what comes.

        Raises:
            ConfigError: the directory holds no buffer, or one of an older version; code of yours is not named, or is
                other code.
            ArtifactError: one of its files is damaged, or another version wrote it.
        """
        place = Path(directory).expanduser()
        options, preprocess = read_options(place)
        settings = settings_of(options, place, network=network, method=method)
        buffer = cls(
            **options.arguments(),
            settings=settings,
            preprocess=preprocess,
            device=device,
            directory=directory,
            restore=True,
        )
        found = buffer._identities() if options.identities else {}
        for kind, known in options.identities.items():
            if found.get(kind) != known:
                raise ConfigError(
                    f"{kind} {getattr(settings, kind)!r} is {found.get(kind)}, but the images in {place / FILE} were"
                    f" distilled with {known}; pass the code of then, or go on with other code by"
                    " DistilledBuffer(…, directory=…, restore=True)."
                )
        return buffer

    @property
    def seen_classes(self) -> set[int]:
        """Classes in memory."""
        return set(self.memory.classes)

    @property
    def buffer_datasets(self) -> list[AvalancheDataset]:
        """The images of each class, by ascending class."""
        return [group.buffer for group in self.buffer_groups.values()]

    @property
    def total_num_groups(self) -> int | None:
        """As `total_num_classes`: a group is a class."""
        return self.total_num_classes

    def get_group_lengths(self, num_groups: int) -> list[int]:
        """Images that each of so many classes may keep: all the same, where Avalanche gives the first what is left."""
        return [self.quota(num_groups)] * num_groups if num_groups else []

    @property
    def seconds(self) -> float:
        """Time spent on distillation by this object; classes read from files or a set cost none."""
        return self._source.seconds

    def quota(self, num_seen_classes: int) -> int:
        """Images that each class may keep while `num_seen_classes` >= 1 have been seen."""
        # Limits in images do not depend on the bytes of one.
        return self._budget.quota(num_seen_classes, bytes_per_image=1)

    def post_adapt(self, agent_state: Any, exp: Any) -> None:
        """Take the classes of an experience into the buffer; the others shrink.

        Args:
            agent_state: the strategy; None will do. Its model is looked at for BatchNorm, see `RealStatisticsPlugin`.
            exp: its images are read once, through the eval transforms of its dataset.

        Raises:
            ConfigError: a class that came before with another task label, or see `datasets.read_experience` and
                `DistilledHere.take`.
            ArtifactError, StoreError: see `DistilledHere.take`.
        """
        warn_without_statistics(agent_state)
        name = f"experience {self.num_experiences}"
        arrived = read_experience(
            exp, name=name, num_classes=self.num_classes, limit=self._source.real_images
        )
        self._check_tasks(arrived, name)
        if self._preprocess is not None:
            check_space(arrived, self._preprocess, name=name)
        quota = self.quota(len(self.seen_classes | set(arrived.images)))
        room = {
            class_id: self._room(class_id, len(images), quota) for class_id, images in arrived.images.items()
        }
        new = {class_id: images for class_id, images in arrived.images.items() if room[class_id]}
        taken = self._source.take(new, quota=room, experience=self.num_experiences) if new else {}
        for class_id, kept in taken.items():
            self._merge(class_id, kept, priorities(len(new[class_id]), kept.num_images))
        self._shrink(quota)
        self._tasks = None if arrived.tasks is None else {**(self._tasks or {}), **arrived.tasks}
        self._labels_are_tensors = arrived.labels_are_tensors
        self.num_experiences += 1
        self._renew()
        self._save()

    def update_from_dataset(self, new_data: AvalancheDataset, strategy: Any = None) -> None:
        """Take the classes of a dataset into the buffer as an experience of its own; one without images does nothing.

        Args:
            new_data: of images, as `exp.dataset` in `post_adapt`.
            strategy: as `agent_state` there.

        Raises:
            ConfigError: it is no dataset of Avalanche's, or see `post_adapt`.
            ArtifactError, StoreError: see there.
        """
        if not isinstance(new_data, AvalancheDataset):
            raise ConfigError(
                f"update_from_dataset: received {type(new_data).__name__}, expected an AvalancheDataset of the images"
                " to distil, of which alone the eval transforms are known; pass one, such as experience.dataset."
            )
        if len(new_data):
            self.post_adapt(strategy, SimpleNamespace(dataset=new_data))

    def resize(self, strategy: Any, new_size: int) -> None:
        """Change `max_size`; every class loses its least important images, or keeps what it has.

        A larger size serves the classes to come: the real images of those before are gone. `strategy` is not read.

        Raises:
            ConfigError: see the class.
        """
        self._budget, self.max_size = self._budget_of(new_size), new_size
        if self.memory.classes:
            self._shrink(self.quota(len(self.memory.classes)))
            self._renew()
            self._save()

    def __getstate__(self) -> dict[str, Any]:
        # The datasets are made from the memory, and Avalanche's do not go through torch.save.
        return {
            name: value for name, value in self.__dict__.items() if name not in ("_buffer", "buffer_groups")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__init__(state["max_size"])
        self.__dict__.update(state)
        self.buffer_groups = {}
        if self.memory.classes:
            self._renew()

    def _save(self) -> None:
        if self._directory is not None:
            saved = SavedBuffer(
                self.memory,
                self.num_experiences,
                self._tasks,
                self._labels_are_tensors,
                _digest(self._preprocess),
                self._counts,
                self._options(),
            )
            save_buffer(saved, self._directory, self._preprocess)

    def _open(self, directory: Path, restore: bool | None) -> None:
        if restore is None:
            check_empty(directory)
        saved = load_buffer(directory, num_classes=self.num_classes) if restore else None
        if saved is None:
            return
        if None not in (saved.preprocess, self._preprocess) and saved.preprocess != _digest(self._preprocess):
            raise ConfigError(
                f"{directory} holds images of another preprocessing than the one given; pass as preprocess what its"
                " experiences were transformed by, in the benchmark too."
            )
        self.memory, self.num_experiences, self._counts = saved.memory, saved.num_experiences, saved.counts
        self._tasks, self._labels_are_tensors = saved.tasks, saved.labels_are_tensors
        self._shrink(self.quota(len(self.memory.classes)))
        self._renew()

    def _options(self) -> dict[str, Any]:
        source: dict[str, Any] = {}
        if isinstance(self._source, DistilledHere):
            source = {**self._source.options, "identities": self._identities()}
        return {
            "max_size": self.max_size,
            "num_classes": self.num_classes,
            "adaptive_size": self.adaptive_size,
            "storage": self._storage,
            "train_dsa_strategy": "_".join(self._train_transform.operations) or "none",
            **source,
        }

    def _identities(self) -> dict[str, str]:
        assert isinstance(self._source, DistilledHere), "a set made beforehand has no directory"
        return self._source.identities(self.memory[self.memory.classes[0]].images_NCHW.shape[1:])

    def _check_tasks(self, arrived: Arrived, name: str) -> None:
        known = self._tasks or {}
        for class_id, task in (arrived.tasks or {}).items():
            if known.get(class_id, task) != task:
                raise ConfigError(
                    f"{name}: class {class_id} comes again with task label {task}, it had {known[class_id]}; a memory"
                    " by class keeps one."
                )

    def _known_counts(self, class_id: int, num_real: int) -> np.ndarray:
        # A file of before does not say what its images stand for: then for as many as those that come.
        kept = self.memory[class_id].num_images
        return self._counts.get(class_id, priorities(num_real, kept))

    def _room(self, class_id: int, num_real: int, quota: int) -> int:
        """Images that a class which arrives is distilled into: all its room, or its share where it comes again."""
        if class_id not in self.memory.classes:
            return quota
        if not self._source.again:
            return 0
        counts_N = np.concatenate([self._known_counts(class_id, num_real), priorities(num_real, quota)])
        taken = np.argsort(-counts_N, kind="stable")[:quota]
        return int((taken >= self.memory[class_id].num_images).sum())

    def _merge(self, class_id: int, kept: Exemplars, counts_N: np.ndarray) -> None:
        if class_id not in self.memory.classes:
            self.memory.add(class_id, kept)
            self._counts[class_id] = counts_N
            return
        both_N = np.concatenate([self._known_counts(class_id, int(counts_N[0])), counts_N])
        order_N = np.argsort(-both_N, kind="stable")
        self.memory.replace(class_id, self.memory[class_id].joined(kept).at(order_N))
        self._counts[class_id] = both_N[order_N]

    def _shrink(self, quota: int) -> None:
        self.memory.shrink(quota)
        self._counts = {c: counts_N[: self.memory[c].num_images] for c, counts_N in self._counts.items()}

    def _budget_of(self, max_size: int) -> Budget:
        if self.num_classes < 1:
            raise ConfigError(
                f"num_classes {self.num_classes}: expected those of the whole benchmark, 1 or more."
            )
        if self.adaptive_size:
            budget = Budget(images=max_size)
        elif max_size % self.num_classes:
            raise ConfigError(
                f"max_size {max_size} does not divide by {self.num_classes} classes; without adaptive_size pass"
                f" the images of a class times {self.num_classes}."
            )
        else:
            budget = Budget(per_class=max_size // self.num_classes)
        budget.check(self.num_classes, bytes_per_image=1)
        return budget

    def _renew(self) -> None:
        channels = self.memory[self.memory.classes[0]].images_NCHW.shape[1]
        space = self._preprocess or Preprocess(torch.zeros(channels), torch.ones(channels))
        contents = self.memory.contents(space)
        assert contents is not None, "the budget leaves every class an image"
        images_MCHW, labels_M = contents

        def dataset(rows_M: torch.Tensor) -> AvalancheDataset:
            return make_dataset(
                images_MCHW[rows_M],
                labels_M[rows_M],
                tasks=self._tasks,
                labels_are_tensors=self._labels_are_tensors,
                train_transform=self._train_transform,
            )

        self.buffer = dataset(torch.arange(len(labels_M)))
        self.buffer_groups = {
            class_id: ClassGroup(class_id, dataset((labels_M == class_id).nonzero().flatten()))
            for class_id in self.memory.classes
        }


@dataclass(frozen=True)
class ClassGroup:
    """The images of one class, as plugins take them from `buffer_groups`."""

    class_id: int
    buffer: AvalancheDataset

    @property
    def max_size(self) -> int:
        """Images of the class."""
        return len(self.buffer)


def _digest(preprocess: Preprocess | None) -> str | None:
    return None if preprocess is None else preprocess.digest


def _device(device: torch.device | str) -> torch.device:
    kind, colon, _ = str(device).partition(":")
    found = resolve_device(cast(DeviceKind, kind))
    return torch.device(device) if colon else found


__all__ = ["DistilledBuffer"]
