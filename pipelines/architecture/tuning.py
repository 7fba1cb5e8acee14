"""Packs of scores as trials of Ray Tune, in rounds: what a lost worker left undone goes into the next round.

Tune starts the trials, gives them their share of CPUs and GPUs, reuses their processes and hands their results
to the driver. What it does not do here: keep results (the table does; Tune's own restore forgets the scheduler
and needs shared storage) and retry (only the driver knows which units of a pack are done).
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.exceptions import RayActorError

from apps.nas.packing import pack
from apps.nas.trial import Score, Unit
from atom.errors import ClusterError
from pipelines.architecture.remote import PackTrial, Shared
from pipelines.architecture.tune_round import Watch, error_of, fit
from pipelines.workers.faults import Failure, is_machine_fault, reason_of, took_too_long
from pipelines.workers.pool import Limits
from pipelines.workers.resources import ActorSize

logger = logging.getLogger(__name__)


@dataclass
class Ranked:
    """What became of the units.

    Attributes:
        failed: why a unit has no score, after retries.
        stopped: whether the stop event ended it early.
        retries: rounds' units that were tried again after a worker was lost.
        unit_seconds: summed wall time of all units, on all workers.
        too_long: why a network is tried no more, under any proxy: one of its units passed the time limit.
    """

    failed: dict[Unit, Failure] = field(default_factory=dict)
    stopped: bool = False
    retries: int = 0
    unit_seconds: float = 0.0
    too_long: dict[str, str] = field(default_factory=dict)


def run_units(
    units: Sequence[Unit],
    shared: Shared,
    *,
    cost: Callable[[Unit], float],
    size: ActorSize,
    limits: Limits,
    on_score: Callable[[Unit, Score], None],
    on_tick: Callable[[], None],
    packs_per_worker: int | None = 4,
    reuse_actors: bool = True,
    stop: threading.Event | None = None,
) -> Ranked:
    """Find the scores of all units.

    Args:
        units: what to score, all different.
        shared: what the trials need.
        cost: predicted time of a unit, in any unit.
        size: workers at once, and the CPUs and GPUs of each.
        limits: retries and time limits.
        on_score: takes every score as it comes, in the driver.
        on_tick: called about once a second.
        packs_per_worker: trials a worker gets in turn; None: a trial for every network, which is slower.
        reuse_actors: whether a trial takes over the process of one that has ended.
        stop: ends it early when set.

    Raises:
        ClusterError: no worker could be had, or started, or none answered, for longer than the limits say.
        Exception: whatever `on_score` raises.
    """
    result, deaths, left = Ranked(), Counter[Unit](), list(units)
    done: set[Unit] = set()
    failed_starts = 0
    while left and not result.stopped:
        packs = _packs(left, cost, size=size, packs_per_worker=packs_per_worker)
        watch = _Watch(
            packs, on_score=on_score, on_tick=on_tick, limits=limits, timeout_s=shared.timeout_s, stop=stop
        )
        fit(
            tune.with_parameters(PackTrial, shared=shared, packs=packs),
            watch,
            size=size,
            param_space={"pack": tune.grid_search(list(range(len(packs))))},
            reuse_actors=reuse_actors,
        )
        result.unit_seconds += watch.unit_seconds
        result.failed |= watch.failed
        done |= watch.done
        result.too_long |= watch.too_long_networks
        for unit in left:
            if unit.network in result.too_long and unit not in done:
                result.failed.setdefault(unit, Failure(result.too_long[unit.network], ""))
        for unit, failure in watch.lost.items():
            if unit in result.failed:
                continue
            deaths[unit] += 1
            if deaths[unit] > limits.max_retries:
                result.failed[unit] = failure.after(deaths[unit])
            else:
                logger.warning(
                    "%s: %s; retry %d of %d", unit, failure.reason, deaths[unit], limits.max_retries
                )
                result.retries += 1
        result.stopped = stop is not None and stop.is_set()
        left = [unit for unit in left if unit not in done and unit not in result.failed]
        failed_starts = 0 if watch.progressed else failed_starts + 1
        if left and not result.stopped:
            _check_progress(watch, failed_starts, left, limits)
    return result


def _check_progress(watch: "_Watch", failed_starts: int, left: Sequence[Unit], limits: Limits) -> None:
    """Give up where another round would be in vain.

    Raises:
        ClusterError: no worker started in too many rounds in a row, or Tune ended for no known reason.
    """
    if watch.progressed:
        return
    if watch.unstarted is None:
        raise ClusterError(
            f"Ray Tune ended without a result for {len(left)} scores, the first {left[0]}; look into the"
            " cluster's log, then run the same command again."
        )
    if failed_starts > limits.max_retries:
        raise ClusterError(
            f"No worker could start, {failed_starts} rounds of tries failed, the last one with:"
            f" {watch.unstarted.reason}; check that every node has this program's packages and enough memory, then"
            " run the same command again."
        )
    logger.warning(
        "No worker started: %s; retry %d of %d", watch.unstarted.reason, failed_starts, limits.max_retries
    )


def _packs(
    units: Sequence[Unit],
    cost: Callable[[Unit], float],
    *,
    size: ActorSize,
    packs_per_worker: int | None,
) -> list[tuple[Unit, ...]]:
    """Units in packs; those of one network and seed stay together, so that a network's proxies run in a row."""
    groups: dict[tuple[str, int], list[Unit]] = {}
    for unit in units:
        groups.setdefault((unit.network, unit.seed if packs_per_worker else 0), []).append(unit)
    number = len(groups) if packs_per_worker is None else size.num_actors * packs_per_worker
    packs = pack(list(groups), lambda g: sum(cost(unit) for unit in groups[g]), num_packs=number)
    return [tuple(unit for group in each for unit in groups[group]) for each in packs]


class _Watch(Watch):
    """The driver's eye on one round: takes results, notes what was lost."""

    def __init__(
        self,
        packs: Sequence[tuple[Unit, ...]],
        *,
        on_score: Callable[[Unit, Score], None],
        on_tick: Callable[[], None],
        limits: Limits,
        timeout_s: float,
        stop: threading.Event | None,
    ) -> None:
        super().__init__(limits=limits, timeout_s=timeout_s, on_tick=on_tick, stop=stop)
        self._packs, self._on_score = packs, on_score
        self.done: set[Unit] = set()
        self.failed: dict[Unit, Failure] = {}
        self.lost: dict[Unit, Failure] = {}
        self.too_long_networks: dict[str, str] = {}
        self.unstarted: Failure | None = None
        self.unit_seconds = 0.0

    @property
    def progressed(self) -> bool:
        """Whether any worker started: the round brought scores, failures, or units that cost a worker."""
        return bool(self.done or self.failed or self.lost)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass a score on."""
        unit, value = result["unit"], result["value"]
        self.answered(trial)
        self.unit_seconds += result["unit_seconds"]
        if isinstance(value, Failure):
            self.failed[unit] = value
            return
        self.done.add(unit)
        try:
            self._on_score(unit, value)
        except Exception as error:  # a full disk, say: Tune would take it for a fault of the trial
            self.error = error

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note which unit a lost worker was at, if any; the rest of its pack is done in the next round."""
        left = self._left(trial)
        error, too_long = error_of(trial), self.too_long(trial)
        failure = reason_of(error) if error is not None else Failure("its worker was lost", "")
        self.answered()
        if isinstance(error, RayActorError) and error.actor_init_failed:
            self.unstarted = failure
        elif left and too_long:
            unit, failure = left[0], reason_of(took_too_long(self.timeout_s))
            logger.warning("%s %s", unit, failure.reason)
            self.failed[unit] = failure
            self.too_long_networks[unit.network] = f"not tried, since {unit} {failure.reason}"
        elif left and error is not None and not is_machine_fault(error):
            self.failed[left[0]] = failure
        elif left:
            self.lost[left[0]] = failure

    def doing(self, trial: Any) -> str:
        """The unit at work."""
        left = self._left(trial)
        return str(left[0] if left else trial)

    def skips(self, result: dict[str, Any]) -> bool:
        """Whether the next unit is one of a network that took too long elsewhere; the rest of the pack comes later."""
        pack = self._packs[result["config"]["pack"]]
        following = pack[pack.index(result["unit"]) + 1 :]
        return bool(following) and following[0].network in self.too_long_networks

    def _left(self, trial: Any) -> list[Unit]:
        pack = self._packs[trial.config["pack"]]
        return [unit for unit in pack if unit not in self.done and unit not in self.failed]
