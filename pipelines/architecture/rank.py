"""Every network scored by every proxy: what the table lacks is found by workers, and added to it."""

import time
from collections.abc import Mapping, Sequence
from statistics import fmean

from apps.nas.proxies import Proxy
from apps.nas.table import Row
from apps.nas.trial import Score, Unit
from pipelines.architecture.case import NasCase
from pipelines.architecture.derived import add_derived
from pipelines.architecture.proxies import keys_of
from pipelines.architecture.scores import Scores
from pipelines.architecture.scoring import run_units
from pipelines.console.command import say
from pipelines.console.progress import Progress
from pipelines.console.signals import StopSignal
from pipelines.output.records import add_seconds


def rank(case: NasCase, stop: StopSignal) -> Scores:
    """Every network by every proxy: the tiny sets, then what takes their time, the whole set, and what they make."""
    scored = Scores()
    labels = {"seconds": "scoring, equal seconds", "whole": "reference"}
    for kinds in (("set", "steps", "zero-cost", "own"), ("real",), ("seconds",), ("whole",)):
        proxies = [proxy for proxy in case.material.proxies if proxy.kind in kinds]
        seconds = _equal_seconds(case, scored) if proxies and kinds == ("seconds",) else None
        units = [
            Unit(network, proxy.name, seed)
            for network in case.space.names
            for proxy in proxies
            for seed in proxy.seeds(_num_seeds(case, proxy))
            if seconds is None or network in seconds
        ]
        if units and not scored.stopped:
            score_units(case, units, scored, stop, label=labels.get(kinds[0], "scoring"), seconds=seconds)
    if not scored.stopped:
        add_derived(case, scored)
    return scored


def _num_seeds(case: NasCase, proxy: Proxy) -> int:
    return case.command.nas.reference_seeds if proxy.kind == "whole" else case.command.nas.seeds


def score_units(
    case: NasCase,
    units: Sequence[Unit],
    scored: Scores,
    stop: StopSignal,
    *,
    label: str,
    seconds: Mapping[str, float] | None = None,
) -> None:
    """Score what the table does not have yet, and add everything to `scored`."""
    keys = keys_of(units, case.material, case.space, case.recipe, case.device_kind)
    known = {unit for unit, row in case.table.select(keys).items() if row.status == "done"}
    for unit in units:
        if unit not in known and unit.network in case.problems:
            case.table.append(Row.failure(unit, case.problems[unit.network], key=keys[unit]))
    left = [unit for unit in units if unit not in known and unit.network not in case.problems]
    done = len(known)
    outdated = {row.unit for row in case.table.rows if row.status == "done"} & set(left)
    if outdated:
        say(
            f"Note: {len(outdated)} of the scores in this output are of other code, settings or images; they are"
            " kept under keys of their own, and found anew."
        )
    begun_s = time.monotonic()
    # Networks differ a thousandfold: time left is told by the work that is left, and not by the scores.
    cost = {unit: case.cost(unit) for unit in units}
    percent = 100 / (sum(cost.values()) or 1.0)
    worked = percent * sum(cost[unit] for unit in known)
    with Progress(
        label, 100, num_items=len(units), unit="% of the work", item="scores", done=worked
    ) as progress:

        def keep(unit: Unit, score: Score) -> None:
            nonlocal done, worked
            case.table.append(Row.of(unit, score, key=keys[unit]))
            done, worked = done + 1, worked + percent * cost[unit]

        def tick(doing: Sequence[Unit]) -> None:
            case.table.tick()
            progress.update(worked, items_done=done, doing=[str(unit) for unit in doing])

        try:
            with stop.polling():
                outcome = run_units(
                    left,
                    case.shared(seconds),
                    cost=case.cost,
                    size=case.size,
                    limits=case.limits,
                    on_score=keep,
                    on_tick=tick,
                    stop=stop,
                )
            for unit, failure in outcome.failed.items():
                case.table.append(Row.failure(unit, failure.reason, key=keys[unit]))
            case.problems |= outcome.too_long
            progress.update(worked if outcome.stopped else 100, items_done=done)
        finally:
            case.table.flush()
    scored.rows |= case.table.select(keys)
    scored.stopped = outcome.stopped
    scored.wall_seconds += time.monotonic() - begun_s
    scored.unit_seconds += outcome.unit_seconds
    add_seconds(case.store, f"{label.split(',')[0]}_s", time.monotonic() - begun_s)


def _equal_seconds(case: NasCase, scored: Scores) -> dict[str, float]:
    """Training seconds by network: what the first tiny set took, and its share of the preparation."""
    assert case.material.first_set is not None, "the names of the proxies were checked"
    times: dict[str, list[float]] = {}
    for row in scored.of(case.material.first_set):
        times.setdefault(row.network, []).append(row.train_seconds)
    total = sum(sum(values) for values in times.values())
    share = 1.0 + case.material.prepare_seconds / total if total else 1.0
    return {network: fmean(values) * share for network, values in times.items()}
