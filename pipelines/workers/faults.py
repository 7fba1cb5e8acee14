"""Whose fault is it, the machine's (try again) or the program's (do not), and how to say it."""

import re
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import ray
from ray import exceptions as rx

_MACHINE = (
    rx.RayActorError,
    rx.OutOfMemoryError,
    rx.WorkerCrashedError,
    rx.NodeDiedError,
    rx.LocalRayletDiedError,
    rx.ObjectLostError,
    rx.ObjectStoreFullError,
    rx.OutOfDiskError,
    rx.RaySystemError,
    rx.RpcError,
    rx.GetTimeoutError,
    rx.TaskCancelledError,
)
_MEMORY_NAMES = {"MemoryError", "OutOfMemoryError"}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ID = re.compile(r"\w+: ")
# By name, since torch is not imported here. A CUDA error may be a broken device or a bug: retries are few.
_MACHINE_NAMES = {*_MEMORY_NAMES, "AcceleratorError"}
_SIGNAL = re.compile(r"^\*\*\* (SIG[A-Z]+) received", re.MULTILINE)
_USED = re.compile(r"\S+ used / \S+ limit")
_EXITED = re.compile(r"Worker exits with an exit code (\d+)")
_ENDED = "its worker ended without a word: killed, probably for memory, or its code ended the process"
"""All that is known: Ray tells a kill and an `os._exit` by one and the same message."""
_RECENT_S = 30.0
_told: set[Path] = set()
"""Logs of crashes that were reported: they are not those of the next task."""


@dataclass(frozen=True)
class Failure:
    """Why a unit of work failed.

    Attributes:
        reason: one line for people.
        details: traceback of the worker, or the full message.
        memory: whether memory ran out: what fails so fails again if it is tried at once.
    """

    reason: str
    details: str
    memory: Literal["no", "probably", "yes"] = "no"

    def after(self, attempts: int) -> "Failure":
        """The same failure, saying that it was the last of several tries."""
        tries = "1 try" if attempts == 1 else f"{attempts} tries"
        return replace(self, reason=f"{self.reason} (gave up after {tries})")


def is_machine_fault(error: BaseException) -> bool:
    """Whether the same call may succeed on another machine or later."""
    if isinstance(error, rx.RayTaskError):
        cause = error.cause
        return isinstance(cause, _MACHINE) or type(cause).__name__ in _MACHINE_NAMES
    if isinstance(error, rx.RayActorError) and error.actor_init_failed:
        return False
    return isinstance(error, (*_MACHINE, TimeoutError)) or type(error).__name__ in _MACHINE_NAMES


def is_preemption(error: BaseException) -> bool:
    """Whether a worker was lost since its node was drained before it was taken back."""
    return isinstance(error, rx.RayActorError) and error.preempted


def took_too_long(limit_s: float) -> TimeoutError:
    """The machine fault of work that passed its time limit."""
    return TimeoutError(
        f"took longer than {limit_s:g} s; if it is slow, not stuck, pass a larger --timeout-s"
    )


def reason_of(error: BaseException) -> Failure:
    """The failure that an exception of `ray.get`, or a time limit, stands for."""
    if isinstance(error, rx.RayTaskError):
        cause = error.cause
        text = f"{type(cause).__name__}: {' '.join(str(cause).split())}".removesuffix(": ")
        memory = "yes" if type(cause).__name__ in _MEMORY_NAMES else "no"
        return Failure(text, _COLOUR.sub("", str(error)), memory)
    text = str(error)
    if isinstance(error, TimeoutError) and not isinstance(error, rx.RayError):
        return Failure(text, text)
    if "low on memory" in text:
        used = _USED.search(text)
        node = f" ({used[0]})" if used else ""
        return Failure(f"its worker was killed by Ray, since its node ran low on memory{node}", text, "yes")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(error, rx.RayActorError) and error.actor_init_failed:
        return Failure(f"an actor failed to start: {lines[-1] if lines else error}", text)
    if isinstance(error, rx.WorkerCrashedError) or "connection error code 2" in text:
        pid = re.search(r"^\s*pid: (\d+)$", text, re.MULTILINE)
        name = _crash_signal(pid[1] if pid else "*")
        if name is None:
            return Failure(_ENDED, text, "probably")
        return Failure(f"its worker crashed with signal {signal.Signals[name].value} ({name})", text)
    if exited := _EXITED.search(text):
        return Failure(f"its worker ended itself with exit code {exited[1]}", text)
    if isinstance(error, rx.RayActorError):
        # Most lines are ids; the one with the reason is the last that does not start with "name: ".
        reasons = [line for line in lines if not _ID.match(line)]
        reason = (reasons or ["no reason known"])[-1].partition(" Some common causes")[0]
        return Failure(f"its worker died ({reason[:300].rstrip('.')})", text)
    return Failure(f"{type(error).__name__}: {lines[0] if lines else 'no message'}", text)


def _crash_signal(pid: str) -> str | None:
    """The signal that a worker wrote into its log when it crashed; None if there is none, or on another machine.

    Ray itself tells a crash and a kill by one and the same message. It does not name the process of a task, "*" here:
    whatever crashed just now, and was not reported yet, is taken for it.
    """
    for log in sorted(_logs().glob(f"worker-*-{pid}.err"), key=_changed_s, reverse=True):
        if pid == "*" and (log in _told or time.time() - _changed_s(log) > _RECENT_S):
            continue
        found = _SIGNAL.search(log.read_text(errors="replace"))
        if found and found[1] in signal.Signals.__members__:
            _told.add(log)
            return found[1]
    return None


def _logs() -> Path:
    """The directory of Ray's logs on this machine."""
    node = ray._private.worker._global_node  # pyrefly: ignore
    return Path(node.get_logs_dir_path()) if node is not None else Path("no-such-directory")


def _changed_s(path: Path) -> float:
    return path.stat().st_mtime
