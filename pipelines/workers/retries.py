"""Units of work that wait for a worker, what became of those that failed, and when one counts as stuck.

Memory that ran out is still short a moment later, while other units use it: such a unit is tried again after a
pause, and beside one worker fewer. A time limit is tried again once: what hangs mostly hangs again.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pipelines.workers.faults import Failure, is_machine_fault, is_preemption, reason_of, took_too_long
from pipelines.workers.pool import Limits

logger = logging.getLogger(__name__)

Unit = TypeVar("Unit", bound=Hashable)

SLOWEST_FACTOR = 10.0
"""A call is stuck when it takes so many times the longest of its kind. Chosen: trainings on one machine differ less."""
LEAST_SHARE = 0.25
"""The share of --timeout-s that every call may take, however short the others were. Chosen: a node may be busy."""


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


class Waiting(Generic[Unit]):
    """Units that are not in work: those to be begun, and those in the pause before their next try.

    Args:
        units: hashable and distinct, begun in this order.
        limits: tries, and the length of the first pause.
        clock: seconds, monotonic.
        rank: of those that can be begun the ones of the lowest rank come first; None: no ranks.

    Attributes:
        outcome: takes what failed and how often a unit was tried again.
    """

    def __init__(
        self,
        units: Iterable[Unit],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        rank: Callable[[Unit], int] | None = None,
    ) -> None:
        self.outcome: Outcome[Unit] = Outcome()
        self._limits, self._clock, self._rank = limits, clock, rank
        self._ready = deque(units)
        self._paused: dict[Unit, float] = {}
        self._tries: dict[Unit, int] = {}
        self._short: set[Unit] = set()

    def __len__(self) -> int:
        return len(self._ready) + len(self._paused)

    def ready(self) -> int:
        """How many can be begun now."""
        now_s = self._clock()
        for unit in [unit for unit, until_s in self._paused.items() if until_s <= now_s]:
            del self._paused[unit]
            self._ready.appendleft(unit)
        return len(self._ready)

    def take(self) -> Unit:
        """The next one that can be begun."""
        if self._rank is None:
            return self._ready.popleft()
        unit = min(self._ready, key=self._rank)
        self._ready.remove(unit)
        return unit

    def add(self, units: Iterable[Unit]) -> None:
        """Further ones to be begun, after those that wait."""
        self._ready.extend(units)

    def width(self, most: int) -> int:
        """Units that may be in work at once: one fewer for each for which memory ran out, until that has got on."""
        return max(1, most - len(self._short))

    def advanced(self, unit: Unit) -> None:
        """Note that a unit has got on: its tries count anew."""
        self._tries.pop(unit, None)
        self._short.discard(unit)

    def failed(self, unit: Unit, error: Exception) -> None:
        """Have a unit tried again after a machine fault, or give it up; a preemption counts as no try."""
        if is_preemption(error):
            # Nobody's fault, and not the unit's: such nodes come and go as often as their provider likes.
            self._ready.appendleft(unit)
            logger.warning("%s: its node was taken back by its provider; it goes on elsewhere", name_of(unit))
            return
        failure, tries = reason_of(error), self._tries.get(unit, 0) + 1
        most = self._limits.max_retries
        if _is_time_limit(error):
            most = min(self._limits.timeout_retries, most)
        if not is_machine_fault(error):
            self.outcome.failed[unit] = failure
        elif tries > most:
            self.outcome.failed[unit] = failure.after(tries)
        else:
            self._again(unit, failure, tries, most)
            return
        self._short.discard(unit)
        logger.error("%s failed: %s", name_of(unit), self.outcome.failed[unit].reason)

    def _again(self, unit: Unit, failure: Failure, tries: int, most: int) -> None:
        self._tries[unit] = tries
        self.outcome.retries += 1
        pause = ""
        if failure.memory != "no":
            pause_s = self._limits.pause(tries - 1)
            self._paused[unit] = self._clock() + pause_s
            pause = f" in {pause_s:g} s"
        else:
            self._ready.appendleft(unit)
        if failure.memory == "yes":
            self._short.add(unit)
            pause += ", beside one worker fewer"
        logger.warning("%s: %s; retry %d of %d%s", name_of(unit), failure.reason, tries, most, pause)


@dataclass
class Call(Generic[Unit]):
    """One call in flight."""

    unit: Unit
    since_s: float
    actor: Any = None
    warned: bool = False


class Patience(Generic[Unit]):
    """How long a call may take: --timeout-s at most, and many times the longest of its kind once there are some.

    Args:
        limit_s: --timeout-s.
        kind: calls of one kind take about equally long.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        limit_s: float,
        kind: Callable[[Unit], Hashable],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s, self._kind, self._clock = limit_s, kind, clock
        self._longest_s: dict[Hashable, float] = {}

    def begun(self, unit: Unit, actor: Any = None) -> Call[Unit]:
        """A call that begins now."""
        return Call(unit, self._clock(), actor)

    def ended(self, call: Call[Unit]) -> None:
        """Learn from a call that gave its value."""
        kind, took_s = self._kind(call.unit), self._clock() - call.since_s
        self._longest_s[kind] = max(took_s, self._longest_s.get(kind, 0.0))

    def expired(self, running: Mapping[Any, Call[Unit]]) -> list[tuple[Any, TimeoutError]]:
        """Keys of the calls that are stuck, each with what to say; of those halfway there, a line in the log."""
        stuck = []
        for key, call in running.items():
            took_s, limit_s = self._clock() - call.since_s, self._limit_of(call.unit)
            if took_s > limit_s:
                stuck.append((key, took_too_long(limit_s)))
            elif took_s > limit_s / 2 and not call.warned:
                call.warned = True
                logger.warning(
                    "%s: no answer for %.0f s; given up after %.0f s", name_of(call.unit), took_s, limit_s
                )
        return stuck

    def _limit_of(self, unit: Unit) -> float:
        longest_s = self._longest_s.get(self._kind(unit))
        if longest_s is None:
            return self._limit_s
        return min(self._limit_s, max(LEAST_SHARE * self._limit_s, SLOWEST_FACTOR * longest_s))


def name_of(unit: Hashable) -> str:
    """How messages call a unit of work: by its own name, or a group by its classes."""
    if isinstance(unit, Sequence) and not isinstance(unit, str):
        return f"class {unit[0]}" if len(unit) == 1 else f"classes {', '.join(map(str, unit))}"
    return str(getattr(unit, "name", unit))


def _is_time_limit(error: Exception) -> bool:
    return type(error) is TimeoutError
