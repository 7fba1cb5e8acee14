"""Stateless Ray tasks with the fault policy of `dispatch`: bounded in flight, results as they come."""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from atom.errors import ClusterError
from pipelines.workers.cluster import cluster_info
from pipelines.workers.dispatch import wait_for_one
from pipelines.workers.pool import FETCH_S, Limits
from pipelines.workers.resources import AHEAD, ActorSize
from pipelines.workers.retries import Call, Outcome, Patience, Unit, Waiting

logger = logging.getLogger(__name__)

ONE_CPU = ActorSize(1, cpus=1.0, gpus=0.0)
"""Of tasks that take one thread each, as many as fit."""
_LOOK_S = 10.0
"""How often the cluster is asked whether a task still fits anywhere."""


def run_tasks(
    function: Callable[..., Any],
    items: Sequence[Unit],
    *,
    shared: Sequence[Any] = (),
    size: ActorSize = ONE_CPU,
    kind: Callable[[Unit], Hashable] = lambda item: item,
    limits: Limits | None = None,
    on_result: Callable[[Unit, Any], None] | None = None,
    on_tick: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> Outcome[Unit]:
    """Run `function(item, *shared)` for every item as a Ray task.

    Args:
        function: a plain function; its value goes to `on_result`.
        items: hashable and distinct, begun in this order.
        shared: further arguments, the same for all; large ones as ObjectRef, which arrive as values.
        size: what a task holds, where it may run, and how many the user allows at once; as many are submitted as the
            cluster holds, which may grow, or its autoscaler makes room for.
        kind: tasks of one kind take about equally long, so that one that hangs is noticed; see `Patience`.
        limits: `chunk_timeout_s` bounds a task, waiting for its place included; `pending_timeout_s` how long no
            node at all may have room for one.
        on_result: called in the driver with each item and value, in order of completion.
        on_tick: called a few times a second with the number of tasks in flight.
        stop: when set, running tasks are cancelled and the call returns what is done.

    Returns:
        The outcome; a failed item does not touch the others.

    Raises:
        ClusterError: no node is left that a task fits on.
        Exception: whatever `on_result` raises, after the running tasks were cancelled.
    """
    limits = limits or Limits()
    room = _Room(size, limits.pending_timeout_s)
    # Ray's own retries are off: they can neither be counted nor logged here.
    # Given to ray.remote itself, num_gpus also makes each training a process of its own: a process that was on
    # one GPU would stay there when Ray hands it another.
    remote = ray.remote(max_retries=0, retry_exceptions=False, **size.options)(function)
    waiting, patience = Waiting(items, limits), Patience(limits.chunk_timeout_s, kind)
    running: dict[Any, Call[Unit]] = {}
    outcome = waiting.outcome
    try:
        while waiting or running:
            if stop is not None and stop.is_set():
                outcome.stopped = True
                break
            while waiting.ready() and len(running) < waiting.width(room.slots):
                item = waiting.take()
                running[remote.remote(item, *shared)] = patience.begun(item)
            for reference in wait_for_one(running):
                call = running.pop(reference)
                try:
                    value = ray.get(reference, timeout=FETCH_S)
                except RayError as error:
                    waiting.failed(call.unit, error)
                    continue
                patience.ended(call)
                waiting.advanced(call.unit)
                outcome.done.append(call.unit)
                if on_result is not None:
                    on_result(call.unit, value)
            for reference, error in patience.expired(running):
                if cancel(reference):
                    waiting.failed(running.pop(reference).unit, error)
            room.check()
            if on_tick is not None:
                on_tick(len(running))
    finally:
        for reference in running:
            cancel(reference)
    return outcome


class _Room:
    """How many tasks the cluster has room for, as nodes come and go.

    Attributes:
        slots: as many at once as it holds, or as its autoscaler may make room for; 1 at least.
    """

    def __init__(self, size: ActorSize, limit_s: float) -> None:
        self._size, self._limit_s = size, limit_s
        self._looked_s = self._had_s = time.monotonic()
        self.slots = 1
        self._look()

    def _look(self) -> int:
        """Tasks of this size that fit now."""
        info, size = cluster_info(), self._size
        fits = size.slots(info)
        # A task's time runs while it waits for a place: of those to come no more are submitted than soon find one.
        slots = max(1, fits + min(1, size.ahead), min(size.slots_to_come(info), fits + AHEAD))
        self.slots = min(slots, size.asked or slots)
        return fits

    def check(self) -> None:
        """Look, every now and then, and notice that there is no node left, as when the only one with GPUs died.

        Raises:
            ClusterError: there has been no room for longer than the limit.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s < min(_LOOK_S, self._limit_s):
            return
        self._looked_s = now_s
        if self._look():
            self._had_s = now_s
        elif now_s - self._had_s > self._limit_s:
            raise ClusterError(
                f"The cluster has had no node with {self._size.cpus:g} CPUs and {self._size.gpus:g} GPUs, which one"
                f" training needs, for"
                f" {self._limit_s:g} s; see `ray status`, then rerun the same command to go on."
            )


def cancel(reference: Any) -> bool:
    """End a task's process at once; False where its result has come, which is left to be fetched.

    Ray (2.60) aborts the driver where a task is cancelled while its reply is being booked. To look before leaves
    microseconds of that, just before the result shows.
    """
    try:
        if ray.wait([reference], timeout=0, fetch_local=False)[0]:
            return False
        ray.cancel(reference, force=True)
    # Ray's client raises a bare one.
    except Exception as error:
        logger.debug("cancel: %s", error)
    return True
