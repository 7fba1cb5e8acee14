"""A pool of long-lived actors that grows when work waits, and notices when none can be had."""

import logging
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from atom.errors import ClusterError
from pipelines.workers.faults import is_preemption, reason_of
from pipelines.workers.settings import Limits

logger = logging.getLogger(__name__)

FETCH_S = 120.0
"""Limit on fetching a value that is ready; it is only ever reached when a node has just died."""


class ActorPool:
    """Actors by life: being started, idle, or busy (held by the dispatcher)."""

    def __init__(self, factory: Callable[[], Any], limits: Limits) -> None:
        self._factory = factory
        self._limits = limits
        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []
        self.failed_starts = 0
        self.last_reason = ""
        self._alone_since_s = time.monotonic()
        self._paused_until_s = self._alone_since_s

    def grow(self, wanted: int) -> None:
        """Start actors until `wanted` are on their way, unless every recent start failed, or memory just ran out."""
        if time.monotonic() < self._paused_until_s:
            return
        while len(self.starting) < wanted and self.failed_starts <= self._limits.max_retries:
            actor = self._factory()
            self.starting[actor.__ray_ready__.remote()] = actor

    def shrink(self, wanted: int) -> None:
        """End actors on their way beyond those `wanted`: an autoscaler starts nodes for what waits for a place."""
        for ready in list(self.starting)[max(0, wanted) :]:
            kill(self.starting.pop(ready))

    def collect(self, ready: Any) -> None:
        """Move an actor whose start came to an end."""
        actor = self.starting.pop(ready)
        try:
            ray.get(ready, timeout=FETCH_S)
        except RayError as error:
            if is_preemption(error):
                logger.warning("An actor did not start: its node was taken back by its provider")
                kill(actor)
                return
            failure = reason_of(error)
            if failure.memory != "no":
                self._paused_until_s = time.monotonic() + self._limits.pause(self.failed_starts)
            self.failed_starts += 1
            self.last_reason = failure.reason
            logger.warning("An actor did not start: %s", self.last_reason)
            kill(actor)
        else:
            self.failed_starts = 0
            self.idle.append(actor)

    def check(self, *, busy: int) -> None:
        """Give up when nothing is up and nothing comes up.

        Raises:
            ClusterError: every start failed, or no actor was placed within the limit.
        """
        # In a pause nobody waits for a place.
        since_s = max(self._alone_since_s, self._paused_until_s)
        if busy or self.idle:
            self._alone_since_s = time.monotonic()
        elif not self.starting and self.failed_starts > self._limits.max_retries:
            raise ClusterError(
                f"No actor could start, {self.failed_starts} tries failed, the last one with: "
                f"{self.last_reason.rstrip('.')}; check that every node has this program's packages and enough memory."
            )
        elif time.monotonic() - since_s > self._limits.pending_timeout_s:
            raise ClusterError(
                f"No actor was placed within {self._limits.pending_timeout_s:g} s ({_free()} free); wait for other"
                " jobs to end or nodes to come (--wait-for-nodes-s), or ask for fewer CPUs or GPUs per actor."
            )

    def drain(self) -> None:
        """Kill all actors that hold no call."""
        for actor in (*self.starting.values(), *self.idle):
            kill(actor)
        self.starting.clear()
        self.idle.clear()


def kill(actor: Any) -> None:
    """End an actor's process at once; a dead actor is no error."""
    try:
        ray.kill(actor, no_restart=True)
    except (RayError, ValueError) as error:
        logger.debug("kill: %s", error)


def _free() -> str:
    free = ray.available_resources()
    return f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs"
