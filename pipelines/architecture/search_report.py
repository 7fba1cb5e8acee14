"""What `--mode search` tells: the answer, the tables on the screen, the files, the page, and the run in MLflow."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from apps.nas.answer import Choice, Cost, answer, front
from apps.nas.search_page import (
    NOT_COMPARABLE,
    RungReached,
    Tried,
    best_first,
    climb_figure,
    front_figure,
    render_search,
    rungs_reached,
    search_csv,
)
from pipelines.architecture.search_record import RECORD
from pipelines.architecture.study import write_study
from pipelines.architecture.winner_files import choice_of
from pipelines.console.command import say
from pipelines.console.progress import format_duration, format_table, print_table
from pipelines.output.records import times

if TYPE_CHECKING:
    from pipelines.architecture.case import NasCase
    from pipelines.architecture.search import Found
    from pipelines.architecture.winner import Winners
    from pipelines.tracking import Tracker

CSV = "search.csv"
_RANK_FACTS = {"early stopping", "seeds", "wall time"}
"""Facts of a ranking that mean nothing of a search."""


def publish_search(case: "NasCase", found: "Found", winners: "Winners | None", tracker: "Tracker") -> int:
    """Print, write and record what came of a search; returns how many networks failed, retrained ones included.

    Where networks are trained in full, it is called before without them, and after with them, to add them.

    Args:
        case: whose search it was.
        found: from `search_best`.
        winners: of the trainings in full, where some were asked for.
        tracker: of the run.
    """
    from pipelines.architecture.case import TABLE
    from pipelines.architecture.report import facts, print_winners
    from pipelines.architecture.tracking import REPORT, log_stored

    tried = tried_networks(case, found)
    reached = _reached(case, found, tried)
    choices = choices_of(case, found, tried, winners)
    sentences = search_sentences(case, found, tried, choices, winners)
    best = winners.rows if winners is not None else []
    failures = [(one.network, "search", one.reason) for one in tried if one.status == "failed"]
    if winners is not None:
        failures += [
            (unit.network, f"retrain, seed {unit.seed}", f.reason) for unit, f in winners.failed.items()
        ]
    screen = (
        f"The best {min(10, len(tried))} of {len(tried)} networks",
        *_cells(tried, [rung.name for rung in reached]),
    )
    if winners is None:
        print_table(*screen)
        say(NOT_COMPARABLE)
    if failures and (winners is None or winners.failed):
        say()
        print_table("Failed", ["network", "in", "reason"], failures)
    if best:
        say()
        print_winners(best)
        say(f"delivered in {winners.directory if winners else ''}")
    if winners is not None or not case.retrains:
        say()
        for sentence in sentences:
            say(sentence)
    told = {name: fact for name, fact in facts(case).items() if name not in _RANK_FACTS}
    told = {**_search_facts(case, found), **told}
    title = (
        f"{case.real.source.title}: a search among {len(case.space.candidates)} networks of {case.space.spec}"
    )
    html = render_search(tried, reached, title=title, sentences=sentences, facts=told, winners=best)
    case.store.write_text(REPORT, html)
    case.store.write_text(CSV, search_csv(tried))
    content = search_dict(case, found, tried, reached, choices) | {"sentences": sentences, "facts": told}
    case.store.write_json(RECORD, content)
    if case.study is not None:
        write_study(case.study, tried, case.space)
    tracker.log_text(html, REPORT)
    tracker.log_dict(content, RECORD)
    log_stored(case.store, tracker, [TABLE, CSV])
    trained = [rung.name for rung in reached if any(rung.name in one.scores for one in tried)]
    tracker.log_figure(climb_figure(tried, trained), "plots/climb.png")
    finished = [one.choice for one in tried if one.status == "finished"]
    if finished:
        tracker.log_figure(front_figure(finished), "plots/front.png")
    tracker.log_metrics(_metrics(case, found, tried, choices))
    if winners is not None and winners.directory:
        log_stored(case.store, tracker, case.store.list("winner"), path="winner")
    tracker.set_note(" ".join(sentences) + f"\n\n```\n{format_table(*screen)}\n```")
    return len(failures)


def tried_networks(case: "NasCase", found: "Found") -> list[Tried]:
    """The networks that a search has met: those trained, in the order in which they came to the lowest rung, the others
    after them."""
    failed = {network: f"{what}: {why}" for network, what, why in found.failed}
    scores: dict[str, dict[str, float]] = {}
    for record in found.records:
        failed |= record.reasons
        for rung in record.rungs:
            for network, score in record.scores_at(rung).items():
                scores.setdefault(network, {})[_rung(case, found, record, rung)] = score
    finished = found.finalists(case)
    names = dict.fromkeys([*scores, *failed, *found.too_slow])
    known = case.space.by_name

    def one(network: str) -> Tried:
        truth = case.plan.reference.get(network)
        return Tried(
            network,
            "finished"
            if network in finished
            else "failed"
            if network in failed
            else "too slow"
            if network in found.too_slow
            else "stopped",
            scores.get(network, {}),
            parameters=known[network].parameters,
            multiply_adds=known[network].multiply_adds,
            latency_ms=found.latency_ms.get(network),
            order=found.order.get(network),
            truth=fmean(truth) if truth else None,
            reason=failed.get(network, "") if network not in finished else "",
        )

    return [one(network) for network in names]


def choices_of(
    case: "NasCase", found: "Found", tried: Sequence[Tried], winners: "Winners | None"
) -> list[Choice]:
    """What may be taken, the first best: the networks trained in full, or else those at the top of the ladder."""
    if winners is None or not winners.rows:
        reached = {one.network: one.choice for one in tried if one.status == "finished"}
        return [reached[network] for network in found.finalists(case)]
    rows = sorted(winners.rows, key=lambda row: not row["delivered"])
    return [choice_of(row, found.latency_ms.get(row["network"])) for row in rows]


def search_sentences(
    case: "NasCase",
    found: "Found",
    tried: Sequence[Tried],
    choices: Sequence[Choice],
    winners: "Winners | None",
) -> list[str]:
    """The answer, and what it lacks to the best where a reference knows it."""
    cost = Cost(found.unit_s, found.prepare_s, winners.seconds if winners is not None else 0.0)
    told = answer(
        choices,
        cost,
        finalists=len(found.finalists(case)),
        networks=len(case.space.candidates),
        decided_by=case.deciding,
    )
    truth = {one.network: one.truth for one in tried if one.truth is not None and one.scores}
    if choices and choices[0].network in truth:
        told.append(_regret(case, choices[0].network, truth))
    return told


def _regret(case: "NasCase", pick: str, truth: dict[str, float]) -> str:
    reference = {network: fmean(values) for network, values in case.plan.reference.items()}
    best, best_tried = (max(known, key=known.__getitem__) for known in (reference, truth))
    reached = reference[pick]
    return (
        f"By the reference {case.command.nas.reference} it reaches {reached:.2f} %; it lacks"
        f" {reference[best_tried] - reached:.2f} points to the best network that was tried, {best_tried}, and"
        f" {reference[best] - reached:.2f} points to the best of the {len(reference)} that the reference knows, {best}."
    )


def search_dict(
    case: "NasCase",
    found: "Found",
    tried: Sequence[Tried],
    reached: Sequence[RungReached],
    choices: Sequence[Choice],
) -> dict[str, Any]:
    """A search as JSON."""
    return {
        "order": {record.proxy: [*record.curves, *record.reasons] for record in found.records},
        "pick": vars(choices[0]) if choices else None,
        "choices": [vars(choice) for choice in choices],
        "front": [one.network for one in front([one.choice for one in tried if one.status == "finished"])],
        "ladder": case.ladder.told,
        "rungs": [vars(rung) for rung in reached],
        "space": case.space.spec,
        "networks": len(case.space.candidates),
        "trials": [vars(one) for one in tried],
        "worker_seconds": {"search": found.unit_s, "sets": found.prepare_s},
        "reference": case.command.nas.reference if case.plan.reference else None,
    }


def _rung(case: "NasCase", found: "Found", record: Any, epochs: int) -> str:
    return f"{case.ladder.stages[found.records.index(record)].source}:{epochs}"


def _reached(case: "NasCase", found: "Found", tried: Sequence[Tried]) -> list[RungReached]:
    order = "+".join(case.ladder.order)
    rungs, seconds = [], {order: found.scored_s}
    for record in found.records:
        rungs += [_rung(case, found, record, epochs) for epochs in record.rungs]
        seconds[rungs[-1]] = record.seconds
    return rungs_reached(tried, rungs, seconds, order=order, ranks=found.order)


def _cells(tried: Sequence[Tried], rungs: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    shown = [rung for rung in rungs if any(rung in one.scores for one in tried)]
    cells = []
    for one in best_first(tried)[:10]:
        scores = [f"{one.scores[rung]:.2f}" if rung in one.scores else "" for rung in shown]
        costs = ["?" if cost is None else f"{cost:,}" for cost in (one.parameters, one.multiply_adds)]
        latency = "" if one.latency_ms is None else f"{one.latency_ms:.3g}"
        cells.append([one.network, one.status, *scores, *costs, latency])
    return ["network", "end", *(f"{rung}, %" for rung in shown), "parameters", "multiply-adds", "ms"], cells


def _search_facts(case: "NasCase", found: "Found") -> dict[str, str]:
    nas = case.command.nas
    asked = (
        "in the order of the rung before"
        if case.ladder.order
        else f"by {nas.sampler}, seed {case.command.seed}"
    )
    limits = {
        "parameters": nas.max_parameters,
        "multiply-adds": nas.max_multiply_adds,
        "ms for an image": nas.max_latency_ms,
    }
    told = [f"at most {most:,} {what}" for what, most in limits.items() if most is not None]
    return {
        "ladder": f"{case.ladder.told}; one in {nas.reduction_factor} climbs on (ASHA among rungs on the same images)",
        "networks were taken": asked,
        **({"limits": ", ".join(told)} if told else {}),
        **({"left out as too slow": f"{len(found.too_slow)} networks"} if found.too_slow else {}),
        **({"left out by the budget": f"{found.unscored:,} networks"} if found.unscored else {}),
        **(
            {"budget": f"{nas.budget_minutes:g} worker-minutes, of which {found.spent_s / 60:.3g} were spent"}
            if nas.budget_minutes is not None
            else {}
        ),
        "latency": "one image, float32, "
        + (f"{case.recipe.threads} CPU thread" if case.device_kind == "cpu" else "GPU")
        + ", the fastest of the passes of 0.3 s, several workers at a time",
        "time in trainings and scores": format_duration(found.unit_s),
        "time searching": format_duration(times(case.store).get("search_s")),
    }


def _metrics(
    case: "NasCase", found: "Found", tried: Sequence[Tried], choices: Sequence[Choice]
) -> dict[str, float]:
    metrics = {
        "search/trials": float(sum(bool(one.scores) for one in tried)),
        **{
            f"search/{status.replace(' ', '_')}": float(sum(one.status == status for one in tried))
            for status in ("finished", "stopped", "failed", "too slow")
        },
        "search/worker_s": found.unit_s,
        "search/sets_s": found.prepare_s or 0.0,
        "search/seconds": times(case.store).get("search_s", 0.0),
    }
    if choices:
        metrics["search/best_score"] = choices[0].validation
    return metrics
