"""What `--mode search` tells: the table on the screen, search.json, the HTML page, and the run in MLflow."""

from statistics import fmean
from typing import TYPE_CHECKING, Any

from apps.nas.search_page import NOT_COMPARABLE, Tried, best_first, pick_of, render_search, search_figure
from atom.batches import num_batches
from pipelines.architecture.search_record import RECORD, search_name
from pipelines.console.command import say
from pipelines.console.progress import format_duration, format_table, print_table
from pipelines.output.records import times

if TYPE_CHECKING:
    from pipelines.architecture.case import NasCase
    from pipelines.architecture.scores import Scores
    from pipelines.architecture.winner import Winners
    from pipelines.tracking import Tracker

_WHOLE_FACT = "training on the whole set"
_RANK_FACTS = {_WHOLE_FACT, "early stopping", "seeds", "wall time", "share of the wall time that is work"}
"""Facts of a ranking that mean nothing of a search."""
_COLUMNS = ["network", "validation accuracy, %", "epochs", "parameters", "multiply-adds"]


def publish_search(case: "NasCase", scored: "Scores", winners: "Winners | None", tracker: "Tracker") -> int:
    """Print, write and record what came of a search; returns how many networks failed, retrained ones included.

    Where networks are trained in full, it is called before without them, and after with them, to add them.

    Args:
        case: whose search it was.
        scored: from `search_best`.
        winners: of a retraining, where one was asked for.
        tracker: of the run.
    """
    from pipelines.architecture.case import TABLE
    from pipelines.architecture.report import facts, print_winners
    from pipelines.architecture.tracking import REPORT, log_stored

    tried = tried_networks(case, scored)
    sentences = search_sentences(case, tried, retrained=bool(case.command.nas.retrain))
    best = winners.rows if winners is not None else []
    failures = [(one.network, "search", one.reason) for one in tried if one.status == "failed"]
    if winners is not None:
        failures += [
            (unit.network, f"retrain, seed {unit.seed}", f.reason) for unit, f in winners.failed.items()
        ]
    screen = f"The best {min(10, len(tried))} of {len(tried)} networks tried", _COLUMNS, _cells(tried)
    if winners is None:
        print_table(*screen)
        for sentence in (*sentences, NOT_COMPARABLE):
            say(sentence)
    if failures and (winners is None or winners.failed):
        say()
        print_table("Failed", ["network", "in", "reason"], failures)
    if best:
        say()
        print_winners(best)
        say(f"delivered in {winners.directory if winners else ''}")
    skipped = _RANK_FACTS if winners is None else _RANK_FACTS - {_WHOLE_FACT}
    told = {name: fact for name, fact in facts(case, scored).items() if name not in skipped}
    told = {**_search_facts(case, scored, tried), **told}
    title = (
        f"{case.real.source.title}: a search among {len(case.space.candidates)} networks of {case.space.spec}"
    )
    html = render_search(tried, title=title, sentences=sentences, facts=told, winners=best)
    case.store.write_text(REPORT, html)
    content = search_dict(case, scored, tried) | {"sentences": sentences, "facts": told}
    case.store.write_json(RECORD, content)
    tracker.log_text(html, REPORT)
    tracker.log_dict(content, RECORD)
    log_stored(case.store, tracker, [TABLE])
    tracker.log_figure(search_figure(tried), "plots/search.png")
    tracker.log_metrics(_metrics(case, scored, tried))
    tracker.set_note(f"```\n{format_table(*screen)}\n```\n\n" + " ".join((*sentences, NOT_COMPARABLE)))
    return len(failures)


def tried_networks(case: "NasCase", scored: "Scores") -> list[Tried]:
    """The networks of a search in the order in which they ended."""
    costs = {candidate.name: candidate for candidate in case.space.candidates}
    draws = case.material.small[case.primary.name].draws
    images, settings = len(next(iter(draws.values()))[1]), case.recipe.settings
    steps_per_epoch = num_batches(images, settings.batch)
    found = []
    for unit, row in scored.rows.items():
        if unit.proxy != search_name(case.primary.name):
            continue
        epochs = row.steps // steps_per_epoch
        status = (
            "failed" if row.status == "failed" else "finished" if epochs == settings.epochs else "stopped"
        )
        truth = case.plan.reference.get(row.network)
        found.append(
            Tried(
                row.network,
                status,
                row.score,
                epochs,
                parameters=costs[row.network].parameters,
                multiply_adds=costs[row.network].multiply_adds,
                truth=fmean(truth) if truth else None,
                reason=row.reason,
            )
        )
    return found


def search_sentences(case: "NasCase", tried: list[Tried], *, retrained: bool) -> list[str]:
    """What came out, in two or three sentences; regret where a reference knows the pick."""
    counts = {
        status: sum(one.status == status for one in tried) for status in ("finished", "stopped", "failed")
    }
    told = [
        f"Of {len(case.space.candidates)} networks, {len(tried)} were tried on {case.primary.name}:"
        f" {counts['finished']} to the end, {counts['stopped']} stopped early, {counts['failed']} failed."
    ]
    pick = pick_of(tried)
    if pick is None:
        return [*told, "No network was trained to the end, so there is no pick."]
    told.append(
        f"The pick is {pick.network}, with a validation accuracy of {pick.score:.2f} % after {pick.epochs} epochs,"
        " which flatters it: the best of many on the same images."
        + ("" if retrained else " What it is worth, --retrain 1 tells.")
    )
    if pick.truth is not None:
        told.append(_regret(case, pick, tried))
    return told


def _regret(case: "NasCase", pick: Tried, tried: list[Tried]) -> str:
    reference = {network: fmean(values) for network, values in case.plan.reference.items()}
    best = max(reference, key=reference.__getitem__)
    best_tried = max((one for one in tried if one.truth is not None), key=lambda one: one.truth or 0.0)
    lost, lost_tried = (truth - (pick.truth or 0.0) for truth in (reference[best], best_tried.truth or 0.0))
    return (
        f"By the reference {case.command.nas.reference} the pick reaches {pick.truth:.2f} %; it lacks {lost_tried:.2f}"
        f" points to the best network that was tried, {best_tried.network}, and {lost:.2f} points to the best of the"
        f" {len(reference)} that the reference knows, {best}."
    )


def search_dict(case: "NasCase", scored: "Scores", tried: list[Tried]) -> dict[str, Any]:
    """A search as JSON."""
    pick = pick_of(tried)
    return {
        "order": [one.network for one in tried],
        "pick": pick.network if pick else None,
        "proxy": case.primary.name,
        "space": case.space.spec,
        "networks": len(case.space.candidates),
        "epochs": case.recipe.settings.epochs,
        "trials": [vars(one) for one in tried],
        "train_seconds": sum(row.train_seconds + row.score_seconds for row in scored.rows.values()),
        "reference": case.command.nas.reference if case.plan.reference else None,
    }


def _cells(tried: list[Tried]) -> list[list[str]]:
    cells = []
    for one in best_first(tried)[:10]:
        score = "failed" if one.score is None else f"{one.score:.2f}"
        epochs = f"{one.epochs}" if one.status == "finished" else f"{one.epochs} ({one.status})"
        costs = ["?" if cost is None else f"{cost:,}" for cost in (one.parameters, one.multiply_adds)]
        cells.append([one.network, score, epochs, *costs])
    return cells


def _search_facts(case: "NasCase", scored: "Scores", tried: list[Tried]) -> dict[str, str]:
    command, epochs = case.command, case.recipe.settings.epochs or 0
    spent = sum(row.train_seconds + row.score_seconds for row in scored.rows.values())
    whole = len([one for one in tried if one.status != "failed"]) * epochs
    trained = sum(one.epochs for one in tried)
    return {
        "search": (
            f"Optuna (TPE), seed {command.seed}; ASHA, first rung after"
            f" {command.nas.grace_epochs or max(1, epochs // 8)} of {epochs} epochs, one in"
            f" {command.nas.reduction_factor} goes on; with several workers the order of ends, and so the"
            " search, differs from run to run"
        ),
        "epochs trained": f"{trained} of {whole} that the tried networks have in all",
        "time in trainings": format_duration(spent),
        "time searching": format_duration(times(case.store).get("search_s")),
    }


def _metrics(case: "NasCase", scored: "Scores", tried: list[Tried]) -> dict[str, float]:
    pick = pick_of(tried)
    metrics = {
        "search/trials": float(len(tried)),
        "search/finished": float(sum(one.status == "finished" for one in tried)),
        "search/stopped_early": float(sum(one.status == "stopped" for one in tried)),
        "search/failed": float(sum(one.status == "failed" for one in tried)),
        "search/train_s": sum(row.train_seconds + row.score_seconds for row in scored.rows.values()),
        "search/seconds": times(case.store).get("search_s", 0.0),
    }
    return metrics | ({"search/best_score": pick.score} if pick and pick.score is not None else {})
