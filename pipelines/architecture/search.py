"""`--mode search`: networks climb a ladder of fidelities, and the table keeps what came out of every rung.

Scores without training order the space, then every stage of the ladder trains networks on images of its own: Ray Tune
asks for the next network, runs trials in processes it uses again, and has ASHA halve them at the rungs of the stage;
the best of those that were trained to its end come into the next one. Tune neither keeps results nor tries again: its
own restore forgets the scheduler and needs shared storage.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from apps.nas.combined import rank_mean
from apps.nas.ladder import Stage, next_rung
from apps.nas.proxies import Proxy
from apps.nas.trial import Unit
from atom.errors import ConfigError
from atom.streams import stream
from pipelines.architecture.case import LATENCY, NasCase
from pipelines.architecture.rank import score_units
from pipelines.architecture.scores import Scores
from pipelines.architecture.search_proposals import Proposals
from pipelines.architecture.search_record import SearchRecord
from pipelines.architecture.search_stage import run_stage
from pipelines.console.command import say
from pipelines.console.progress import format_duration
from pipelines.console.signals import StopSignal
from pipelines.output.records import add_seconds
from pipelines.workers.resources import Width

MOST_TRIALS = 60
"""Networks that are trained, where neither their number nor a budget is given. Chosen."""
TRY_FIRST = 20
"""Networks whose scores without training tell what those of all would cost, where there is a budget. Chosen."""


@dataclass
class Found:
    """What a search has come to.

    Attributes:
        records: of the stages, from the first that was begun.
        order: mean ranks of the networks before any training, best first; empty where the ladder begins with one.
        unscored: networks that the budget left without such a rank, or without a latency.
        too_slow: networks that answer more slowly than is allowed, and were not trained.
        latency_ms: of the networks that it is known of.
        failed: networks that came to nothing before any training: network, what, why.
        prepare_s: worker-seconds that the sets cost before the first network; None where one is unknown.
        scored_s: worker-seconds of scores without training and of latencies.
        stopped: whether a signal ended it.
        wall_seconds: of this driver.
    """

    records: list[SearchRecord] = field(default_factory=list)
    order: dict[str, float] = field(default_factory=dict)
    unscored: int = 0
    too_slow: list[str] = field(default_factory=list)
    latency_ms: dict[str, float] = field(default_factory=dict)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    prepare_s: float | None = 0.0
    scored_s: float = 0.0
    stopped: bool = False
    wall_seconds: float = 0.0

    @property
    def unit_s(self) -> float:
        """Worker-seconds of scores, trainings and looks, those of failures in this driver among them."""
        return self.scored_s + sum(record.seconds for record in self.records)

    @property
    def spent_s(self) -> float:
        """Worker-seconds of all, the sets included as far as their cost is known."""
        return (self.prepare_s or 0.0) + self.unit_s

    def finalists(self, case: NasCase) -> dict[str, float]:
        """Scores of the networks at the top of the ladder, best first; of equals, the cheaper one comes first."""
        complete = self.records[-1:] if len(self.records) == len(case.ladder.stages) else []
        return case.best_first(complete[0].finished) if complete else {}


def search_best(case: NasCase, stop: StopSignal) -> Found:
    """Climb the ladder. What the table has is told again instead of being found again, and counts all the same.

    Args:
        case: with everything decided.
        stop: ends the search when set; what is not finished is lost.

    Raises:
        ConfigError: no network is within the limits, or the sets alone cost more than the budget.
        ClusterError: no worker could be had, or none answered.
    """
    begun_s = time.monotonic()
    found = Found(prepare_s=_prepare_seconds(case))
    _climb(case, found, stop)
    found.stopped = found.stopped or stop.is_set()
    found.wall_seconds = time.monotonic() - begun_s
    add_seconds(case.store, "search_s", found.wall_seconds)
    return found


def stage_proxy(case: NasCase, stage: Stage) -> Proxy:
    """The proxy of a stage; which of the distilled sets is in the name of the rung."""
    if stage.set_number is None:
        return case.material.named(stage.proxy)
    sets = [proxy for proxy in case.material.proxies if proxy.of_set and proxy.epochs == stage.epochs[-1]]
    return sets[stage.set_number]


def _climb(case: NasCase, found: Found, stop: StopSignal) -> None:
    nas, ladder = case.command.nas, case.ladder
    if nas.budget_minutes is not None and (found.prepare_s or 0.0) >= 60 * nas.budget_minutes:
        raise ConfigError(
            f"--budget-minutes {nas.budget_minutes:g}: the sets of the ladder alone took"
            f" {format_duration(found.prepare_s)} of a worker; pass more, or leave them out of --ladder."
        )
    found.failed += [(name, "building", why) for name, why in case.problems.items()]
    entrants: Sequence[str] = [name for name in case.space.names if name not in case.problems]
    if not entrants:
        network, _, why = found.failed[0]
        raise ConfigError(
            f"--space {case.space.spec}: none of its {len(found.failed)} networks can be trained; {network!r}: {why}"
        )
    # A latency where it is limited, the ground rung and every stage have equal shares of a budget.
    parts = (nas.max_latency_ms is not None) + bool(ladder.order) + len(ladder.stages)
    if nas.max_latency_ms is not None:
        entrants = _fast_enough(case, found, entrants, nas.max_latency_ms, parts, stop)
    if ladder.order and not found.stopped:
        entrants = _ordered(case, found, entrants, parts, stop)
    # None ahead of their places: what is proposed later is proposed knowing more.
    room = Width(replace(case.size, ahead=0))
    for place, stage in enumerate(ladder.stages):
        if found.stopped or stop.is_set() or not entrants:
            return
        record = SearchRecord(case, stage_proxy(case, stage), stage.epochs)
        found.records.append(record)
        _run(case, found, record, entrants, stop, room=room)
        best = list(case.best_first(record.finished))
        # With a budget the last stage takes as many as there is time for, the best first.
        last = place + 2 == len(ladder.stages) and nas.budget_minutes is not None
        entrants = best if last else best[: next_rung(len(best), nas.reduction_factor)]
    if not stop.is_set():
        _measure(case, found, list(found.finalists(case)), stop)


def _run(
    case: NasCase,
    found: Found,
    record: SearchRecord,
    entrants: Sequence[str],
    stop: StopSignal,
    *,
    room: Callable[[], int],
) -> None:
    """One stage; somebody of it has to come to its end, whatever that costs."""
    nas, first = case.command.nas, len(found.records) == 1
    by_name = case.space.by_name
    trials = nas.search_trials or (len(entrants) if nas.budget_minutes else MOST_TRIALS)
    share = _share(case, found)

    def wanted() -> bool:
        begun = proposals.under_way or record.finished
        return share is None or share() < 1 or not begun

    proposals = Proposals(
        case.space.with_candidates([by_name[name] for name in entrants]),
        trials=trials if first else len(entrants),
        known=record.known,
        seed=case.command.seed,
        sampler=nas.sampler if first and not case.ladder.order else "grid",
        wanted=wanted,
        room=room,
    )
    run_stage(case, record, proposals, stop, share=share)
    # ASHA stopped all others against one that failed later: the best of them is trained on.
    stopped = sorted(record.curves, key=lambda name: -record.curves[name][-1].score.score)
    for network in sorted(stopped, key=lambda name: -record.curves[name][-1].epochs):
        if record.finished or stop.is_set():
            return
        alone = case.space.with_candidates([by_name[network]])
        further = Proposals(alone, trials=1, known=record.known, sampler="grid")
        run_stage(case, record, further, stop, halve=False)


def _share(case: NasCase, found: Found) -> Callable[[], float] | None:
    """How much of what a stage may spend is spent, from 0; what its predecessors left over is its own too."""
    if case.command.nas.budget_minutes is None:
        return None
    left_s = 60 * case.command.nas.budget_minutes - found.spent_s
    begun_s, stages = found.spent_s, len(case.ladder.stages) - len(found.records) + 1
    share_s = max(left_s / stages, 1e-9)
    return lambda: (found.spent_s - begun_s) / share_s


def _prepare_seconds(case: NasCase) -> float | None:
    proxies = {proxy.name: proxy for proxy in (stage_proxy(case, stage) for stage in case.ladder.stages)}
    seconds = [proxy.prepare_seconds for proxy in proxies.values()]
    return None if None in seconds else math.fsum(s or 0.0 for s in seconds)


def _fast_enough(
    case: NasCase, found: Found, names: Sequence[str], most_ms: float, parts: int, stop: StopSignal
) -> list[str]:
    names = _affordable(case, found, names, [LATENCY], 1, parts, stop, label="timing")
    _measure(case, found, names, stop)
    found.too_slow = [name for name in names if found.latency_ms.get(name, 0.0) > most_ms]
    fast = [name for name in names if found.latency_ms.get(name, math.inf) <= most_ms]
    if not fast and not found.stopped:
        why = (
            f"the fastest in {min(found.latency_ms.values()):.3g} ms"
            if found.latency_ms
            else f"and none could be timed, {found.failed[-1][0]!r}: {found.failed[-1][2]}"
        )
        raise ConfigError(
            f"--max-latency-ms {most_ms:g}: none of the {len(names)} networks answers so fast here, {why}; pass more,"
            " or another --space."
        )
    if not found.stopped:
        say(f"{len(fast)} of {len(names)} networks answer within {most_ms:g} ms")
    return fast


def _measure(case: NasCase, found: Found, names: Sequence[str], stop: StopSignal) -> None:
    unknown = [name for name in names if name not in found.latency_ms]
    scored = _score(case, found, unknown, [LATENCY], 1, stop, label="timing")
    found.latency_ms |= {row.network: float(row.score or 0.0) for row in scored.of(LATENCY)}


def _ordered(case: NasCase, found: Found, names: Sequence[str], parts: int, stop: StopSignal) -> list[str]:
    """The networks, the best before any training first."""
    order = set(case.ladder.order)
    members = [proxy.name for proxy in case.material.proxies if {proxy.name, proxy.source} & order]
    seeds = case.command.nas.seeds
    names = _affordable(case, found, names, members, seeds, parts, stop, label="scoring")
    scored = _score(case, found, names, members, seeds, stop, label="scoring")
    if found.stopped:
        return []
    found.order = case.best_first(rank_mean({member: scored.means(member) for member in members}))
    return list(found.order)


def _affordable(
    case: NasCase,
    found: Found,
    names: Sequence[str],
    proxies: Sequence[str],
    seeds: int,
    parts: int,
    stop: StopSignal,
    *,
    label: str,
) -> list[str]:
    """As many of the networks as a share of the budget can score, drawn at random; all without a budget."""
    budget_minutes = case.command.nas.budget_minutes
    if budget_minutes is None or len(names) <= TRY_FIRST:
        return list(names)
    order = stream(case.command.seed, "nas/search/affordable").permutation(len(names))
    drawn = [names[place] for place in order]
    # Not counted here: they are told again with those of all.
    tried = _scores(case, drawn[:TRY_FIRST], proxies, seeds, stop, label=label)
    each_s = max(tried.row_seconds / TRY_FIRST, 1e-6)
    most = max(TRY_FIRST, int((60 * budget_minutes - found.spent_s) / parts / each_s))
    if most < len(names):
        found.unscored += len(names) - most
        say(
            f"{label} {most:,} of {len(names):,} networks, drawn at random: what a share of the budget allows at"
            f" {each_s:.2g} s each"
        )
    chosen = set(drawn[:most])
    return [name for name in names if name in chosen]


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
    """The scores of these networks, counted in what the search has come to."""
    scored = _scores(case, names, proxies, seeds, stop, label=label)
    found.stopped = found.stopped or scored.stopped
    found.scored_s += scored.row_seconds
    found.failed += [(row.network, row.proxy, row.reason) for row in scored.failed]
    return scored


def _scores(
    case: NasCase, names: Sequence[str], proxies: Sequence[str], seeds: int, stop: StopSignal, *, label: str
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
    return scored
