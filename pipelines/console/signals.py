"""Stop politely: signals set an event that loops look at."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal(threading.Event):
    """An event that remembers which signal set it.

    Where a loop looks at it, inside `polling`, a signal only sets it. Elsewhere, in the long calls before,
    between and after the loops, a signal raises KeyboardInterrupt: nothing would look at the event for minutes.

    Attributes:
        signal_name: such as "SIGTERM", or None when none came.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal_name: str | None = None
        self._polled = False

    @contextmanager
    def polling(self) -> Iterator[None]:
        """A block whose loop looks at the event about once a second and ends by itself."""
        self._polled = True
        try:
            yield
        finally:
            self._polled = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: outside `polling`, or at the second Ctrl-C.
        """
        again = self.is_set() and number == signal.SIGINT
        self.signal_name = signal.Signals(number).name
        self.set()
        if again or not self._polled:
            raise KeyboardInterrupt(self.signal_name)


@contextmanager
def stop_on_signals() -> Iterator[StopSignal]:
    """SIGTERM and the first Ctrl-C let a loop end by itself and interrupt all else; a second Ctrl-C always interrupts.

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
