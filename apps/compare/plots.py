"""The picture of a comparison: accuracy against the seconds that the images took.

Built without pyplot, so that nothing global is left behind and any thread may draw.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from apps.compare.results import Compared, Entry
from apps.page import NARROW, duration

_INK, _GREY = "#333333", "#7a8590"
_COLORS = ("#c8550b", "#2b6cb0", "#2f855a", "#8a4fa3", "#b08900", "#1f9aa8", "#c2417c", "#6b4f3a", "#4a5568")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")
_DASHES = (":", "--", "-.", (0, (5, 1)))


def cost_figure(compared: Compared, *, narrow: bool = False) -> Figure:
    """A panel a table and network: accuracy against worker-seconds on a log axis; what took none is a line across.

    Rows of unknown cost have no place.

    Args:
        compared: all rows.
        narrow: whether panels stand below each other, as a phone needs them.
    """
    panels = [(ipc, network) for ipc in compared.ipcs for network in compared.networks]
    columns = 1 if narrow else min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(NARROW if narrow else 9.6, 3.4 * rows + 0.6), layout="constrained")
    names = list(dict.fromkeys(entry.method for entry in compared.entries if _timed(entry)))
    styles = {name: (_COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(names)}
    for place, (ipc, network) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        shown = [entry for entry in compared.of(ipc) if entry.mean(network) is not None]
        _points(axes, [entry for entry in shown if _timed(entry)], network, styles)
        _lines(axes, [entry for entry in shown if entry.cost.distil_s == 0], network)
        axes.set_title(f"{network}, {ipc} a class", fontsize=10, loc="left", parse_math=False)
        axes.set_xlabel("worker-seconds of distillation", fontsize=9)
        axes.set_ylabel("test accuracy, %", fontsize=9)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", markersize=6, label=name)
        for name, (color, marker) in styles.items()
    ]
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=2 if narrow else 5, frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _timed(entry: Entry) -> bool:
    return bool(entry.cost.distil_s)


def _points(axes: Axes, entries: Sequence[Entry], network: str, styles: dict[str, tuple[str, str]]) -> None:
    for entry in entries:
        color, marker = styles[entry.method]
        mean, seconds = entry.mean(network) or 0.0, entry.cost.distil_s or 0.0
        axes.errorbar(
            seconds, mean, yerr=entry.std(network), fmt=marker, color=color, markersize=7, elinewidth=1.2
        )
    if entries:
        axes.set_xscale("log")
        all_s = [entry.cost.distil_s or 0.0 for entry in entries]
        left, right = min(all_s) / 2, max(all_s) * 2
        axes.set_xlim(left, right)
        ticks = [tick for tick in _TICKS if left <= tick <= right]
        axes.set_xticks(ticks, [duration(tick) for tick in ticks])
        axes.minorticks_off()
    else:
        axes.set_xticks([])


_TICKS = (1, 3, 10, 30, 100, 300, 600, 1800, 3600, 10_800, 36_000, 86_400, 259_200)


_ABREAST = 6
"""Names that fit beside each other; further ones stand above."""


def _lines(axes: Axes, entries: Sequence[Entry], network: str) -> None:
    for place, entry in enumerate(entries):
        mean = entry.mean(network) or 0.0
        axes.axhline(mean, color=_GREY, linewidth=1, linestyle=_DASHES[place % len(_DASHES)], zorder=0)
        axes.annotate(
            entry.method,
            # Each at a place of its own: lines of equal height would hide each other's names.
            (0.02 + 0.16 * (place % _ABREAST), mean),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2 + 9 * (place // _ABREAST)),
            textcoords="offset points",
            fontsize=7.5,
            color=_INK,
            parse_math=False,
        )


__all__ = ["cost_figure"]
