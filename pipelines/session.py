"""What every command does before its work: connect to Ray, choose its workers, take its output, say what is decided."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from atom.settings import DeviceKind
from pipelines.console.command import say, say_header
from pipelines.console.options import CommandSettings
from pipelines.console.signals import StopSignal, stop_on_signals
from pipelines.output.ownership import claim, lock
from pipelines.output.store import Store
from pipelines.workers.cluster import connect
from pipelines.workers.resources import ActorSize, choose_size
from pipelines.workers.versions import check_versions


class Session:
    """The cluster, the output and the signals of a running command; a context manager, which gives them back.

    Attributes:
        cluster: Ray, connected.
        store: the output, once `take` has taken it.
        digest: of the settings that the output belongs to.
        stop: set by Ctrl-C and SIGTERM.

    Raises:
        ClusterError: there is no cluster, see `connect`; or its nodes have other libraries, see `check_versions`.
    """

    store: Store
    digest: str
    stop: StopSignal

    def __init__(self, command: CommandSettings) -> None:
        self.command = command
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.cluster = self._stack.enter_context(connect())
        try:
            check_versions()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    def workers(self, *, threads: int, num_units: int, memory: float = 0.0) -> tuple[ActorSize, DeviceKind]:
        """See `choose_size`."""
        return choose_size(
            self.cluster, self.command.cluster, threads=threads, num_units=num_units, memory=memory
        )

    def take(
        self,
        location: str,
        identity: Mapping[str, Any],
        *,
        size: ActorSize,
        shown: Mapping[str, object] | None = None,
        notes: Iterable[str] = (),
        scratch: Sequence[str] = (),
        flag: str = "--output",
    ) -> Store:
        """The output, claimed for what decides its results and locked against other drivers; says the first lines.

        Args:
            location: of the output.
            identity: see `claim`.
            size: the workers.
            shown: settings to print; default `identity`.
            notes: lines to print below them.
            scratch: see `lock`.
            flag: what named the place, for messages.

        Raises:
            StoreError: it belongs to other settings, or another driver is at work there.
        """
        self.store = Store.open(location, flag=flag)
        self._stack.enter_context(lock(self.store, scratch=scratch))
        self.digest = claim(self.store, identity, beside=_device(size))
        say_header(self.command.prog, identity if shown is None else shown, self.cluster, size, self.store)
        for note in notes:
            say(f"Note: {note}")
        self.stop = self._stack.enter_context(stop_on_signals())
        return self.store

    def take_inside(self, name: str, identity: Mapping[str, Any]) -> tuple[Store, str]:
        """An output within the one that was taken, as a command of its own would take it, and its digest.

        Raises:
            StoreError: as for `take`.
        """
        store = self.store.inside(name)
        self._stack.enter_context(lock(store))
        return store, claim(store, identity)


def _device(size: ActorSize) -> dict[str, str]:
    """On which kind of GPU an output is computed: other kinds give other bits."""
    return {"accelerator_type": size.accelerator} if size.accelerator else {}
