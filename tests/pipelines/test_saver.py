"""Checkpoints in a thread: nothing is told as done that is not on disk, and nothing is lost without a word."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_digits import ITERATIONS, problem

from atom.errors import ClusterError, StoreError
from atom.methods.method import State, Unit
from pipelines import distillation
from pipelines.distillation import Distilling
from pipelines.output import saver
from pipelines.output.checkpoints import Checkpoints, unit_name
from pipelines.output.saver import Saver
from pipelines.output.store import Store
from pipelines.workers.memory import Peak
from pipelines.workers.remote import Done
from pipelines.workers.resources import ActorSize
from pipelines.workers.works import Clock, Spent

pytestmark = pytest.mark.timeout(60)


class SlowDisk(Checkpoints):
    """Stores nothing until it is let; notes what it was given each time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Store.open(folder), "slow")
        self.begun, self.let = threading.Event(), threading.Event()
        self.given: list[dict[Unit, int]] = []

    def save_all(self, states: Mapping[Unit, State]) -> None:
        self.given.append({unit: state.iteration for unit, state in states.items()})
        self.begun.set()
        assert self.let.wait(30)
        super().save_all(states)


def state(iteration: int, classes: int = 1) -> State:
    images = np.full((classes, 1, 1, 8, 8), iteration, np.float32)
    return State(iteration, {"images": images}, np.ones((iteration, classes), np.float32))


def iterations(folder: Path, units: list[Unit]) -> list[int | None]:
    """Where the units stand on disk."""
    found = [Checkpoints(Store.open(folder), "slow").load(unit) for unit in units]
    return [None if one is None else one.iteration for one in found]


def test_states_that_wait_are_stored_in_one_go_and_overtaken_ones_never(tmp_path: Path) -> None:
    disk = SlowDisk(tmp_path)
    saving = Saver(disk)
    saving.put((0,), state(1))
    assert disk.begun.wait(30)
    for iteration in (2, 3):
        for unit in ((0,), (1,)):
            saving.put(unit, state(iteration))
    assert saving.pending() == {(0,), (1,)}
    assert iterations(tmp_path, [(0,), (1,)]) == [None, None]
    disk.let.set()
    saving.wait()
    assert saving.pending() == set()
    assert disk.given == [{(0,): 1}, {(0,): 3, (1,): 3}]
    assert iterations(tmp_path, [(0,), (1,)]) == [3, 3]


def test_whoever_brings_more_than_may_wait_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "MOST", 2)
    disk = SlowDisk(tmp_path)
    saving = Saver(disk)
    saving.put((0,), state(1))
    assert disk.begun.wait(30)
    for class_id in (1, 2):
        saving.put((class_id,), state(1))
    further = threading.Thread(target=lambda: saving.put((3,), state(1)))
    further.start()
    further.join(0.1)
    assert further.is_alive()
    assert (3,) not in saving.pending()
    disk.let.set()
    further.join(30)
    saving.wait()
    assert iterations(tmp_path, [(c,) for c in range(4)]) == [1, 1, 1, 1]


def test_state_that_finds_no_room_ends_the_work_with_its_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    saving = Saver(Checkpoints(Store.open(tmp_path), "slow"))
    saving.put((0,), state(1))
    saving.wait()
    monkeypatch.setattr(os, "fsync", full)
    said = f"Cannot write {tmp_path / unit_name((0,))}: the disk is full; free some space or pass another --output."
    saving.put((0,), state(2))
    for ask in (saving.wait, saving.pending, saving.check, lambda: saving.put((1,), state(1))):
        with pytest.raises(StoreError) as caught:
            ask()
        assert str(caught.value) == said
    monkeypatch.undo()
    assert iterations(tmp_path, [(0,), (1,)]) == [1, None]


def test_unit_is_told_as_done_when_its_last_state_is_on_disk(tmp_path: Path) -> None:
    disk = SlowDisk(tmp_path)
    work = Distilling(problem(), [(0, 1), (2,)], {}, disk, checkpoint_every=ITERATIONS)
    work._clock.begin((0, 1))
    assert not work.finish((0, 1), Done(state(ITERATIONS, classes=2), Peak(0)))
    assert disk.begun.wait(30)
    assert (work.done(), work.last_loss(), work.classes_done()) == (ITERATIONS, 1.0, 0)
    disk.let.set()
    outcome = work.conclude()
    assert work.classes_done() == 2
    assert list(outcome.states) == [(0, 1)]
    assert iterations(tmp_path, [(0, 1)]) == [ITERATIONS]
    again = Distilling(problem(), [(0, 1), (2,)], {}, disk, checkpoint_every=ITERATIONS)
    assert (again.done(), again.classes_done(), again.last_loss()) == (ITERATIONS, 2, 1.0)


def test_chunks_that_are_shorter_than_a_second_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr("pipelines.workers.works.time.monotonic", lambda: now.s)
    told: list[Spent] = []
    clock = Clock(told.append, every_s=1.0)
    for peak in (1, 3, 2, 1):
        clock.begin("unit")
        now.s += 0.4
        clock.end("unit", Peak(peak))
    assert [(one.wall_s, one.worker_s, one.peak.host) for one in told] == [
        (pytest.approx(0.4), pytest.approx(0.4), 1),
        (pytest.approx(1.2), pytest.approx(1.2), 3),
    ]
    clock.begin("unit")
    now.s += 0.1
    clock.end("unit", Peak(5))
    for _ in range(2):
        clock.tell()
    assert [one.worker_s for one in told[2:]] == [pytest.approx(0.1)]


def test_an_error_waits_for_what_is_being_stored_before_the_output_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def lost(*_: object, **__: object) -> None:
        done.append("lost")
        raise ClusterError("no worker is left.")

    monkeypatch.setattr(distillation, "run_pool", lost)
    monkeypatch.setattr(Distilling, "wait", lambda self: done.append("stored"))
    size = ActorSize(num_actors=1, cpus=1, gpus=0)
    with pytest.raises(ClusterError, match="no worker is left"):
        distillation.distil_classes(
            problem(), [(0,)], {}, Checkpoints(Store.open(tmp_path), "s"), size=size, checkpoint_every=2
        )
    assert done == ["lost", "stored"]
