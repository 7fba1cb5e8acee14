"""The ray.wait loop: units of work streamed through long-lived actors or tasks, with retries and limits.

`ray.util.ActorPool` loses failed items and never replaces a dead actor, and Ray's own retries happen where
the driver can neither count them nor restart from a checkpoint; so the loop is here.

A unit goes through in chunks. The driver stores a chunk's value before it asks for the next one, hence an
actor's memory is only a cache, and a unit whose actor died goes on elsewhere from its last stored chunk.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError

from pipelines.faults import Failure, is_machine_fault, reason_of, took_too_long
from pipelines.pool import FETCH_S, ActorPool, Limits, kill

logger = logging.getLogger(__name__)

Unit = TypeVar("Unit", bound=Hashable)

_POLL_S = 0.25
_TICK_S = 1.0


@dataclass
class Outcome(Generic[Unit]):
    """What a dispatch came to.

    Attributes:
        done: finished units, in the order in which they finished.
        failed: why each failed unit failed; units in neither were not finished before a stop.
        stopped: whether the stop event ended it early.
        retries: chunks that were tried again after a machine fault.
    """

    done: list[Unit] = field(default_factory=list)
    failed: dict[Unit, Failure] = field(default_factory=dict)
    stopped: bool = False
    retries: int = 0


@dataclass
class _Running(Generic[Unit]):
    """One call in flight."""

    unit: Unit
    actor: Any
    since_s: float


class _Dispatcher(Generic[Unit]):
    """State of one `dispatch` call."""

    def __init__(
        self,
        units: Sequence[Unit],
        start: Callable[[Any, Unit], Any],
        finish: Callable[[Unit, Any], bool],
        pool: ActorPool,
        limits: Limits,
    ) -> None:
        self.queue = deque(units)
        self.start = start
        self.finish = finish
        self.pool = pool
        self.limits = limits
        self.running: dict[Any, _Running[Unit]] = {}
        self.attempts: dict[Unit, int] = {}
        self.outcome: Outcome[Unit] = Outcome()

    def submit(self, unit: Unit, actor: Any) -> None:
        reference = self.start(actor, unit)
        self.running[reference] = _Running(unit, actor, time.monotonic())

    def feed(self, num_actors: int) -> None:
        """Give waiting units to idle actors, and start actors for those left over."""
        while self.queue and self.pool.idle:
            self.submit(self.queue.popleft(), self.pool.idle.pop())
        self.pool.grow(min(len(self.queue), num_actors - len(self.running)))

    def collect(self, reference: Any) -> None:
        """Take a chunk's value, or its failure."""
        call = self.running[reference]
        try:
            value = ray.get(reference, timeout=FETCH_S)
        except RayError as error:
            del self.running[reference]
            self.fail(call, error)
            return
        self.attempts.pop(call.unit, None)
        more = self.finish(call.unit, value)
        del self.running[reference]
        if more:
            self.submit(call.unit, call.actor)
        else:
            self.outcome.done.append(call.unit)
            self.pool.idle.append(call.actor)

    def fail(self, call: _Running[Unit], error: Exception) -> None:
        """Retry or give up a unit; its actor goes either way.

        An actor that raised is replaced as well: after a CUDA error its process fails every later call.
        """
        kill(call.actor)
        failure = reason_of(error)
        attempt = self.attempts.get(call.unit, 0) + 1
        if not is_machine_fault(error):
            self.outcome.failed[call.unit] = failure
        elif attempt > self.limits.max_retries:
            self.outcome.failed[call.unit] = failure.after(attempt)
        else:
            logger.warning(
                "%s: %s; retry %d of %d", call.unit, failure.reason, attempt, self.limits.max_retries
            )
            self.attempts[call.unit] = attempt
            self.outcome.retries += 1
            self.queue.appendleft(call.unit)
            return
        logger.error("%s failed: %s", call.unit, self.outcome.failed[call.unit].reason)

    def expire(self) -> None:
        """Treat calls that took too long as machine faults."""
        now_s = time.monotonic()
        for reference, call in list(self.running.items()):
            if now_s - call.since_s > self.limits.chunk_timeout_s:
                del self.running[reference]
                self.fail(call, took_too_long(self.limits.chunk_timeout_s))

    def close(self) -> None:
        for call in self.running.values():
            kill(call.actor)
        self.pool.drain()


def dispatch(
    units: Sequence[Unit],
    actor_factory: Callable[[], Any],
    *,
    start: Callable[[Any, Unit], Any],
    finish: Callable[[Unit, Any], bool],
    num_actors: int,
    limits: Limits | None = None,
    on_tick: Callable[[Mapping[Unit, Any]], None] | None = None,
    stop: threading.Event | None = None,
) -> Outcome[Unit]:
    """Stream units through a pool of actors, one unit an actor at a time, chunk after chunk.

    Args:
        units: what to do, begun in this order; hashable and distinct.
        actor_factory: makes an actor handle, with Ray's own restarts left off; called when one is needed.
        start: submits the next chunk of a unit to an actor and returns the ObjectRef of its value. Called
            again with a fresh actor after a machine fault, so it must begin from the last stored state.
        finish: called in the driver with the value of a chunk; stores it and says whether more follow.
        num_actors: size of the pool; never more actors than units are started.
        limits: retries and time limits.
        on_tick: called about once a second with the actor of each unit being worked on; must be quick.
        stop: when set, the dispatch ends within about a second; work since the last chunk is dropped.

    Returns:
        The outcome. A unit's failure does not touch the others; all actors are dead on return.

    Raises:
        ClusterError: no actor ever started.
        Exception: whatever `start`, `finish` or `on_tick` raise, after all actors were killed.
    """
    limits = limits or Limits()
    work = _Dispatcher(units, start, finish, ActorPool(actor_factory, limits), limits)
    tick_s = time.monotonic()
    try:
        while work.queue or work.running:
            if stop is not None and stop.is_set():
                work.outcome.stopped = True
                break
            work.feed(num_actors)
            references = [*work.running, *work.pool.starting]
            ready, _ = ray.wait(references, num_returns=1, timeout=_POLL_S) if references else ([], [])
            for reference in ready:
                (work.collect if reference in work.running else work.pool.collect)(reference)
            work.expire()
            work.pool.check(busy=len(work.running))
            if on_tick is not None and time.monotonic() - tick_s >= _TICK_S:
                tick_s = time.monotonic()
                on_tick({call.unit: call.actor for call in work.running.values()})
    finally:
        work.close()
    return work.outcome


def gather(references: Mapping[Unit, Any], *, timeout_s: float = 0.2) -> dict[Unit, Any]:
    """Values of those references that answer in time; late and failed ones are left out.

    For polling actors in `on_tick`: an actor that dies just then must not end the dispatch.
    """
    if not references:
        return {}
    ready, _ = ray.wait(list(references.values()), num_returns=len(references), timeout=timeout_s)
    values = {}
    for unit, reference in references.items():
        if reference in ready:
            try:
                values[unit] = ray.get(reference, timeout=timeout_s)
            except RayError as error:
                logger.debug("%s did not answer: %s", unit, error)
    return values
