"""Encoded images decoded by Ray tasks, on all nodes of a cluster; the driver alone writes the array."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import RayError

from atom.data.decode import Entry, Outcome, outcome_of
from atom.data.place import Remote, Slice
from pipelines.workers.cluster import cluster_info, connect
from pipelines.workers.faults import reason_of
from pipelines.workers.resources import ActorSize, Width
from pipelines.workers.versions import check_versions

logger = logging.getLogger(__name__)

TASK_IMAGES = 64
"""Of one task: a fifth of a second of photographs. Chosen."""
_MOST_TASKS = 64
"""At once: their images lie in the driver's memory, half a gigabyte of photographs. Chosen."""
_READERS = 8
"""Threads of the driver that read files. Chosen: on a network disk a file takes as long as its answer."""
_ANSWER_S = 300.0
"""What has not come back by then is decoded by the driver. Chosen: a thousand times a task's work."""


class ClusterDecoder:
    """Decodes on the cluster that the command joins, connected from the first images on; a context manager.

    Files of disks are read by the driver, whose nodes need not have them, and may have others of the same name; what
    lies at a URI is read by whoever decodes it. What a task does not bring back, for its node is lost or has no
    credentials, or nothing answers, the driver decodes itself.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._width: Width | None = None
        self._warned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()
        self._width = None

    def __call__(self, entries: Iterable[Entry], image_size: int | None) -> Iterator[tuple[Entry, Outcome]]:
        """See `atom.data.decode.Decode`.

        Raises:
            ClusterError: there is no cluster, or its nodes have other libraries.
            DataError: what lies at a URI cannot be read.
        """
        width, remaining = self._connected(), iter(entries)
        task = ray.remote(num_cpus=1, max_retries=0, retry_exceptions=False)(_outcomes)
        at_work: deque[tuple[list[Entry], Any]] = deque()
        with ThreadPoolExecutor(_READERS) as readers:
            try:
                while True:
                    while len(at_work) < 2 * width() and (chunk := list(islice(remaining, TASK_IMAGES))):
                        sent = list(readers.map(_with_content, chunk))
                        at_work.append((chunk, task.remote(sent, image_size)))
                    if not at_work:
                        return
                    chunk, reference = at_work.popleft()
                    yield from zip(chunk, self._fetched(reference, chunk, image_size), strict=True)
            finally:
                for _, reference in at_work:
                    with suppress(RayError, ValueError):
                        ray.cancel(reference, force=True)

    def _fetched(self, reference: Any, entries: list[Entry], image_size: int | None) -> list[Outcome]:
        try:
            return ray.get(reference, timeout=_ANSWER_S)
        except RayError as error:
            with suppress(RayError, ValueError):
                ray.cancel(reference, force=True)
            # Once: where one node cannot read something, each of its tasks will say so.
            level = logging.DEBUG if self._warned else logging.WARNING
            self._warned = True
            reason = reason_of(error).reason
            logger.log(level, "images that a task did not bring back are decoded by the driver: %s", reason)
        return _outcomes(entries, image_size)

    def _connected(self) -> Width:
        if self._width is None:
            self._stack.enter_context(connect())
            check_versions()
            one = ActorSize(1, cpus=1.0, gpus=0.0, most=_MOST_TASKS // 2)
            fits = max(1, one.slots(cluster_info()))
            self._width = Width(replace(one, num_actors=min(fits, one.most)))
        return self._width


def _with_content(entry: Entry) -> Entry:
    """The entry with the bytes that this machine alone is sure to have; what cannot be read is said by who decodes."""
    source = entry.source
    if isinstance(source, Path):
        with suppress(OSError):
            return replace(entry, source=source.read_bytes())
    if isinstance(source, Slice) and not isinstance(source.file, Remote):
        return replace(entry, source=source.read_bytes())
    return entry


def _outcomes(entries: list[Entry], image_size: int | None) -> list[Outcome]:
    """A task's work."""
    return [outcome_of(entry, image_size) for entry in entries]
