"""A training that stops and waits after some of its epochs, so that somebody can decide whether it goes on."""

import queue
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from apps.nas.trial import OnEpoch, Score

CLOSE_TIMEOUT_S = 60.0
"""A closed training ends at once, since it waits; the limit is there for what nobody thought of."""


@dataclass(frozen=True)
class Report:
    """How far a training is.

    Attributes:
        epochs: done.
        score: after them; the last one is what the training came to.
    """

    epochs: int
    score: Score


def report_epochs(rungs: Sequence[int]) -> tuple[int, ...]:
    """After which epochs a training is looked at: about twenty times, at every rung, and at the end.

    Args:
        rungs: rising epochs; the last ends the training.

    Example:
        >>> report_epochs((2, 8))
        (1, 2, 3, 4, 5, 6, 7, 8)
        >>> report_epochs((7, 60))[:6]
        (3, 6, 7, 9, 12, 15)
    """
    step = max(1, rungs[-1] // 20)
    return tuple(sorted({*range(step, rungs[-1] + 1, step), *rungs}))


def rungs_passed(epochs: int, rungs: Sequence[int]) -> int:
    """How many of the rungs a training of so many epochs has reached."""
    return sum(rung <= epochs for rung in rungs)


class PausingTraining:
    """Runs a training in a thread of its own, up to its next report at a time.

    A thread, since the training loop calls and is not called. Only one of the two threads ever runs.

    Args:
        train: runs the whole training with the hook it is given, and returns what it came to.
        epochs: of a whole training.
        report_at: the epochs after which it reports and waits; the end always is one.
    """

    def __init__(self, train: Callable[[OnEpoch], Score], *, epochs: int, report_at: Collection[int]) -> None:
        self._train, self._epochs = train, epochs
        self._report_at = frozenset(report_at) - {epochs}
        self._outcomes: queue.SimpleQueue[Report | BaseException] = queue.SimpleQueue()
        self._go_on = threading.Semaphore(0)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)

    def advance(self) -> Report:
        """Train up to the next report and return it.

        It waits for as long as the training takes: whoever calls it bounds that.

        Raises:
            Exception: whatever the training raised.
            RuntimeError: it has ended or was closed.
        """
        if self._thread.ident is None:
            self._thread.start()
        elif self._closed or not self._thread.is_alive():
            raise RuntimeError("this training has ended; begin another one.")
        else:
            self._go_on.release()
        outcome = self._outcomes.get()
        if isinstance(outcome, BaseException):
            self._finish()
            raise outcome
        if outcome.epochs == self._epochs:
            self._finish()
        return outcome

    def close(self) -> None:
        """End it where it is, and free what it holds; closing twice, or before the start, does nothing."""
        if self._thread.ident is not None and not self._closed:
            self._finish()

    def _finish(self) -> None:
        self._closed = True
        self._go_on.release()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        try:
            outcome: Report | BaseException = Report(self._epochs, self._train(self._hook))
        except _Closed:
            return
        except BaseException as error:
            # Without its frames, which hold the network and its images.
            outcome = error.with_traceback(None)
        self._outcomes.put(outcome)

    def _hook(self, epoch: int, score: Callable[[], Score]) -> None:
        if epoch not in self._report_at:
            return
        self._outcomes.put(Report(epoch, score()))
        self._go_on.acquire()
        if self._closed:
            raise _Closed


class _Closed(BaseException):
    """Ends the thread; no exception that a user's code would catch."""
