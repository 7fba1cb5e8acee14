"""Units of classes through the pool of workers, chunk after chunk, each stored while the next one is computed."""

# T iterations, K classes, G classes of a unit

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from atom.errors import ConfigError
from atom.methods.experts import name_of
from atom.methods.lookup import find_method
from atom.methods.method import Part, State, Unit
from atom.methods.settings import DistillSettings
from pipelines.console.progress import Progress
from pipelines.loss_curves import are_many, loss_points, total_points, write_table
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.expert_files import ExpertFiles
from pipelines.output.saver import Saver
from pipelines.preparing import Preparing, progress_of, show
from pipelines.real_classes import whole
from pipelines.tracking import Tracker
from pipelines.workers.dispatch import Limits
from pipelines.workers.faults import Failure
from pipelines.workers.remote import Done, Problem
from pipelines.workers.resources import ActorSize
from pipelines.workers.works import Clock, Spent, Task, Work, poll, run_pool

logger = logging.getLogger(__name__)

LEFT_OUT = "loss/left_out_frac"

TELL_S = 1.0
"""Seconds between notes of what chunks took, which are files that are written anew. Chosen."""

MANY_LEFT_OUT = 0.1
"""Share of steps that moved nothing from which on people are told. Chosen."""


@dataclass
class Distillation:
    """What came of a distillation.

    Attributes:
        states: the last stored state of each unit that is complete; a class of it may have failed.
        failed: why a unit failed, or one class of a unit whose others went on.
        failed_preparations: why, by name; then no unit was begun.
        stopped: whether a signal ended it early.
        retries: chunks tried again after machine faults.
        iterations_run: iterations of units computed by this process.
        programs: all that computed a part of the images, see `provenance.program`; the last one finished them.
    """

    states: dict[Unit, State] = field(default_factory=dict)
    failed: dict[Unit, Failure] = field(default_factory=dict)
    failed_preparations: dict[str, Failure] = field(default_factory=dict)
    stopped: bool = False
    retries: int = 0
    iterations_run: int = 0
    programs: list[dict[str, Any]] = field(default_factory=list)

    def parts(self, settings: DistillSettings) -> dict[Unit, Part]:
        """What the complete units give to the set.

        Raises:
            ConfigError: soft labels that the method does not announce, or announced ones that are not there.
        """
        method = find_method(settings.method)
        found = {unit: method.result(settings, unit, state) for unit, state in self.states.items()}
        announced = method.learns_labels(settings)
        if any((part.soft_labels is not None) != announced for part in found.values()):
            raise ConfigError(
                f"method {settings.method!r}: its learns_labels says {announced},"
                " and its results are otherwise; correct it."
            )
        return found

    @property
    def left_out(self) -> tuple[int, int]:
        """Steps of the complete units that moved nothing, whose loss is NaN, and all."""
        losses = [state.losses for state in self.states.values()]
        return sum(int(np.isnan(one).sum()) for one in losses), sum(one.size for one in losses)

    def remarks(self, settings: DistillSettings) -> list[str]:
        """What has to be said of a distillation that went well: that many of its steps moved nothing."""
        lost, total = self.left_out
        if not lost or lost < MANY_LEFT_OUT * total:
            return []
        most = getattr(settings.options, "max_loss", None)
        why = "loss or gradients were not finite" if most is None else f"loss was above --max-loss {most:g}"
        return [f"{lost} of {total} steps were left out, since their {why}."]

    def classes(self, settings: DistillSettings) -> dict[int, Part]:
        """The part of each class that is complete: images [I, C, H, W], soft labels [I, K]."""
        return {
            class_id: part.of(row)
            for unit, part in self.parts(settings).items()
            for row, class_id in enumerate(unit)
            if class_id not in self.states[unit].failures
        }


class Distilling(Work):
    """The units of a distillation as a part of what a pool does, each chunk stored while the next one is computed.

    A kill loses what was being stored, and a unit counts as done once its last state is on disk.

    Args:
        problem: resolved settings and shapes.
        units: of the method, see `Method.units`, in the order in which they are begun.
        real: a Ray reference to the images of each class, see `DistillWorker.advance`. Those of a unit are asked for
            when it is begun and kept until it is done.
        checkpoints: of the output; every chunk is stored there.
        checkpoint_every: iterations of a chunk.
        tracker: gets the loss curves.
        on_spent: called after chunks, see `Clock`, about once a second where they are shorter.
        given: stored images that each class starts from, [I, C, H, W]; None: as the settings say.
        helpers: workers outside the pool that take replicas off the one that holds the only unit, see `helpers_of`.
        title: see `Work`.

    Attributes:
        total: iterations of a unit.
        needed: what the method asks for before its first unit; nothing where none is left.
        states: the last state of each unit that has one; to be sure that it is stored, see `wait`.
        running: the iteration of each unit in work, as far as workers told.
        result: what came of it so far; see `conclude`.
    """

    counts = True

    def __init__(
        self,
        problem: Problem,
        units: Sequence[Unit],
        real: Mapping[int, Any],
        checkpoints: Checkpoints,
        *,
        checkpoint_every: int,
        tracker: Tracker | None = None,
        on_spent: Callable[[Spent], None] | None = None,
        given: Mapping[int, np.ndarray] | None = None,
        helpers: ActorSize | None = None,
        title: str = "",
    ) -> None:
        assert problem.settings.iterations is not None, "settings are resolved by the driver"
        self.problem, self.units, self.real = problem, list(units), real
        self.total = problem.settings.iterations
        self.checkpoints, self.checkpoint_every = checkpoints, checkpoint_every
        self.tracker, self.given, self.helpers, self.title = tracker, given, helpers, title
        self.result = Distillation()
        self.states: dict[Unit, State] = {}
        self._saver, self._newest = Saver(checkpoints), _Newest(units)
        for unit, state in checkpoints.load_all(units).items():
            self._take(unit, state)
        self.running: dict[Unit, int] = {}
        self._held: dict[Unit, Mapping[int, Any]] = {}
        self.at_start = self.done()
        self.needed = (
            find_method(problem.settings.method).preparations(problem.settings) if self.left() else ()
        )
        self._preparing: list[Preparing] = []
        self._begun = False
        self._clock = Clock(on_spent, every_s=TELL_S)
        # What an earlier driver computed as well: its MLflow run may lack it.
        self.joint, self.many = len(units) == 1, are_many(units)
        self.points = [p for unit, state in self.states.items() for p in self._new_points(unit, state, 0)]

    def _new_points(self, unit: Unit, state: State, begin: int) -> list[tuple[str, float, int]]:
        return loss_points(unit, state.losses, begin, self.total, joint=self.joint, many=self.many)

    def iteration(self, unit: Unit) -> int:
        """Where its last state is."""
        return self.states[unit].iteration if unit in self.states else 0

    def until(self, unit: Unit) -> int:
        """Where the next chunk ends."""
        return min(self.total, self.iteration(unit) + self.checkpoint_every)

    def finished(self, unit: Unit) -> bool:
        """Whether nothing of it is left to be done."""
        state = self.states.get(unit)
        return state is not None and (state.iteration >= self.total or len(state.failures) == len(unit))

    def left(self) -> list[Unit]:
        """The units that are not finished."""
        return [unit for unit in self.units if not self.finished(unit)]

    def wait_for(self, preparing: Preparing) -> None:
        """Begin no unit before this made what is needed; it may make other things too."""
        self._preparing.append(preparing)
        preparing.call(self._begin)

    def prepared(self) -> dict[str, Any] | None:
        """A Ray reference to what each preparation gave, by its name; None where one is missing."""
        found = {item: ref for work in self._preparing for item, ref in work.found.items()}
        if any(item not in found for item in self.needed):
            return None
        return {name_of(item): found[item] for item in self.needed}

    def ready(self) -> Sequence[Unit]:
        """The units that are left, unless they wait for preparations."""
        return [task.item for task in self._begin()]

    def _begin(self) -> Sequence[Task]:
        if self._begun or self.prepared() is None:
            return ()
        self._begun = True
        for work in self._preparing:
            self.checkpoints.reads(work.programs(self.needed))
        return self.tasks(self.left())

    def start(self, actor: Any, item: Unit) -> Any:
        """The next chunk of a unit, from its last state."""
        self._clock.begin(item)
        if item not in self._held:
            # What holds all classes is shared with preparations and helpers.
            source = whole(self.real) if self.joint else self.real
            self._held[item] = {c: source[c] for c in item}
        real, state = self._held[item], self.states.get(item)
        given = None
        if state is None and self.given is not None:
            given = np.stack([self.given[c] for c in item])
        prepared = self.prepared()
        assert prepared is not None, "units are begun after preparations"
        until = self.until(item)
        return actor.advance.remote(self.problem, item, real, state, until, given, prepared, self.helpers)

    def finish(self, item: Unit, value: Done) -> bool:
        """Have the state stored that a chunk came to."""
        more = self._advanced(item, value.value)
        if not more:
            self._held.pop(item, None)
        workers = 1 + (self.helpers.num_actors if self.helpers else 0)
        self._clock.end(item, value.peak, workers=workers)
        return more

    def _advanced(self, unit: Unit, state: State) -> bool:
        before = self.iteration(unit)
        known = self.states[unit].failures if unit in self.states else {}
        # Classes of a joint method fail together, and one line says so.
        alike: dict[str, list[str]] = {}
        for class_id in sorted(state.failures.keys() - known.keys()):
            reason = state.failures[class_id].removeprefix(f"class {class_id}: ")
            alike.setdefault(reason, []).append(str(class_id))
        for reason, classes in alike.items():
            which = f"class{'es' if len(classes) > 1 else ''} {', '.join(classes)}"
            logger.error("%s%s failed: %s", self._before, which, reason)
        self._saver.put(unit, state)
        self._take(unit, state)
        self.running.pop(unit, None)
        self.points += self._new_points(unit, state, before)
        return not self.finished(unit)

    def _take(self, unit: Unit, state: State) -> None:
        self.states[unit] = state
        self._newest.take(unit, state, finished=self.finished(unit))

    @property
    def _before(self) -> str:
        return f"{self.title}: " if self.title else ""

    def told(self, item: Unit, steps: int) -> None:
        """Take note."""
        self.running[item] = steps

    def failed(self, item: Unit, failure: Failure) -> None:
        """Note it; the other units go on."""
        self._clock.drop(item)
        self._held.pop(item, None)
        self.result.failed[item] = failure
        self.running.pop(item, None)

    def kind(self, item: Unit) -> Hashable:
        """Units of as many classes, chunks of as many iterations."""
        return len(item), self.until(item) - self.iteration(item)

    def rank(self, item: Unit) -> int:
        """After preparations; a unit that holds all classes before others, since it takes the longest."""
        return 1 if self.joint else 2

    def send_losses(self) -> None:
        """Pass the new points on; the tracker never waits, and sends no point twice."""
        if self.tracker is not None and self.points:
            self.tracker.log_history(self.points)
        self.points = []

    def tick(self) -> None:
        """What is to be done about once a second.

        Raises:
            StoreError: a state could not be stored.
        """
        self.send_losses()
        self._saver.check()

    def done(self) -> int:
        """Iterations of all units, those in work included."""
        in_work = (min(steps, self.total) - self.iteration(u) for u, steps in self.running.items())
        return self._newest.iterations + sum(max(0, more) for more in in_work)

    def classes_done(self) -> int:
        """Of the units that are finished and on disk.

        Raises:
            StoreError: one could not be stored.
        """
        return self._newest.classes - sum(len(u) for u in self._saver.pending() if self.finished(u))

    def last_loss(self) -> float | None:
        """The mean over classes, each by its newest."""
        return self._newest.loss()

    def wait(self) -> None:
        """Until the last state of every unit is on disk, and what all took is told.

        Raises:
            StoreError: one could not be stored.
        """
        self._saver.wait()
        self._clock.tell()

    def conclude(self) -> Distillation:
        """What came of it, once nothing of it is in work any more.

        Raises:
            StoreError: a state could not be stored.
        """
        self.wait()
        self.send_losses()
        result = self.result
        for work in self._preparing:
            failed = {name_of(item): why for item, why in work.failures.items() if item in self.needed}
            result.failed_preparations |= failed
        for unit in filter(self.finished, self.units):
            state = self.states[unit]
            result.failed |= {(c,): Failure(why, why) for c, why in state.failures.items()}
            if len(state.failures) < len(unit):
                result.states[unit] = state
        if self.tracker is not None and not result.failed and len(result.states) == len(self.units):
            losses = {unit: self.states[unit].losses for unit in self.units}
            points = total_points(losses)
            self.tracker.log_history(points)
            if self.many and points:
                self.tracker.log_artifacts(partial(write_table, losses, self.total))
            lost, total = result.left_out
            if lost:
                self.tracker.log_metrics({LEFT_OUT: lost / total})
        result.iterations_run = self.done() - self.at_start
        result.programs = self.checkpoints.programs(self.units)
        return result


class _Newest:
    """Sums over the newest states of all units, kept up, since they are asked for after every chunk.

    Attributes:
        iterations: of all units.
        classes: of those that are finished.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self.iterations = self.classes = 0
        self._places = {unit: place for place, unit in enumerate(units)}
        self._iterations_U = np.zeros(len(units), dtype=np.int64)
        self._losses_U, self._counts_U = np.zeros((2, len(units)))

    def take(self, unit: Unit, state: State, *, finished: bool) -> None:
        """Count a state in the place of the unit's last one."""
        place = self._places[unit]
        self.iterations += state.iteration - int(self._iterations_U[place])
        self.classes += len(unit) if finished else 0
        self._iterations_U[place] = state.iteration
        last = state.losses[-1] if len(state.losses) else np.zeros(0)
        sound = last[np.isfinite(last)]
        self._losses_U[place], self._counts_U[place] = sound.sum(), len(sound)

    def loss(self) -> float | None:
        """The mean over classes whose last loss is a number."""
        count = self._counts_U.sum()
        return float(self._losses_U.sum() / count) if count else None


class _Shown:
    """What the screen shows of one distillation: first its preparations, then its iterations."""

    def __init__(self, preparing: Preparing, work: Distilling, stack: ExitStack) -> None:
        self._preparing, self._work, self._stack = preparing, work, stack
        self._progress: Progress | None = None
        self._of_units = False

    def __call__(self) -> None:
        work, ready = self._work, self._work.prepared() is not None
        if self._progress is None or (ready and not self._of_units):
            self._stack.close()
            self._of_units = ready
            progress = self._distilling() if ready else progress_of(self._preparing)
            self._progress = self._stack.enter_context(progress)
        if self._of_units:
            self._progress.update(
                work.done(),
                items_done=work.classes_done(),
                loss=work.last_loss(),
                read_bytes=getattr(work.real, "read_bytes", 0),
            )
        else:
            show(self._progress, self._preparing)

    def _distilling(self) -> Progress:
        work = self._work
        num_classes = sum(len(unit) for unit in work.units)
        return Progress("distilling", len(work.units) * work.total, num_items=num_classes, done=work.at_start)

    def tick(self, actors: Mapping[Task, Any]) -> None:
        self._work.tick()
        poll(actors)
        self()


def distil_classes(
    problem: Problem,
    units: Sequence[Unit],
    real: Mapping[int, Any],
    checkpoints: Checkpoints,
    *,
    size: ActorSize,
    checkpoint_every: int,
    experts: ExpertFiles | None = None,
    limits: Limits | None = None,
    tracker: Tracker | None = None,
    stop: threading.Event | None = None,
    on_spent: Callable[[Spent], None] | None = None,
    given: Mapping[int, np.ndarray] | None = None,
) -> Distillation:
    """Distil units of classes on Ray actors; what is on disk is not computed again.

    Args:
        problem, units, real, checkpoints, checkpoint_every, tracker, given: see `Distilling`.
        size: the pool. Neither it nor the order of the units changes a bit of the result.
        experts: where those that the method asks for are kept; None: it asks for none.
        limits: retries and time limits.
        stop: ends it early when set.
        on_spent: called after every stored chunk, of preparations too, see `Clock`.
    """
    work = Distilling(
        problem,
        units,
        real,
        checkpoints,
        checkpoint_every=checkpoint_every,
        tracker=tracker,
        on_spent=on_spent,
        given=given,
        helpers=helpers_of(problem.settings, units, size),
    )
    preparing = Preparing(problem, work.needed, real, checkpoints, experts, on_spent=on_spent)
    work.wait_for(preparing)
    with ExitStack() as stack:
        # However it ends: the output may be another driver's a moment later.
        stack.callback(work.wait)
        shown = _Shown(preparing, work, stack.enter_context(ExitStack()))
        shown()
        first = [*preparing.tasks(preparing.ready()), *work.tasks(work.ready())]
        outcome = run_pool(
            first,
            size=size,
            limits=limits,
            on_change=shown,
            on_tick=shown.tick,
            # What prepared must not hold the places of helpers.
            release=work.helpers is not None,
            stop=stop,
        )
        work.wait()
        shown()
    work.result.stopped, work.result.retries = outcome.stopped, outcome.retries
    return work.conclude()


def workers_of_use(settings: DistillSettings, units: Sequence[Unit]) -> int:
    """More workers than these would idle."""
    method = find_method(settings.method)
    together = method.replicas(settings) if len(units) == 1 else len(units)
    return max(together, len(method.preparations(settings)))


def helpers_of(settings: DistillSettings, units: Sequence[Unit], size: ActorSize) -> ActorSize | None:
    """Workers that take replicas off the one that holds the only unit; None, where there are no two."""
    further = min(size.num_actors, find_method(settings.method).replicas(settings)) - 1
    return replace(size, num_actors=further) if len(units) == 1 and further > 0 else None
