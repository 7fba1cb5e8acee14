"""Which unit of work comes next after a fault, when, and how long one may take."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ray import exceptions as rx
from tiny_digits import CHUNK, ITERATIONS, problem

from apps.continual.results import Cell
from apps.nas.trial import Unit
from atom.errors import ClusterError
from atom.methods.method import State
from pipelines.distillation import distil_classes
from pipelines.incremental.remote import CellStep, Selection
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.store import Store
from pipelines.workers.pool import ActorPool, Limits
from pipelines.workers.remote import Trial
from pipelines.workers.resources import ActorSize
from pipelines.workers.retries import Outcome, Patience, Waiting, name_of
from pipelines.workers.works import Task

LOW = rx.OutOfMemoryError("the node running low on memory: 9GB used / 10GB limit")
LOST = rx.NodeDiedError("the node died")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Starting:
    """What the pool asks of an actor before it is up: a reference to its start."""

    @property
    def __ray_ready__(self) -> "Starting":
        return self

    def remote(self) -> object:
        return object()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taken(waiting: Waiting[str]) -> list[str]:
    return [waiting.take() for _ in range(waiting.ready())]


def test_memory_fault_waits_ever_longer_while_others_go_on(clock: Clock) -> None:
    waiting = Waiting(["a", "b"], Limits(max_retries=2, pause_s=5), clock)
    assert waiting.take() == "a"
    waiting.failed("a", LOW)
    assert taken(waiting) == ["b"]
    for pause_s in (5, 20):
        assert len(waiting) == 1
        clock.now_s += pause_s - 1
        assert waiting.ready() == 0
        clock.now_s += 1
        assert taken(waiting) == ["a"]
        waiting.failed("a", LOW)
    assert len(waiting) == 0
    assert waiting.outcome.failed["a"].reason == (
        "its worker was killed by Ray, since its node ran low on memory (9GB used / 10GB limit) (gave up after 3 tries)"
    )


def test_unit_without_memory_has_one_worker_fewer_beside_it_until_it_gets_on(clock: Clock) -> None:
    waiting = Waiting(["a", "b", "c"], Limits(), clock)
    assert waiting.width(3) == 3
    waiting.failed(waiting.take(), LOW)
    waiting.failed(waiting.take(), LOW)
    assert (waiting.width(3), waiting.width(1)) == (1, 1)
    waiting.advanced("a")
    assert waiting.width(3) == 2


def test_lost_node_is_retried_at_once_and_before_the_others(clock: Clock) -> None:
    waiting = Waiting(["a", "b"], Limits(), clock)
    waiting.failed(waiting.take(), LOST)
    assert taken(waiting) == ["a", "b"]
    assert waiting.width(2) == 2


@pytest.mark.parametrize(("retries", "tried"), [(1, "2 tries"), (0, "1 try")])
def test_time_limit_is_tried_again_once_or_as_asked(clock: Clock, retries: int, tried: str) -> None:
    limits = Limits(max_retries=3, timeout_retries=retries)
    waiting, patience = Waiting(["a"], limits, clock), Patience[str](8, len, clock)
    for _ in range(1 + retries):
        call = patience.begun(waiting.take())
        clock.now_s += 9
        [(key, error)] = patience.expired({"key": call})
        assert key == "key"
        waiting.failed("a", error)
    assert len(waiting) == 0
    reason = (
        f"took longer than 8 s; if it is slow, not stuck, pass a larger --timeout-s (gave up after {tried})"
    )
    assert waiting.outcome.failed["a"].reason == reason


def test_what_takes_many_times_the_longest_of_its_kind_is_stuck(clock: Clock) -> None:
    patience = Patience[str](7200, lambda unit: unit[0], clock)
    quick = patience.begun("a1")
    clock.now_s += 300
    patience.ended(quick)
    calls = {unit: patience.begun(unit) for unit in ("a2", "b1")}
    clock.now_s += 3000
    assert patience.expired(calls) == []
    clock.now_s += 1
    assert [key for key, _ in patience.expired(calls)] == ["a2"]
    clock.now_s += 4200
    assert [key for key, _ in patience.expired(calls)] == ["a2", "b1"]


def test_lowest_rank_comes_first_and_what_is_added_after_its_equals(clock: Clock) -> None:
    waiting = Waiting(["gap", "long", "gap too"], Limits(), clock, rank=lambda unit: unit.startswith("gap"))
    waiting.add(["longer"])
    assert [waiting.take() for _ in range(4)] == ["long", "longer", "gap", "gap too"]


def test_short_work_does_not_make_the_limit_short(clock: Clock) -> None:
    patience = Patience[str](7200, len, clock)
    patience.ended(patience.begun("a"))
    call = patience.begun("b")
    clock.now_s += 1800
    assert patience.expired({0: call}) == []
    clock.now_s += 1
    assert len(patience.expired({0: call})) == 1


def test_short_rest_of_a_chunk_does_not_measure_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: dict[Unit, object] = {}

    def look(tasks: list[Task], factory: object, *, kind: Callable[[Task], object], **options: object):
        kinds.update({task.item: kind(task) for task in tasks})
        return Outcome[Task]()

    monkeypatch.setattr("pipelines.workers.works.dispatch", look)
    checkpoints, done = Checkpoints(Store.open(str(tmp_path)), "tiny"), ITERATIONS - 1
    zeros = np.zeros((1, 1, 1, 8, 8), np.float32)
    checkpoints.save((2,), State(done, {"images": zeros, "momentum": zeros}, np.zeros((done, 1), np.float32)))
    size = ActorSize(num_actors=1, cpus=1, gpus=0)
    groups = [(0,), (1,), (2,), (3, 4)]
    distil_classes(problem(), groups, {}, checkpoints, size=size, checkpoint_every=CHUNK)
    assert kinds[(0,)] == kinds[(1,)]
    assert len(set(kinds.values())) == 3


def test_unit_that_is_long_waited_for_is_named_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    patience = Patience[tuple[int, ...]](100, len, clock)
    calls = {0: patience.begun((3,))}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.now_s += 30
            assert patience.expired(calls) == []
    assert [record.getMessage() for record in caplog.records] == [
        "class 3: no answer for 60 s; given up after 100 s"
    ]


@pytest.mark.parametrize(("pause_s", "started"), [(1000, 0), (0, 1)])
def test_worker_killed_for_memory_while_it_starts_is_not_replaced_at_once(
    monkeypatch: pytest.MonkeyPatch, pause_s: float, started: int
) -> None:
    def killed(reference: object, timeout: float) -> None:
        raise LOW

    monkeypatch.setattr("pipelines.workers.pool.ray.get", killed)
    monkeypatch.setattr("pipelines.workers.pool.kill", lambda actor: None)
    pool = ActorPool(Starting, Limits(pause_s=pause_s))
    pool.grow(1)
    pool.collect(next(iter(pool.starting)))
    pool.grow(1)
    assert len(pool.starting) == started


def test_pauses_for_memory_grow_up_to_a_few_minutes() -> None:
    limits = Limits(pause_s=5)
    assert [limits.pause(failures) for failures in (0, 1, 2, 3, 8, 9999)] == [5, 20, 80, 300, 300, 300]


def test_pause_for_memory_is_no_wait_for_a_place(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(reference: object, timeout: float) -> None:
        raise LOW

    monkeypatch.setattr("pipelines.workers.pool.ray.get", killed)
    monkeypatch.setattr("pipelines.workers.pool.ray.available_resources", dict)
    monkeypatch.setattr("pipelines.workers.pool.kill", lambda actor: None)
    monkeypatch.setattr("pipelines.workers.pool.time.monotonic", clock)
    limits = Limits(max_retries=4, pending_timeout_s=60)
    pool = ActorPool(Starting, limits)
    for failures in range(limits.max_retries):
        pool.grow(1)
        pool.collect(next(iter(pool.starting)))
        for _ in range(2):
            clock.now_s += limits.pause(failures) / 2
            pool.check(busy=0)
    pool.grow(1)
    clock.now_s += 60
    pool.check(busy=0)
    clock.now_s += 1
    with pytest.raises(ClusterError, match="No actor was placed within 60 s"):
        pool.check(busy=0)
    pool.collect(next(iter(pool.starting)))
    with pytest.raises(ClusterError, match="No actor could start, 5 tries failed"):
        pool.check(busy=0)


def test_units_are_called_by_their_names() -> None:
    assert [name_of(unit) for unit in ((3,), (0, 1), "net", 7)] == ["class 3", "classes 0, 1", "net", "7"]
    assert name_of(Trial("random", "convnet", 0)) == "random-convnet-s0"
    assert name_of(CellStep(Cell("herding", "gdumb", 0, 1), 2)) == "herding-gdumb-o0-s1 step 2"
    assert name_of(Selection("herding", "own", 3, 10)) == "herding of class 3 (own)"
    assert name_of(Unit("net", "random", 0)) == "net (random, seed 0)"
