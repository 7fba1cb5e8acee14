import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from command_runs import ROOT, environment

from atom.errors import ClusterError, StoreError
from pipelines.console.signals import stop_on_signals
from pipelines.workers.cluster import as_tensor, connect
from pipelines.workers.dispatch import dispatch, gather
from pipelines.workers.faults import Failure
from pipelines.workers.nodes import ClusterInfo, check_request
from pipelines.workers.pool import Limits
from pipelines.workers.resources import ActorSize, choose_size
from pipelines.workers.retries import Outcome
from pipelines.workers.settings import ClusterSettings
from pipelines.workers.tasks import cancel, run_tasks

CHUNKS = 3

# Workers cannot import a test file, so its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


PARTNERS = {"left": "right", "right": "left"}


def wait_for(condition: Callable[[], bool], *, limit_s: float = 20) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError("the condition never held")
        time.sleep(0.02)


class Worker:
    """Counts through the chunks of a unit; some units make trouble, once or for ever."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.last = -1

    def chunk(self, unit: str, number: int) -> tuple[str, int, int]:
        self.last = number
        if unit == "bug":
            raise ValueError("no such thing")
        if unit == "always dies" or (unit == "dies once" and number == 1 and self.first_time(unit)):
            os._exit(1)
        if unit == "memory" and self.first_time(unit):
            raise MemoryError
        if unit == "stalls" and number == 1 and self.first_time(unit):
            time.sleep(60)
        if unit in PARTNERS:
            (self.folder / unit).touch()
            wait_for((self.folder / PARTNERS[unit]).exists)
        if unit == "slow":
            time.sleep(1.5)
        return unit, number, os.getpid()

    @ray.method(concurrency_group="ctl")
    def progress(self) -> int:
        return self.last

    def first_time(self, unit: str) -> bool:
        mark = self.folder / unit
        new = not mark.exists()
        mark.touch()
        return new


class BrokenWorker:
    def __init__(self) -> None:
        raise ImportError("no module named x")


Run = Callable[..., Outcome[str]]


@pytest.fixture
def log() -> list[tuple[str, int, int]]:
    """Chunks in the order in which the driver stored them."""
    return []


@pytest.fixture
def run(ray_cluster: None, tmp_path: Path, log: list[tuple[str, int, int]]) -> Run:
    """Dispatch units to a pool of workers; each unit has CHUNKS chunks, stored in `log`."""
    remote = ray.remote(num_cpus=0, concurrency_groups={"ctl": 1})(Worker)

    def start(actor: Any, unit: str) -> Any:
        stored = [number for name, number, _ in log if name == unit]
        return actor.chunk.remote(unit, len(stored))

    def finish(unit: str, value: tuple[str, int, int]) -> bool:
        log.append(value)
        return value[1] + 1 < CHUNKS

    def call(units: list[str], **options: Any) -> Outcome[str]:
        options = {"num_actors": lambda: 2, "finish": finish, "limits": Limits(pause_s=0.1), **options}
        return dispatch(units, lambda: remote.remote(str(tmp_path)), start=start, **options)

    return call


def info(*nodes: tuple[float, float]) -> ClusterInfo:
    cpus, gpus = zip(*nodes, strict=True)
    return ClusterInfo("local", sum(cpus), sum(gpus), len(nodes), cpus, gpus)


@pytest.mark.ray
def test_units_run_side_by_side_each_with_all_its_chunks_on_one_actor(
    run: Run, log: list[tuple[str, int, int]]
) -> None:
    outcome = run(["left", "right", "c"])
    assert sorted(outcome.done) == ["c", "left", "right"]
    assert outcome.failed == {}
    for unit in outcome.done:
        assert [number for name, number, _ in log if name == unit] == [0, 1, 2]
        assert len({pid for name, _, pid in log if name == unit}) == 1
    assert len({pid for _, _, pid in log}) == 2


@pytest.mark.ray
def test_dead_worker_is_replaced_and_a_bug_fails_only_its_own_unit(
    run: Run, log: list[tuple[str, int, int]]
) -> None:
    outcome = run(["bug", "dies once", "memory", "a"])
    assert sorted(outcome.done) == ["a", "dies once", "memory"]
    assert outcome.retries == 2
    assert list(outcome.failed) == ["bug"]
    assert outcome.failed["bug"].reason == "ValueError: no such thing"
    assert "in chunk" in outcome.failed["bug"].details
    assert [number for name, number, _ in log if name == "dies once"] == [0, 1, 2]
    assert len({pid for name, _, pid in log if name == "dies once"}) == 2


@pytest.mark.ray
def test_unit_that_kills_every_worker_is_given_up(run: Run) -> None:
    outcome = run(["always dies", "a"], limits=Limits(max_retries=1, pause_s=0.1))
    assert outcome.done == ["a"]
    failure = outcome.failed["always dies"]
    assert failure.reason == (
        "its worker ended without a word: killed, probably for memory, or its code ended the process"
        " (gave up after 2 tries)"
    )


@pytest.mark.ray
def test_stalled_worker_is_killed_and_its_unit_retried(run: Run, log: list[tuple[str, int, int]]) -> None:
    outcome = run(["stalls"], limits=Limits(chunk_timeout_s=2))
    assert outcome.done == ["stalls"]
    assert outcome.retries == 1
    assert [number for _, number, _ in log] == [0, 1, 2]


@pytest.mark.ray
def test_stop_event_ends_early_with_what_is_done(run: Run) -> None:
    stop = threading.Event()

    def on_tick(actors: Any) -> None:
        seen.append(gather({unit: actor.progress.remote() for unit, actor in actors.items()}))
        if "slow" in seen[-1]:
            stop.set()

    seen: list[dict[str, int]] = []
    outcome = run(["a", "slow", "b"], on_tick=on_tick, stop=stop)
    assert outcome.stopped
    assert "slow" not in outcome.done
    assert outcome.failed == {}
    assert 0 <= seen[-1]["slow"] < CHUNKS


@pytest.mark.ray
def test_error_of_the_driver_ends_the_dispatch_and_its_actors(run: Run) -> None:
    def finish(unit: str, value: tuple[str, int, int]) -> bool:
        pids.append(value[2])
        raise StoreError("the disk is full")

    pids: list[int] = []
    with pytest.raises(StoreError, match="the disk is full"):
        run(["a"], finish=finish)
    wait_for(lambda: not Path(f"/proc/{pids[0]}").exists())


@pytest.mark.ray
def test_worker_that_never_starts_is_an_error_with_its_reason(ray_cluster: None) -> None:
    remote = ray.remote(BrokenWorker).options(num_cpus=0)
    with pytest.raises(ClusterError, match=r"No actor could start, 2 tries failed.*no module named x"):
        dispatch(
            ["a"],
            remote.remote,
            start=lambda actor, unit: actor.chunk.remote(unit),
            finish=lambda unit, value: False,
            num_actors=lambda: 1,
            limits=Limits(max_retries=1),
        )


@pytest.mark.ray
def test_actor_that_finds_no_place_is_an_error(ray_cluster: None) -> None:
    remote = ray.remote(num_cpus=64, concurrency_groups={"ctl": 1})(Worker)
    with pytest.raises(ClusterError, match=r"No actor was placed within 1 s"):
        dispatch(
            ["a"],
            lambda: remote.remote("."),
            start=lambda actor, unit: actor.chunk.remote(unit, 0),
            finish=lambda unit, value: False,
            num_actors=lambda: 1,
            limits=Limits(pending_timeout_s=1),
        )


def job(item: int, values: np.ndarray, folder: str) -> int:
    mark = Path(folder) / str(item)
    if item == 1 and not mark.exists():
        mark.touch()
        os._exit(1)
    if item == 2:
        raise KeyError("two")
    if item == 3 and values.flags.writeable:
        raise RuntimeError("the array is a copy")
    return item + int(values.sum())


@pytest.mark.ray
def test_tasks_share_an_array_and_fail_one_by_one(ray_cluster: None, tmp_path: Path) -> None:
    values: dict[int, int] = {}
    shared = (ray.put(np.ones(300_000, dtype=np.int8)), str(tmp_path))
    limits = Limits(pause_s=0.1)
    outcome = run_tasks(job, [0, 1, 2, 3], shared=shared, on_result=values.__setitem__, limits=limits)
    assert values == {0: 300_000, 1: 300_001, 3: 300_003}
    assert sorted(outcome.done) == [0, 1, 3]
    assert outcome.retries == 1
    assert outcome.failed[2].reason == "KeyError: 'two'"


def sleep(item: int) -> int:
    time.sleep(30)
    return item


@pytest.mark.ray
def test_stopped_tasks_are_cancelled(ray_cluster: None) -> None:
    stop = threading.Event()
    begin_s = time.monotonic()
    outcome = run_tasks(sleep, [0, 1], stop=stop, on_tick=lambda running: stop.set())
    assert outcome.stopped
    assert outcome.done == []
    # Long before the tasks would have ended, however busy the machine.
    assert time.monotonic() - begin_s < 25


@pytest.mark.ray
def test_stalled_task_is_cancelled_and_given_up(ray_cluster: None) -> None:
    outcome = run_tasks(sleep, [0], limits=Limits(max_retries=0, chunk_timeout_s=1))
    text = "took longer than 1 s; if it is slow, not stuck, pass a larger --timeout-s"
    assert outcome.failed[0] == Failure(f"{text} (gave up after 1 try)", text)


@pytest.mark.ray
def test_a_task_whose_result_has_come_is_not_cancelled(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[Any] = []
    monkeypatch.setattr(ray, "cancel", lambda reference, *, force: cancelled.append(reference))
    done = ray.put(0), ray.remote(max_retries=0)(lambda: 1 / 0).remote()
    ray.wait(list(done), num_returns=2, timeout=60)
    waits = ray.remote(max_retries=0)(sleep).remote(1)
    for reference in (*done, waits):
        cancel(reference)
    monkeypatch.undo()
    assert cancelled == [waits]
    cancel(waits)


@pytest.mark.ray
def test_tasks_that_no_node_has_room_for_are_given_up(ray_cluster: None) -> None:
    with pytest.raises(ClusterError, match="no node with 0 CPUs and 1 GPUs, which one training needs"):
        run_tasks(sleep, [0, 1], size=ActorSize(1, cpus=0.0, gpus=1.0), limits=Limits(pending_timeout_s=0.5))


@pytest.mark.ray
def test_read_only_array_becomes_a_tensor_without_copy_or_warning(ray_cluster: None) -> None:
    array = ray.get(ray.put(np.arange(300_000, dtype=np.float32)))
    assert not array.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor(array)
    assert tensor.data_ptr() == array.ctypes.data


@pytest.mark.ray
def test_workers_import_the_packages_of_the_driver_not_those_of_the_working_directory(
    ray_cluster: None, traps: Path
) -> None:
    def look() -> tuple[list[str], str, str]:
        import atom
        import pipelines

        return sys.path, str(atom.__file__), str(pipelines.__file__)

    import atom
    import pipelines

    path, *files = ray.get(ray.remote(num_cpus=0)(look).remote(), timeout=60)
    assert files == [atom.__file__, pipelines.__file__]
    assert str(traps) not in path


COLLECTS_WHILE_RAY_ENDS = """
import gc, threading, time, ray
from pipelines.workers.cluster import connect

held, end = [], ray._private.worker.disconnect

def collect():
    gc.set_threshold(1)
    while held:
        cycle = [held.pop()]
        cycle.append(cycle)
        del cycle
        time.sleep(0.0005)

def disconnect(exiting_interpreter=False):
    end(exiting_interpreter)
    threading.Thread(target=collect, daemon=True).start()

ray._private.worker.disconnect = disconnect
gc.set_threshold(10**6)
with connect(num_cpus=1):
    held.extend(ray.put(number) for number in range(400))
print("ended")
"""


@pytest.mark.ray
def test_what_another_thread_lets_go_while_ray_ends_does_not_end_the_process() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", COLLECTS_WHILE_RAY_ENDS],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stdout) == (0, "ended\n"), ran.stderr


@pytest.mark.ray
def test_running_ray_is_joined_and_left_open(ray_cluster: None) -> None:
    with connect() as cluster:
        assert cluster.cpus == 2
        assert cluster.num_nodes == 1
        assert cluster.describe().endswith("Ray of this process: 1 node, 2 CPUs, 0 GPUs")
    assert ray.is_initialized()


def test_request_that_fits_is_accepted() -> None:
    check_request(info((4, 1)), num_actors=4, cpus_per_actor=1, gpus_per_actor=0.25)
    check_request(info((4, 0), (4, 0)), num_actors=8, cpus_per_actor=1, gpus_per_actor=0)
    check_request(info((0, 0), (2, 2)), num_actors=1, cpus_per_actor=0, gpus_per_actor=2)
    check_request(info((1, 1)), num_actors=10, cpus_per_actor=0.1, gpus_per_actor=0.1)


@pytest.mark.parametrize(
    ("nodes", "actors", "cpus", "gpus", "message"),
    [
        ([(2, 0)], 1, 1, 1, "--gpus-per-actor 1 needs 1 GPU, but this cluster has none"),
        ([(8, 4)], 1, 1, 1.5, "--gpus-per-actor 1.5: above 1, GPUs are given whole; pass 1 or 2"),
        ([(8, 2), (8, 2)], 1, 1, 4, "4 GPUs on one node, but the nodes have 8 CPUs and 2 GPUs;"),
        ([(2, 0), (2, 0)], 1, 4, 0, "needs 4 CPUs and 0 GPUs on one node, but the nodes have 2 CPUs"),
        ([(8, 0), (1, 1)], 1, 4, 1, "nodes have 8 CPUs and 0 GPUs, 1 CPUs and 1 GPUs;"),
        ([(3, 0), (3, 0)], 3, 2, 0, "--num-actors 3 .* pass --num-actors 2 or less"),
        ([(8, 1)], 3, 1, 0.5, "--num-actors 3 .* pass --num-actors 2 or less"),
    ],
)
def test_impossible_request_is_refused_with_advice(
    nodes: list[tuple[float, float]], actors: int, cpus: float, gpus: float, message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        check_request(info(*nodes), num_actors=actors, cpus_per_actor=cpus, gpus_per_actor=gpus)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "is a dashboard's address"),
        ("127.0.0.1:{free}", "No Ray cluster answers at RAY_ADDRESS=127.0.0.1"),
        ("no-such-host.invalid:6379", "No Ray cluster answers"),
    ],
)
def test_address_that_leads_nowhere_is_explained_at_once(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address.format(free=free_port()))
    with pytest.raises(ClusterError, match=message), connect():
        pass


def test_first_signal_sets_the_event_and_the_second_interrupt_raises() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop, stop.polling():
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
        assert stop.signal_name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_where_no_loop_looks_interrupts_at_once(number: signal.Signals) -> None:
    with stop_on_signals() as stop:
        with stop.polling():
            pass
        with pytest.raises(KeyboardInterrupt, match=number.name):
            signal.raise_signal(number)
        assert stop.signal_name == number.name


def test_memory_set_aside_bounds_the_workers_of_a_node() -> None:
    cluster = replace(info((8, 0), (8, 0)), node_memory=(16.0, 4.0))
    asked = {"cpus_per_actor": 1, "gpus_per_actor": 0}
    assert cluster.slots(**asked) == 16
    assert cluster.slots(**asked, memory_per_actor=3.0) == 5 + 1
    settings = ClusterSettings()
    size, _ = choose_size(cluster, settings, threads=1, num_units=99, memory=3.0)
    assert size.num_actors == 6
    assert size.options == {"num_cpus": 1, "num_gpus": 0, "memory": 3.0 * 2**30}
    with pytest.raises(ClusterError, match="--memory-per-actor 17: 1 workers of so many GiB do not fit"):
        choose_size(cluster, settings, threads=1, num_units=9, memory=17.0)
