"""Encoded images decoded by Ray tasks, on all nodes of a cluster; the driver alone writes the array."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import chain, islice
from typing import Any, Self

import ray
from PIL import features
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from atom.data.decode import Entry, Outcome, decode_here
from atom.data.place import Remote, Slice
from pipelines.workers.cluster import cluster_info, connect
from pipelines.workers.faults import reason_of
from pipelines.workers.resources import ActorSize, Width
from pipelines.workers.tasks import cancel
from pipelines.workers.versions import check_versions

logger = logging.getLogger(__name__)

TASK_IMAGES = 64
"""Of one task: a fifth of a second of photographs. Chosen."""
_MOST_TASKS, _MOST_BYTES = 64, 2**28
"""In work at once, and the encoded images that the driver has read for them. Chosen."""
_READERS = 8
"""Threads of the driver that read files. Chosen: on a network disk a file takes as long as its answer."""
_ANSWER_S = 300.0
"""What a cluster has not given by then it has no place for. Chosen: a thousand times a task's work."""
_LEAST_NODES = 2
"""The processors of a single machine are kept busy by threads."""


@dataclass
class _Sent:
    """A task and its entries; without a reference the driver decodes them."""

    entries: list[Entry]
    reference: Any
    num_bytes: int


class ClusterDecoder:
    """Decodes on the nodes of the cluster that the command joins, connected from the first images on.

    A context manager. Files of disks are read by the driver, whose nodes need not have them, and may have others of the
    same name; what lies at a URI is read by the tasks, until one of them cannot. What a task does not bring back, and
    what a node with another decoder made, the driver decodes itself; and all, once nothing has answered for five
    minutes.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._width: Width | None = None
        self._tasks_read, self._given_up = True, False
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()
        self._width = None

    def __call__(self, entries: Iterable[Entry], image_size: int | None) -> Iterator[tuple[Entry, Outcome]]:
        """See `atom.data.decode.Decode`.

        Raises:
            ClusterError: there is no cluster, or its nodes have other libraries.
            DataError: a place cannot be read from here.
        """
        remaining, at_work = iter(entries), deque[_Sent]()
        first = list(islice(remaining, 1))
        far, remaining = any(map(_far, first)), chain(first, remaining)
        width = self._connected()
        task = ray.remote(num_cpus=1, max_retries=0, retry_exceptions=False)(decoded)
        with ThreadPoolExecutor(_READERS) as readers:
            try:
                while True:
                    while self._has_room(at_work, width) and (chunk := list(islice(remaining, TASK_IMAGES))):
                        at_work.append(self._send(task, chunk, image_size, readers))
                    if not at_work:
                        break
                    sent = at_work.popleft()
                    yield from zip(sent.entries, self._fetched(sent, image_size), strict=True)
            finally:
                # Tasks that answer are left to end by themselves: to cancel one just then would end this process.
                for sent in at_work if self._given_up else ():
                    _end(sent)
        yield from decode_here(remaining, image_size, far=far)

    def _has_room(self, at_work: deque[_Sent], width: Width | None) -> bool:
        few = sum(sent.num_bytes for sent in at_work) < _MOST_BYTES
        return (
            width is not None and not self._given_up and few and len(at_work) < min(_MOST_TASKS, 2 * width())
        )

    def _send(self, task: Any, chunk: list[Entry], image_size: int | None, readers: Executor) -> _Sent:
        read = list(readers.map(self._with_content, chunk))
        num_bytes = sum(len(entry.source) for entry in read if isinstance(entry.source, bytes))
        reference = None
        # A file that cannot be read here is not to be read elsewhere, where it may be another.
        if all(entry.source is None or isinstance(entry.source, bytes) or _far(entry) for entry in read):
            try:
                reference = task.remote(read, image_size)
            except RayError as error:  # a store that is full
                self._tell(reason_of(error).reason)
        return _Sent(read, reference, num_bytes)

    def _with_content(self, entry: Entry) -> Entry:
        source = entry.source
        if source is None or isinstance(source, bytes) or (_far(entry) and self._tasks_read):
            return entry
        # What fails is said by whoever decodes.
        with suppress(OSError):
            return replace(entry, source=source.read_bytes())
        return entry

    def _fetched(self, sent: _Sent, image_size: int | None) -> list[Outcome]:
        if sent.reference is not None and not self._given_up:
            try:
                made_by, outcomes = ray.get(sent.reference, timeout=_ANSWER_S)
                if made_by == decoder():
                    return outcomes
                reason = f"a node has another decoder ({made_by}, here {decoder()})"
            except RayError as error:
                self._given_up = isinstance(error, GetTimeoutError)
                self._tasks_read = self._tasks_read and not isinstance(error, RayTaskError)
                reason = reason_of(error).reason
            self._tell(reason)
        if self._given_up:
            _end(sent)
        far = any(map(_far, sent.entries))
        return [outcome for _, outcome in decode_here(sent.entries, image_size, far=far)]

    def _tell(self, reason: str) -> None:
        # Once: what one node cannot do, each of its tasks will not.
        if reason not in self._told:
            logger.warning("images are decoded by the driver: %s", reason)
        self._told.add(reason)

    def _connected(self) -> Width | None:
        """How many tasks are of use at once; None where there are no other nodes, or no processors."""
        if self._width is None:
            cluster = self._stack.enter_context(connect())
            check_versions()
            one = ActorSize(1, cpus=1.0, gpus=0.0, most=_MOST_TASKS)
            fits = one.slots(cluster_info())
            if fits and cluster.num_nodes >= _LEAST_NODES:
                self._width = Width(replace(one, num_actors=min(fits, one.most)))
        return self._width


def decoded(entries: list[Entry], image_size: int | None) -> tuple[str, list[Outcome]]:
    """A task's work: who decoded, and the outcomes."""
    far = any(map(_far, entries))
    return decoder(), [outcome for _, outcome in decode_here(entries, image_size, far=far)]


@cache
def decoder() -> str:
    """What decides the pixels of a lossy file: a node that joined later may have others than those that were asked."""
    codecs = [f"{name} {features.version(name)}" for name in ("jpg", "webp", "jpg_2000")]
    return f"Pillow {version('pillow')}, {', '.join(codecs)}"


def _end(sent: _Sent) -> None:
    if sent.reference is not None:
        cancel(sent.reference)


def _far(entry: Entry) -> bool:
    source = entry.source.file if isinstance(entry.source, Slice) else entry.source
    return isinstance(source, Remote)
