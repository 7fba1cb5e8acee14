"""Random real images with a teacher's labels: what every set with soft labels has to beat."""

# N images, C channels, H height, W width, K classes

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from atom.methods.experts import Expert
from atom.methods.lookup import find_method
from atom.methods.method import Shape
from atom.methods.settings import DistillSettings
from atom.methods.teachers import check_teachers, own_teachers, teachers
from atom.rivals import WITH_TEACHER
from atom.settings import settle_dsa_strategy
from pipelines.comparison.asked import Asked
from pipelines.console.commands import CompareCommand
from pipelines.evaluation import SmallSet
from pipelines.output.array_files import pack, unpack
from pipelines.output.ownership import settings_hash
from pipelines.output.store import Store
from pipelines.preparing import Preparing
from pipelines.teaching import Labelling, answer
from pipelines.workers.faults import Failure
from pipelines.workers.remote import Done, Problem
from pipelines.workers.works import Clock, Spent, Task, Work


def check_teacher(command: CompareCommand, shape: Shape) -> None:
    """Refuse teachers that cannot be.

    Raises:
        ConfigError: see `check_teachers`.
    """
    check_teachers(command.teacher, DistillSettings(method="random", network=command.distill.network), shape)


def teachers_of(
    command: CompareCommand, asked: Sequence[Asked], *, symbols: bool
) -> tuple[Sequence[Expert], str]:
    """Who labels random images, and how people call them: those asked for, else the experts of the first method that
    learns labels; none where there is neither.

    Args:
        command: as given.
        asked: the sets, with resolved settings.
        symbols: whether the images show some.
    """
    if command.teacher.teacher_epoch is not None:
        like = asked[0].settings
        strategy = settle_dsa_strategy(command.distill.dsa_strategy, symbols=symbols)
        settings = like.model_copy(update={"network": command.distill.network, "dsa_strategy": strategy})
        found = teachers(command.teacher, settings)
        return found, f"teachers after epoch {found[0].epochs}"
    for one in asked:
        found = own_teachers(one.settings)
        if found:
            return found, f"the experts of {one.label} after epoch {found[0].epochs}"
    return (), ""


def notes_on_rivals(command: CompareCommand, asked: Sequence[Asked], *, symbols: bool) -> list[str]:
    """A note where labels are learned and no teacher labels random images; arguments as for `teachers_of`."""
    learn = [one.label for one in asked if find_method(one.settings.method).learns_labels(one.settings)]
    if not learn or teachers_of(command, asked, symbols=symbols)[0]:
        return []
    return [
        f"the labels of {', '.join(dict.fromkeys(learn))} are learned, but not from experts; pass --teacher-epoch for"
        " random images with soft labels beside them."
    ]


class LabelFiles:
    """Labels of random images on disk, by the images and the teachers.

    Args:
        store: the output of the comparison.
        names: files of the teachers.
        by: the teachers.
    """

    def __init__(self, store: Store, names: Sequence[str], by: Sequence[Expert]) -> None:
        self._store = store
        self._known = {"teachers": list(names), "epochs": [one.epochs for one in by]}

    def load(self, images_NCHW: np.ndarray) -> np.ndarray | None:
        """Those of these images, [N, K]; None where there are none, or they are damaged."""
        name = self._name(images_NCHW)
        if not self._store.exists(name):
            return None
        try:
            return unpack(self._store.read_bytes(name))[0]["labels"]
        except (ValueError, KeyError):
            return None

    def missing(self, small: SmallSet) -> list[int | None]:
        """Draws of real images without labels."""
        return [seed for seed, (images, _) in small.draws.items() if self.load(images) is None]

    def save(self, images_NCHW: np.ndarray, labels_NK: np.ndarray) -> None:
        """Keep those of these images."""
        self._store.write_bytes(self._name(images_NCHW), pack({"labels": labels_NK}, {}))

    def _name(self, images_NCHW: np.ndarray) -> str:
        content = hashlib.sha256(np.ascontiguousarray(images_NCHW).data).hexdigest()
        return f"labels/{settings_hash({**self._known, 'images': content})}.safetensors"


class Teaching(Work):
    """Labels for random images, draw by draw, as a part of what a pool does.

    Args:
        small: the images.
        by: the teachers, of one recipe.
        problem: what the workers are told.
        preparing: trains the teachers; None: all labels are on disk.
        judge: called with the labelled images; gives their trainings.
        on_spent: called after every draw.
        files: where labels are kept.
        title: see `Work`.

    Attributes:
        failures: why a draw has no labels.
    """

    def __init__(
        self,
        small: SmallSet,
        by: Sequence[Expert],
        problem: Problem,
        preparing: Preparing | None,
        judge: Callable[[SmallSet], Sequence[Task]],
        on_spent: Callable[[Spent], None],
        files: LabelFiles,
        *,
        title: str,
    ) -> None:
        self.failures: dict[Any, Failure] = {}
        self.title = title
        self._small, self._by, self._preparing, self._judge = small, by, preparing, judge
        self._labelling = Labelling(by[0].recipe, problem)
        self._clock = Clock(on_spent)
        self._files = files
        stored = {seed: files.load(images) for seed, (images, _) in small.draws.items()}
        self._found = {seed: labels for seed, labels in stored.items() if labels is not None}
        self._images: Any = None
        self._begun = False
        if preparing is not None:
            preparing.call(self.begin)

    def ready(self) -> Sequence[int | None]:
        """Draws without labels."""
        return [seed for seed in self._small.draws if seed not in self._found]

    def begin(self) -> Sequence[Task]:
        """The draws without labels, if the teachers are trained; where all have some, the trainings on them."""
        left = self.ready()
        if self._begun or (left and not self._trained()):
            return ()
        self._begun = True
        if not left:
            return self._labelled()
        name = self._small.name
        self._images = ray.put({(name, seed): (own, 1) for seed, (own, _) in self._small.draws.items()})
        return self.tasks(left)

    def _trained(self) -> Sequence[Any]:
        """Weights of the teachers; none, unless all are there."""
        found = {} if self._preparing is None else self._preparing.found
        return [found[one] for one in self._by] if all(one in found for one in self._by) else ()

    def start(self, actor: Any, item: int | None) -> Any:
        """The labels of one draw."""
        self._clock.begin(item)
        key = (self._small.name, item)
        return actor.call.remote(answer, key, self._images, self._labelling, *self._trained())

    def finish(self, item: int | None, value: Done) -> bool:
        """Store them."""
        self._files.save(self._small.draws[item][0], value.value)
        self._found[item] = value.value
        self._clock.end(item, value.peak)
        return False

    def then(self, item: int | None) -> Sequence[Task]:
        """After the last draw, the trainings on all."""
        del item
        return () if self.ready() else self._labelled()

    def _labelled(self) -> Sequence[Task]:
        draws = {seed: (own, self._found[seed]) for seed, (own, _) in self._small.draws.items()}
        return self._judge(replace(self._small, name=f"{self._small.name}{WITH_TEACHER}", draws=draws))

    def failed(self, item: int | None, failure: Failure) -> None:
        """Note it; then there is no row."""
        self._clock.drop(item)
        self.failures[item] = failure


__all__ = ["LabelFiles", "Teaching", "check_teacher", "notes_on_rivals", "teachers_of"]
