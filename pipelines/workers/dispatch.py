"""The ray.wait loop: units of work streamed through long-lived actors or tasks, with retries and limits.

`ray.util.ActorPool` loses failed items and never replaces a dead actor, and Ray's own retries happen where
the driver can neither count them nor restart from a checkpoint; so the loop is here.

A unit goes through in chunks. The driver takes a chunk's value before it asks for the next one, hence an
actor's memory is only a cache, and a unit whose actor died goes on elsewhere from its last chunk.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic

import ray
from ray.exceptions import RayError

from pipelines.workers.faults import Failure
from pipelines.workers.pool import FETCH_S, ActorPool, Limits, kill
from pipelines.workers.retries import Call, Outcome, Patience, Unit, Waiting

logger = logging.getLogger(__name__)

_POLL_S = 0.25
_TICK_S = 1.0


class _Dispatcher(Generic[Unit]):
    """State of one `dispatch` call."""

    def __init__(
        self,
        waiting: Waiting[Unit],
        start: Callable[[Any, Unit], Any],
        finish: Callable[[Unit, Any], bool],
        pool: ActorPool,
        patience: Patience[Unit],
        on_failure: Callable[[Unit, Failure, Exception], None] | None,
        then: Callable[[Unit], Iterable[Unit]],
    ) -> None:
        self.waiting = waiting
        self.start = start
        self.finish = finish
        self.pool = pool
        self.patience = patience
        self.on_failure = on_failure
        self.then = then
        self.running: dict[Any, Call[Unit]] = {}

    def submit(self, unit: Unit, actor: Any) -> None:
        self.running[self.start(actor, unit)] = self.patience.begun(unit, actor)

    def feed(self, num_actors: int) -> None:
        """Give waiting units to idle actors, and start actors for those left over."""
        room = self.waiting.width(num_actors) - len(self.running)
        for _ in range(min(room, len(self.pool.idle), self.waiting.ready())):
            self.submit(self.waiting.take(), self.pool.idle.pop())
        self.pool.grow(min(self.waiting.ready(), self.waiting.width(num_actors) - len(self.running)))
        self.pool.shrink(len(self.waiting))

    def collect(self, reference: Any) -> None:
        """Take a chunk's value, or its failure."""
        call = self.running[reference]
        try:
            value = ray.get(reference, timeout=FETCH_S)
        except RayError as error:
            self.fail(reference, error)
            return
        self.patience.ended(call)
        self.waiting.advanced(call.unit)
        more = self.finish(call.unit, value)
        del self.running[reference]
        if more:
            self.submit(call.unit, call.actor)
        else:
            self.waiting.outcome.done.append(call.unit)
            self.pool.idle.append(call.actor)
            self.waiting.add(self.then(call.unit))

    def fail(self, reference: Any, error: Exception) -> None:
        """Retry or give up a unit; its actor goes either way.

        An actor that raised is replaced as well: after a CUDA error its process fails every later call.
        """
        call = self.running.pop(reference)
        kill(call.actor)
        self.waiting.failed(call.unit, error)
        failure = self.waiting.outcome.failed.get(call.unit)
        if failure is not None and self.on_failure is not None:
            self.on_failure(call.unit, failure, error)

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
    num_actors: Callable[[], int],
    kind: Callable[[Unit], Hashable] = lambda unit: unit,
    limits: Limits | None = None,
    on_tick: Callable[[Mapping[Unit, Any]], None] | None = None,
    on_failure: Callable[[Unit, Failure, Exception], None] | None = None,
    then: Callable[[Unit], Iterable[Unit]] = lambda _: (),
    rank: Callable[[Unit], int] | None = None,
    release: bool = False,
    stop: threading.Event | None = None,
) -> Outcome[Unit]:
    """Stream units through a pool of actors, one unit an actor at a time, chunk after chunk.

    Args:
        units: what to do, begun in this order; hashable and distinct.
        actor_factory: makes an actor handle, with Ray's own restarts left off; called when one is needed.
        start: submits the next chunk of a unit to an actor and returns the ObjectRef of its value. Called
            again with a fresh actor after a machine fault, so it must begin from the last state.
        finish: called in the driver with the value of a chunk; keeps it and says whether more follow.
        num_actors: size of the pool now, asked again and again; never more actors than units are started.
        kind: chunks of one kind take about equally long, so that one that hangs is noticed; see `Patience`.
        limits: retries and time limits.
        on_tick: called about once a second with the actor of each unit being worked on; must be quick.
        on_failure: called in the driver when a unit is given up, with the reason and the error behind it.
        then: called in the driver when a unit is done; gives further units, which can be begun now.
        rank: see `Waiting`.
        release: whether an actor ends once nothing waits for one, for others to have its place.
        stop: when set, the dispatch ends within about a second; work since the last chunk is dropped.

    Returns:
        The outcome. A unit's failure does not touch the others; all actors are dead on return.

    Raises:
        ClusterError: no actor ever started.
        Exception: whatever `start`, `finish` or `on_tick` raise, after all actors were killed.
    """
    limits = limits or Limits()
    waiting, patience = Waiting(units, limits, rank=rank), Patience(limits.chunk_timeout_s, kind)
    work = _Dispatcher(waiting, start, finish, ActorPool(actor_factory, limits), patience, on_failure, then)
    tick_s = time.monotonic()
    try:
        while waiting or work.running:
            if stop is not None and stop.is_set():
                waiting.outcome.stopped = True
                break
            work.feed(num_actors())
            references = [*work.running, *work.pool.starting]
            for reference in wait_for_one(references):
                (work.collect if reference in work.running else work.pool.collect)(reference)
            for reference, error in patience.expired(work.running):
                work.fail(reference, error)
            if release and not waiting:
                work.pool.drain()
            # A unit in its pause needs no actor yet.
            work.pool.check(busy=len(work.running) or not waiting.ready())
            if on_tick is not None and time.monotonic() - tick_s >= _TICK_S:
                tick_s = time.monotonic()
                on_tick({call.unit: call.actor for call in work.running.values()})
    finally:
        work.close()
    return waiting.outcome


def wait_for_one(references: Collection[Any]) -> list[Any]:
    """One of them that is ready, if any is within a moment."""
    if not references:
        time.sleep(_POLL_S)
        return []
    return ray.wait(list(references), num_returns=1, timeout=_POLL_S)[0]


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
