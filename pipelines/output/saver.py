"""Checkpoints stored in a thread: the driver goes on with the next chunk, and states that wait share their flushes."""

import threading
from collections.abc import Set

from atom.methods.method import State, Unit
from pipelines.output.checkpoints import Checkpoints

MOST = 256
"""Units whose states may wait; whoever brings another then waits too. Chosen: two seconds of a busy driver, so that
a kill, or three seconds after SIGTERM, lose next to nothing."""


class Saver:
    """Stores the states of units, in the background, all that wait in one go.

    A state that is overtaken while it waits is never written: whoever resumes wants the newest. What waits is referred
    to by whoever made it as well, and takes no memory of its own.

    Args:
        checkpoints: where they go.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._changed = threading.Condition()
        self._waiting: dict[Unit, State] = {}
        self._writing: dict[Unit, State] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, unit: Unit, state: State) -> None:
        """Have a state stored in the place of the unit's last one.

        Raises:
            StoreError: an earlier one could not be stored; nothing is, from then on.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < MOST or self._error is not None)
            self.check()
            self._waiting[unit] = state
            if self._thread is None:
                # No daemon: a process that ends by an error finishes what was handed over.
                self._thread = threading.Thread(target=self._work, name="checkpoints")
                self._thread.start()

    def pending(self) -> Set[Unit]:
        """Units whose last state is not on disk yet.

        Raises:
            StoreError: as `put`.
        """
        with self._changed:
            self.check()
            return self._waiting.keys() | self._writing.keys()

    def wait(self) -> None:
        """Until all is on disk.

        Raises:
            StoreError: as `put`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None)
            self.check()

    def check(self) -> None:
        """Nothing, or StoreError as in `put`."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while self._take():
            try:
                self._checkpoints.save_all(self._writing)
            # Everything: it is raised where somebody can end the run by it.
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._waiting.clear()

    def _take(self) -> bool:
        """Go on to all that waits; False and the end of the thread where nothing does."""
        with self._changed:
            self._writing, self._waiting = self._waiting, {}
            if not self._writing:
                self._thread = None
            self._changed.notify_all()
            return bool(self._writing)


__all__ = ["MOST", "Saver"]
