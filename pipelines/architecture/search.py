"""`--mode search`: Optuna proposes networks, successive halving stops the poor ones, the table keeps what came out.

Ray Tune asks for proposals, runs trials in processes it uses again, and has ASHA stop them. It neither keeps
results nor tries again: its own restore forgets the scheduler and needs shared storage.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from apps.nas.early import Report, report_epochs
from apps.nas.proxies import WHOLE
from atom.errors import ClusterError, ConfigError
from pipelines.architecture.case import NasCase
from pipelines.architecture.scores import Scores
from pipelines.architecture.search_proposals import Proposals
from pipelines.architecture.search_record import SearchRecord
from pipelines.architecture.search_trial import SearchTrial
from pipelines.architecture.tune_round import Watch, error_of, fit, tune_environment
from pipelines.console.command import say
from pipelines.console.progress import Progress
from pipelines.console.signals import StopSignal
from pipelines.output.records import add_seconds
from pipelines.workers.faults import Failure, is_machine_fault, reason_of, took_too_long

logger = logging.getLogger(__name__)


def search_best(case: NasCase, stop: StopSignal) -> Scores:
    """Try networks on the first proxy until `search_trials` are done; those of an earlier run count.

    Every network that was trained to the end or stopped by ASHA becomes rows of the table, one a report, of the
    proxy "NAME@search". Optuna and ASHA are told of those found there.

    Args:
        case: with everything decided.
        stop: ends the search when set; what is not finished is lost.

    Raises:
        ConfigError: the first proxy is no set of images to train on, or --grace-epochs is more than there are.
        ClusterError: no worker could be had, or none answered.
    """
    grace, factor = _check(case), case.command.nas.reduction_factor
    if case.command.nas.reference == WHOLE:
        say("Note: --mode search trains no reference; give --reference a table, or use --mode rank.")
    record = SearchRecord(case, report_epochs(_epochs(case), grace=grace, factor=factor))
    for network, problem in case.problems.items():
        record.fail(network, problem)
    asha = ASHAScheduler(
        time_attr="epochs",
        metric="score",
        mode="max",
        max_t=_epochs(case),
        grace_period=grace,
        reduction_factor=factor,
    )
    _replay(asha, record.curves)
    begun_s = time.monotonic()
    with tune_environment():
        proposals = Proposals(
            case.space.with_candidates([c for c in case.space.candidates if not c.problem]),
            trials=case.command.nas.search_trials,
            known={network: reports[-1].score.score for network, reports in record.curves.items()},
            first=[network for network in record.failed if network not in case.problems],
            seed=case.command.seed,
        )
    try:
        with stop.polling():
            watch = _run(case, asha, proposals, record, stop)
    finally:
        record.flush()
    seconds = time.monotonic() - begun_s
    add_seconds(case.store, "search_s", seconds)
    return Scores(record.rows(), stop.is_set(), seconds, watch.unit_seconds)


def _epochs(case: NasCase) -> int:
    assert case.recipe.settings.epochs is not None, "resolved"
    return case.recipe.settings.epochs


def _check(case: NasCase) -> int:
    """Epochs before the first rung."""
    if case.primary.kind != "set":
        raise ConfigError(
            f"--mode search: the first proxy is {case.primary.name}, on which no network is trained over epochs;"
            " name distilled, random, herding or kcenter first."
        )
    epochs = _epochs(case)
    grace = case.command.nas.grace_epochs or max(1, epochs // 8)
    if grace > epochs:
        raise ConfigError(
            f"--grace-epochs {grace}: a network is trained for {epochs} epochs; pass 1 to {epochs}."
        )
    return grace


def _replay(asha: ASHAScheduler, curves: Mapping[str, tuple[Report, ...]]) -> None:
    """Fill the rungs with what earlier trials reached, as if they had run here."""
    controller: Any = None  # which ASHA does not look at
    for network, reports in curves.items():
        trial: Any = SimpleNamespace(trial_id=f"known-{network}")
        asha.on_trial_add(controller, trial)
        results = [{"epochs": report.epochs, "score": report.score.score} for report in reports]
        for result in results:
            asha.on_trial_result(controller, trial, result)
        asha.on_trial_complete(controller, trial, results[-1])


def _run(
    case: NasCase, asha: ASHAScheduler, proposals: Proposals, record: SearchRecord, stop: StopSignal
) -> "_SearchWatch":
    total = proposals.trials
    with Progress(
        "searching",
        total,
        num_items=total,
        unit="networks",
        item="networks",
        done=min(proposals.tried, total),
    ) as progress:

        def tick() -> None:
            record.tick()
            done = min(proposals.tried, total)
            progress.update(done, items_done=done)

        watch = _SearchWatch(case, proposals, record, stop=stop, on_tick=tick)
        if proposals.tried < total and not stop.is_set():
            trainable = tune.with_parameters(
                SearchTrial, shared=case.shared(), proxy=case.primary.name, report_at=record.report_at
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
    if proposals.tried < total and not stop.is_set():
        raise ClusterError(
            f"Ray Tune ended after {proposals.tried} of {total} networks; look into the cluster's log, then run the"
            " same command again."
        )
    return watch


class _SearchWatch(Watch):
    """Collects reports, keeps them when their trial ends, and has lost networks tried again."""

    def __init__(self, case: NasCase, proposals: Proposals, record: SearchRecord, **watching: Any) -> None:
        super().__init__(limits=case.limits, timeout_s=case.command.cluster.timeout_s, **watching)
        self._proposals, self._record = proposals, record
        self._reports: dict[str, list[Report]] = {}
        self._deaths: Counter[str] = Counter()
        self.unit_seconds = 0.0

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
        self._spend(reports)
        if failure is not None:
            self._record.fail(network, failure.reason)
        elif reports:
            self._record.keep(network, reports)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Have a network tried again whose worker was lost, unless that happened too often."""
        self._spend(self._reports.pop(trial.trial_id, []))
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

    def _spend(self, reports: list[Report]) -> None:
        if reports:
            self.unit_seconds += reports[-1].score.train_seconds + reports[-1].score.score_seconds


__all__ = ["search_best"]
