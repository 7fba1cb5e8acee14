"""What MLflow gets of the losses of few and of many classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_digits import ITERATIONS, problem

from atom.methods.method import State
from pipelines.distillation import Distilling
from pipelines.loss_curves import MOST_CURVES, TABLE, stored_curves
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.store import Store
from pipelines.workers.memory import Peak
from pipelines.workers.remote import Done

Points = list[tuple[str, float, int]]


class Recorder:
    """Stands for a tracker."""

    def __init__(self, folder: Path) -> None:
        self.points: Points = []
        self.folder = folder

    def log_history(self, points: Points) -> None:
        self.points += points

    def log_artifacts(self, write: Callable[[Path], object]) -> None:
        write(self.folder)


def losses_of(class_id: int) -> np.ndarray:
    return np.float32([[100 * class_id + t] for t in range(ITERATIONS)])


def recorded(folder: Path, num_classes: int) -> tuple[Points, Points]:
    """Points of a distillation of so many classes, and those of what it stored."""
    units = [(class_id,) for class_id in range(num_classes)]
    recorder: Any = Recorder(folder)
    checkpoints = Checkpoints(Store.open(folder / "out"), "x")
    work = Distilling(problem(), units, {}, checkpoints, checkpoint_every=5, tracker=recorder)
    images = np.zeros((1, 1, 1, 8, 8), np.float32)
    for until in (5, ITERATIONS):
        for unit in units:
            work._clock.begin(unit)
            state = State(until, {"images": images}, losses_of(*unit)[:until])
            assert work.finish(unit, Done(state, Peak(0))) == (until < ITERATIONS)
    work.conclude()
    return recorder.points, stored_curves(checkpoints, units, ITERATIONS)


@pytest.mark.parametrize("more", [False, True])
def test_losses_of_many_classes_are_a_table_and_those_of_few_are_metrics(tmp_path: Path, more: bool) -> None:
    num_classes = MOST_CURVES + more
    told, stored = recorded(tmp_path, num_classes)
    assert sorted(told) == sorted(stored)
    each = {f"loss/class_{class_id:02d}" for class_id in range(num_classes)}
    assert {name for name, _, _ in told} == {"loss/total"} | (set() if more else each)
    assert (tmp_path / TABLE).exists() is more
    if more:
        table = pq.read_table(tmp_path / TABLE)
        assert table.column_names == ["class", "iteration", "loss"]
        rows = {(c, t): loss for c, t, loss in zip(*table.to_pydict().values(), strict=True)}
        assert rows == {(c, t): 100 * c + t for c in range(num_classes) for t in range(ITERATIONS)}
