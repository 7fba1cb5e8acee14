"""What a method of distillation is: units of classes, a state of named arrays, steps on it, and what comes out.

The commands know methods by this alone. docs/add-a-method.md has one in forty lines.
"""

# K classes, G classes of a unit, I stored images per class, C channels, H height, W width, T iterations so far

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from atom.device import deterministic, use_threads
from atom.errors import ConfigError, ShapeError
from atom.initial import initial_images
from atom.methods.experts import Expert, name_of, train
from atom.methods.settings import DistillSettings
from atom.settings import DeviceKind, NoOptions, Settings

Unit = tuple[int, ...]
"""Classes that are distilled together, on one worker: the unit of work, and of a checkpoint."""

Prepared = Mapping[str, Mapping[str, np.ndarray]]
"""What each preparation of a method gave, by its name: named arrays."""

NOTHING: Prepared = {}

Arrays = Mapping[str, np.ndarray]

Elsewhere = Callable[[Arrays, int, Sequence[int], Callable[[int], Arrays]], list[Arrays]]
"""Answers of the replicas of an iteration, in their order, some perhaps of other workers: called with what `replica` is
told, arrays and iteration, the numbers of the replicas, and a function that computes one here."""


@dataclass(frozen=True)
class About:
    """A method, for people.

    Attributes:
        made_by: ends the sentence "Images ... made by ...", in the card of a set.
        citation: whom to cite, as Markdown; empty: nobody but the source of the images.
    """

    made_by: str
    citation: str = ""


@dataclass(frozen=True)
class Shape:
    """Of the real images: channels, height and width in pixels, and the classes of the whole source."""

    channels: int
    height: int
    width: int
    num_classes: int


@dataclass(frozen=True)
class State:
    """Where the distillation of a unit stands: all that a later step depends on, and the losses so far.

    Attributes:
        iteration: steps done.
        arrays: by name. "images" is always there, mostly [G, I, C, H, W] float32 in the space of the preprocessing; the
            others are the method's own: velocities, logits of labels, step sizes.
        losses: [T, G] float32, the loss of each class before each step, or [T, 1], that of the unit.
        failures: of each class that failed, why. Its images are NaN; the others are what they would be beside a
            sound one.
    """

    iteration: int
    arrays: Mapping[str, np.ndarray]
    losses: np.ndarray
    failures: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def first(cls, arrays: Mapping[str, np.ndarray], *, columns: int) -> "State":
        """Before the first step; `columns` of the losses."""
        return cls(iteration=0, arrays=arrays, losses=np.zeros((0, columns), dtype=np.float32))

    @property
    def images(self) -> np.ndarray:
        """The images as they stand."""
        return self.arrays["images"]


@dataclass(frozen=True)
class Part:
    """What a finished unit gives to the set.

    Attributes:
        images: [G, I, C, H, W] float32; NaN for a class that failed. Of fewer images than classes times I, see
            `DistillSettings.per_class`, the last places of a class are empty.
        soft_labels: [G, I, K] float32, each row a distribution over classes, or None.
        training: how a network is to be trained on them, as fields of `OwnTraining`, such as a step size that was
            learned with them; the same of all units.
    """

    images: np.ndarray
    soft_labels: np.ndarray | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def labelled(self, soft_labels: np.ndarray) -> "Part":
        """The same with soft labels, [G * I, K] in the order of the images."""
        return replace(self, soft_labels=soft_labels.reshape(*self.images.shape[:2], -1))

    def of(self, row: int) -> "Part":
        """What the class in that row of the unit gives, without the axis of classes."""
        soft = None if self.soft_labels is None else self.soft_labels[row]
        return Part(self.images[row], soft, self.training)


class Method(ABC):
    """One way to distil; an instance serves any number of units of one problem, on one device.

    The same bits come out wherever a unit is computed, and however its steps are cut into calls: every random number
    is asked from `atom.streams` for its iteration, and `repeatable` holds what else decides bits.

    Attributes:
        about: for the card of a set.
        Options: settings of the method's own; a flag each.
        unread: settings of `DistillSettings` that mean nothing to the method; given, they are refused.
        version: to be raised whenever equal settings come to give other images.
        elsewhere: set by whoever has further workers for the replicas of an iteration; None: all are computed here.

    Args:
        settings: resolved, see `atom.resolve.resolve_settings`: no None, no "auto".
        channels, height, width: of the real images.
        num_classes: of the whole source.
        device: where to compute.

    Raises:
        ConfigError: settings are not resolved.
    """

    about: ClassVar[About]
    Options: ClassVar[type[Settings]] = NoOptions
    unread: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 1
    elsewhere: Elsewhere | None = None

    def __init__(
        self,
        settings: DistillSettings,
        *,
        channels: int,
        height: int,
        width: int,
        num_classes: int,
        device: torch.device,
    ) -> None:
        check_resolved({name: value for name, value in settings if name not in self.unread})
        self.settings = settings
        self.device = device
        self.shape = (channels, height, width)
        self.num_classes = num_classes

    @classmethod
    def resolve(cls, settings: DistillSettings, shape: Shape, device_kind: DeviceKind) -> DistillSettings:
        """Its defaults and checks, decided once by the driver; what is common to all methods is resolved already.

        Here: 1000 iterations at a step size of 1, class by class, eager float32.
        """
        precision = "float32" if settings.precision == "auto" else settings.precision
        return settings.model_copy(
            update={
                "iterations": 1000 if settings.iterations is None else settings.iterations,
                "lr_img": 1.0 if settings.lr_img is None else settings.lr_img,
                "classes_per_group": settings.classes_per_group or 1,
                "precision": precision,
                "compile": "off" if settings.compile == "auto" else settings.compile,
            }
        )

    @classmethod
    def units(cls, settings: DistillSettings, class_ids: Sequence[int]) -> list[Unit]:
        """How the work is cut: here groups of `classes_per_group`, the last one perhaps smaller.

        A method that distils all classes jointly gives one unit.
        """
        size = settings.classes_per_group
        assert size is not None, "settings are resolved by the driver"
        return [tuple(class_ids[start : start + size]) for start in range(0, len(class_ids), size)]

    @classmethod
    def learns_labels(cls, settings: DistillSettings) -> bool:
        """Whether its parts have soft labels, which is asked before any work: a memory counts their bytes."""
        del settings
        return False

    @classmethod
    def preparations(cls, settings: DistillSettings) -> Sequence[str | Expert]:
        """What is made before the first unit starts, from the images of all classes.

        Names, for which `prepare` is asked, and experts, which are trained without a word of the method's; no name
        twice.
        """
        del settings
        return ()

    def prepare(self, name: str, real: Mapping[int, Tensor]) -> Mapping[str, np.ndarray]:
        """One preparation, as named arrays; kept beside the checkpoints and handed to every unit.

        Args:
            name: one of `preparations`.
            real: of all classes, as in `start`.
        """
        raise NotImplementedError(f"{type(self).__name__} names the preparation {name!r} and cannot make it")

    def prepare_all(self, real: Mapping[int, Tensor]) -> Prepared:
        """All preparations, made here one after the other; the commands make them on workers."""
        return {
            name_of(one): one.read_from(train(one, real, num_classes=self.num_classes, device=self.device))
            if isinstance(one, Expert)
            else self.prepare(one, real)
            for one in self.preparations(self.settings)
        }

    @abstractmethod
    def start(
        self,
        unit: Sequence[int],
        real: Mapping[int, Tensor],
        *,
        given: np.ndarray | None = None,
        prepared: Prepared = NOTHING,
    ) -> State:
        """State before the first step.

        Args:
            unit: the G classes, in order.
            real: for each class its preprocessed images, [n, C, H, W] float32.
            given: images [G, I, C, H, W] to start from; None: as the settings say, see `initial`.
            prepared: by name, what `prepare` gave, and of an expert "epochs" [E + 1, weights] float32, its weights
                before the first epoch and after each.
        """

    @abstractmethod
    def advance(
        self,
        state: State,
        until: int,
        *,
        unit: Sequence[int],
        real: Mapping[int, Tensor],
        prepared: Prepared = NOTHING,
        on_iteration: Callable[[int], None] | None = None,
    ) -> State:
        """State after iteration `until`; the result does not depend on how the way there was cut into calls.

        Args:
            state: of the same unit; left as it is.
            until: iterations done in the returned state, at most the settings' number.
            unit, real, prepared: as in `start`; real images best on the device already.
            on_iteration: called with the number of iterations done, after each.
        """

    @classmethod
    def replicas(cls, settings: DistillSettings) -> int:
        """Parts of an iteration that could be computed side by side, for methods that cannot cut their classes."""
        del settings
        return 1

    def replica(
        self,
        arrays: Arrays,
        iteration: int,
        number: int,
        *,
        unit: Sequence[int],
        real: Mapping[int, Tensor],
        prepared: Prepared = NOTHING,
    ) -> Arrays:
        """What one of the `replicas` of an iteration gives; the same wherever it is computed.

        Args:
            arrays: of the state, those that `advance` hands to `elsewhere`.
            iteration, number: count from 0.
            unit, real, prepared: as in `advance`.
        """
        raise NotImplementedError(f"{type(self).__name__} has replicas and cannot compute one")

    @classmethod
    def result(cls, settings: DistillSettings, unit: Unit, state: State) -> Part:
        """What the finished state of a unit gives to the set: here its images."""
        del settings, unit
        return Part(state.images)

    def initial(self, unit: Sequence[int], real: Mapping[int, Tensor]) -> np.ndarray:
        """Images [G, I, C, H, W] that a unit starts from by `--init`, float32.

        Raises:
            ConfigError: a class has fewer images than the start needs.
            ShapeError: a class's images do not have the promised shape.
        """
        with self.repeatable():
            return np.stack([self._initial(class_id, real[class_id]) for class_id in unit])

    def _initial(self, class_id: int, real_NCHW: Tensor) -> np.ndarray:
        if tuple(real_NCHW.shape[1:]) != self.shape:
            raise ShapeError(
                f"class {class_id}: real images have shape {tuple(real_NCHW.shape)}, expected [n, {self.shape}]."
            )
        images_ICHW = initial_images(
            real_NCHW.cpu(), self.settings, class_id=class_id, num_classes=self.num_classes
        )
        return images_ICHW.numpy()

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """Within, what decides bits besides the inputs is held: the thread count, and CUDA's choice of algorithms."""
        with use_threads(self.settings.threads_per_actor), deterministic(self.device):
            yield


def check_resolved(values: Mapping[str, object]) -> None:
    """Refuse settings in which a default is left open.

    Raises:
        ConfigError: naming those that are None or "auto".
    """
    unresolved = [name for name, value in values.items() if value in (None, "auto")]
    if unresolved:
        raise ConfigError(
            f"{', '.join(unresolved)} hold unresolved defaults; pass the settings through resolve_settings."
        )


__all__ = [
    "NOTHING",
    "About",
    "Arrays",
    "Elsewhere",
    "Method",
    "Part",
    "Prepared",
    "Shape",
    "State",
    "Unit",
    "check_resolved",
]
