"""What a user reads about a worker that is gone."""

import os
from pathlib import Path

import pytest
from ray import exceptions as rx

from pipelines.workers import faults
from pipelines.workers.faults import is_machine_fault, reason_of

GONE = """The actor died unexpectedly before finishing this task.
\tclass_name: DistillWorker
\tactor_id: e498d088b095dcc9d905e32c01000000
\tpid: 2315
\tnamespace: 0be47c98-d903-4e9c-8d99-0b67dde1feee
\tip: 192.0.2.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was \
killed by the OOM killer due to high memory usage, (2) ray stop --force was called."""
ENDED = "its worker ended without a word: killed, probably for memory, or its code ended the process"
CRASH = "*** SIGSEGV received at time=1795711154 on cpu 0 ***\nPC: @     0x7efd07b85ad8\n"


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(faults, "_logs", lambda: tmp_path)
    return tmp_path


def test_worker_that_crashed_and_one_that_ended_without_a_word_are_told_apart(logs: Path) -> None:
    (logs / "worker-a-01000000-2315.err").write_text(":actor_name:DistillWorker\n" + CRASH)
    (logs / "worker-b-01000000-2316.err").write_text(":actor_name:DistillWorker\n")
    crash, kill = rx.RayActorError("a", GONE), rx.RayActorError("b", GONE.replace("2315", "2316"))
    assert reason_of(crash).reason == "its worker crashed with signal 11 (SIGSEGV)"
    assert reason_of(kill).reason == ENDED
    assert (reason_of(crash).memory, reason_of(kill).memory) == ("no", "probably")
    assert is_machine_fault(crash)
    assert is_machine_fault(kill)


def test_crashed_task_is_known_by_what_crashed_just_now(logs: Path) -> None:
    old = logs / "worker-a-01000000-2315.err"
    old.write_text(CRASH)
    os.utime(old, (0, 0))
    assert reason_of(rx.WorkerCrashedError()).reason == ENDED
    (logs / "worker-b-01000000-2316.err").write_text(CRASH.replace("SIGSEGV", "SIGABRT"))
    assert reason_of(rx.WorkerCrashedError()).reason == "its worker crashed with signal 6 (SIGABRT)"
    assert reason_of(rx.WorkerCrashedError()).reason == ENDED


def test_worker_killed_by_rays_memory_monitor_says_how_full_the_node_was() -> None:
    text = (
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 9b) was"
        " 22.48GB used / 23.59GB limit (0.953)\nOOM kill reason: Memory usage exceeded threshold"
    )
    failure = reason_of(rx.OutOfMemoryError(text))
    assert failure.reason == (
        "its worker was killed by Ray, since its node ran low on memory (22.48GB used / 23.59GB limit)"
    )
    assert failure.memory == "yes"


def test_memory_that_runs_out_inside_the_work_counts_as_such() -> None:
    error = rx.RayTaskError("advance", "Traceback: ...", MemoryError())
    assert (reason_of(error).reason, reason_of(error).memory) == ("MemoryError", "yes")
    assert reason_of(rx.RayTaskError("advance", "Traceback: ...", ValueError("no"))).memory == "no"


def test_worker_that_ends_itself_says_with_which_code() -> None:
    error = rx.RayActorError(
        "a", "The actor died.\n\tpid: 1\nWorker exits unexpectedly. Worker exits with an exit code 3."
    )
    assert reason_of(error).reason == "its worker ended itself with exit code 3"


def test_lost_node_is_named_as_such() -> None:
    error = rx.RayActorError(
        "a", "The actor died.\n\tpid: 1\nThe actor died because its node has died. Node Id: 9b"
    )
    assert (
        reason_of(error).reason == "its worker died (The actor died because its node has died. Node Id: 9b)"
    )
    assert reason_of(error).memory == "no"
