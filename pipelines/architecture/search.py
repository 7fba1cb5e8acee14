"""`--mode search`: networks climb a ladder of fidelities, and the table keeps what came out of every rung.

Scores without training order the space, then every stage of the ladder trains networks on images of its own: Ray Tune
asks for the next network, runs trials in processes it uses again, and has ASHA halve them at the rungs of the stage;
the best of those that were trained to its end come into the next one. Tune neither keeps results nor tries again: its
own restore forgets the scheduler and needs shared storage.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from apps.nas.combined import rank_mean
from apps.nas.ladder import Ladder, Stage, next_rung
from apps.nas.proxies import Proxy
from apps.nas.trial import Unit
from atom.errors import ConfigError
from pipelines.architecture.case import LATENCY, NasCase
from pipelines.architecture.rank import score_units
from pipelines.architecture.scores import Scores
from pipelines.architecture.search_proposals import Proposals
from pipelines.architecture.search_record import SearchRecord
from pipelines.architecture.search_stage import run_stage, value_of
from pipelines.architecture.tune_round import tune_environment
from pipelines.console.command import say
from pipelines.console.progress import format_duration
from pipelines.console.signals import StopSignal
from pipelines.output.records import add_seconds

MOST_TRIALS = 60
"""Networks that are trained, where neither their number nor a budget is given. Chosen."""


@dataclass
class Found:
    """What a search has come to.

    Attributes:
        records: of the stages, from the first that was begun.
        order: mean ranks of the networks before any training, best first; empty where the ladder begins with one.
        too_slow: networks that answer more slowly than is allowed, and were not trained.
        latency_ms: of the networks that it is known of.
        failed: scores without training and latencies that came to nothing: network, what, why.
        prepare_s: worker-seconds that the sets cost before the first network.
        unit_s: of all trainings, looks and scores, in all drivers.
        stopped: whether a signal ended it.
        wall_seconds: of this driver.
    """

    records: list[SearchRecord] = field(default_factory=list)
    order: dict[str, float] = field(default_factory=dict)
    too_slow: list[str] = field(default_factory=list)
    latency_ms: dict[str, float] = field(default_factory=dict)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    prepare_s: float = 0.0
    scored_s: float = 0.0
    stopped: bool = False
    wall_seconds: float = 0.0

    @property
    def unit_s(self) -> float:
        """Worker-seconds of scores, trainings and looks, of all drivers; not those of lost workers."""
        return self.scored_s + sum(record.seconds for record in self.records)

    @property
    def spent_s(self) -> float:
        """Worker-seconds of all, the sets included."""
        return self.prepare_s + self.unit_s

    def finalists(self, case: NasCase) -> dict[str, float]:
        """Scores of the networks at the top of the ladder, best first; of equals, the cheaper one comes first."""
        complete = self.records[-1:] if len(self.records) == len(case.ladder.stages) else []
        return case.best_first(complete[0].finished) if complete else {}


def search_best(case: NasCase, stop: StopSignal) -> Found:
    """Climb the ladder; what is in the table counts.

    Args:
        case: with everything decided.
        stop: ends the search when set; what is not finished is lost.

    Raises:
        ConfigError: no network is within the limits, or the sets alone cost more than the budget.
        ClusterError: no worker could be had, or none answered.
    """
    begun_s = time.monotonic()
    found = Found(prepare_s=_prepare_seconds(case))
    try:
        _climb(case, found, stop)
    finally:
        for record in found.records:
            record.flush()
    found.stopped = found.stopped or stop.is_set()
    found.wall_seconds = time.monotonic() - begun_s
    add_seconds(case.store, "search_s", found.wall_seconds)
    return found


def _climb(case: NasCase, found: Found, stop: StopSignal) -> None:
    nas, ladder = case.command.nas, case.ladder
    budget_s = None if nas.budget_minutes is None else 60 * nas.budget_minutes
    if budget_s is not None and found.prepare_s >= budget_s:
        raise ConfigError(
            f"--budget-minutes {nas.budget_minutes:g}: the sets of the ladder alone took"
            f" {format_duration(found.prepare_s)} of a worker; pass more, or leave them out of --ladder."
        )
    names = [network for network in case.space.names if network not in case.problems]
    if nas.max_latency_ms is not None:
        names = _fast_enough(case, found, names, nas.max_latency_ms, stop)
    if ladder.order and not found.stopped:
        names = _ordered(case, found, names, ladder, stop)
    entrants: Sequence[str] = names
    for place, stage in enumerate(ladder.stages):
        if found.stopped or stop.is_set() or not entrants:
            return
        share = _share(case, found, budget_s, place)
        record = SearchRecord(case, stage_proxy(case, stage), stage.epochs)
        found.records.append(record)
        _run(case, stage, record, entrants, place, share, stop)
        best = list(case.best_first(record.finished))
        # With a budget the last stage takes as many as there is time for, the best first.
        last = place + 2 == len(ladder.stages) and budget_s is not None
        entrants = best if last else best[: next_rung(len(best), nas.reduction_factor)]
    if found.records and not stop.is_set():
        _measure(case, found, list(found.finalists(case)), stop)


def _run(
    case: NasCase,
    stage: Stage,
    record: SearchRecord,
    entrants: Sequence[str],
    place: int,
    wanted: Callable[[], bool],
    stop: StopSignal,
) -> None:
    nas, ladder = case.command.nas, case.ladder
    for network, problem in case.problems.items():
        if not place:
            record.fail(network, problem)
    chosen = place > 0 or bool(ladder.order)
    by_name = {candidate.name: candidate for candidate in case.space.candidates}
    own = set(entrants)
    space = case.space.with_candidates([by_name[name] for name in entrants])
    trials = nas.search_trials or (len(entrants) if nas.budget_minutes else MOST_TRIALS)
    with tune_environment():
        proposals = Proposals(
            space,
            trials=len(entrants) if place else trials,
            known={n: value_of(record, n, nas.reduction_factor) for n in record.curves if n in own},
            first=[network for network in record.failed if network in own],
            seed=case.command.seed,
            sampler="grid" if chosen else nas.sampler,
            # Somebody has to reach the top, whatever it costs.
            wanted=lambda: wanted() or not record.curves,
        )
        run_stage(case, stage, record, proposals, stop)


def _share(case: NasCase, found: Found, budget_s: float | None, place: int) -> Callable[[], bool]:
    """Whether a stage may begin another network: what its predecessors left over is its own too."""
    if budget_s is None:
        return lambda: True
    until_s = found.prepare_s + (budget_s - found.prepare_s) * (place + 1) / len(case.ladder.stages)
    return lambda: found.spent_s < until_s


def stage_proxy(case: NasCase, stage: Stage) -> Proxy:
    """The proxy of a stage; which of the distilled sets is in the name of the rung."""
    if stage.set_number is None:
        return case.material.named(stage.proxy)
    sets = [proxy for proxy in case.material.proxies if proxy.of_set and proxy.epochs == stage.epochs[-1]]
    return sets[stage.set_number]


def _prepare_seconds(case: NasCase) -> float:
    proxies = {proxy.name: proxy for proxy in (stage_proxy(case, stage) for stage in case.ladder.stages)}
    return sum(proxy.prepare_seconds or 0.0 for proxy in proxies.values())


def _fast_enough(
    case: NasCase, found: Found, names: Sequence[str], most_ms: float, stop: StopSignal
) -> list[str]:
    _measure(case, found, names, stop)
    found.too_slow = [name for name in names if found.latency_ms.get(name, 0.0) > most_ms]
    fast = [name for name in names if found.latency_ms.get(name, math.inf) <= most_ms]
    if not fast and not found.stopped:
        known = min(found.latency_ms.values(), default=math.inf)
        raise ConfigError(
            f"--max-latency-ms {most_ms:g}: none of the {len(names)} networks answers so fast here, the fastest in"
            f" {known:.3g} ms; pass more, or another --space."
        )
    if not found.stopped:
        say(f"{len(fast)} of {len(names)} networks answer within {most_ms:g} ms")
    return fast


def _measure(case: NasCase, found: Found, names: Sequence[str], stop: StopSignal) -> None:
    scored = _score(case, found, names, [LATENCY], 1, stop, label="timing")
    found.latency_ms |= {row.network: float(row.score or 0.0) for row in scored.of(LATENCY)}


def _ordered(
    case: NasCase, found: Found, names: Sequence[str], ladder: Ladder, stop: StopSignal
) -> list[str]:
    """The best networks before any training, as many as are to be trained."""
    members = [
        proxy.name for proxy in case.material.proxies if {proxy.name, proxy.source} & set(ladder.order)
    ]
    scored = _score(case, found, names, members, case.command.nas.seeds, stop, label="scoring")
    ranks = rank_mean({member: scored.means(member) for member in members})
    found.order = case.best_first(ranks)
    return list(found.order)


def _score(
    case: NasCase,
    found: Found,
    names: Sequence[str],
    proxies: Sequence[str],
    seeds: int,
    stop: StopSignal,
    *,
    label: str,
) -> Scores:
    scored = Scores()
    units = [
        Unit(network, proxy, seed)
        for network in names
        for proxy in proxies
        for seed in case.material.named(proxy).seeds(seeds)
    ]
    if units:
        score_units(case, units, scored, stop, label=label)
    found.stopped = found.stopped or scored.stopped
    found.scored_s += sum(row.train_seconds + row.score_seconds for row in scored.rows.values())
    found.failed += [(row.network, row.proxy, row.reason) for row in scored.failed]
    return scored
