"""One stage of a ladder: networks trained on the same images by Ray Tune, halved at the stage's rungs by ASHA."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from apps.nas.early import Report
from atom.errors import ClusterError
from pipelines.architecture.case import NasCase
from pipelines.architecture.search_proposals import Proposals
from pipelines.architecture.search_record import SearchRecord
from pipelines.architecture.search_trial import RUNG, SearchTrial
from pipelines.architecture.tune_round import Watch, error_of, fit
from pipelines.console.progress import Progress
from pipelines.console.signals import StopSignal
from pipelines.workers.faults import Failure, is_machine_fault, reason_of, took_too_long

logger = logging.getLogger(__name__)


def run_stage(
    case: NasCase,
    record: SearchRecord,
    proposals: Proposals,
    stop: StopSignal,
    *,
    share: Callable[[], float] | None = None,
    halve: bool = True,
) -> None:
    """Train what is proposed, to the end of the stage or to a rung where ASHA stops it, and keep it in the record.

    Args:
        case: with everything decided.
        record: of the stage.
        proposals: the networks.
        stop: ends it when set; what is under way is lost.
        share: how much of its share of the budget has been spent, 0 to 1 and more; None without a budget.
        halve: whether ASHA stops networks at the rungs.

    Raises:
        ClusterError: no worker could be had, or none answered.
    """
    factor, total = case.command.nas.reduction_factor, proposals.trials
    asha = ASHAScheduler(
        time_attr=RUNG,
        metric="score",
        mode="max",
        max_t=factor ** (len(record.rungs) - 1),
        grace_period=1,
        reduction_factor=factor,
    )
    label = f"training on {record.source.name.replace(':', ', ')} epochs"
    unit = "networks" if share is None else "% of its share"
    with (
        Progress(
            label, total if share is None else 100, num_items=total, unit=unit, item="networks"
        ) as progress,
        stop.polling(),
    ):

        def tick(doing: Sequence[str] = ()) -> None:
            case.table.tick()
            done = proposals.tried if share is None else min(100.0, 100 * share())
            progress.update(done, items_done=proposals.tried, doing=doing)

        watch = _StageWatch(case, proposals, record, stop=stop, on_tick=tick)
        try:
            if not proposals.ended and not stop.is_set():
                trainable = tune.with_parameters(
                    SearchTrial,
                    shared=case.shared(),
                    proxy=record.source.name,
                    rungs=record.rungs,
                    factor=factor,
                )
                fit(
                    trainable,
                    watch,
                    size=case.size,
                    scheduler=asha if halve else FIFOScheduler(),
                    search_alg=proposals,
                    num_samples=-1,
                    reuse_actors=True,
                )
            tick()
        finally:
            case.table.flush()
    if not proposals.ended and not stop.is_set():
        raise ClusterError(
            f"Ray Tune ended after {proposals.tried} of {total} networks; look into the cluster's log, then run the"
            " same command again."
        )


class _StageWatch(Watch):
    """Collects reports, keeps them when their trial ends, and has lost networks tried again."""

    def __init__(self, case: NasCase, proposals: Proposals, record: SearchRecord, **watching: Any) -> None:
        super().__init__(limits=case.limits, timeout_s=case.command.cluster.timeout_s, **watching)
        self._proposals, self._record = proposals, record
        self._reports: dict[str, list[Report]] = {}
        self._started_s: dict[str, float] = {}
        self._deaths: Counter[str] = Counter()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its first step begins."""
        super().on_trial_start(iteration, trials, trial, **info)
        self._started_s[trial.trial_id] = time.monotonic()

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
            self._lose(trial)
            self._record.fail(network, failure.reason)
        elif reports:
            self._record.keep(network, reports)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Have a network tried again whose worker was lost, unless that happened too often."""
        self._reports.pop(trial.trial_id, [])
        self._lose(trial)
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
            self._proposals.again(network, short=failure.memory == "yes")

    def doing(self, trial: Any) -> str:
        """The network in training."""
        return str(trial.config["network"])

    def _lose(self, trial: Any) -> None:
        now_s = time.monotonic()
        self._record.lost_s += now_s - self._started_s.get(trial.trial_id, now_s)

    def _give_up(self, network: str, failure: Failure) -> None:
        self._proposals.give_up(network)
        self._record.fail(network, failure.reason)
