"""What a search tells: the tables on the screen, the JSON, the HTML page, and the runs in MLflow."""

from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from apps.nas.answer import Cost, answer
from apps.nas.proxies import Proxy
from apps.nas.reference import write_reference
from apps.nas.report import render_report, render_scores
from apps.nas.summary import summary
from apps.nas.verdict import ProxyScores, Verdict, difference_table, judge, table, to_dict
from apps.nas.verdict_table import trained_table
from apps.page import number, spread
from pipelines.architecture.case import NasCase
from pipelines.architecture.derived import truth_of
from pipelines.architecture.scores import Scores
from pipelines.architecture.tracking import REFERENCE, REPORT, VERDICT, log_stored, record
from pipelines.architecture.winner_files import choice_of
from pipelines.console.command import say
from pipelines.console.progress import format_duration, print_table
from pipelines.output.provenance import command_line
from pipelines.output.records import maker_facts, times
from pipelines.sets import held_out
from pipelines.tracking import Tracker

if TYPE_CHECKING:
    from pipelines.architecture.winner import Winners


_BUSY = "share of the wall time that is work"


def publish(case: NasCase, scored: Scores, winners: "Winners | None", tracker: Tracker) -> int:
    """Print, write and record everything; returns how many scores failed.

    Where networks are trained in full, it is called before without them, and after with them, to add them.
    """
    best = winners.rows if winners is not None else []
    failed = [(row.network, row.proxy, row.reason) for row in scored.failed]
    if winners is not None:
        failed += [(unit.network, "retrain", failure.reason) for unit, failure in winners.failed.items()]
    failures = grouped(failed)
    title = f"{case.real.source.title}: {len(case.space.candidates)} networks of {case.space.spec}"
    page: dict[str, Any] = {
        "title": title,
        "facts": {**facts(case), **_weights(scored), _BUSY: _busy(case, scored)},
        "failures": failures,
        "winners": best,
    }
    page["answer"] = told = answer_of(case, scored, winners) if best and winners is not None else []
    verdict = verdict_of(case, scored)
    if winners is None:
        print_ranking(case, scored)
        if verdict is not None:
            print_verdict(verdict)
    if verdict is not None:
        lost = len(case.space.names) - len(verdict.truth)
        if lost:
            page["facts"]["networks without a reference"] = (
                f"{lost}: no row, or not every seed; they do not count"
            )
        case.store.write_json(VERDICT, {**to_dict(verdict), "facts": page["facts"]})
        html = render_report(verdict, **page)
    else:
        scores = {
            proxy.name: scored.complete(proxy.name, case.space.names) for proxy in case.material.proxies
        }
        html = render_scores(scores, **page)
        # That of an earlier run, with a reference, would stand beside a report that it does not belong to.
        if case.store.exists(VERDICT):
            case.store.delete(VERDICT)
    case.store.write_text(REPORT, html)
    whole = [row for row in scored.of("whole") if row.test_accuracy is not None]
    if whole:
        case.store.write_bytes(
            REFERENCE, write_reference(sorted(whole, key=lambda row: (row.network, row.seed)))
        )
    new = failures if winners is None else [one for one in failures if "retrain" in one[1]]
    if new:
        say()
        say("Failed; the others are ranked")
        for network, proxies, reason in new:
            say(f"  {network} ({proxies}): {reason}")
    if best:
        say()
        print_winners(best)
        say(f"delivered in {winners.directory if winners else ''}")
        say()
        for sentence in told:
            say(sentence)
    if winners is None:
        record(case, scored, verdict, tracker, html=html)
    else:
        tracker.log_text(html, REPORT)
        if winners.directory:
            log_stored(case.store, tracker, case.store.list("winner"), path="winner")
    return len(failed)


def answer_of(case: NasCase, scored: Scores, winners: "Winners") -> list[str]:
    """Which of the networks trained in full to take, and what that cost by the first proxy alone."""
    rows = scored.of(case.primary.name)
    cost = Cost(
        sum(row.train_seconds + row.score_seconds for row in rows),
        case.primary.prepare_seconds,
        winners.seconds,
        of=f"by {case.primary.name} alone",
    )
    ordered = sorted(winners.rows, key=lambda row: not row["delivered"])
    ranked = len({row.network for row in rows})
    return answer(
        [choice_of(row) for row in ordered],
        cost,
        finalists=ranked,
        networks=len(case.space.candidates),
        decided_by=case.primary.name,
    )


def print_verdict(verdict: Verdict) -> None:
    """How the proxies agree with the reference."""
    say()
    print_table(f"Against {verdict.reference_name}", *table(verdict))
    if verdict.differences:
        say()
        print_table("Differences between proxies on the same networks", *difference_table(verdict))
    say()
    for sentence in summary(verdict):
        say(sentence)


def grouped(failed: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """(network, proxy, reason) with the proxies of one network and reason in one row."""
    found: dict[tuple[str, str], list[str]] = {}
    for network, proxy, reason in failed:
        proxies = found.setdefault((network, reason), [])
        if proxy not in proxies:
            proxies.append(proxy)
    return [(network, ", ".join(proxies), reason) for (network, reason), proxies in found.items()]


def print_winners(rows: list[dict[str, Any]]) -> None:
    """The networks that were trained in full."""
    print_table("Trained on the whole set", *trained_table(rows))


def verdict_of(case: NasCase, scored: Scores) -> Verdict | None:
    """The proxies judged by the reference, or None where there is none, or none for networks that were scored."""
    whole = [proxy for proxy in case.material.proxies if proxy.kind == "whole"]
    truth = truth_of(case, scored)
    name, seconds = str(case.command.nas.reference), 0.0
    if whole and not case.plan.reference:
        name = (
            f"test accuracy after {case.recipe.whole_epochs} epochs on all {whole[0].images} training images"
        )
        seconds = sum(row.train_seconds + row.score_seconds for row in scored.of(whole[0].name))
    others = case.material.without_whole
    if not truth or not others:
        return None
    verdict = judge(
        [
            ProxyScores(
                proxy.name,
                scored.complete(proxy.name, case.space.names),
                images=proxy.images,
                train_seconds=sum(row.train_seconds + row.score_seconds for row in scored.of(proxy.name)),
                prepare_seconds=_prepare_seconds(proxy, seconds),
            )
            for proxy in others
        ],
        truth,
        reference_name=name,
        reference_seconds=seconds,
        seed=case.command.seed,
        resamples=case.command.nas.resamples,
    )
    return replace(verdict, fit=scored.fit)


def _prepare_seconds(proxy: Proxy, reference_seconds: float) -> float | None:
    if proxy.kind != "fitted" or proxy.prepare_seconds is None:
        return proxy.prepare_seconds
    # Without the reference there is nothing to fit.
    return proxy.prepare_seconds + reference_seconds


def print_ranking(case: NasCase, scored: Scores) -> None:
    """The ten best networks by the first proxy."""
    scores = scored.complete(case.primary.name, case.space.names)
    costs = case.space.by_name
    best = sorted(scores, key=lambda network: -fmean(scores[network]))[:10]
    rows = [
        [
            network,
            _spread(scores[network]),
            _shown(costs[network].parameters),
            _shown(costs[network].multiply_adds),
        ]
        for network in best
    ]
    columns = ["network", f"{case.primary.name}", "parameters", "multiply-adds"]
    print_table(f"The best {len(rows)} of {len(scores)} networks by {case.primary.name}", columns, rows)


def facts(case: NasCase) -> dict[str, str]:
    """What a reader needs to judge and repeat the run."""
    command, settings, real = case.command, case.recipe.settings, case.real
    validation = 0 if real.validation is None else len(real.validation.labels)
    unsure = [distilled.method for distilled, _ in case.given if not held_out(distilled, real)]
    unseen = f"; {', '.join(unsure)} may have been distilled from some of them" if unsure else ""
    spent = times(case.store)
    shown = {"scoring_s": "scoring", "reference_s": "reference", "distill_s": "distillation"}
    walls = [f"{label} {format_duration(spent[key])}" for key, label in shown.items() if key in spent]
    return {
        "images": (
            f"{real.source.title}: {len(real.train.labels)} training, {validation} validation (held out, proxies"
            f" score on them{unseen}), {len(real.test.labels)} test images (reference and winner only)"
        ),
        "training on tiny sets": settings.told,
        "training on the whole set": f"{case.recipe.whole_epochs} epochs, otherwise the same",
        "early stopping": f"{case.recipe.steps} steps on the whole set",
        "seeds": (
            f"{command.nas.seeds} a proxy, {command.nas.reference_seeds} for the reference; of coresets and bootstrap"
            f" {command.seed}"
        ),
        **maker_facts(case.store),
        "wall time": ", ".join(walls) or "nothing was left to do",
        "command": command_line("atom-nas"),
    }


def _weights(scored: Scores) -> dict[str, str]:
    if scored.fit is None:
        return {}
    told = ", ".join(f"{name} {number(weight)}" for name, weight in scored.fit.weights.items())
    return {"weights of fitted": f"points of accuracy for one standard deviation of the ranks: {told}"}


def _busy(case: NasCase, scored: Scores) -> str:
    if not scored.wall_seconds or not scored.unit_seconds:
        return "nothing was left to do"
    share = scored.unit_seconds / (scored.wall_seconds * case.size.num_actors)
    return (
        f"{100 * share:.0f} %: {format_duration(scored.unit_seconds)} in trainings and scores on"
        f" {case.size.num_actors} workers, {format_duration(scored.wall_seconds)} from start to end (this driver)"
    )


def _spread(values: tuple[float, ...]) -> str:
    std = spread(values)
    return f"{fmean(values):.4g}" if std is None else f"{fmean(values):.1f} ± {std:.1f}"


def _shown(cost: int | None) -> str:
    return "?" if cost is None else f"{cost:,}"
