"""One stage of a ladder: networks trained on the same images by Ray Tune, halved at the stage's rungs by ASHA."""

import logging
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from apps.nas.early import Report
from apps.nas.ladder import Stage
from atom.errors import ClusterError
from pipelines.architecture.case import NasCase
from pipelines.architecture.search_proposals import Proposals
from pipelines.architecture.search_record import SearchRecord
from pipelines.architecture.search_trial import RUNG, SearchTrial, result_of
from pipelines.architecture.tune_round import Watch, error_of, fit
from pipelines.console.progress import Progress
from pipelines.console.signals import StopSignal
from pipelines.workers.faults import Failure, is_machine_fault, reason_of, took_too_long

logger = logging.getLogger(__name__)


def run_stage(
    case: NasCase, stage: Stage, record: SearchRecord, proposals: Proposals, stop: StopSignal
) -> None:
    """Train what is proposed, to the end of the stage or to a rung where ASHA stops it, and keep it in the record.

    Args:
        case: with everything decided.
        stage: its rungs.
        record: of the stage; what it knows counts, for ASHA too.
        proposals: the networks.
        stop: ends it when set; what is under way is lost.

    Raises:
        ClusterError: no worker could be had, or none answered.
    """
    factor = case.command.nas.reduction_factor
    asha = ASHAScheduler(
        time_attr=RUNG,
        metric="score",
        mode="max",
        max_t=factor ** (len(stage.epochs) - 1),
        grace_period=1,
        reduction_factor=factor,
    )
    replay(asha, record, factor)
    total = proposals.trials
    label = f"training on {record.source.name.replace(':', ', ')} epochs"
    with (
        Progress(
            label, total, num_items=total, unit="networks", item="networks", done=proposals.tried
        ) as progress,
        stop.polling(),
    ):

        def tick(doing: Sequence[str] = ()) -> None:
            record.tick()
            progress.update(proposals.tried, items_done=proposals.tried, doing=doing)

        watch = _StageWatch(case, proposals, record, stop=stop, on_tick=tick)
        if not proposals.ended and not stop.is_set():
            trainable = tune.with_parameters(
                SearchTrial, shared=case.shared(), proxy=record.source.name, rungs=stage.epochs, factor=factor
            )
            fit(
                trainable,
                watch,
                size=case.size,
                scheduler=asha,
                search_alg=proposals,
                num_samples=-1,
                reuse_actors=True,
            )
        tick()
    if not proposals.ended and not stop.is_set():
        raise ClusterError(
            f"Ray Tune ended after {proposals.tried} of {total} networks; look into the cluster's log, then run the"
            " same command again."
        )


def value_of(record: SearchRecord, network: str, factor: int) -> float:
    """How good a network of the record is, see `search_trial.result_of`."""
    return result_of(record.curves[network][-1], record.rungs, factor=factor)["value"]


def replay(asha: ASHAScheduler, record: SearchRecord, factor: int) -> None:
    """Fill ASHA's rungs with what earlier trials reached, as if they had run here."""
    controller: Any = None  # which ASHA does not look at
    for network, reports in record.curves.items():
        trial: Any = SimpleNamespace(trial_id=f"known-{network}")
        asha.on_trial_add(controller, trial)
        results = [result_of(report, record.rungs, factor=factor) for report in reports]
        for result in results:
            asha.on_trial_result(controller, trial, result)
        asha.on_trial_complete(controller, trial, results[-1])


class _StageWatch(Watch):
    """Collects reports, keeps them when their trial ends, and has lost networks tried again."""

    def __init__(self, case: NasCase, proposals: Proposals, record: SearchRecord, **watching: Any) -> None:
        super().__init__(limits=case.limits, timeout_s=case.command.cluster.timeout_s, **watching)
        self._proposals, self._record = proposals, record
        self._reports: dict[str, list[Report]] = {}
        self._deaths: Counter[str] = Counter()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Collect a report."""
        self.answered(trial)
        if result["report"] is not None:
            self._reports.setdefault(trial.trial_id, []).append(result["report"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep what a network came to; a trial that a signal ended never gets here."""
        network, failure = trial.config["network"], trial.last_result.get("failure")
        reports = self._reports.pop(trial.trial_id, [])
        if failure is not None:
            self._record.fail(network, failure.reason)
        elif reports:
            self._record.keep(network, reports)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Have a network tried again whose worker was lost, unless that happened too often."""
        self._reports.pop(trial.trial_id, [])
        network, error = trial.config["network"], error_of(trial)
        failure = reason_of(error) if error is not None else Failure("its worker was lost", "")
        self._deaths[network] += 1
        too_long = self.too_long(trial)
        self.answered()
        if too_long:
            self._give_up(network, reason_of(took_too_long(self.timeout_s)))
        elif error is not None and not is_machine_fault(error):
            self._give_up(network, failure)
        elif self._deaths[network] > self._limits.max_retries:
            self._give_up(network, failure.after(self._deaths[network]))
        else:
            tries = f"retry {self._deaths[network]} of {self._limits.max_retries}"
            logger.warning("%s: %s; %s", network, failure.reason, tries)
            self._proposals.again(network)

    def doing(self, trial: Any) -> str:
        """The network in training."""
        return str(trial.config["network"])

    def _give_up(self, network: str, failure: Failure) -> None:
        self._proposals.give_up(network)
        self._record.fail(network, failure.reason)
