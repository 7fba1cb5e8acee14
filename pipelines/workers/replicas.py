"""Replicas of a joint method's iterations on further workers, asked by the one that holds the unit.

A worker that computes replicas holds nothing that counts: where it is late, dead or never placed, its share is computed
by the one that asks, and the bits are the same.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from pipelines.workers.faults import is_machine_fault, reason_of
from pipelines.workers.pool import kill

logger = logging.getLogger(__name__)

PATIENCE, LEAST_WAIT_S = 10.0, 30.0
"""A share may take so many times as long as one's own, and so many seconds, before its worker counts as lost."""
AGAIN_S = 60.0
"""How long nobody is looked for in the place of a worker that was lost, seconds."""

Arrays = Mapping[str, np.ndarray]


class Helpers:
    """Further workers for one unit: `Method.elsewhere`.

    Args:
        make: starts a worker.
        count: how many.
        known: keyword arguments of `Method.replica` besides the first three, images and preparations by reference.
    """

    def __init__(self, make: Callable[[], Any], count: int, known: Mapping[str, Any]) -> None:
        self._make, self._count, self._known = make, count, known
        self._starting: dict[Any, Any] = {}
        self._ready: list[Any] = []
        self._not_before_s = 0.0

    def __call__(
        self, arrays: Arrays, iteration: int, numbers: Sequence[int], here: Callable[[int], Arrays]
    ) -> list[Arrays]:
        """See `atom.methods.method.Elsewhere`."""
        self._look()
        workers = list(self._ready)
        told = ray.put(dict(arrays)) if workers else None
        shares = {actor: numbers[place :: len(workers) + 1] for place, actor in enumerate(workers, start=1)}
        asked = {
            actor: actor.replicas.remote(told, iteration, list(share), **self._known)
            for actor, share in shares.items()
            if share
        }
        begun_s = time.monotonic()
        answers = {number: here(number) for number in numbers[:: len(workers) + 1]}
        end_s = time.monotonic() + max(LEAST_WAIT_S, PATIENCE * (time.monotonic() - begun_s))
        for actor, reference in asked.items():
            try:
                found = ray.get(reference, timeout=max(0.0, end_s - time.monotonic()))
            except RayError as error:
                self._lose(actor, error)
                found = [here(number) for number in shares[actor]]
            answers |= dict(zip(shares[actor], found, strict=True))
        return [answers[number] for number in numbers]

    def close(self) -> None:
        """End the workers."""
        for actor in (*self._starting.values(), *self._ready):
            kill(actor)

    def _look(self) -> None:
        """Take in workers that are up, and start those that are missing."""
        if self._starting:
            up, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
            for reference in up:
                actor = self._starting.pop(reference)
                try:
                    ray.get(reference, timeout=LEAST_WAIT_S)
                except RayError as error:
                    self._lose(actor, error)
                else:
                    self._ready.append(actor)
        if time.monotonic() >= self._not_before_s:
            for _ in range(self._count - len(self._ready) - len(self._starting)):
                actor = self._make()
                # No replica at all: it answers when its images are there.
                self._starting[actor.replicas.remote({}, 0, [], **self._known)] = actor

    def _lose(self, actor: Any, error: Exception) -> None:
        logger.warning(
            "A worker for replicas was lost, its share is computed here: %s", reason_of(error).reason
        )
        if actor in self._ready:
            self._ready.remove(actor)
        if not is_machine_fault(error):
            # It would fail again; if not here, the work goes on alone.
            self._count = 0
        self._not_before_s = time.monotonic() + AGAIN_S
        kill(actor)
