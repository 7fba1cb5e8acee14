"""What the cells of an experiment came to, and the table of means and spreads made of them."""

# S steps

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isqrt
from statistics import fmean, stdev
from typing import Any

from apps.continual.metrics import (
    AccuracyMatrix,
    backward_transfer,
    final_average_accuracy,
    forgetting,
    forgetting_first,
    forgetting_max,
)
from apps.continual.stream import PLAIN
from atom.errors import ArtifactError

WITHOUT_MEMORY = ("finetune", "joint")
"""Learners that no memory changes."""

Spread = tuple[float, float | None]
"""Mean and sample standard deviation over the complete cells; no deviation of a single one."""


ON_STATISTICS = (
    "Statistics: those of BatchNorm when the network is asked, from its training, or re-estimated on the real images of"
    " the step without their labels. Learners that go on with their network are judged with the latter, gdumb with the"
    " former; the accuracy on all classes with the other of the two stands beside it."
)
"""The note under every table with such numbers."""


def on_whitening(num_bytes: int) -> str:
    """The note under every table of runs with a whitening of so many bytes.

    Example:
        >>> on_whitening(75_497_472)
        'Beside every memory: the whitening, 75.5 MB (two 3,072 x 3,072 float32 matrices), not counted in its size.'
    """
    side = isqrt(num_bytes // 8)
    return (
        f"Beside every memory: the whitening, {num_bytes / 1e6:,.1f} MB (two {side:,} x {side:,} float32"
        " matrices), not counted in its size."
    )


@dataclass(frozen=True)
class Cell:
    """One run through the stream: a memory, a learner, a class order, a training seed."""

    memory: str
    learner: str
    order: int
    seed: int

    @property
    def name(self) -> str:
        """For files, runs and messages."""
        return f"{self.memory}-{self.learner}-o{self.order}-s{self.seed}"


@dataclass(frozen=True)
class StepResult:
    """What one cell came to after one step, on the images that accuracies are measured on.

    Attributes:
        step: from 0.
        class_row: accuracy on the images of steps 0 to `step`, class-incremental, percent.
        task_row: the same with the network told the step ("masked").
        accuracy_on_seen: on all images of these steps, class-incremental, percent.
        memory_images, memory_bytes: as stored, after the step.
        train_seconds: of the learner in this step.
        statistics: where a network with BatchNorm had its statistics from when it was asked: "step", the real images
            of the step, with learners that go on with their network; "training" with gdumb, and for other networks.
        by_class: accuracy on the images of each class seen by then, by its name in the order of arrival,
            class-incremental, percent; empty in results that were stored without it.
        other_class_row, other_on_seen: `class_row` and `accuracy_on_seen` with the other of the two; empty and None
            for networks without BatchNorm, and for learners without a memory.
    """

    step: int
    class_row: tuple[float, ...]
    task_row: tuple[float, ...]
    accuracy_on_seen: float
    memory_images: int
    memory_bytes: int
    train_seconds: float
    statistics: str = "training"
    by_class: Mapping[str, float] = field(default_factory=dict)
    other_class_row: tuple[float, ...] = ()
    other_on_seen: float | None = None

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "StepResult":
        """The inverse of `asdict`.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(
            step=int(value["step"]),
            class_row=tuple(float(a) for a in value["class_row"]),
            task_row=tuple(float(a) for a in value["task_row"]),
            accuracy_on_seen=float(value["accuracy_on_seen"]),
            memory_images=int(value["memory_images"]),
            memory_bytes=int(value["memory_bytes"]),
            train_seconds=float(value["train_seconds"]),
            statistics=str(value.get("statistics", "training")),
            by_class={str(name): float(a) for name, a in value.get("by_class", {}).items()},
            other_class_row=tuple(float(a) for a in value.get("other_class_row", ())),
            other_on_seen=None if value.get("other_on_seen") is None else float(value["other_on_seen"]),
        )


@dataclass(frozen=True)
class CellResult:
    """A cell's steps so far, in order from 0; `complete` if it has gone through the whole stream."""

    cell: Cell
    steps: tuple[StepResult, ...]
    complete: bool

    def class_matrix(self) -> AccuracyMatrix:
        """The class-incremental accuracy matrix."""
        return AccuracyMatrix.from_rows([step.class_row for step in self.steps])

    def task_matrix(self) -> AccuracyMatrix:
        """The task-masked accuracy matrix."""
        return AccuracyMatrix.from_rows([step.task_row for step in self.steps])


@dataclass(frozen=True)
class Summary:
    """One memory under one learner, over its complete cells; accuracies in percent, the rest in points.

    Attributes:
        n: complete cells.
        num_orders, num_seeds: distinct class orders and training seeds among them.
        final_average: mean over steps of the accuracy on each after the last step.
        average_incremental: mean over steps of the accuracy on all classes seen by then.
        on_seen_last: accuracy on all images after the last step.
        forgetting, forgetting_max, forgetting_first, backward_transfer: see `apps.continual.metrics`; 0 for a
            stream of one step.
        task_final_average: `final_average` of the masked matrix.
        memory_images, memory_bytes: after the last step, the largest of the cells.
        distil_seconds: of distillation for this memory, summed over workers; None where nothing was distilled.
        train_seconds: of all cells together.
        statistics, other_on_seen_last: see `StepResult`; None where there is no other.
    """

    memory: str
    learner: str
    n: int
    num_orders: int
    num_seeds: int
    final_average: Spread
    average_incremental: Spread
    on_seen_last: Spread
    forgetting: Spread
    forgetting_max: Spread
    forgetting_first: Spread
    backward_transfer: Spread
    task_final_average: Spread
    memory_images: int
    memory_bytes: int
    distil_seconds: float | None
    train_seconds: float
    statistics: str = "training"
    other_on_seen_last: Spread | None = None


@dataclass(frozen=True)
class ContinualResults:
    """Everything a report needs; `to_dict` gives what JSON can hold.

    Attributes:
        stream: for people, such as "CIFAR-10 in 5 steps of 2 classes".
        num_steps, num_classes: of the stream.
        cells: all that were asked for, incomplete ones too.
        summaries: by memory, then learner.
        distil_seconds: seconds of distillation by memory, summed over workers.
        facts: what a reader needs to judge and repeat the run.
        failures: (cell, reason).
        score_on: "test" or "validation", the images that accuracies are measured on.
        steps: names of what comes at each step, classes, or the look or session of all of them; by class order.
        class_images: images that accuracies are measured on, by name of the class.
        whitening_bytes: of the matrices of the whitening, which memories do not count; 0 without one.
        protocol: of the stream, such as "domain-incremental" or "class-incremental, online".
    """

    stream: str
    num_steps: int
    num_classes: int
    cells: tuple[CellResult, ...]
    summaries: tuple[Summary, ...]
    distil_seconds: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[tuple[str, str], ...] = ()
    score_on: str = "test"
    steps: Mapping[int, tuple[tuple[str, ...], ...]] = field(kw_only=True)
    class_images: Mapping[str, int] = field(default_factory=dict)
    whitening_bytes: int = 0
    protocol: str = PLAIN

    @property
    def classes_grow(self) -> bool:
        """Whether each step brings classes of its own and nothing else."""
        return self.protocol.startswith(PLAIN)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "ContinualResults":
        """The inverse of `to_dict`, also after a way through JSON; the summaries are made anew from the cells.

        Raises:
            ArtifactError: it is something else, or was written before the classes of the steps were there.
        """
        try:
            return cls._from_dict(value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ArtifactError(
                f"results of a stream: {what}; expected what this version writes. Run the command on their output"
                " again, which writes them anew."
            ) from error

    @classmethod
    def _from_dict(cls, value: Mapping[str, Any]) -> "ContinualResults":
        cells = tuple(
            CellResult(
                Cell(**cell["cell"]),
                tuple(StepResult.from_dict(step) for step in cell["steps"]),
                cell["complete"],
            )
            for cell in value["cells"]
        )
        return cls(
            stream=value["stream"],
            num_steps=value["num_steps"],
            num_classes=value["num_classes"],
            cells=cells,
            # Stored ones may lack a measure, or have it by an earlier definition.
            summaries=tuple(summarise(cells, value["distil_seconds"])),
            distil_seconds=dict(value["distil_seconds"]),
            facts=dict(value["facts"]),
            failures=tuple((name, reason) for name, reason in value["failures"]),
            steps={
                int(order): tuple(tuple(classes) for classes in steps)
                for order, steps in value["steps"].items()
            },
            # Results written before the fields were there do not have them.
            score_on=value.get("score_on", "test"),
            class_images=dict(value.get("class_images", {})),
            whitening_bytes=value.get("whitening_bytes", 0),
            protocol=value.get("protocol", PLAIN),
        )


def summarise(
    results: Iterable[CellResult], distil_seconds: Mapping[str, float] | None = None
) -> list[Summary]:
    """One row for each memory and learner with a complete cell, in the order in which they first come.

    Args:
        results: of all cells.
        distil_seconds: seconds of distillation by memory, summed over workers.
    """
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for result in results:
        if result.complete and result.steps:
            groups.setdefault((result.cell.memory, result.cell.learner), []).append(result)
    seconds = distil_seconds or {}
    return [_summary(key, group, seconds.get(key[0])) for key, group in groups.items()]


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation, None of one value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def _summary(key: tuple[str, str], group: Sequence[CellResult], distil_s: float | None) -> Summary:
    lasts = [result.steps[-1] for result in group]
    others = [step.other_on_seen for step in lasts if step.other_on_seen is not None]
    return Summary(
        memory=key[0],
        learner=key[1],
        n=len(group),
        num_orders=len({result.cell.order for result in group}),
        num_seeds=len({result.cell.seed for result in group}),
        final_average=spread([final_average_accuracy(result.class_matrix()) for result in group]),
        average_incremental=spread([fmean(s.accuracy_on_seen for s in result.steps) for result in group]),
        on_seen_last=spread([step.accuracy_on_seen for step in lasts]),
        forgetting=_over_steps(group, forgetting),
        forgetting_max=_over_steps(group, forgetting_max),
        forgetting_first=_over_steps(group, forgetting_first),
        backward_transfer=_over_steps(group, backward_transfer),
        task_final_average=spread([final_average_accuracy(result.task_matrix()) for result in group]),
        memory_images=max(step.memory_images for step in lasts),
        memory_bytes=max(step.memory_bytes for step in lasts),
        distil_seconds=distil_s,
        train_seconds=sum(step.train_seconds for result in group for step in result.steps),
        statistics=lasts[0].statistics,
        other_on_seen_last=spread(others) if len(others) == len(lasts) else None,
    )


def _over_steps(group: Sequence[CellResult], measure: Callable[[AccuracyMatrix], float]) -> Spread:
    # Of a single step there is nothing to forget; the measures say NaN, which JSON does not know.
    if any(len(result.steps) < 2 for result in group):
        return 0.0, None
    return spread([measure(result.class_matrix()) for result in group])


__all__ = [
    "ON_STATISTICS",
    "WITHOUT_MEMORY",
    "Cell",
    "CellResult",
    "ContinualResults",
    "Spread",
    "StepResult",
    "Summary",
    "on_whitening",
    "spread",
    "summarise",
]
