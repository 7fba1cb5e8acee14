"""Several pieces of work through one pool of workers, so that none is idle while there is something to be done.

A distillation is one piece, an evaluation another; each says what of it can be begun, and what a value leads to.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.workers.dispatch import dispatch, gather
from pipelines.workers.faults import Failure
from pipelines.workers.memory import Peak
from pipelines.workers.pool import Limits
from pipelines.workers.remote import RemoteWorker
from pipelines.workers.resources import ActorSize, Width
from pipelines.workers.retries import Outcome, name_of


class Work(ABC):
    """A piece of work that is cut into items, each done by one worker at a time.

    Attributes:
        title: stands in messages before the names of its items; empty where it is the only one.
        counts: whether workers can say how far they are with an item, see `poll`.
    """

    title: str = ""
    counts: bool = False

    @abstractmethod
    def ready(self) -> Sequence[Hashable]:
        """The items that can be begun at the start."""

    @abstractmethod
    def start(self, actor: Any, item: Any) -> Any:
        """Submit the next chunk of an item to a `PoolWorker`; the ObjectRef of its value, see `dispatch`."""

    @abstractmethod
    def finish(self, item: Any, value: Any) -> bool:
        """Store the value of a chunk; whether more follow."""

    def then(self, item: Any) -> "Sequence[Task]":
        """What can be begun once an item is done, of this work or another."""
        del item
        return ()

    @abstractmethod
    def failed(self, item: Any, failure: Failure) -> None:
        """Take note that an item was given up."""

    def told(self, item: Any, steps: int) -> None:
        """Take note of how many steps of an item are done."""
        raise NotImplementedError(f"{type(self).__name__} counts no steps")

    def kind(self, item: Any) -> Hashable:
        """Chunks of one kind take about equally long, see `Patience`."""
        return item

    def rank(self, item: Any) -> int:
        """The lower, the earlier it is begun: first what others wait for, then what is long, last what fills gaps."""
        del item
        return 0

    def tasks(self, items: Iterable[Hashable]) -> "list[Task]":
        """Items as the pool takes them."""
        return [Task(self, item) for item in items]


@dataclass(frozen=True)
class Task:
    """An item of a work: the unit of the pool."""

    work: Work
    item: Any

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.work.title}: {name_of(self.item)}" if self.work.title else name_of(self.item)


def poll(actors: Mapping[Task, Any]) -> None:
    """Ask the workers how far they are."""
    asked = {task: actor.progress.remote() for task, actor in actors.items() if task.work.counts}
    for task, steps in gather(asked).items():
        task.work.told(task.item, steps)


@dataclass(frozen=True)
class Spent:
    """What a chunk took, or several.

    Attributes:
        item: of the work; of several the last one.
        wall_s: time in which anything of the work was being done, since the last chunk.
        worker_s: time that the item's worker took.
        peak: the most memory that this worker held meanwhile.
    """

    item: Any
    wall_s: float
    worker_s: float
    peak: Peak

    def after(self, before: "Spent | None") -> "Spent":
        """This one and what came before it, together."""
        if before is None:
            return self
        wall_s, worker_s = before.wall_s + self.wall_s, before.worker_s + self.worker_s
        return Spent(self.item, wall_s, worker_s, self.peak.or_more(before.peak))


class Clock:
    """Counts what the chunks of a piece of work take; one that is lost with its worker does not count.

    Args:
        tell: called with each, or with several together.
        every_s: seconds at least between two calls; the last one is that of `Clock.tell`.
    """

    def __init__(self, tell: Callable[[Spent], None] | None, *, every_s: float = 0.0) -> None:
        self._tell, self._every_s = tell, every_s
        self._begun: dict[Hashable, float] = {}
        self._ended = 0.0
        self._told = -every_s
        self._untold: Spent | None = None

    def begin(self, item: Hashable) -> None:
        """A chunk of it is submitted; anew where the last one was lost."""
        self._begun[item] = time.monotonic()

    def drop(self, item: Hashable) -> None:
        """It was given up."""
        self._begun.pop(item, None)

    def end(self, item: Hashable, peak: Peak, *, workers: int = 1) -> None:
        """Its chunk is there, by so many workers."""
        now, since = time.monotonic(), max(self._ended, min(self._begun.values()))
        began = self._begun.pop(item)
        self._ended = now
        self._untold = Spent(item, now - since, workers * (now - began), peak).after(self._untold)
        if now - self._told >= self._every_s:
            self.tell()

    def tell(self) -> None:
        """Tell what has not been told."""
        if self._untold is not None and self._tell is not None:
            self._tell(self._untold)
        self._untold, self._told = None, time.monotonic()


def run_pool(
    first: Sequence[Task],
    *,
    size: ActorSize,
    limits: Limits | None = None,
    on_change: Callable[[], None] = lambda: None,
    on_tick: Callable[[Mapping[Task, Any]], None] | None = None,
    release: bool = False,
    stop: threading.Event | None = None,
) -> Outcome[Task]:
    """Do these tasks, and those that they lead to.

    Args:
        first: those of one rank are begun in this order.
        size: the pool. Neither it nor the order changes a result.
        limits: retries and time limits.
        on_change: called after every value that was stored.
        on_tick: called about once a second with the actor of each task in work; must be quick.
        release: see `dispatch`.
        stop: ends it early when set.

    Raises:
        ClusterError: see `dispatch`.
    """
    if not first:
        return Outcome()

    def finish(task: Task, value: Any) -> bool:
        more = task.work.finish(task.item, value)
        on_change()
        return more

    return dispatch(
        first,
        lambda: RemoteWorker.options(**size.options).remote(),
        start=lambda actor, task: task.work.start(actor, task.item),
        finish=finish,
        num_actors=Width(size),
        kind=lambda task: (id(task.work), task.work.kind(task.item)),
        limits=limits,
        on_tick=on_tick,
        on_failure=lambda task, failure, _: task.work.failed(task.item, failure),
        then=lambda task: task.work.then(task.item),
        rank=lambda task: task.work.rank(task.item),
        release=release,
        stop=stop,
    )
