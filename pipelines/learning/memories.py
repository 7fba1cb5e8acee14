"""What a step's classes are remembered by: distilled on Ray with checkpoints, or chosen among the real images."""

# N images, M stored images of a class, C channels, H height, W width

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import ray
import torch

from apps.continual.budget import Budget, by_images, num_distilled, parse_budget
from apps.continual.exemplars import Exemplars, expected_bytes, image_bytes
from apps.continual.selection import keep_distilled, select
from apps.learner.directory import read_class
from apps.learner.merging import merged, weighted
from apps.learner.record import Kept, Learner, Version
from apps.learner.settings import DISTILLED, LearnerChoices
from atom.device import use_threads
from atom.errors import ConfigError
from atom.methods.lookup import find_method, images_version, method_identity
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.resolve import resolve_settings
from atom.settings import DeviceKind
from pipelines.distillation import distil_classes
from pipelines.learning.images import StepReal
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.ownership import CHECKPOINTS_VERSION, claim
from pipelines.output.store import Store
from pipelines.tracking import Tracker
from pipelines.workers.faults import Failure
from pipelines.workers.remote import Problem
from pipelines.workers.resources import ActorSize
from pipelines.workers.settings import Limits


@dataclass(frozen=True)
class Plan:
    """How classes are remembered in a step.

    Attributes:
        learner: whose.
        real: images of the step.
        old: memory before, by label.
        stands_for: real images behind it, by label.
        kinds: what it holds, by label.
        preprocess: of all images.
        device_kind: of the workers.
    """

    learner: Learner
    real: StepReal
    old: Mapping[int, Exemplars]
    stands_for: Mapping[int, int]
    kinds: Mapping[int, str]
    preprocess: Preprocess
    device_kind: DeviceKind

    @property
    def choices(self) -> LearnerChoices:
        """What the learner is, for good."""
        return LearnerChoices.model_validate(self.learner.settings["choices"])

    @property
    def budget(self) -> Budget:
        """How large the memory may be."""
        return parse_budget(self.choices.budget)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H and W."""
        height, width = self.learner.image_size
        return self.learner.channels, height, width

    @property
    def seed(self) -> int:
        """Of every random stream."""
        return int(self.learner.settings["distill"]["seed"])

    @property
    def room(self) -> int | None:
        """Bytes of each class where a budget in bytes is filled by files of different sizes."""
        return self.budget.share(len(self.real.classes)) if self.choices.compress else None

    def quota(self, kind: str) -> int:
        """Images that a class may keep after the step, where all are of one size.

        Raises:
            ConfigError: the budget has no room for one.
        """
        storage, num_classes = self.choices.storage if kind == DISTILLED else "uint8", len(self.real.classes)
        each = image_bytes(self.shape, storage=storage)
        self.budget.check(num_classes, each)
        return self.budget.quota(num_classes, each)

    def shrunk(self, label: int) -> Exemplars:
        """What an old class keeps after the step."""
        kept = self.old[label]
        return kept.head(kept.num_images if self.room else self.quota(self.kinds[label]), self.room)

    @property
    def asked(self) -> DistillSettings:
        """How it is distilled, as given."""
        return DistillSettings.model_validate(self.learner.settings["distill"])

    def settings(self, ipc: int) -> DistillSettings:
        """The same for so many images of a class, resolved.

        Raises:
            ConfigError: see `resolve_settings`, or the method does not distil a class alone.
        """
        channels, height, width = self.shape
        resolved = resolve_settings(
            self.asked.changed(ipc=ipc, classes_per_group=1),
            device_kind=self.device_kind,
            channels=channels,
            height=height,
            width=width,
            num_classes=len(self.real.classes),
            symbols=self.learner.symbols,
        )
        check_alone(resolved)
        return resolved

    def remembers(self, label: int) -> bool:
        """Whether a class of the step comes back with images in memory."""
        return label in self.old and self.old[label].num_images > 0

    def takes_real(self, label: int) -> bool:
        """Whether a memory of real images of a class of the step can be had: its old images, if any, are real too."""
        return not self.remembers(label) or self.kinds[label] != DISTILLED

    def to_keep(self, label: int, kind: str) -> int:
        """Images that a class of the step is made into, or that are chosen for it.

        Raises:
            ConfigError: the budget has no room for one, or the class too few images to begin one.
        """
        images_NCHW, factor = self.real.train[label], self.asked.factor if kind == DISTILLED else 1
        if kind != DISTILLED and not self.takes_real(label):
            raise ConfigError(
                f"class {self.real.classes[label]!r} is remembered by distilled images, which a memory of real ones"
                " cannot take in; pass --memory distilled."
            )
        if self.room is None:
            most = self.quota(kind)
        else:
            storage = self.choices.storage if kind == DISTILLED else "uint8"
            each = expected_bytes(images_NCHW, storage=storage, factor=factor)
            # Real ones may be smaller than others of their class; what does not fit is left out later.
            most = max(1, self.room // (each if kind == DISTILLED else max(1, each // 2)))
        if kind != DISTILLED:
            return most
        behind = len(images_NCHW)
        if self.remembers(label):
            behind += max(self.stands_for[label], self.old[label].num_images * factor**2)
        number = num_distilled(most, behind, factor=factor, init=self.asked.init)
        if not number:
            raise ConfigError(
                f"class {self.real.classes[label]!r} has {behind} images, too few to begin one distilled image with"
                f" --factor {factor}; add images."
            )
        return number

    def within(self, label: int, kind: str, num_bytes: int) -> int:
        """Images of a class in so many bytes, at least one, as far as it has them."""
        storage = self.choices.storage if kind == DISTILLED else "uint8"
        each = image_bytes(self.shape, storage=storage)
        if self.choices.compress and kind != DISTILLED:
            each = max(1, each // 4)
        number = max(1, num_bytes // each)
        real = len(self.real.train[label])
        return (
            max(1, num_distilled(number, real, factor=self.asked.factor, init=self.asked.init))
            if kind == DISTILLED
            else number
        )


def check_alone(settings: DistillSettings) -> None:
    """Refuse a method that needs more of a step than one class, or makes soft labels, which no new class is part of.

    Raises:
        ConfigError: see above.
    """
    method = find_method(settings.method)
    together = bool(method.preparations(settings)) or len(method.units(settings, (0, 1))) == 1
    if together or method.learns_labels(settings):
        raise ConfigError(
            f"--method {settings.method}: with these settings it does not distil each class alone, without soft labels,"
            " as a learner needs; pass another, such as atom, spatial or dm."
        )


@dataclass(frozen=True, eq=False)
class Made:
    """What came of the memory of a step: by label, or why not."""

    exemplars: Mapping[int, Exemplars]
    failed: Mapping[str, Failure]
    stopped: bool = False


def distilled(
    plan: Plan,
    store: Store,
    *,
    number: Mapping[int, int],
    size: ActorSize,
    checkpoint_every: int,
    limits: Limits,
    tracker: Tracker,
    stop: threading.Event,
) -> Made:
    """The step's classes distilled, each alone, from its new images and what is remembered of it.

    Args:
        plan: of the step.
        store: of its work, where checkpoints lie.
        number: images of each class.
        size, limits, tracker, stop: see `distil_classes`.
        checkpoint_every: iterations between checkpoints.

    Raises:
        StoreError, ClusterError, ConfigError: see there.
    """
    found: dict[int, Exemplars] = {}
    failed: dict[str, Failure] = {}
    for ipc, labels in by_images(number).items():
        settings = plan.settings(ipc)
        inside = store.inside(f"distilled-{ipc}")
        checkpoints = Checkpoints(inside, claim(inside, distil_identity(settings, plan)))
        real = {label: ray.put(white_of(plan, label).numpy()) for label in labels}
        outcome = distil_classes(
            Problem(settings, *plan.shape, len(plan.real.classes), plan.device_kind),
            find_method(settings.method).units(settings, labels),
            real,
            checkpoints,
            size=size,
            checkpoint_every=checkpoint_every,
            limits=limits,
            tracker=tracker,
            stop=stop,
        )
        if outcome.stopped:
            return Made(found, failed, stopped=True)
        failed |= {
            f"class {plan.real.classes[label]!r}": failure
            for unit, failure in outcome.failed.items()
            for label in unit
        }
        for label, part in outcome.classes(settings).items():
            with use_threads(1):
                kept = keep_distilled(
                    torch.from_numpy(part.images.copy()),
                    plan.choices.storage,
                    preprocess=plan.preprocess,
                    seed=plan.seed,
                    factor=settings.factor,
                    network=settings.network,
                    device=torch.device("cpu"),
                )
            found[label] = kept.compressed(plan.room) if plan.choices.compress else kept
    return Made({label: found[label] for label in sorted(found)}, failed)


def distil_identity(settings: DistillSettings, plan: Plan) -> dict[str, object]:
    """What checkpoints belong to, beside the step that they are of."""
    return {
        **settings.model_dump(mode="json"),
        "method": method_identity(settings.method),
        "device": plan.device_kind,
        "images_version": images_version(settings.method),
        **CHECKPOINTS_VERSION,
    }


def white_of(plan: Plan, label: int) -> torch.Tensor:
    """What a class is distilled from, preprocessed; see `weighted`."""
    new_NCHW = plan.preprocess.apply(plan.real.train[label])
    if not plan.remembers(label):
        return new_NCHW
    old_MCHW = plan.old[label].white(plan.preprocess)
    return weighted(new_NCHW, old_MCHW, stands_for=plan.stands_for[label])


def chosen(plan: Plan, kind: str, number: Mapping[int, int]) -> dict[int, Exemplars]:
    """So many real images of each class of the step, by herding or at random, with old ones of a returning class."""
    found = {}
    for label, most in number.items():
        images_NCHW = plan.real.train[label]
        with use_threads(1):
            rows = select(
                kind,
                plan.preprocess.apply(images_NCHW),
                number=most,
                seed=plan.seed,
                class_id=label,
                network=plan.asked.network,
            )
        kept = Exemplars(images_NCHW[rows])
        if plan.remembers(label):
            weights = {"old_weight": plan.stands_for[label], "new_weight": len(images_NCHW)}
            kept = merged(plan.old[label], kept, **weights, most=most)
        found[label] = kept.compressed(plan.room) if plan.choices.compress else kept
    return found


def read_memory(
    directory: Store, learner: Learner, kept: Mapping[str, Kept], version: Version
) -> dict[int, Exemplars]:
    """Images of each class of a version, by label."""
    assert directory.local_path is not None
    height, width = learner.image_size
    shape = (learner.channels, height, width)
    return {
        label: read_class(directory.local_path, kept[name], shape=shape)
        for label, name in enumerate(version.classes)
        if name in kept
    }


def mixed_tests(
    old: Exemplars, new_NCHW: np.ndarray, *, old_weight: int, new_weight: int, most: int
) -> Exemplars:
    """Test images of a class that came back, in proportion to the real images of then and now."""
    weights = {"old_weight": old_weight, "new_weight": new_weight}
    return merged(old, Exemplars(new_NCHW), **weights, most=most)


__all__ = [
    "Made",
    "Plan",
    "check_alone",
    "chosen",
    "distilled",
    "mixed_tests",
    "read_memory",
]
