"""The trainings that judge rows, as a part of what a pool does."""

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.evaluation import Trials
from pipelines.workers.faults import Failure
from pipelines.workers.remote import Done, Trial, run_trial
from pipelines.workers.works import Clock, Spent, Work


class Judging(Work):
    """The trainings of a row, or of several, as a part of what a pool does; the last to be begun.

    Attributes:
        failures: why a training came to no accuracy.
    """

    def __init__(self, trials: Trials, title: str, on_spent: Callable[[Spent], None]) -> None:
        self.trials, self.title = trials, title
        self.failures: dict[Trial, Failure] = {}
        self._clock = Clock(on_spent)

    def ready(self) -> Sequence[Trial]:
        """Those that are not on disk."""
        return self.trials.left

    def start(self, actor: Any, item: Trial) -> Any:
        """A training, on one thread of the worker."""
        self._clock.begin(item)
        return actor.call.remote(run_trial, item, *self.trials.shared)

    def finish(self, item: Trial, value: Done) -> bool:
        """Store its accuracy."""
        self.trials.keep(item, value.value)
        self._clock.end(item, value.peak)
        return False

    def failed(self, item: Trial, failure: Failure) -> None:
        """Note it; the others count."""
        self._clock.drop(item)
        self.failures[item] = failure

    def kind(self, item: Trial) -> object:
        """Of one set and network."""
        return item.set_name, item.network

    def rank(self, item: Trial) -> int:
        """Last: they are short and many, and fill what long units leave."""
        del item
        return 3


__all__ = ["Judging"]
