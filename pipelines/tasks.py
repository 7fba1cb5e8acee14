"""Stateless Ray tasks with the fault policy of `dispatch`: bounded in flight, results as they come."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from atom.errors import ClusterError
from pipelines.cluster import cluster_info
from pipelines.dispatch import Outcome, Unit
from pipelines.faults import is_machine_fault, reason_of, took_too_long
from pipelines.pool import FETCH_S, Limits

logger = logging.getLogger(__name__)

_POLL_S = 0.25
_LOOK_S = 10.0
"""How often the cluster is asked whether a task still fits anywhere."""


@dataclass
class _Call:
    """One task in flight."""

    item: Any
    since_s: float


def run_tasks(
    function: Callable[..., Any],
    items: Sequence[Unit],
    *,
    shared: Sequence[Any] = (),
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_in_flight: int | None = None,
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
        num_cpus: CPUs a task holds.
        num_gpus: GPUs a task holds; fractions up to 1.
        max_in_flight: tasks submitted at once; default as many as the cluster holds.
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
    room = _Room(num_cpus, num_gpus, limits.pending_timeout_s)
    # Ray's own retries are off: they can neither be counted nor logged here.
    # Given to ray.remote itself, num_gpus also makes each training a process of its own: a process that was on
    # one GPU would stay there when Ray hands it another.
    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0, retry_exceptions=False)(function)
    info = cluster_info()
    size = max_in_flight or max(1, info.slots(cpus_per_actor=num_cpus, gpus_per_actor=num_gpus))
    queue, running, attempts = deque(items), dict[Any, _Call](), dict[Any, int]()
    outcome: Outcome[Unit] = Outcome()

    def fail(item: Unit, error: Exception) -> None:
        failure, attempt = reason_of(error), attempts.get(item, 0) + 1
        if is_machine_fault(error) and attempt <= limits.max_retries:
            logger.warning("%s: %s; retry %d of %d", item, failure.reason, attempt, limits.max_retries)
            attempts[item] = attempt
            outcome.retries += 1
            queue.appendleft(item)
            return
        outcome.failed[item] = failure.after(attempt) if is_machine_fault(error) else failure
        logger.error("%s failed: %s", item, outcome.failed[item].reason)

    try:
        while queue or running:
            if stop is not None and stop.is_set():
                outcome.stopped = True
                break
            while queue and len(running) < size:
                item = queue.popleft()
                running[remote.remote(item, *shared)] = _Call(item, time.monotonic())
            for reference in ray.wait(list(running), num_returns=1, timeout=_POLL_S)[0]:
                item = running.pop(reference).item
                try:
                    value = ray.get(reference, timeout=FETCH_S)
                except RayError as error:
                    fail(item, error)
                    continue
                outcome.done.append(item)
                if on_result is not None:
                    on_result(item, value)
            for reference in _expired(running, limits.chunk_timeout_s):
                _cancel(reference)
                fail(running.pop(reference).item, took_too_long(limits.chunk_timeout_s))
            room.check()
            if on_tick is not None:
                on_tick(len(running))
    finally:
        for reference in running:
            _cancel(reference)
    return outcome


class _Room:
    """Notices that no node has been left for a while on which a task fits, as when the only one with GPUs died."""

    def __init__(self, num_cpus: float, num_gpus: float, limit_s: float) -> None:
        self._size, self._limit_s = (num_cpus, num_gpus), limit_s
        self._looked_s = self._had_s = time.monotonic()

    def check(self) -> None:
        """Look, every now and then.

        Raises:
            ClusterError: there has been no room for longer than the limit.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s < min(_LOOK_S, self._limit_s):
            return
        self._looked_s, (cpus, gpus) = now_s, self._size
        if cluster_info().slots(cpus_per_actor=cpus, gpus_per_actor=gpus):
            self._had_s = now_s
        elif now_s - self._had_s > self._limit_s:
            raise ClusterError(
                f"The cluster has had no node with {cpus:g} CPUs and {gpus:g} GPUs, which one training needs, for"
                f" {self._limit_s:g} s; see `ray status`, then rerun the same command to go on."
            )


def _expired(running: dict[Any, _Call], limit_s: float) -> list[Any]:
    now_s = time.monotonic()
    return [reference for reference, call in running.items() if now_s - call.since_s > limit_s]


def _cancel(reference: Any) -> None:
    try:
        ray.cancel(reference, force=True)
    except (RayError, ValueError) as error:
        logger.debug("cancel: %s", error)
