"""Three pictures of an experiment on a stream: accuracy while classes arrive, forgetting, and the size of memory.

Figures are built without pyplot, so that nothing global is left behind and any thread may draw.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType
from numpy.typing import ArrayLike

from apps.continual.findings import REFERENCES, Group, cells_by_pair, classes_seen, group_of, size
from apps.continual.results import ContinualResults, Summary
from apps.page import NARROW

_ACCENT, _GREY, _INK = "#c8550b", "#7a8590", "#333333"
_COLORS = ("#2b6cb0", "#2f855a", "#8a4fa3", "#b08900", "#1f9aa8", "#c2417c", "#6b4f3a")
_MARKERS = ("s", "^", "D", "v", "P", "X", "*")
_DASHES: dict[str, LineStyleType] = {"finetune": ":", "joint": "--"}


def accuracy_figure(results: ContinualResults, *, narrow: bool = False) -> Figure:
    """One panel a learner: accuracy on the classes seen after each step, a line a memory, bands of one std.

    Lines of memories without a complete cell are thin, and end at the last step that all their cells have done.

    Args:
        results: of all cells.
        narrow: whether panels stand below each other, as a phone needs them.
    """
    pairs, styles = cells_by_pair(results), _styles(results)
    figure, panels = _panels(results, height=3.4, narrow=narrow)
    seen = np.array(classes_seen(results))
    for learner, axes in panels.items():
        for name in REFERENCES:
            for (other, _), cells in pairs.items():
                if other == name and (group := group_of(cells)):
                    _curve(axes, seen, group, color=_INK, linestyle=_DASHES[name])
        for (other, memory), cells in pairs.items():
            if other == learner and (group := group_of(cells)):
                color, marker = styles[memory]
                _curve(axes, seen, group, color=color, marker=marker)
        axes.set_xticks(seen if len(seen) <= 10 else seen[len(seen) % 5 or 4 :: 5])
        axes.set_xlabel("classes seen" if results.classes_grow else "step", fontsize=9)
    _percent_scale(panels.values())
    figure.supylabel(
        "accuracy on all classes seen, %" if results.classes_grow else "accuracy on all seen, %", fontsize=10
    )
    _legend(figure, results, narrow=narrow)
    return figure


def _curve(
    axes: Axes,
    seen: np.ndarray,
    group: Group,
    *,
    color: str,
    linestyle: LineStyleType = "-",
    marker: str = "",
) -> None:
    percent_CS, seen = group.seen_percent(), seen[: group.num_steps]
    mean = percent_CS.mean(axis=0)
    width = 1.8 if group.complete else 0.7
    axes.plot(
        seen,
        mean,
        color=color,
        linewidth=width,
        markersize=5 if group.complete else 3,
        linestyle=linestyle,
        marker=marker,
    )
    if len(percent_CS) > 1:
        low, high = _range(mean, percent_CS.std(axis=0, ddof=1))
        axes.fill_between(seen, low, high, color=color, alpha=0.14, linewidth=0)


def forgetting_figure(results: ContinualResults, *, narrow: bool = False) -> Figure:
    """One panel a learner: points forgotten by each memory in both definitions, whiskers of one std.

    Args:
        results, narrow: see `accuracy_figure`.
    """
    by_learner: dict[str, list[Summary]] = {}
    for row in results.summaries:
        key = "without replay" if row.learner in REFERENCES else row.learner
        by_learner.setdefault(key, []).append(row)
    tallest = max((len(rows) for rows in by_learner.values()), default=1)
    figure = Figure(layout="constrained")
    drawn = _grid(figure, len(by_learner), height=0.42 * tallest + 0.8, narrow=narrow)
    for axes, (learner, rows) in zip(drawn, by_learner.items(), strict=True):
        for offset, color, values in (
            (-0.2, _ACCENT, [row.forgetting for row in rows]),
            (0.2, "#f0b48a", [row.forgetting_first for row in rows]),
        ):
            places = np.arange(len(rows)) + offset
            whiskers = [std or 0.0 for _, std in values]
            axes.barh(places, [mean for mean, _ in values], height=0.38, color=color)
            axes.errorbar(
                [mean for mean, _ in values], places, xerr=whiskers, fmt="none", ecolor=_INK, elinewidth=1
            )
        names = [row.learner if row.learner in REFERENCES else row.memory for row in rows]
        axes.set_yticks(range(len(rows)), [_short(name) for name in names], parse_math=False)
        axes.set_ylim(tallest - 0.4, -0.6)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_xlabel("points forgotten, mean over steps", fontsize=9)
        _tidy(axes, learner)
    ends = [axes.get_xlim() for axes in drawn]
    for axes in drawn:
        axes.set_xlim(min(low for low, _ in ends), max(high for _, high in ends))
    handles = [
        Line2D([], [], color=color, linewidth=7, label=label)
        for color, label in (
            (_ACCENT, "from the best accuracy before"),
            ("#f0b48a", "from the first accuracy"),
        )
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=1 if narrow else 2, frameon=False, fontsize=9
    )
    return figure


def size_figure(results: ContinualResults, *, narrow: bool = False) -> Figure:
    """One panel a learner: final average accuracy against the bytes of the memory on a log axis.

    Memories of one size stand beside each other, and one of no bytes at the left edge.

    Args:
        results, narrow: see `accuracy_figure`.
    """
    styles = _styles(results)
    figure, panels = _panels(results, height=3.2, narrow=narrow)
    sizes = [row.memory_bytes for row in results.summaries if row.learner not in REFERENCES]
    known = [num_bytes for num_bytes in sizes if num_bytes > 0] or [1000]
    empty = min(known) / 6
    low, high = (empty / 2 if 0 in sizes else min(known) / 3), 3 * max(known)
    for learner, axes in panels.items():
        for row in results.summaries:
            if row.learner in REFERENCES:
                axes.axhline(row.final_average[0], color=_INK, linestyle=_DASHES[row.learner], linewidth=1.4)
        rows = [row for row in results.summaries if row.learner == learner]
        for row, shift in zip(rows, _shifts([row.memory_bytes for row in rows]), strict=True):
            x = (row.memory_bytes or empty) * (high / low) ** shift
            color, marker = styles[row.memory]
            mean, std = row.final_average
            axes.axvline(row.memory_bytes or empty, color=_GREY, linewidth=0.5)
            low_percent, high_percent = _range(mean, std or 0.0)
            whiskers = [[mean - low_percent], [high_percent - mean]] if std is not None else None
            axes.errorbar(x, mean, yerr=whiskers, color=color, marker=marker, markersize=7, capsize=3)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        ticks = _size_ticks(min(known) / 3, high)
        axes.set_xticks(ticks, [size(tick) for tick in ticks])
        if 0 in sizes:
            axes.set_xticks([empty, *ticks], ["0 B", *(size(tick) for tick in ticks)])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("memory after the last step (log scale)", fontsize=9)
    _percent_scale(panels.values())
    figure.supylabel("final average accuracy, %", fontsize=10)
    _legend(figure, results, narrow=narrow)
    return figure


def _range(mean: ArrayLike, std: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean ± std, as far as it is an accuracy in percent."""
    return np.clip(np.subtract(mean, std), 0, 100), np.clip(np.add(mean, std), 0, 100)


def _percent_scale(panels: Iterable[Axes]) -> None:
    """The scale that panels share, from 0 to a little above all that is drawn.

    For all at once, and last: a limit that is set freezes a shared scale at what is drawn by then.
    """
    panels = list(panels)
    highest = max(axes.dataLim.y1 for axes in panels)
    for axes in panels:
        axes.set_ylim(0, 1.04 * highest if highest > 0 else 100)


def _shifts(sizes: Sequence[int]) -> list[float]:
    """How far to move each point, as a share of the width, so that points of one size do not hide another."""
    shifts = []
    for place, num_bytes in enumerate(sizes):
        same = [other for other, value in enumerate(sizes) if value == num_bytes]
        shifts.append(0.03 * (same.index(place) - (len(same) - 1) / 2))
    return shifts


def _size_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < 300 * low else (1,)
    return [step * 10.0**power for power in decades for step in steps if low <= step * 10.0**power <= high]


def _panels(results: ContinualResults, *, height: float, narrow: bool) -> tuple[Figure, dict[str, Axes]]:
    """A panel a learner with replay, all on one scale; one for the references where there is none."""
    learners = list(dict.fromkeys(learner for learner, _ in cells_by_pair(results)))
    shown = [learner for learner in learners if learner not in REFERENCES] or ["without replay"]
    figure = Figure(layout="constrained")
    drawn = _grid(figure, len(shown), height=height, narrow=narrow, sharey=True)
    panels = dict(zip(shown, drawn, strict=True))
    for learner, axes in panels.items():
        _tidy(axes, learner)
    return figure, panels


def _grid(figure: Figure, number: int, *, height: float, narrow: bool, sharey: bool = False) -> list[Axes]:
    columns = 1 if narrow else {0: 1, 1: 1, 2: 2, 4: 2}.get(number, 3)
    rows = max(1, math.ceil(number / columns))
    figure.set_size_inches(
        NARROW if narrow else 11, (height if narrow or columns > 1 else 1.2 * height) * rows + 0.9
    )
    grid = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel()
    for axes in grid[number:]:
        axes.remove()
    return list(grid[:number])


def _styles(results: ContinualResults) -> dict[str, tuple[str, str]]:
    """Colour and marker of each memory, the same in all pictures."""
    memories = dict.fromkeys(r.cell.memory for r in results.cells if r.cell.learner not in REFERENCES)
    styles = {"distilled": (_ACCENT, "o"), "none": (_GREY, "x")}
    others = [memory for memory in memories if memory not in styles]
    for place, memory in enumerate(others):
        styles[memory] = (_COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)])
    return {memory: styles[memory] for memory in memories}


def _legend(figure: Figure, results: ContinualResults, *, narrow: bool) -> None:
    handles = [
        Line2D([], [], color=color, marker=marker, label=_short(memory))
        for memory, (color, marker) in _styles(results).items()
    ]
    learners = {result.cell.learner for result in results.cells}
    handles += [
        Line2D([], [], color=_INK, linestyle=_DASHES[name], label=label)
        for name, label in REFERENCES.items()
        if name in learners
    ]
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=2 if narrow else 5, frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set(parse_math=False)


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(_short(title), loc="left", fontsize=10, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def _short(name: str, letters: int = 30) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"
