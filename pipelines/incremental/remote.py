"""What runs on the cluster for a continual experiment: one step of one cell, and the choice of real images of a class.

Thin shells over `apps.continual`; torch is imported inside, so that importing this module in a driver is cheap.
"""

# N images, C channels, H height, W width, T images asked about

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from apps.continual.results import WITHOUT_MEMORY, Cell, StepResult
from atom.settings import DeviceKind, EvaluateSettings
from pipelines.workers.cluster import as_tensor
from pipelines.workers.remote import FETCH_TIMEOUT_S

if TYPE_CHECKING:
    from torch import Tensor

    from apps.continual.memory import Memory, Reservoir
    from apps.continual.passing import Passing
    from apps.continual.settings import LearnerSettings
    from apps.continual.state import Labelled, LearnerState, StepData


@dataclass(frozen=True)
class CellStep:
    """One step of one cell, the unit of work."""

    cell: Cell
    step: int

    def __str__(self) -> str:
        return f"{self.cell.name} step {self.step}"


def training_seed(cell: Cell) -> int:
    """Seed of weights and batches: another for each class order.

    After the last step gdumb sees the same images in every class order. With one seed it would be one training,
    counted several times, and its spread zero.
    """
    return 1000 * cell.order + cell.seed


@dataclass(frozen=True, eq=False)
class StoredMemory:
    """A memory as workers take it.

    Attributes:
        content: Ray reference to its bytes, see `Memory.to_bytes`; None for no memory.
        reservoir: whether they are those of a `Reservoir`.
        num_images, num_bytes: as stored.
    """

    content: Any = None
    reservoir: bool = False
    num_images: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, eq=False)
class StepInputs:
    """What one cell needs for one step.

    Attributes:
        steps: lots of all steps so far, this one included.
        columns: lots of the test images of each of them.
        tensors: reference to the arrays of the preprocessing.
        train, judged: references to the images by lot, see `PreprocessedImages`.
        before, after: the memory when the step begins and ends.
        state: reference to the learner's bytes after the step before, or None.
        settings: of the learner in this step, resolved.
        passing: in a stream of one pass, how the memory changes in the step.
    """

    steps: tuple[tuple[int, ...], ...]
    columns: tuple[tuple[int, ...], ...]
    tensors: Any
    train: Mapping[int, Any]
    judged: Mapping[int, Any]
    before: StoredMemory
    after: StoredMemory
    state: Any
    settings: "LearnerSettings"
    passing: "PassingMemory | None" = None


@dataclass(frozen=True)
class PassingMemory:
    """How a memory takes in the images of a step while they pass, in a stream of one pass.

    Attributes:
        seed: that it is drawn with.
        kept: images of each lot that it holds at most; empty for a reservoir, which has one size.
    """

    seed: int
    kept: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class StepContext:
    """What the cells of a step share; `class_names` by label."""

    inputs: Mapping[Cell, StepInputs]
    network: str
    class_names: tuple[str, ...]
    train_settings: EvaluateSettings
    device_kind: DeviceKind


def run_cell_step(item: CellStep, context: StepContext) -> tuple[StepResult, bytes]:
    """Learn one step and measure: the result, and the learner's bytes, empty where the next step needs none."""
    from apps.continual.learner import RESTARTING, LearnerState, learn, with_statistics_of
    from atom.device import resolve_device, use_threads

    cell, inputs = item.cell, context.inputs[item.cell]
    common = {"network": context.network, "train_settings": context.train_settings}
    device = resolve_device(context.device_kind)
    with use_threads(1):
        state = None
        if inputs.state is not None and cell.learner not in RESTARTING:
            state = LearnerState.from_bytes(_fetch(inputs.state))
        data = _step_data(item, inputs, context)
        begun_s = time.perf_counter()
        after = learn(
            cell.learner,
            state,
            data,
            settings=inputs.settings,
            seed=training_seed(cell),
            device=device,
            **common,
        )
        seconds = time.perf_counter() - begun_s
        judged = _labelled(inputs.judged, {lot for column in inputs.columns for lot in column})
        trained, of_step = _measure(after, judged, inputs.columns, context), None
        if cell.learner not in WITHOUT_MEMORY:
            images_NCHW, _ = _labelled(inputs.train, inputs.steps[-1])
            restated = with_statistics_of(
                after, images_NCHW=images_NCHW, num_classes=len(context.class_names), device=device, **common
            )
            of_step = None if restated is None else _measure(restated, judged, inputs.columns, context)
    shown, other = trained, of_step
    if of_step is not None and cell.learner not in RESTARTING:
        # A fresh network has seen all classes in equal shares, the images of a step know its own classes alone.
        shown, other = of_step, trained
    result = StepResult(
        step=item.step,
        class_row=shown.class_row,
        task_row=shown.task_row,
        accuracy_on_seen=shown.on_seen,
        memory_images=inputs.after.num_images,
        memory_bytes=inputs.after.num_bytes,
        train_seconds=seconds,
        statistics="training" if shown is trained else "step",
        by_class=shown.by_class,
        other_class_row=() if other is None else other.class_row,
        other_on_seen=None if other is None else other.on_seen,
    )
    return result, b"" if cell.learner in RESTARTING else after.to_bytes()


@dataclass(frozen=True)
class Selection:
    """Which real images of a lot, a class or part of one, a memory keeps: the unit of work of `select_rows`."""

    kind: str
    preprocessing: str
    lot: int
    number: int
    named: str = field(default="", compare=False)
    """What people call the lot; empty: it is the class of that number."""

    def __str__(self) -> str:
        return f"{self.kind} of {self.named or f'class {self.lot}'} ({self.preprocessing})"


def select_rows(
    item: Selection, train: Mapping[str, Mapping[int, Any]], seed: int, network: str, device_kind: DeviceKind
) -> list[int]:
    """Rows of the lot's training images, the most important first; see `apps.continual.selection.select`."""
    from apps.continual.selection import select
    from atom.device import resolve_device, use_threads

    with use_threads(1):
        rows = select(
            item.kind,
            as_tensor(_fetch(train[item.preprocessing][item.lot])),
            number=item.number,
            seed=seed,
            class_id=item.lot,
            network=network,
            device=resolve_device(device_kind),
        )
    return rows.tolist()


def _step_data(item: CellStep, inputs: StepInputs, context: StepContext) -> "StepData":
    from apps.continual.state import StepData
    from atom.preprocess import Preprocess

    arrays = _fetch(inputs.tensors)
    preprocess = Preprocess.from_tensors({name: as_tensor(array) for name, array in arrays.items()})
    learner, num_classes = item.cell.learner, len(context.class_names)
    seen = [lot for lots in inputs.steps for lot in lots]
    before, after = _memory(inputs.before), _memory(inputs.after)

    def of_classes(lots: Iterable[int]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(lot % num_classes for lot in lots))

    def labelled(part: "Labelled | None") -> "Labelled | None":
        return None if part is None else (part[0], part[1] % num_classes)

    current = None if learner in ("gdumb", "joint") else _labelled(inputs.train, inputs.steps[-1])
    memory_before = None if before is None else before.contents(preprocess)
    memory_after = None if after is None else after.contents(preprocess)
    return StepData(
        step=item.step,
        step_classes=of_classes(inputs.steps[-1]),
        seen_classes=of_classes(seen),
        num_classes=num_classes,
        current=labelled(current),
        memory_before=labelled(memory_before),
        memory_after=labelled(memory_after),
        soft_targets=None if after is None else after.soft_targets(num_classes),
        everything_seen=labelled(_labelled(inputs.train, seen)) if learner == "joint" else None,
        lots_before=None if memory_before is None else memory_before[1],
        lots_after=None if memory_after is None else memory_after[1],
        passing=_passing(inputs, before, after, None if current is None else current[1]),
    )


def _passing(
    inputs: StepInputs,
    before: "Memory | Reservoir | None",
    after: "Memory | Reservoir | None",
    lots_N: "Tensor | None",
) -> "Passing | None":
    """The random numbers by which images stay in a memory while others pass; those of the memory made at the end."""
    from apps.continual.memory import Reservoir
    from apps.continual.passing import Passing
    from apps.continual.selection import random_places

    if inputs.passing is None or after is None or lots_N is None:
        return None
    seed, counts = inputs.passing.seed, dict(zip(*np.unique(lots_N, return_counts=True), strict=True))
    if isinstance(after, Reservoir):
        drawn = {lot: after.draw(lot, number) for lot, number in counts.items()}
        held = {lot: before.keys_of(lot) for lot in before.classes} if isinstance(before, Reservoir) else {}
    else:
        drawn = {lot: random_places(number, seed=seed, class_id=lot) for lot, number in counts.items()}
        held = {} if before is None else {lot: np.arange(before[lot].num_images) for lot in before.classes}
    return Passing(
        keys_before=np.concatenate([*held.values(), np.empty(0)]),
        keys_current=np.concatenate(list(drawn.values())),
        lots_current=lots_N.numpy(),
        kept=inputs.passing.kept,
        capacity=after.capacity if isinstance(after, Reservoir) else None,
    )


@dataclass(frozen=True)
class _Accuracies:
    """Accuracies of a network in one state, percent: by step, told the step, by name of the class, on all images."""

    class_row: tuple[float, ...]
    task_row: tuple[float, ...]
    by_class: Mapping[str, float]
    on_seen: float


def _measure(
    state: "LearnerState", judged: "Labelled", columns: Sequence[Sequence[int]], context: StepContext
) -> _Accuracies:
    """Accuracies on images whose lots are given, and on those of each step, lots as well."""
    from apps.continual.learner import predict_seen
    from apps.continual.metrics import predictions_to_row
    from atom.device import resolve_device

    images_TCHW, lots = judged
    num_classes = len(context.class_names)
    logits_TK = predict_seen(
        state,
        context.network,
        images_TCHW=images_TCHW,
        num_classes=num_classes,
        train_settings=context.train_settings,
        device=resolve_device(context.device_kind),
    ).numpy()
    lots_T = lots.numpy()
    labels_T = lots_T % num_classes

    def row(of_steps: Sequence[Sequence[int]], *, masked: bool = False) -> np.ndarray:
        return predictions_to_row(logits_TK, labels_T, of_steps, masked=masked, lots_T=lots_T)

    class_row, task_row = row(columns), row(columns, masked=True)
    seen = list(dict.fromkeys(lot % num_classes for column in columns for lot in column))
    class_percent = predictions_to_row(logits_TK, labels_T, [(c,) for c in seen], masked=False).tolist()
    by_class = {context.class_names[c]: value for c, value in zip(seen, class_percent, strict=True)}
    # An image that two steps are asked about is counted once.
    first = _without_repetition(columns)
    counts = [np.isin(lots_T, column).sum() for column in first]
    whole = first == [list(column) for column in columns]
    on_seen = float(np.average(class_row if whole else row(first), weights=counts))
    return _Accuracies(tuple(class_row.tolist()), tuple(task_row.tolist()), by_class, on_seen)


def _without_repetition(columns: Sequence[Sequence[int]]) -> list[list[int]]:
    """The columns without lots that an earlier one has; those that are left with none are dropped."""
    found: list[list[int]] = []
    for column in columns:
        known = {lot for earlier in found for lot in earlier}
        found.append([lot for lot in column if lot not in known])
    return [column for column in found if column]


def _memory(memory: StoredMemory) -> "Memory | Reservoir | None":
    from apps.continual.memory import Memory, Reservoir

    if memory.content is None:
        return None
    content = _fetch(memory.content)
    return Reservoir.from_bytes(content) if memory.reservoir else Memory.from_bytes(content)


def _labelled(images: Mapping[int, Any], lots: Iterable[int]) -> "tuple[Tensor, Tensor]":
    """Images of some lots and the lot of each, by ascending lot."""
    import torch

    kept = sorted(lots)
    arrays = ray.get([images[lot] for lot in kept], timeout=FETCH_TIMEOUT_S)
    images_NCHW = torch.cat([as_tensor(array) for array in arrays])
    return images_NCHW, torch.tensor(kept).repeat_interleave(torch.tensor([len(a) for a in arrays]))


def _fetch(reference: Any) -> Any:
    return ray.get(reference, timeout=FETCH_TIMEOUT_S)
