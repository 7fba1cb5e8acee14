"""Three pictures of a verdict: scores against accuracy, how ranks move, and cost against rank quality.

Figures are built without pyplot, so that nothing global is left behind and any thread may draw.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, ScalarFormatter
from matplotlib.transforms import Bbox
from scipy.stats import rankdata

from apps.nas.verdict import Estimate, ProxyVerdict, Verdict
from apps.page import NARROW, number

_ACCENT, _BLUE, _GREY, _INK = "#c8550b", "#2b6cb0", "#9aa5b1", "#333333"
_LOG_SCORES = ("parameters", "multiply-adds")
_DENSE = 100
"""Networks above which points are drawn as pixels inside the SVG, and ranks on a log axis."""
_TIMES = {0.01: "10 ms", 0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h"}
_TIMES |= {36_000: "10 h", 86_400: "1 day", 864_000: "10 days", 8_640_000: "100 days"}


def ranks_of(values: Mapping[str, float]) -> dict[str, float]:
    """Rank of each network, 1 for the largest value; ties share their mid-rank.

    Example:
        >>> ranks_of({"a": 3.0, "b": 5.0, "c": 3.0})
        {'a': 2.5, 'b': 1.0, 'c': 2.5}
    """
    ranks = rankdata([-value for value in values.values()]) if values else []
    return {name: float(rank) for name, rank in zip(values, ranks, strict=True)}


def scores_of(proxy: ProxyVerdict, verdict: Verdict) -> dict[str, float]:
    """The proxy's mean scores of the networks that the reference knows, without NaN."""
    scores = proxy.mean_scores
    return {name: scores[name] for name in verdict.truth if not math.isnan(scores.get(name, math.nan))}


def kendall_of(proxy: ProxyVerdict, subset: str = "all") -> Estimate:
    """Kendall's tau-b of the proxy over a subset; all None where the verdict has no such subset."""
    found = (agreement.kendall for agreement in proxy.agreement if agreement.subset == subset)
    return next(found, Estimate(None, None, None))


def interval(estimate: Estimate, digits: int = 2) -> str:
    """The bounds in brackets, or nothing where they are undefined."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def true_top(truth: Mapping[str, float]) -> list[str]:
    """The truly best networks, best first: a rounded fifth of them, at least one and at most ten."""
    return sorted(truth, key=lambda name: -truth[name])[: min(10, max(1, math.floor(0.2 * len(truth) + 0.5)))]


def scatter_figure(verdict: Verdict, *, narrow: bool = False) -> Figure:
    """One panel a proxy: its mean score against the reference accuracy in percent, bars of one std.

    Networks that failed under the proxy, or that it scores -inf, stand at the left edge of its panel.

    Args:
        verdict: from `judge`.
        narrow: whether panels stand below each other, as a phone needs them.
    """
    columns = 1 if narrow else min(3, max(1, len(verdict.proxies)))
    rows = max(1, math.ceil(len(verdict.proxies) / columns))
    figure = Figure(figsize=(NARROW if narrow else 11, 3.0 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, proxy in zip(grid, verdict.proxies, strict=False):
        _scatter_panel(axes, proxy, verdict)
    for axes in grid[len(verdict.proxies) :]:
        axes.remove()
    # About fifteen letters an inch: a long name would be cut at both ends of a low figure.
    label = textwrap.fill(f"accuracy under {verdict.reference_name}, %", int(15 * figure.get_figheight()) - 8)
    figure.supylabel(label, fontsize=10, parse_math=False)
    marks = (
        (_ACCENT, "o", _ACCENT, f"true top {len(true_top(verdict.truth))}"),
        (_BLUE, "o", _BLUE, "other networks"),
        (_INK, "o", "none", "the proxy's pick"),
        (_INK, "x", _INK, "failed, no score"),
        (_INK, "<", _INK, "score −∞"),
    )
    handles = [
        Line2D(
            [], [], color=color, marker=marker, markerfacecolor=face, linestyle="", markersize=6, label=label
        )
        for color, marker, face, label in marks
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2 if narrow else 5, frameon=False, fontsize=9
    )
    return figure


def _scatter_panel(axes: Axes, proxy: ProxyVerdict, verdict: Verdict) -> None:
    truth, scores, dense = verdict.truth, scores_of(proxy, verdict), len(verdict.truth) > _DENSE
    finite = {name: score for name, score in scores.items() if math.isfinite(score)}
    x, y = list(finite.values()), [truth[name] for name in finite]
    spread = [verdict.truth_std.get(name) or 0.0 for name in finite]
    # An accuracy goes from 0 to 100 %, whatever its spread.
    whiskers = np.minimum([spread, spread], np.array([y, [100.0 - height for height in y]]))
    axes.errorbar(x, y, yerr=whiskers, fmt="none", ecolor=_GREY, elinewidth=0.9, rasterized=dense)
    top = set(true_top(truth))
    colors = [_ACCENT if name in top else _BLUE for name in finite]
    axes.scatter(x, y, s=8 if dense else 22, c=colors, alpha=0.75, linewidths=0, rasterized=dense, zorder=3)
    if proxy.pick in finite:
        ring = (finite[proxy.pick], truth[proxy.pick])
        axes.scatter(*ring, s=90, facecolors="none", edgecolors=_INK, zorder=4)
    failed = [truth[name] for name in truth if name not in scores]
    lowest = [truth[name] for name in scores if name not in finite]
    for heights, marker in ((failed, "x"), (lowest, "<")):
        left = np.full(len(heights), 0.02)
        # Placed by the panel's edge, they would not count for its limits, and could lie beyond.
        axes.update_datalim([(0.0, height) for height in heights], updatex=False)
        axes.scatter(left, heights, marker=marker, s=20, color=_INK, transform=axes.get_yaxis_transform())
    low, high = min(x, default=0.0), max(x, default=0.0)
    log = low > 0 and (high > 1000 * low or (high > 3 * low and proxy.name in _LOG_SCORES))
    axes.set_xscale("log" if log else "linear")
    if log:
        _few_log_ticks(axes)
    axes.set_xlabel("score (log scale)" if log else "score", fontsize=9)
    tau = kendall_of(proxy)
    coverage = "" if proxy.n == len(truth) else f", n = {proxy.n} of {len(truth)}"
    title = f"{_short(proxy.name, 34)}\nτ-b {number(tau.value)} {interval(tau)}".rstrip() + coverage
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    _tidy(axes)


def _few_log_ticks(axes: Axes) -> None:
    """At most five labels such as "20k": a range within one decade has ten, which overprint each other."""
    left, right = axes.get_xlim()
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        powers = range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if left <= tick <= right]
        if len(ticks) >= 3:
            break
    axes.set_xticks(ticks[:: math.ceil(len(ticks) / 5)] if ticks else [left, right])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def rank_flow_figure(verdict: Verdict, *, narrow: bool = False) -> Figure:
    """How each network's rank moves from the reference to every proxy, best proxy by tau-b first.

    Lines of the true top are coloured. A line has a gap where the network has no score.

    Args:
        verdict, narrow: see `scatter_figure`.
    """
    proxies = sorted(verdict.proxies, key=lambda proxy: -_or(kendall_of(proxy).value, -2.0))
    columns = [ranks_of(verdict.truth), *(ranks_of(scores_of(proxy, verdict)) for proxy in proxies)]
    names, top = list(verdict.truth), true_top(verdict.truth)
    dense = len(names) > _DENSE
    lines = {name: np.array([column.get(name, math.nan) for column in columns]) for name in names}
    figure = Figure(figsize=(NARROW, 7.4) if narrow else (11, 6.4), layout="constrained")
    axes = figure.subplots()
    others = [np.column_stack([np.arange(len(columns)), lines[name]]) for name in names if name not in top]
    # One opaque grey: where hundreds of lines cross, shades carry nothing and make the file large.
    grey = LineCollection(
        others, colors="#d9dee3" if dense else "#c3cad1", linewidths=0.4 if dense else 0.9, rasterized=dense
    )
    axes.add_collection(grey)
    for place, name in enumerate(top):
        color = matplotlib.colormaps["viridis"](0.88 * place / max(1, len(top) - 1))
        label = f"{place + 1}  {_short(name, 30)}"
        axes.plot(lines[name], color=color, linewidth=2, marker="o", markersize=5, label=label)
    if top:
        below: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.02)}
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
        legend = axes.legend(title="true rank", frameon=False, **(below if narrow else beside))
        for text in legend.get_texts():
            text.set(parse_math=False, fontsize=8)
    heads = [f"{_short(proxy.name, 14)}\nτ-b {number(kendall_of(proxy).value)}" for proxy in proxies]
    axes.set_xticks(
        range(len(columns)),
        ["reference", *heads],
        fontsize=8.5,
        parse_math=False,
        rotation=90 if narrow else 0,
    )
    axes.xaxis.tick_top()
    axes.set_xlim(-0.3, len(columns) - 0.7)
    _rank_axis(axes, len(names), log=dense)
    return figure


def _rank_axis(axes: Axes, num_networks: int, *, log: bool) -> None:
    ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] if log else [1, *range(5, _DENSE + 1, 5)]
    axes.set_yscale("log" if log else "linear")
    axes.set_yticks([tick for tick in ticks if tick <= num_networks])
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(num_networks * 1.15 if log else num_networks + 0.6, 0.85 if log else 0.4)
    axes.set_ylabel("rank, 1 is best" + (" (log scale)" if log else ""), fontsize=10)
    _tidy(axes)


def cost_quality_figure(verdict: Verdict, *, narrow: bool = False) -> Figure:
    """Tau-b over all networks with its interval against the time for preparation, training and scoring.

    A hollow marker stands at the time without preparation. Proxies without a tau-b are left out.

    Args:
        verdict, narrow: see `scatter_figure`.
    """
    figure = Figure(figsize=(NARROW, 6.0) if narrow else (11, 5.4), layout="constrained")
    axes = figure.subplots()
    shown = [proxy for proxy in verdict.proxies if kendall_of(proxy).value is not None]
    times = [verdict.reference_seconds, *(proxy.train_seconds for proxy in shown)]
    # A log axis has no zero: scores that took no time stand a little left of the least time above it.
    floor = min((time for time in times if time > 0), default=1.0) / 3
    names, bars = [], []
    for proxy in shown:
        tau = kendall_of(proxy)
        value = _or(tau.value, 0.0)
        train = max(floor, proxy.train_seconds)
        total = max(floor, proxy.train_seconds + _or(proxy.prepare_seconds, 0.0))
        color, marker = (_ACCENT, "o") if proxy.images else (_BLUE, "s")
        known = proxy.prepare_seconds is not None
        axes.plot([total, total], [_or(tau.low, value), _or(tau.high, value)], color=color, alpha=0.6)
        axes.plot([train, total], [value, value], color=color, linewidth=1, linestyle=":")
        axes.plot(train, value, marker, color=color, markerfacecolor="white", markersize=8)
        axes.plot(total, value, marker if known else "", color=color, markersize=8)
        names.append(_short(proxy.name, 24) + ("" if known else " (preparation ?)"))
        bars.append(
            [(total, value), (total, _or(tau.low, value)), (total, _or(tau.high, value)), (train, value)]
        )
    if not shown:
        axes.text(0.5, 0.5, "No proxy has a τ-b here.", ha="center", transform=axes.transAxes)
    _cost_axes(figure, axes, verdict, narrow=narrow)
    _label_points(figure, axes, names, bars)
    return figure


def _cost_axes(figure: Figure, axes: Axes, verdict: Verdict, *, narrow: bool) -> None:
    axes.axhline(0, color=_GREY, linewidth=0.8)
    axes.plot([], [], "o", color=_ACCENT, label="trains on images")
    axes.plot([], [], "s", color=_BLUE, label="stores no images")
    axes.plot([], [], "o:", color=_INK, markerfacecolor="white", label="without preparation")
    if verdict.reference_seconds > 0:
        axes.axvline(
            verdict.reference_seconds, color=_INK, linestyle="--", linewidth=1, label="cost of the reference"
        )
    if verdict.ceiling.kendall is not None:
        label = "ceiling: agreement of two reference seeds"
        axes.axhline(verdict.ceiling.kendall, color=_INK, linestyle="-.", linewidth=1, label=label)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    ticks = [tick for tick in _TIMES if left <= tick <= right]
    ticks = ticks[:: math.ceil(len(ticks) / 4)] if narrow and ticks else ticks
    axes.set_xticks(ticks, [_TIMES[tick] for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(top=1.02)
    what = (
        "time in all: preparation,\ntraining and scoring"
        if narrow
        else "time in all: preparation, training and scoring"
    )
    axes.set_xlabel(f"{what} (log scale)", fontsize=10)
    axes.set_ylabel("Kendall's τ-b, all networks", fontsize=10)
    figure.legend(loc="outside lower center", ncols=1 if narrow else 5, frameon=False, fontsize=9)
    _tidy(axes)


def _label_points(
    figure: Figure, axes: Axes, names: Sequence[str], bars: Sequence[Sequence[tuple[float, float]]]
) -> None:
    """Put each name where it covers least, of ten places about its marker; sizes are pixels of the canvas."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = [axes.transData.transform(bar) for bar in bars]
    taken = [Bbox([bar[i], bar[j]]).padded(6) for bar in pixels for i, j in ((1, 2), (0, 3))]
    for name, bar in zip(names, bars, strict=True):
        choices = []
        for dx, dy in ((x, y) for y in (5, -12, 15, -22, 27) for x in (8, -8)):
            side = "left" if dx > 0 else "right"
            text = axes.annotate(
                name, bar[0], (dx, dy), textcoords="offset points", ha=side, parse_math=False
            )
            text.set_fontsize(9)
            box = text.get_window_extent(canvas.get_renderer())
            common = [Bbox.intersection(box, other) for other in taken]
            covered = sum(area.width * area.height for area in common if area is not None)
            outside = box.x0 < axes.bbox.x0 or box.x1 > axes.bbox.x1
            choices.append((covered + 1e6 * outside, len(choices), text, box))
        *_, box = best = min(choices)
        taken.append(box)
        for choice in choices:
            if choice is not best:
                choice[2].remove()


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def _short(name: str, letters: int) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
