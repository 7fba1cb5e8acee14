"""Groups of classes through the pool of workers, chunk after chunk, each chunk on disk before the next."""

# T iterations, K classes, G classes of a group

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atom.distill import GroupState
from pipelines.console.progress import Progress
from pipelines.output.checkpoints import Checkpoints, ClassState
from pipelines.tracking import Tracker
from pipelines.workers.dispatch import Limits, dispatch, gather
from pipelines.workers.faults import Failure
from pipelines.workers.remote import Problem, RemoteDistillWorker
from pipelines.workers.resources import ActorSize

logger = logging.getLogger(__name__)

Group = tuple[int, ...]

LOSS_POINTS = 200
"""Values of each loss curve that MLflow gets; the whole curve is in the checkpoints."""


@dataclass
class Distillation:
    """What came of a distillation.

    Attributes:
        states: the last stored state of each class that is complete.
        failed: why a group failed, or one class of a group whose others went on.
        stopped: whether a signal ended it early.
        retries: chunks tried again after machine faults.
        iterations_run: iterations of groups computed by this process.
        programs: all that computed a part of the images, see `provenance.program`; the last one finished them.
    """

    states: dict[int, ClassState] = field(default_factory=dict)
    failed: dict[Group, Failure] = field(default_factory=dict)
    stopped: bool = False
    retries: int = 0
    iterations_run: int = 0
    programs: list[dict[str, Any]] = field(default_factory=list)


def group_classes(num_classes: int, classes_per_group: int | None) -> list[Group]:
    """Consecutive classes in groups; the last group may be smaller."""
    assert classes_per_group is not None, "settings are resolved by the driver"
    return [
        tuple(range(start, min(start + classes_per_group, num_classes)))
        for start in range(0, num_classes, classes_per_group)
    ]


class _Run:
    """State of one `distil_classes` call: the groups' last stored states, and where each stands."""

    def __init__(
        self,
        problem: Problem,
        groups: Sequence[Group],
        real: Mapping[int, Any],
        checkpoints: Checkpoints,
        checkpoint_every: int,
        tracker: Tracker | None,
        starts: Mapping[int, np.ndarray] | None,
    ) -> None:
        assert problem.settings.iterations is not None, "settings are resolved by the driver"
        self.total = problem.settings.iterations
        self.real = real
        self.checkpoints = checkpoints
        self.checkpoint_every = checkpoint_every
        self.tracker = tracker
        self.starts = starts
        self.states: dict[Group, GroupState] = {}
        for group in groups:
            found = checkpoints.latest(group)
            if found is not None:
                self.states[group] = _joined(*found)
        self.at_start = sum(self.iteration(group) for group in groups)
        self.running: dict[Group, int] = {}
        # What an earlier driver computed as well: its MLflow run may lack it.
        self.points = [
            p for g, state in self.states.items() for p in _loss_points(g, state.losses, 0, self.total)
        ]

    def iteration(self, group: Group) -> int:
        return self.states[group].iteration if group in self.states else 0

    def until(self, group: Group) -> int:
        """Where the next chunk ends."""
        return min(self.total, self.iteration(group) + self.checkpoint_every)

    def finished(self, group: Group) -> bool:
        state = self.states.get(group)
        return state is not None and (state.iteration >= self.total or len(state.failures) == len(group))

    def start(self, actor: Any, group: Group) -> Any:
        real = {c: self.real[c] for c in group}
        state = self.states.get(group)
        if state is None and self.starts is not None:
            state = GroupState.first(np.stack([self.starts[c] for c in group]))
        return actor.advance.remote(group, real, state, self.until(group))

    def finish(self, group: Group, state: GroupState) -> bool:
        before = self.iteration(group)
        known = self.states[group].failures if group in self.states else {}
        for class_id in state.failures.keys() - known.keys():
            logger.error("class %d failed: %s", class_id, state.failures[class_id])
        self.checkpoints.save(state.iteration, _split(group, state))
        self.states[group] = state
        self.running.pop(group, None)
        self.points += _loss_points(group, state.losses, before, self.total)
        return not self.finished(group)

    def send_losses(self) -> None:
        """Pass the new points on; the tracker never waits, and sends no point twice."""
        if self.tracker is not None and self.points:
            self.tracker.log_history(self.points)
        self.points = []

    def done(self, groups: Sequence[Group]) -> int:
        """Iterations of all groups, those in work included."""
        return sum(max(self.iteration(g), min(self.running.get(g, 0), self.total)) for g in groups)

    def last_loss(self) -> float | None:
        lasts = [state.losses[-1] for state in self.states.values() if len(state.losses)]
        sound = [loss for last in lasts for loss in last if np.isfinite(loss)]
        return float(np.mean(sound)) if sound else None


def distil_classes(
    problem: Problem,
    groups: Sequence[Group],
    real: Mapping[int, Any],
    checkpoints: Checkpoints,
    *,
    size: ActorSize,
    checkpoint_every: int,
    limits: Limits | None = None,
    tracker: Tracker | None = None,
    stop: threading.Event | None = None,
    on_seconds: Callable[[float, float], None] | None = None,
    starts: Mapping[int, np.ndarray] | None = None,
) -> Distillation:
    """Distil groups of classes on Ray actors; what is on disk is not computed again.

    Args:
        problem: resolved settings and shapes.
        groups: classes of each unit of work, in the order in which they are begun.
        real: a Ray reference to the preprocessed images of each class, float32 [n, C, H, W].
        checkpoints: of the output; every chunk is stored there.
        size: the pool. Neither it nor the order of the groups changes a bit of the result.
        checkpoint_every: iterations of a chunk.
        limits: retries and time limits.
        tracker: gets the loss curves.
        stop: ends it early when set.
        on_seconds: called after every stored chunk with the wall time since the last call, and with the same
            summed over the workers that had work.
        starts: stored images that each class starts from, [I, C, H, W]; None: as the settings say.
    """
    run = _Run(problem, groups, real, checkpoints, checkpoint_every, tracker, starts)
    open_groups = [group for group in groups if not run.finished(group)]
    num_classes = sum(len(group) for group in groups)
    told = time.monotonic()
    result = Distillation()
    with Progress(
        "distilling", len(groups) * run.total, num_items=num_classes, done=run.at_start
    ) as progress:

        def show(actors: Mapping[Group, Any]) -> None:
            if actors:
                run.send_losses()
            answers = gather({group: actor.progress.remote() for group, actor in actors.items()})
            run.running.update(answers)
            classes = sum(len(group) for group in groups if run.finished(group))
            progress.update(run.done(groups), items_done=classes, loss=run.last_loss())

        def finish(group: Group, state: GroupState) -> bool:
            busy = min(size.num_actors, sum(not run.finished(group) for group in open_groups))
            more = run.finish(group, state)
            if on_seconds is not None:
                nonlocal told
                told, since = time.monotonic(), told
                on_seconds(told - since, busy * (told - since))
            show({})
            return more

        if open_groups:
            outcome = dispatch(
                open_groups,
                lambda: RemoteDistillWorker.options(num_cpus=size.cpus, num_gpus=size.gpus).remote(problem),
                start=run.start,
                finish=finish,
                num_actors=size.num_actors,
                kind=lambda group: (len(group), run.until(group) - run.iteration(group)),
                limits=limits,
                on_tick=show,
                stop=stop,
            )
            result.failed, result.stopped, result.retries = outcome.failed, outcome.stopped, outcome.retries
        show({})
    run.send_losses()
    for group in filter(run.finished, groups):
        for class_id, state in _split(group, run.states[group]).items():
            if state.failure:
                result.failed[(class_id,)] = Failure(state.failure, state.failure)
            else:
                result.states[class_id] = state
    if tracker is not None and len(result.states) == num_classes:
        tracker.log_history(_total_points([run.states[group].losses for group in groups]))
    result.iterations_run = run.done(groups) - run.at_start
    result.programs = checkpoints.programs([class_id for group in groups for class_id in group])
    return result


def stored_curves(
    checkpoints: Checkpoints, groups: Sequence[Group], total: int
) -> list[tuple[str, float, int]]:
    """Points of the loss curves of what is stored, for a run that lacks them; `total` iterations make a whole one."""
    found = {group: checkpoints.latest(group) for group in groups}
    losses = {g: np.stack([at[1][c].losses for c in g], axis=1) for g, at in found.items() if at is not None}
    points = [point for group, curve in losses.items() for point in _loss_points(group, curve, 0, total)]
    whole = (
        bool(groups) and len(losses) == len(groups) and all(len(curve) == total for curve in losses.values())
    )
    return points + (_total_points(list(losses.values())) if whole else [])


def _split(group: Group, state: GroupState) -> dict[int, ClassState]:
    return {
        class_id: ClassState(
            state.images[row], state.momentum[row], state.losses[:, row], state.failures.get(class_id, "")
        )
        for row, class_id in enumerate(group)
    }


def _joined(iteration: int, states: Mapping[int, ClassState]) -> GroupState:
    parts = list(states.values())
    return GroupState(
        iteration=iteration,
        images=np.stack([part.images for part in parts]),
        momentum=np.stack([part.momentum for part in parts]),
        losses=np.stack([part.losses for part in parts], axis=1),
        failures={class_id: part.failure for class_id, part in states.items() if part.failure},
    )


def _total_points(losses: Sequence[np.ndarray]) -> list[tuple[str, float, int]]:
    """The method's loss: the sum over classes, once all groups have come to the end."""
    total_T = np.concatenate(losses, axis=1).sum(axis=1)
    return [("loss/total", float(value), t) for t, value in enumerate(total_T) if _shown(t, len(total_T))]


def _shown(iteration: int, total: int) -> bool:
    return iteration % max(1, total // LOSS_POINTS) == 0 or iteration == total - 1


def _loss_points(group: Group, losses_TG: np.ndarray, begin: int, total: int) -> list[tuple[str, float, int]]:
    """Points of the chunk that began at iteration `begin`, thinned alike for every class."""
    return [
        (f"loss/class_{class_id:02d}", float(losses_TG[t, row]), t)
        for t in range(begin, len(losses_TG))
        if _shown(t, total)
        for row, class_id in enumerate(group)
        if np.isfinite(losses_TG[t, row])
    ]
