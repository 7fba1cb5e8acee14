"""Whose fault is it: the machine's (try again) or the program's (do not)."""

import re
from dataclasses import dataclass, replace

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
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ID = re.compile(r"\w+: ")
# By name, since torch is not imported here. A CUDA error may be a broken device or a bug: retries are few.
_MACHINE_NAMES = {"MemoryError", "OutOfMemoryError", "AcceleratorError"}


@dataclass(frozen=True)
class Failure:
    """Why a unit of work failed.

    Attributes:
        reason: one line for people.
        details: traceback of the worker, or the full message.
    """

    reason: str
    details: str

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


def reason_of(error: BaseException) -> Failure:
    """The failure an exception of `ray.get` stands for."""
    if isinstance(error, rx.RayTaskError):
        cause = error.cause
        text = " ".join(str(cause).split())
        return Failure(f"{type(cause).__name__}: {text}".removesuffix(": "), _COLOUR.sub("", str(error)))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, rx.RayActorError) and error.actor_init_failed:
        return Failure(f"an actor failed to start: {lines[-1] if lines else error}", str(error))
    if isinstance(error, rx.RayActorError):
        # Most lines are ids; the one with the reason is the last that does not start with "name: ".
        reasons = [line for line in lines if not _ID.match(line)]
        reason = (reasons or ["no reason known"])[-1].partition(" Some common causes")[0]
        return Failure(f"its worker died ({reason[:300].rstrip('.')})", str(error))
    return Failure(f"{type(error).__name__}: {lines[0] if lines else 'no message'}", str(error))
