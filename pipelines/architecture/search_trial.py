"""One trial of `--mode search`: a network's training, a few epochs at a time, in a process that many trials use."""

from typing import Any

from ray import tune

from apps.nas.early import PausingTraining
from apps.nas.trial import OnEpoch, Score, Unit, train_unit
from pipelines.architecture.remote import ImageHolder, Shared
from pipelines.architecture.tune_round import watchdog
from pipelines.workers.faults import Failure


class SearchTrial(tune.Trainable):
    """Trains one network up to its next report at a time; the process is reused for the next network."""

    def setup(  # pyrefly: ignore[bad-override]
        self, config: dict[str, Any], shared: Shared, proxy: str, report_at: tuple[int, ...]
    ) -> None:
        """Fetch the images once a process."""
        self._holder = ImageHolder(shared)
        self._proxy, self._report_at = proxy, report_at
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
            report = self._holder.attempt(self._training.advance)
        failed = isinstance(report, Failure)
        # Before the first rung, where ASHA looks at nothing: a failure's score must not enter a rung.
        epochs = 0 if failed else report.epochs
        return {
            "epochs": epochs,
            "score": float("nan") if failed else report.score.score,
            "report": None if failed else report,
            "failure": report if failed else None,
            tune.result.DONE: failed or epochs == self._report_at[-1],
        }

    def _begin(self, config: dict[str, Any]) -> None:
        unit, holder = Unit(config["network"], self._proxy, 0), self._holder

        def train(on_epoch: OnEpoch) -> Score:
            proxy = holder.shared.proxies[unit.proxy]
            return train_unit(unit, proxy, **holder.given(), on_epoch=on_epoch)[1]

        self._training = PausingTraining(train, epochs=self._report_at[-1], report_at=self._report_at)
