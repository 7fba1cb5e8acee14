"""What methods ask for before their first unit, each on a worker: experts some epochs at a time, the rest at once."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from atom.methods.experts import Expert, Recipe, epochs_done, name_of
from pipelines.console.progress import Progress
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.expert_files import ExpertFiles
from pipelines.real_classes import whole
from pipelines.workers.dispatch import Limits
from pipelines.workers.faults import Failure
from pipelines.workers.remote import Done, Problem
from pipelines.workers.resources import ActorSize
from pipelines.workers.works import Clock, Spent, Task, Work, poll, run_pool

EXPERT_CHUNK_S = 10.0
"""Seconds of training between two states of an expert that are stored, at least an epoch: a kill loses no more. It
never changes the result."""

Preparation = str | Expert

_NOWHERE = "a method that asks for experts needs a place for them"


class Preparing(Work):
    """Preparations as a part of what a pool does, from wherever they stand on disk; distillations wait for them.

    An expert that is asked for by several is trained once, for as many epochs as the most of them read.

    Args:
        problem: what the workers are told.
        items: of one method or several, see `Method.preparations`; a name must mean one thing.
        real: a Ray reference to the images of each class, see `DistillWorker.prepare`.
        checkpoints, experts: where they are kept; no experts, no place for them.
        on_spent: called after every stored chunk, see `Clock`.
        title: see `Work`.

    Attributes:
        items: each once.
        found: a Ray reference to the arrays of each one that is whole.
        failures: why one failed.
        running: epochs of those in work, as far as workers told.

    Raises:
        StoreError: a stored expert is damaged, or another than its place says.
    """

    counts = True

    def __init__(
        self,
        problem: Problem,
        items: Sequence[Preparation],
        real: Mapping[int, Any],
        checkpoints: Checkpoints,
        experts: ExpertFiles | None,
        *,
        on_spent: Callable[[Spent], None] | None = None,
        title: str = "",
    ) -> None:
        self.problem, self.items, self.title = problem, list(dict.fromkeys(items)), title
        self._real, self._classes = real, tuple(sorted(real))
        self._checkpoints, self._experts = checkpoints, experts
        self._clock = Clock(on_spent)
        self._waiting: list[Callable[[], Sequence[Task]]] = []
        self._begun: dict[Preparation, Mapping[str, np.ndarray]] = {}
        self.found: dict[Preparation, Any] = {}
        self.failures: dict[Preparation, Failure] = {}
        self.running: dict[Preparation, int] = {}
        longest: dict[tuple[Recipe, int], Expert] = {}
        for item in self.items:
            if isinstance(item, Expert) and item.epochs >= _epochs(longest.get(_file(item))):
                longest[_file(item)] = item
        self._lead = {item: longest[_file(item)] if isinstance(item, Expert) else item for item in self.items}
        self.made = list(dict.fromkeys(self._lead.values()))
        for item in self.made:
            arrays = self._load(item)
            if arrays is not None:
                self._take(item, arrays)
        self.at_start = self.steps()

    def call(self, begin: Callable[[], Sequence[Task]]) -> None:
        """Have somebody asked after each preparation for what can be begun now."""
        self._waiting.append(begin)

    def ready(self) -> Sequence[Preparation]:
        """Those that are not whole on disk."""
        return [item for item in self.made if item not in self.found]

    def start(self, actor: Any, item: Preparation) -> Any:
        """An expert from where it stands, anything else from the start."""
        self._clock.begin(item)
        before = self._begun.get(item)
        return actor.prepare.remote(self.problem, item, whole(self._real), before, EXPERT_CHUNK_S)

    def finish(self, item: Preparation, value: Done) -> bool:
        """Store what a chunk gave."""
        self.running.pop(item, None)
        if isinstance(item, Expert):
            assert self._experts is not None, _NOWHERE
            self._experts.save(item, self._classes, value.value)
        else:
            self._checkpoints.save_prepared(item, self._classes, value.value)
        self._take(item, value.value)
        self._clock.end(item, value.peak)
        return item not in self.found

    def then(self, item: Preparation) -> Sequence[Task]:
        """What waited for it."""
        del item
        return [task for begin in self._waiting for task in begin()]

    def told(self, item: Preparation, steps: int) -> None:
        """Take note."""
        self.running[item] = steps

    def failed(self, item: Preparation, failure: Failure) -> None:
        """Note it for all that asked for it."""
        self._clock.drop(item)
        self.running.pop(item, None)
        self.failures |= {asked: failure for asked, lead in self._lead.items() if lead == item}

    def kind(self, item: Preparation) -> object:
        """Chunks of experts last about as long as is asked for."""
        return isinstance(item, Expert)

    @property
    def total(self) -> int:
        """Steps in all: of an expert its epochs; the rest is made at once."""
        return sum(map(_steps, self.made))

    def epochs(self, item: Expert) -> int:
        """How far an expert is on disk, as far as it is read."""
        return item.epochs if item in self.found else epochs_done(self._begun.get(item))

    def programs(self, items: Iterable[Preparation]) -> list[dict[str, Any]]:
        """Those that trained the experts among these; of other preparations checkpoints know."""
        if self._experts is None:
            return []
        found = (self._experts.programs_of(one, self._classes) for one in items if isinstance(one, Expert))
        return [program for programs in found for program in programs]

    def steps(self) -> int:
        """Done, those in work included."""
        return sum(self._steps_done(item) for item in self.made)

    def whole(self) -> int:
        """How many of what is made are whole."""
        return sum(item in self.found for item in self.made)

    def _steps_done(self, item: Preparation) -> int:
        if item in self.found:
            return _steps(item)
        return max(epochs_done(self._begun.get(item)), min(self.running.get(item, 0), _steps(item)))

    def _load(self, item: Preparation) -> Mapping[str, np.ndarray] | None:
        if isinstance(item, Expert):
            assert self._experts is not None, _NOWHERE
            return self._experts.load(item, self._classes)
        return self._checkpoints.load_prepared(item, self._classes)

    def _take(self, item: Preparation, arrays: Mapping[str, np.ndarray]) -> None:
        if isinstance(item, Expert) and epochs_done(arrays) < item.epochs:
            self._begun[item] = arrays
            return
        self._begun.pop(item, None)
        for asked in [asked for asked, lead in self._lead.items() if lead == item]:
            read = asked.read_from(arrays) if isinstance(asked, Expert) else dict(arrays)
            self.found[asked] = ray.put(read)


def _file(expert: Expert) -> tuple[Recipe, int]:
    return expert.recipe, expert.number


def _epochs(expert: Expert | None) -> int:
    return -1 if expert is None else expert.epochs


def _steps(item: Preparation) -> int:
    return max(1, item.epochs) if isinstance(item, Expert) else 1


def progress_of(work: Preparing) -> Progress:
    """What the screen shows of preparations, see `show`."""
    counted = {"num_items": len(work.made), "unit": "steps", "item": "preparations"}
    return Progress("preparing", work.total, **counted, done=work.at_start)


def show(progress: Progress, work: Preparing) -> None:
    """Where preparations stand."""
    progress.update(work.steps(), items_done=work.whole())


@dataclass
class Prepared:
    """What came of it.

    Attributes:
        ready: Ray references to the arrays of each preparation that is whole, by name.
        failed: why one failed, by name.
        stopped: whether a signal ended it early.
    """

    ready: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    stopped: bool = False


def prepare(
    work: Preparing, *, size: ActorSize, limits: Limits | None = None, stop: threading.Event | None = None
) -> Prepared:
    """Preparations alone through a pool.

    Args:
        work: of one method.
        size, limits, stop: see `run_pool`.
    """
    with ExitStack() as stack:
        progress = stack.enter_context(progress_of(work))

        def tick(actors: Mapping[Task, Any]) -> None:
            poll(actors)
            show(progress, work)

        show(progress, work)
        outcome = run_pool(
            work.tasks(work.ready()),
            size=size,
            limits=limits,
            on_change=lambda: show(progress, work),
            on_tick=tick,
            stop=stop,
        )
    ready = {name_of(item): reference for item, reference in work.found.items()}
    failed = {name_of(item): failure for item, failure in work.failures.items()}
    return Prepared(ready, failed, outcome.stopped)
