"""The thread that talks to MLflow: records wait in order, and whoever makes them never waits for a server.

MLflow's own asynchronous logging does not do: it has no limit, and keeps the process from ending while it hangs.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from atom.redact import without_secrets

logger = logging.getLogger(__name__)

BATCH = 1000
"""Metrics in one call, MLflow's limit."""

PAUSE_S = 30.0
"""After trouble, how long nothing is asked of the server; then a cheap question comes first."""

PATIENCE_S = 10.0
"""At the end, how long a call may take before the server is asked whether it lives."""

END_S = 120.0
"""How long the end waits for all calls together, uploads among them; chosen."""

_KEPT = 1_000_000


class RefusedError(Exception):
    """A call that would only fail again."""


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    step: int
    time_ms: int


class _Record:
    """One call that waits: any action, or points that are sent in batches.

    Attributes:
        what: for messages, such as "set tags".
        lasting: whether it is tried until it arrives, also where the server answers and fails at it.
    """

    def __init__(self, what: str, action: Callable[[], object], *, lasting: bool) -> None:
        self.what = what
        self.action = action
        self.lasting = lasting

    def attempt(self) -> int:
        """Make the call; how many points of it arrived."""
        self.action()
        return 0


class _Points(_Record):
    def __init__(self, send: Callable[[Sequence[Point]], object]) -> None:
        super().__init__("log metrics", lambda: None, lasting=True)
        self.send = send
        self.points: list[Point] = []

    def attempt(self) -> int:
        batch = self.points[:BATCH]
        self.send(batch)
        return len(batch)


class Sender:
    """Makes calls one after the other in a thread of its own.

    A call that fails stays in front, and nothing is asked for half a minute; then `trouble` is asked first. A call
    that was refused, or at which a server fails that answers otherwise, is given up, unless it is a lasting one.

    Args:
        where: the server, for messages.
        trouble: says cheaply why the server does not answer, or None.
        clock: seconds, monotonic.
    """

    def __init__(
        self, where: str, trouble: Callable[[], str | None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._where = without_secrets(where)
        self._trouble = trouble
        self._clock = clock
        self._changed = threading.Condition()
        self._records: deque[_Record] = deque()
        self._thread: threading.Thread | None = None
        self._busy_since_s: float | None = None
        self._rest_until_s: float | None = None
        self._hurry = self._gave_up = self._warned = False
        self._lost_points = self._lost_records = self._waiting_points = 0
        self._reason = "it does not answer"

    def put(
        self, what: str, action: Callable[[], object], *, first: bool = False, lasting: bool = False
    ) -> None:
        """Have a call made in its turn, or as the next one."""
        with self._changed:
            record = _Record(what, action, lasting=lasting)
            (self._records.appendleft if first else self._records.append)(record)
            self._wake()

    def put_points(self, points: Iterable[Point], send: Callable[[Sequence[Point]], object]) -> None:
        """Have points sent in their turn, at most `BATCH` a call, together with those of this `send` that wait."""
        new = list(points)
        with self._changed:
            kept = new[: _KEPT - self._waiting_points]
            if len(kept) < len(new):
                if not self._lost_points:
                    logger.warning("MLflow has not answered for long: further metrics are dropped.")
                self._lost_points += len(new) - len(kept)
            if not kept:
                return
            last = self._records[-1] if self._records else None
            if not isinstance(last, _Points) or last.send != send:
                last = _Points(send)
                self._records.append(last)
            last.points += kept
            self._waiting_points += len(kept)
            self._wake()

    @contextmanager
    def preparing(self, what: str) -> Iterator[None]:
        """Turn an error of the block, which makes a record and puts it, into a warning and a missing record."""
        try:
            yield
        # Everything: a figure or a value may fail in any way, and none of it may end the work.
        except Exception as error:
            text = _text(error)
            logger.warning("Could not %s with MLflow: %s. The work goes on.", what, text)
            with self._changed:
                self._reason = text
                self._lost_records += 1

    def hurry(self) -> float:
        """End a pause, since the end has come; the time, for `drain`."""
        with self._changed:
            self._hurry, self._gave_up = True, False
            self._wake()
        return self._clock()

    def drain(self, limit_s: float = END_S, *, since_s: float | None = None) -> None:
        """Wait until all that was put has been sent, or the server does not answer any more.

        Args:
            limit_s: how long all calls together may take.
            since_s: from when on, where `hurry` was called before; None: now.
        """
        if since_s is None:
            since_s = self.hurry()
        until_s, asked_s = since_s + limit_s, 0.0
        while self._unfinished() and not self._gave_up:
            with self._changed:
                self._changed.wait(0.1)
                busy_s = self._busy_since_s
            now_s = self._clock()
            if now_s >= until_s:
                self._reason = f"it did not take them within {limit_s:g} s"
                break
            if busy_s is None or now_s - max(busy_s, asked_s) < PATIENCE_S:
                continue
            if limit_s < PATIENCE_S:
                # There is no time to ask, and what has been silent for so long will not answer now.
                self._reason = f"it has not answered for {now_s - busy_s:.0f} s"
                break
            if trouble := self._trouble():
                self._reason = trouble
                break
            asked_s = self._clock()
        self._hurry = False

    def missing(self) -> str | None:
        """What has not arrived, in words; None if nothing is missing."""
        with self._changed:
            points = self._lost_points + self._waiting_points
            records = self._lost_records + sum(not isinstance(record, _Points) for record in self._records)
        counts = [(points, "metric value"), (records, "other record")]
        said = [f"{number:,} {noun}{'' if number == 1 else 's'}" for number, noun in counts if number]
        return f"{' and '.join(said)} ({self._reason})" if said else None

    def _unfinished(self) -> bool:
        with self._changed:
            return bool(self._records)

    def _wake(self) -> None:
        if self._thread is None:
            # A daemon, since a process must be able to end while a server hangs.
            self._thread = threading.Thread(target=self._work, name="mlflow-sender", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._records and (rest_s := self._rest_s()) > 0:
                    self._changed.wait(rest_s)
                if not self._records:
                    self._thread = None
                    return
                record, rested = self._records[0], self._rest_until_s is not None
                self._busy_since_s = self._clock()
            if rested and (trouble := self._trouble()):
                self._pause(trouble)
                continue
            try:
                arrived = record.attempt()
            # Everything: artifact stores raise what their clients raise, and none of it may end the work.
            except Exception as error:
                self._fail(record, error)
            else:
                self._arrive(record, arrived)

    def _rest_s(self) -> float:
        """Seconds until the next call."""
        if self._rest_until_s is None or (self._hurry and not self._gave_up):
            return 0.0
        return self._rest_until_s - self._clock()

    def _arrive(self, record: _Record, points: int) -> None:
        with self._changed:
            self._warned, self._rest_until_s = False, None
            self._done(record, points)

    def _fail(self, record: _Record, error: Exception) -> None:
        text = _text(error)
        if not self._warned:
            self._warned = True
            logger.warning("MLflow at %s could not %s: %s. The work goes on.", self._where, record.what, text)
        if _refused(error) or not (record.lasting or self._trouble()):
            with self._changed:
                self._reason = text
                points = len(record.points[:BATCH]) if isinstance(record, _Points) else 0
                self._lost_points += points
                self._lost_records += not points
                self._done(record, points)
            return
        self._pause(text)

    def _done(self, record: _Record, points: int) -> None:
        self._busy_since_s = None
        if isinstance(record, _Points):
            del record.points[:points]
            self._waiting_points -= points
        if not isinstance(record, _Points) or not record.points:
            self._records.remove(record)
        self._changed.notify_all()

    def _pause(self, reason: str) -> None:
        with self._changed:
            self._reason = reason
            self._rest_until_s = self._clock() + PAUSE_S
            self._busy_since_s = None
            self._gave_up = self._hurry
            self._changed.notify_all()


def _text(error: Exception) -> str:
    return without_secrets(" ".join(str(error).split()))[:300]


def _refused(error: Exception) -> bool:
    """Whether another try of the same call would only be refused again."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return isinstance(error, RefusedError)
    status = error.get_http_status_code()
    return 400 <= status < 500 and status != 429
