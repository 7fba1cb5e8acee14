"""Stop politely: signals set an event that loops look at."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal(threading.Event):
    """An event that remembers which signal set it.

    Attributes:
        signal_name: such as "SIGTERM", or None when none came.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal_name: str | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        self.set()


@contextmanager
def stop_on_signals() -> Iterator[StopSignal]:
    """SIGTERM and the first Ctrl-C set an event instead of killing; a second Ctrl-C interrupts at once.

    Enter it after `connect`: Ray installs handlers of its own. The old handlers are back afterwards.
    `ray job stop` kills three seconds after its SIGTERM, so what must be safe has to be on disk before.
    """
    stop = StopSignal()
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
