"""Metrics on their way to a server that may be slow or away: batched, kept on failure, bounded."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

logger = logging.getLogger(__name__)

BATCH = 1000
"""Metrics in one call, MLflow's limit."""

_FLUSH_EVERY_S = 1.0
_PAUSE_S = 30.0
_KEPT = 1_000_000


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    step: int
    time_ms: int


class MetricQueue:
    """Sends points about once a second; after a failure they wait half a minute for the next try.

    Args:
        send: delivers at most `BATCH` points and says whether that worked.
        clock: seconds, monotonic.
    """

    def __init__(
        self, send: Callable[[Sequence[Point]], bool], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._clock = clock
        self._points: list[Point] = []
        self._next_s = 0.0

    def __len__(self) -> int:
        return len(self._points)

    def add(self, points: Iterable[tuple[str, float, int]]) -> None:
        """Queue (name, value, step), and send if it is time."""
        now_ms = int(time.time() * 1000)
        self._points += [Point(key, float(value), int(step), now_ms) for key, value, step in points]
        if len(self._points) > _KEPT:
            del self._points[: -_KEPT // 2]
            logger.warning("MLflow has not answered for long: the oldest metrics were dropped.")
        if self._clock() >= self._next_s:
            self.flush()

    def flush(self) -> None:
        """Send all that waits, now."""
        while self._points:
            batch = self._points[:BATCH]
            if not self._send(batch):
                self._next_s = self._clock() + _PAUSE_S
                return
            del self._points[: len(batch)]
        self._next_s = self._clock() + _FLUSH_EVERY_S
