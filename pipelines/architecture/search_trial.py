"""One trial of a rung that trains: a network's training, a few epochs at a time, in a process that many trials use."""

from collections.abc import Sequence
from typing import Any

from ray import tune

from apps.nas.early import PausingTraining, Report, report_epochs, rungs_passed
from apps.nas.trial import OnEpoch, Score, Unit, train_unit
from pipelines.architecture.remote import ImageHolder, Shared
from pipelines.architecture.tune_round import watchdog
from pipelines.workers.faults import Failure

RUNG = "rung"
"""ASHA's time: it halves at the powers of its factor, which are made to be the rungs."""


class SearchTrial(tune.Trainable):
    """Trains one network up to its next report at a time; the process is reused for the next network."""

    def setup(  # pyrefly: ignore[bad-override]
        self, config: dict[str, Any], shared: Shared, proxy: str, rungs: tuple[int, ...], factor: int
    ) -> None:
        """Fetch the images once a process."""
        self._holder = ImageHolder(shared)
        self._proxy, self._rungs, self._factor = proxy, rungs, factor
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another network; the one before may have been stopped on its way."""
        self._training.close()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """End the training."""
        self._training.close()

    def step(self) -> dict[str, Any]:
        """Validation accuracy after some more epochs, or the reason why there is none."""
        with watchdog(self._holder.shared.timeout_s):
            report = self._holder.attempt(self._advance)
        if isinstance(report, Failure):
            # Before the first rung, where ASHA looks at nothing: a failure's score must not enter a rung.
            told = {RUNG: 0, "score": float("nan"), "value": float("nan")}
            return {**told, "report": None, "failure": report, tune.result.DONE: True}
        result = result_of(report, self._rungs, factor=self._factor)
        return {
            **result,
            "report": report,
            "failure": None,
            tune.result.DONE: report.epochs == self._rungs[-1],
        }

    def _advance(self) -> Report:
        """The next report: one that an earlier search left, or else of the training, which begins anew after these."""
        if self._known:
            self._told = self._known.pop(0)
            return self._told
        report = self._training.advance()
        while self._told is not None and report.epochs <= self._told.epochs:
            report = self._training.advance()
        return report

    def _begin(self, config: dict[str, Any]) -> None:
        unit, holder = Unit(config["network"], self._proxy, 0), self._holder
        self._known, self._told = list(config["known"]), None

        def train(on_epoch: OnEpoch) -> Score:
            proxy = holder.shared.proxies[unit.proxy]
            return train_unit(unit, proxy, **holder.given(), on_epoch=on_epoch)[1]

        report_at = report_epochs(self._rungs)
        self._training = PausingTraining(train, epochs=self._rungs[-1], report_at=report_at)


def result_of(report: Report, rungs: Sequence[int], *, factor: int) -> dict[str, float]:
    """What ASHA and Optuna are told of a training so far.

    `RUNG` is 1 at the first rung and grows by the factor from rung to rung. By `value` networks are compared that ended
    at different rungs: that of a higher rung is always larger.
    """
    passed = rungs_passed(report.epochs, rungs)
    value = 1000.0 * passed + report.score.score
    return {RUNG: factor ** (passed - 1) if passed else 0.5, "score": report.score.score, "value": value}
