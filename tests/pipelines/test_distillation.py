"""The same bits whatever happens on the way, and failures that stay where they are."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from tiny_digits import (
    CHUNK,
    GROUPS,
    ITERATIONS,
    NUM_CLASSES,
    classes_of,
    digest,
    distil,
    kill_workers,
    problem,
    real_references,
    white_digits,
)

from atom.errors import StoreError
from atom.methods.matching_loop import Atom
from atom.methods.method import State, Unit
from pipelines.console.commands import DistillCommand
from pipelines.console.signals import StopSignal
from pipelines.distillation import Distillation, Distilling
from pipelines.loss_curves import stored_curves
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.store import Store
from pipelines.tracking import Tracker
from pipelines.tracking.backend import open_client
from pipelines.workers.pool import Limits
from pipelines.workers.resources import ActorSize
from pipelines.workers.works import run_pool

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(300)]

CHUNKS_OF_ALL = len(GROUPS) * ITERATIONS // CHUNK


@pytest.fixture(scope="module")
def uninterrupted(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Distillation:
    """One actor, groups in order, nothing in the way."""
    outcome = distil(tmp_path_factory.mktemp("uninterrupted"))
    assert classes_of(outcome) == list(range(NUM_CLASSES))
    assert (outcome.failed, outcome.stopped, outcome.retries) == ({}, False, 0)
    return outcome


def test_groups_cover_all_classes_and_the_last_may_be_smaller() -> None:
    assert Atom.units(problem(classes_per_group=4).settings, range(10)) == GROUPS
    assert Atom.units(problem(classes_per_group=5).settings, (7, 3, 9)) == [(7, 3, 9)]


def test_two_distillations_share_a_pool_and_have_the_bits_that_they_have_alone(
    uninterrupted: Distillation, tmp_path: Path
) -> None:
    def work(name: str, groups: Sequence[Unit], **changes: Any) -> Distilling:
        store = Store.open(tmp_path / name)
        return Distilling(
            problem(**changes),
            groups,
            real_references(),
            Checkpoints(store, name),
            checkpoint_every=CHUNK,
            on_spent=lambda one: spent.append((name, one.wall_s, one.worker_s)),
            title=name,
        )

    spent: list[tuple[str, float, float]] = []
    # On one worker, which goes from one problem to the other; the joint one first.
    works = [work("groups", GROUPS), work("joint", [GROUPS[1]], seed=1)]
    tasks = [task for one in works for task in one.tasks(one.ready())]
    outcome = run_pool(tasks, size=ActorSize(1, cpus=1, gpus=0))
    assert [task.name for task in outcome.done] == [
        "joint: classes 4, 5, 6, 7",
        *(f"groups: classes {', '.join(map(str, group))}" for group in GROUPS),
    ]
    shared, other = (one.conclude() for one in works)
    assert digest(shared) == digest(uninterrupted)
    assert digest(other)[5] != digest(shared)[5]
    # One worker: the clock of each ran while it was worked at, and not longer.
    for name in ("groups", "joint"):
        wall_s, worker_s = (sum(one[place] for one in spent if one[0] == name) for place in (1, 2))
        assert wall_s == pytest.approx(worker_s)


@pytest.mark.parametrize(("lost", "told"), [(0, []), (1, []), (2, ["2 of 12 steps were left out"])])
def test_steps_that_moved_nothing_are_counted_and_many_are_told(
    lost: int, told: list[str], tmp_path: Path
) -> None:
    logged: list[dict[str, float]] = []
    tracker: Any = SimpleNamespace(log_history=lambda points: None, log_metrics=logged.append)
    given = problem(iterations=12)
    checkpoints = Checkpoints(Store.open(tmp_path), "x")
    work = Distilling(given, [(0,)], {}, checkpoints, checkpoint_every=1, tracker=tracker)
    losses = np.where(np.arange(12)[:, None] < lost, np.nan, 1.5).astype(np.float32)
    work.states = {(0,): State(12, {"images": np.zeros((1, 1, 1, 8, 8), np.float32)}, losses, {})}
    outcome = work.conclude()
    assert logged == [{"loss/left_out_frac": lost / 12}] * bool(lost)
    of_mtt = DistillCommand.of(method="mtt", max_loss=3).distill
    assert [line.partition(", since")[0] for line in outcome.remarks(given.settings)] == told
    assert [line.endswith("their loss was above --max-loss 3.") for line in outcome.remarks(of_mtt)] == (
        [True] * len(told)
    )


def test_images_that_start_from_given_ones_are_those_of_the_core(tmp_path: Path) -> None:
    import torch

    given, group = problem(), GROUPS[2]
    shape = {"channels": 1, "height": 8, "width": 8, "num_classes": NUM_CLASSES}
    distiller = Atom(given.settings, device=torch.device("cpu"), **shape)
    images, labels = white_digits()
    starts = {c: images[labels == c][:1] for c in group}
    outcome = distil(tmp_path, groups=[group], given=starts)
    real = {c: torch.from_numpy(images[labels == c]) for c in group}
    first = distiller.start(group, real, given=np.stack(list(starts.values())))
    state = distiller.advance(first, ITERATIONS, unit=group, real=real)
    assert np.array_equal(outcome.states[group].images, state.images)


def test_images_of_a_group_are_those_of_the_core_without_ray(uninterrupted: Distillation) -> None:
    import torch

    given = problem()
    shape = {"channels": 1, "height": 8, "width": 8, "num_classes": NUM_CLASSES}
    distiller = Atom(given.settings, device=torch.device("cpu"), **shape)
    images, labels = white_digits()
    real = {c: torch.from_numpy(images[labels == c]) for c in GROUPS[2]}
    state = distiller.advance(distiller.start(GROUPS[2], real), ITERATIONS, unit=GROUPS[2], real=real)
    assert np.array_equal(uninterrupted.states[GROUPS[2]].images, state.images)
    assert np.array_equal(uninterrupted.states[GROUPS[2]].losses, state.losses)


@pytest.mark.parametrize(
    ("num_actors", "order", "every"),
    [(2, (0, 1, 2), CHUNK), (1, (2, 1, 0), CHUNK), (2, (1, 2, 0), 5), (1, (0, 1, 2), 100)],
    ids=["two actors", "reversed order", "two actors, shuffled, other chunks", "one chunk"],
)
def test_actors_order_and_chunks_do_not_change_a_bit(
    uninterrupted: Distillation, tmp_path: Path, num_actors: int, order: tuple[int, ...], every: int
) -> None:
    outcome = distil(tmp_path, groups=[GROUPS[i] for i in order], num_actors=num_actors, every=every)
    assert digest(outcome) == digest(uninterrupted)


def test_actors_killed_in_the_middle_do_not_change_a_bit(uninterrupted: Distillation, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_twice(stored: int) -> None:
        if stored in (2, 5):
            killed.append(kill_workers())

    outcome = distil(tmp_path, num_actors=2, hook=kill_twice)
    assert min(killed) >= 1
    assert outcome.retries >= len(killed)
    assert outcome.failed == {}
    assert digest(outcome) == digest(uninterrupted)


def test_stopped_run_goes_on_from_its_checkpoints_and_ends_with_the_same_bits(
    uninterrupted: Distillation, tmp_path: Path
) -> None:
    stop = StopSignal()
    first = distil(tmp_path, num_actors=2, stop=stop, hook=lambda stored: stored == 2 and stop.set())
    assert first.stopped
    assert not first.failed
    assert classes_of(first) != list(range(NUM_CLASSES))
    chunks: list[int] = []
    second = distil(tmp_path, hook=chunks.append)
    assert len(chunks) <= CHUNKS_OF_ALL - 2
    assert not second.stopped
    assert digest(second) == digest(uninterrupted)


def test_states_that_cannot_be_stored_end_the_run_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: Store, files: object) -> None:
        raise StoreError("Cannot write it: the disk is full.")

    monkeypatch.setattr(Store, "write_all", full)
    with pytest.raises(StoreError, match="the disk is full"):
        distil(tmp_path)


def test_rerun_of_a_finished_distillation_starts_no_actor(
    uninterrupted: Distillation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil(tmp_path)
    # Without an actor factory, anything that wanted an actor would raise.
    monkeypatch.setattr("pipelines.workers.works.RemoteWorker", None)
    again = distil(tmp_path)
    assert again.iterations_run == 0
    assert digest(again) == digest(uninterrupted)


def test_another_grouping_meets_the_same_random_numbers(uninterrupted: Distillation, tmp_path: Path) -> None:
    """It may round otherwise, and then drifts away; but first losses tell that nothing is drawn by group."""
    other = distil(tmp_path, groups=[(c,) for c in range(NUM_CLASSES)], every=ITERATIONS)
    for unit, state in uninterrupted.states.items():
        alone = [other.states[(class_id,)].losses[0, 0] for class_id in unit]
        assert np.allclose(alone, state.losses[0], rtol=1e-5)
    assert len({round(float(state.losses[0, 0]), 3) for state in other.states.values()}) == NUM_CLASSES


def test_group_that_fails_says_why_and_the_others_finish(uninterrupted: Distillation, tmp_path: Path) -> None:
    broken: dict[int, Any] = {**real_references(), 5: ray.put(np.zeros((20, 1, 8, 7), dtype=np.float32))}
    outcome = distil(tmp_path, num_actors=2, real=broken)
    assert list(outcome.failed) == [GROUPS[1]]
    failure = outcome.failed[GROUPS[1]]
    assert failure.reason.startswith("ShapeError: class 5: real images have shape (20, 1, 8, 7)")
    assert "in advance" in failure.details
    assert outcome.retries == 0
    expected = digest(uninterrupted)
    assert digest(outcome) == {c: expected[c] for c in (*GROUPS[0], *GROUPS[2])}
    repaired = distil(tmp_path)
    assert repaired.iterations_run == ITERATIONS
    assert digest(repaired) == expected


def test_classes_that_diverge_fail_alone_and_a_rerun_knows_it(
    uninterrupted: Distillation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = GROUPS[1][1:3]
    hopeless = ray.put(np.full((20, 1, 8, 8), 3e38, dtype=np.float32))
    broken: dict[int, Any] = {**real_references(), **dict.fromkeys(lost, hopeless)}
    outcome = distil(tmp_path, groups=[GROUPS[1]], real=broken)
    assert list(outcome.failed) == [(c,) for c in lost]
    for class_id in lost:
        reason = outcome.failed[(class_id,)].reason
        assert reason.startswith(f"class {class_id}: its images are no longer finite")
    said = [message for message in caplog.messages if "failed" in message]
    assert len(said) == 1
    assert said[0].startswith(f"classes {lost[0]}, {lost[1]} failed: its images are no longer finite")
    expected = digest(uninterrupted)
    assert digest(outcome) == {c: expected[c] for c in GROUPS[1] if c not in lost}
    monkeypatch.setattr("pipelines.workers.works.RemoteWorker", None)
    again = distil(tmp_path, groups=[GROUPS[1]], real=broken)
    assert (again.failed, digest(again)) == (outcome.failed, digest(outcome))


def test_worker_that_always_dies_ends_in_a_failure_that_counts_the_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: list[Unit] = []
    finish = Distilling.finish

    def finish_and_kill(work: Distilling, unit: Unit, value: Any) -> bool:
        # Before the next chunk is asked for.
        more = finish(work, unit, value)
        chunks.append(unit)
        kill_workers()
        return more

    monkeypatch.setattr(Distilling, "finish", finish_and_kill)
    outcome = distil(tmp_path, groups=[(3,)], every=1, limits=Limits(max_retries=0))
    assert chunks == [(3,)]
    assert outcome.failed[(3,)].reason.endswith("(gave up after 1 try)")
    assert "its worker ended without a word" in outcome.failed[(3,)].reason


def test_loss_curves_hold_every_iteration_once_even_across_a_restart(
    uninterrupted: Distillation, tmp_path: Path, mlflow_uri: str
) -> None:
    def record(run_id: str | None, **options: Any) -> str:
        about: dict[str, Any] = {"experiment": None, "command": "distill", "run_name": "tiny", "params": {}}
        with Tracker.start(
            tracking_uri=mlflow_uri, resume_run_id=run_id, system_metrics=False, **about
        ) as tracker:
            distil(tmp_path / "out", tracker=tracker, **options)
        return tracker.run_id

    stop = StopSignal()
    run_id = record(None, stop=stop, hook=lambda stored: stored == 4 and stop.set())
    assert record(run_id) == record(run_id) == run_id
    client = open_client(mlflow_uri)
    names = ["loss/total", *(f"loss/class_{class_id:02d}" for class_id in range(NUM_CLASSES))]
    points = [(name, point) for name in names for point in client.get_metric_history(run_id, name)]
    curve = {(name, point.step): point.value for name, point in points}
    assert len(curve) == len(points) == (NUM_CLASSES + 1) * ITERATIONS
    stored = stored_curves(Checkpoints(Store.open(tmp_path / "out"), "tiny"), GROUPS, ITERATIONS)
    assert {(name, step): value for name, value, step in stored} == curve
    total = sum(curve[f"loss/class_{class_id:02d}", 5] for class_id in range(NUM_CLASSES))
    assert np.isclose(curve["loss/total", 5], total)
    assert curve["loss/class_07", 5] == uninterrupted.states[GROUPS[1]].losses[5, 3]
