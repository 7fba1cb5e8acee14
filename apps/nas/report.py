"""The report of a verdict: one HTML page that opens anywhere, with its pictures inside and nothing to fetch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from html import escape
from statistics import fmean

from apps.nas.plots import (
    cost_quality_figure,
    interval,
    rank_flow_figure,
    ranks_of,
    scatter_figure,
    scores_of,
)
from apps.nas.summary import summary
from apps.nas.verdict import Difference, Estimate, Verdict
from apps.nas.verdict_table import p_text, trained_table
from apps.page import drawing, duration, number, page, spread, table

_FIGURES = (
    (
        scatter_figure,
        "Scores against truth",
        "Each panel is one proxy and each point one network: the closer the points come to a rising line, "
        "the more its score says; bars are one standard deviation over seeds of the reference.",
    ),
    (
        rank_flow_figure,
        "How ranks move",
        "Each line is one network, coloured if it is among the truly best: the fewer coloured lines fall, "
        "the safer the proxy; tied networks share a rank, and a gap means no score.",
    ),
    (
        cost_quality_figure,
        "Cost and quality",
        "Up is better and left is cheaper; bars are intervals, and a hollow marker leaves out the time "
        "that preparation took.",
    ),
)


def render_report(
    verdict: Verdict,
    *,
    title: str,
    facts: Mapping[str, str],
    failures: Sequence[tuple[str, str, str]] = (),
    winners: Sequence[Mapping[str, object]] = (),
    answer: Sequence[str] = (),
) -> str:
    """The verdict as one self-contained HTML page.

    Args:
        verdict: from `judge`.
        title: heading of the page.
        facts: what a reader needs to repeat the run: hardware, wall time, command, versions, split, seeds.
        failures: (network, proxy, reason), shown as they are.
        winners: networks that were trained in full, see `apps.nas.verdict_table.trained_table`.
        answer: which of them to take, in sentences, above all else.
    """
    sentences = _answer(answer) + "".join(f"<p>{escape(sentence)}</p>" for sentence in summary(verdict))
    parts = [f'<div class="summary">{sentences}</div>', *_verdict_tables(verdict)]
    for draw, heading, caption in _FIGURES:
        parts.append(f"<h2>{heading}</h2>" + drawing(partial(draw, verdict), caption))
    parts += ["<h2>Networks</h2>", _network_table(verdict)]
    return page(title, [*parts, *endings(facts, failures=failures, winners=winners)])


def endings(
    facts: Mapping[str, str],
    *,
    failures: Sequence[tuple[str, str, str]] = (),
    winners: Sequence[Mapping[str, object]] = (),
) -> list[str]:
    """The last parts of every report: what failed, what was trained in full, how to repeat it."""
    parts = []
    if failures:
        rows = [[escape(cell) for cell in failure] for failure in failures]
        parts += ["<h2>Failures</h2>", table(["network", "proxy", "reason"], rows, kind="wide text")]
    if winners:
        parts += ["<h2>Trained in full</h2>", trained_in_full(winners)]
    rows = [[escape(key), escape(value)] for key, value in facts.items()]
    return [*parts, "<h2>Facts</h2>", table(["what", "value"], rows, kind="wide text")]


def trained_in_full(winners: Sequence[Mapping[str, object]]) -> str:
    """The table of networks that were trained in full."""
    columns, cells = trained_table(winners)
    return table(columns, [[escape(cell) for cell in row] for row in cells])


def render_scores(
    scores: Mapping[str, Mapping[str, tuple[float, ...]]],
    *,
    title: str,
    facts: Mapping[str, str],
    failures: Sequence[tuple[str, str, str]] = (),
    winners: Sequence[Mapping[str, object]] = (),
    answer: Sequence[str] = (),
) -> str:
    """The scores alone as one page, where there is no reference to judge them by.

    Args:
        scores: by proxy, then by network: one score a seed; the first proxy orders the table.
        title, facts, failures, winners, answer: as for `render_report`.
    """
    means = {p: {n: fmean(values) for n, values in own.items()} for p, own in scores.items()}
    ranks = {proxy: ranks_of(own) for proxy, own in means.items()}
    first = next(iter(means), "")
    names = dict.fromkeys(n for own in means.values() for n in own)
    ordered = sorted(names, key=lambda n: ranks[first].get(n, math.inf))
    rows = [
        [
            escape(name),
            *(cell for p in means for cell in (_score_of(scores[p].get(name)), _rank_of(ranks[p].get(name)))),
        ]
        for name in ordered
    ]
    said = _answer(answer) + (
        "<p>There is no reference, so nothing here says how far these rankings can be trusted: pass "
        "--reference whole, or a table of whole-set accuracies.</p>"
    )
    heads = ["network", *["score", "rank"] * len(means)]
    groups = [("", 1), *((proxy, 2) for proxy in means)]
    parts = [f'<div class="summary">{said}</div>', "<h2>Networks</h2>", table(heads, rows, groups=groups)]
    return page(title, [*parts, *endings(facts, failures=failures, winners=winners)])


def _answer(sentences: Sequence[str]) -> str:
    first = "".join(f"<p><strong>{escape(sentence)}</strong></p>" for sentence in sentences[:1])
    return first + "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences[1:])


def _score_of(values: Sequence[float] | None) -> str:
    if not values:
        return "–"
    std = spread(values)
    return _score(fmean(values)) + ("" if std is None else f"<small>± {number(std)}</small>")


def _rank_of(rank: float | None) -> str:
    return "–" if rank is None else f"{rank:g}"


def _verdict_tables(verdict: Verdict) -> Iterable[str]:
    yield "<h2>Verdict</h2>" + _agreement_table(verdict)
    yield _note(
        f"In brackets: {100 * verdict.level:g} % bootstrap intervals over networks, {verdict.resamples:,} resamples. "
        "Times are summed over networks and seeds; train includes scoring. “–” means undefined or unknown. "
        "Subsets too small for any coefficient are left out."
    )
    if verdict.differences:
        yield "<h2>Differences</h2>" + _difference_table(verdict)
        yield _note(
            "First minus second, on the same resampled networks. Where the interval contains 0, the data do not "
            "tell the two apart. Nothing is adjusted for the number of comparisons."
        )
    yield "<h2>The best k</h2>" + _top_table(verdict)
    yield _note(
        "Of the k networks that a proxy puts first: the share that is in the true top k, the best true rank among "
        "them, and the accuracy in points that the best of them lacks to the best network."
    )


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'


def _agreement_table(verdict: Verdict) -> str:
    found = [one for proxy in verdict.proxies for one in proxy.agreement]
    subsets, rows = _told((one.subset, one.kendall.value) for one in found), []
    for proxy in verdict.proxies:
        row = [escape(proxy.name)]
        of = {agreement.subset: agreement for agreement in proxy.agreement}
        # What the page is for comes first: a phone shows the first columns.
        for subset in subsets:
            one = of.get(subset)
            row += [_cell(one.kendall), _cell(one.spearman), str(one.n)] if one else ["–"] * 3
        row += [escape(proxy.pick), number(proxy.pick_truth), f"{proxy.images:,}", str(proxy.num_seeds)]
        rows.append([*row, duration(proxy.prepare_seconds), duration(proxy.train_seconds)])
    heads = ["proxy", *["τ-b", "ρ", "n"] * len(subsets), "network", "accuracy, %"]
    groups = [("", 1), *((_group(subset), 3) for subset in subsets), ("its pick", 2), ("cost", 4)]
    return table([*heads, "images", "seeds", "prepare", "train"], rows, groups=groups)


def _difference_table(verdict: Verdict) -> str:
    subsets = _told((one.subset, one.estimate.value) for one in verdict.differences)
    pairs: dict[tuple[str, str], dict[tuple[str, str], Difference]] = {}
    for one in verdict.differences:
        pairs.setdefault((one.first, one.second), {})[one.subset, one.coefficient] = one
    rows = []
    for (first, second), of in pairs.items():
        row = [escape(f"{first} − {second}")]
        for subset in subsets:
            both = [of.get((subset, coefficient)) for coefficient in ("kendall", "spearman")]
            row.append(next((str(one.n) for one in both if one), "–"))
            for one in both:
                row += [_cell(one.estimate), escape(p_text(one.p))] if one else ["–", "–"]
        rows.append(row)
    heads = ["first − second", *["n", "τ-b", "p", "ρ", "p"] * len(subsets)]
    return table(heads, rows, groups=[("", 1), *((_group(subset), 5) for subset in subsets)])


def _told(values: Iterable[tuple[str, float | None]]) -> list[str]:
    """The subsets that get columns, in order: all networks, and those in which something is defined."""
    return list(dict.fromkeys(subset for subset, value in values if subset == "all" or value is not None))


def _group(subset: str) -> str:
    return "all networks" if subset == "all" else f"true {subset}"


def _top_table(verdict: Verdict) -> str:
    ks = sorted({top.k for proxy in verdict.proxies for top in proxy.top})
    rows = []
    for proxy in verdict.proxies:
        of = {top.k: top for top in proxy.top}
        precision = [_cell(of[k].precision) if k in of else "–" for k in ks]
        best_rank = [_cell(of[k].best_rank, 1) if k in of else "–" for k in ks]
        rows.append(
            [
                escape(proxy.name),
                *precision,
                *best_rank,
                *(_cell(of[k].regret) if k in of else "–" for k in ks),
            ]
        )
    groups = [("", 1), *((name, len(ks)) for name in ("precision", "best true rank", "regret, points"))]
    return table(["proxy", *[f"k = {k}" for k in ks] * 3], rows, groups=groups)


def _network_table(verdict: Verdict) -> str:
    columns = [
        (scores, ranks_of(scores)) for scores in (scores_of(proxy, verdict) for proxy in verdict.proxies)
    ]
    true_ranks, rows = ranks_of(verdict.truth), []
    for name in sorted(verdict.truth, key=lambda name: -verdict.truth[name]):
        spread = f" ± {number(verdict.truth_std.get(name))}" if verdict.ceiling.num_seeds > 1 else ""
        row = [escape(name), number(verdict.truth[name]) + spread, f"{true_ranks[name]:g}"]
        for scores, ranks in columns:
            row += [_score(scores[name]), f"{ranks[name]:g}"] if name in scores else ["–", "–"]
        rows.append(row)
    heads = ["network", "accuracy, %", "rank", *["score", "rank"] * len(columns)]
    groups = [("", 1), ("reference", 2), *((proxy.name, 2) for proxy in verdict.proxies)]
    listed = table(heads, rows, groups=groups, kind="wide tall")
    return f"<details><summary>All {len(rows)} networks, the truly best first</summary>{listed}</details>"


def _cell(estimate: Estimate, digits: int = 2) -> str:
    bounds = interval(estimate, digits)
    return number(estimate.value, digits) + (f"<small>{bounds}</small>" if bounds else "")


def _score(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1e9 or 0 < abs(value) < 0.005:
        return f"{value:.2e}".replace("-", "−")
    # Counts of parameters have no decimals, and stand beside larger ones; accuracies end at 100.
    return f"{value:,.0f}".replace("-", "−") if abs(value) >= 1_000 else number(value)
