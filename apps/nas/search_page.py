"""The report of a search: the answer, accuracy against cost, the climb, and what a rung cannot say of another."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from itertools import pairwise
from typing import Literal

from matplotlib.figure import Figure
from scipy import stats

from apps.nas.answer import Choice, front, told_costs
from apps.nas.report import trained_in_full
from apps.page import NARROW, drawing, duration, number, page, table

Status = Literal["finished", "stopped", "failed", "too slow"]
NOT_COMPARABLE = (
    "Scores at different rungs are of other images or shorter trainings, and do not compare with each other. For a "
    "ranking of all networks use --mode rank."
)
_FINISHED, _STOPPED = "#c8550b", "#2b6cb0"


@dataclass(frozen=True)
class Tried:
    """A network that a search has met.

    Attributes:
        network: its name.
        status: "finished": reached the top of the ladder; "stopped": on its way; "failed": at what it says; "too slow":
            not trained.
        scores: validation accuracy in percent by rung, such as "whole:2", of the rungs that it reached, in order.
        parameters, multiply_adds, latency_ms: its cost; None where unknown.
        order: mean rank before any training; None where the ladder begins with one.
        truth: accuracy in percent out of a reference, where there is one.
        reason: why it failed.
    """

    network: str
    status: Status
    scores: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    multiply_adds: int | None = None
    latency_ms: float | None = None
    order: float | None = None
    truth: float | None = None
    reason: str = ""

    @property
    def last(self) -> float | None:
        """The score at the highest rung that it reached."""
        return list(self.scores.values())[-1] if self.scores else None

    @property
    def choice(self) -> Choice:
        """As something to take, by its one training at the top of the ladder."""
        assert self.last is not None, "only asked of networks that were trained"
        costs = {"parameters": self.parameters, "multiply_adds": self.multiply_adds}
        return Choice(self.network, self.last, latency_ms=self.latency_ms, **costs)


@dataclass(frozen=True)
class RungReached:
    """What a rung has seen.

    Attributes:
        name: such as "synflow+naswot" or "whole:2".
        networks: that were scored there.
        seconds: of workers, shared by the rungs of one training: told at its last; None there.
        tau: Kendall's tau-b with the rung before, on the networks that reached both; None where it is undefined.
    """

    name: str
    networks: int
    seconds: float | None
    tau: float | None = None


def rungs_reached(
    tried: Sequence[Tried],
    rungs: Sequence[str],
    seconds: Mapping[str, float],
    *,
    order: str,
    ranks: Mapping[str, float],
) -> list[RungReached]:
    """What every rung has seen, from the ground up.

    Args:
        tried: all networks.
        rungs: names of the rungs that train, in order.
        seconds: of workers, by the rung that ends a training, and by `order`.
        order: name of the rung without training; empty where there is none.
        ranks: of all networks there.
    """
    columns: dict[str, dict[str, float]] = {}
    if order:
        columns[order] = dict(ranks)
    for rung in rungs:
        columns[rung] = {one.network: one.scores[rung] for one in tried if rung in one.scores}
    found: list[RungReached] = []
    before: dict[str, float] = {}
    for name, scores in columns.items():
        both = [network for network in scores if network in before]
        tau = None
        if len(both) >= 3:
            value = float(stats.kendalltau([before[n] for n in both], [scores[n] for n in both]).statistic)
            tau = value if value == value else None
        found.append(RungReached(name, len(scores), seconds.get(name), tau))
        before = scores
    return found


def best_first(tried: Sequence[Tried]) -> list[Tried]:
    """Networks by how far they came and by their score there, then those that failed or were not trained."""
    order = ("finished", "stopped", "too slow", "failed")
    return sorted(tried, key=lambda one: (order.index(one.status), -len(one.scores), -(one.last or 0.0)))


def climb_figure(tried: Sequence[Tried], rungs: Sequence[str], *, narrow: bool = False) -> Figure:
    """Validation accuracy in percent at every rung, a line a network; those that reached the top stand out."""
    figure = Figure(figsize=(NARROW if narrow else 11, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for status, colour, label in (
        ("stopped", _STOPPED, "stopped"),
        ("finished", _FINISHED, "reached the top"),
    ):
        for one in (one for one in tried if one.status == status and one.scores):
            places = [rungs.index(rung) for rung in one.scores]
            axes.plot(
                places,
                list(one.scores.values()),
                color=colour,
                marker="o",
                markersize=4,
                linewidth=1,
                alpha=0.7,
            )
        axes.plot([], [], color=colour, marker="o", label=label)
    axes.set_xticks(range(len(rungs)), list(rungs))
    axes.set_xlabel("rung")
    axes.set_ylabel("validation accuracy, %")
    _plain(axes)
    return figure


def front_figure(finished: Sequence[Choice], *, narrow: bool = False) -> Figure:
    """Accuracy at the top of the ladder against cost, and the front of those that no other network beats."""
    figure = Figure(figsize=(NARROW if narrow else 11, 4.6), layout="constrained")
    axes = figure.add_subplot()
    timed = all(choice.latency_ms is not None for choice in finished)
    cost = {c.network: float((c.latency_ms if timed else c.multiply_adds) or 0) for c in finished}
    known = [choice for choice in finished if cost[choice.network]]
    best = front(finished)
    axes.plot(
        [cost[c.network] for c in known], [c.validation for c in known], "o", color=_STOPPED, label="beaten"
    )
    axes.step(
        [cost[c.network] for c in best],
        [c.validation for c in best],
        where="post",
        color=_FINISHED,
        marker="o",
        label="front",
    )
    axes.set_xlabel("milliseconds for one image" if timed else "multiply-adds")
    axes.set_ylabel("validation accuracy, %")
    if not timed:
        axes.set_xscale("log")
    _plain(axes)
    return figure


def _plain(axes: object) -> None:
    axes.spines[["top", "right"]].set_visible(False)  # pyrefly: ignore
    axes.grid(color="#e5e8eb", linewidth=0.6)  # pyrefly: ignore
    axes.set_axisbelow(True)  # pyrefly: ignore
    axes.legend(frameon=False, fontsize=9)  # pyrefly: ignore


def render_search(
    tried: Sequence[Tried],
    rungs: Sequence[RungReached],
    *,
    title: str,
    sentences: Sequence[str],
    facts: Mapping[str, str],
    winners: Sequence[Mapping[str, object]] = (),
) -> str:
    """One self-contained HTML page.

    Args:
        tried: all networks.
        rungs: what each has seen, from the ground up; those without a score in `tried` are left out of the picture.
        title: heading of the page.
        sentences: the answer, the first of which says which network to take.
        facts: what a reader needs to repeat the run.
        winners: networks that were trained in full, see `apps.nas.verdict_table.trained_table`.
    """
    first, *others = sentences
    told = f"<p><strong>{escape(first)}</strong></p>" + "".join(f"<p>{escape(s)}</p>" for s in others)
    parts = [f'<div class="summary">{told}</div>']
    finished = [one.choice for one in tried if one.status == "finished"]
    if winners:
        parts += ["<h2>Trained in full</h2>", trained_in_full(winners)]
    if finished:
        caption = (
            "Networks at the top of the ladder, one training each. The line joins those that no other beats."
        )
        parts += ["<h2>Accuracy against cost</h2>", drawing(partial(front_figure, finished), caption)]
        rows = [
            [escape(c.network), number(c.validation), escape(told_costs(c))]
            for c in reversed(front(finished))
        ]
        parts.append(table(["on the front", "validation accuracy, %", "cost"], rows, kind="wide text"))
    trained = [rung.name for rung in rungs if any(rung.name in one.scores for one in tried)]
    if trained:
        caption = (
            "Each line is one network, and ends where it was stopped. The scores of two rungs do not compare."
        )
        parts += ["<h2>The climb</h2>", drawing(partial(climb_figure, tried, trained), caption)]
    parts += [
        _rung_table(rungs),
        f"<p>{escape(NOT_COMPARABLE)}</p>",
        "<h2>Networks</h2>",
        _networks(tried, trained),
    ]
    failures = [[escape(one.network), escape(one.reason)] for one in tried if one.status == "failed"]
    if failures:
        parts += ["<h2>Failures</h2>", table(["network", "reason"], failures, kind="wide text")]
    rows = [[escape(key), escape(value)] for key, value in facts.items()]
    parts += ["<h2>Facts</h2>", table(["what", "value"], rows, kind="wide text")]
    return page(title, parts)


def search_csv(tried: Sequence[Tried]) -> str:
    """A row a network, the best first: status, cost, and the score at every rung."""
    rungs = list(dict.fromkeys(rung for one in tried for rung in one.scores))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    fields = ("network", "status", "parameters", "multiply_adds", "latency_ms", "order", "truth", "reason")
    writer.writerow([*fields, *rungs])
    for one in best_first(tried):
        writer.writerow([*(getattr(one, name) for name in fields), *(one.scores.get(rung) for rung in rungs)])
    return buffer.getvalue()


def _rung_table(rungs: Sequence[RungReached]) -> str:
    before = ["", *(f" ({one.name})" for one, _ in pairwise(rungs))][: len(rungs)]
    rows = [
        [
            escape(rung.name),
            str(rung.networks),
            duration(rung.seconds),
            number(rung.tau) + escape(b if rung.tau else ""),
        ]
        for rung, b in zip(rungs, before, strict=True)
    ]
    return table(["rung", "networks", "worker time", "τ-b with the rung before"], rows, kind="wide text")


def _networks(tried: Sequence[Tried], rungs: Sequence[str]) -> str:
    optional = {
        "ms": [one.latency_ms for one in tried],
        "reference, %": [one.truth for one in tried],
    }
    heads = ["network", "end", *(f"{rung}, %" for rung in rungs), "parameters", "multiply-adds"]
    shown = [name for name, values in optional.items() if any(value is not None for value in values)]
    rows = []
    for one in best_first(tried):
        cells = [one.network, one.status, *(number(one.scores.get(rung)) for rung in rungs)]
        cells += ["–" if cost is None else f"{cost:,}" for cost in (one.parameters, one.multiply_adds)]
        cells += [number(one.latency_ms if name == "ms" else one.truth) for name in shown]
        rows.append([escape(cell) for cell in cells])
    return table([*heads, *shown], rows, kind="wide tall")
