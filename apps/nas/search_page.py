"""The report of a search that stops networks early: what was tried, one picture, and what the scores cannot say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Literal

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from apps.page import NARROW, drawing, number, page, plain, table

Status = Literal["finished", "stopped", "failed"]
NOT_COMPARABLE = (
    "The scores of stopped networks belong to shorter trainings: they compare neither with those of finished ones "
    "nor with each other. For a ranking use --mode rank."
)
_COLOURS: Mapping[Status, str] = {"finished": "#c8550b", "stopped": "#2b6cb0", "failed": "#333333"}


@dataclass(frozen=True)
class Tried:
    """A network that a search has tried.

    Attributes:
        network: its name.
        status: "finished": trained to the end; "stopped": on its way; "failed": not trained.
        score: validation accuracy in percent after `epochs`; None where it failed.
        epochs: trained.
        parameters, multiply_adds: its cost; None where unknown.
        truth: accuracy in percent out of a reference, where there is one.
        reason: why it failed.
    """

    network: str
    status: Status
    score: float | None
    epochs: int
    parameters: int | None = None
    multiply_adds: int | None = None
    truth: float | None = None
    reason: str = ""


def pick_of(tried: Sequence[Tried]) -> Tried | None:
    """The finished network with the best score; among equals the one of fewer multiply-adds, then the first."""
    finished = [one for one in tried if one.status == "finished" and one.score is not None]
    return max(finished, key=lambda one: (one.score or 0.0, -(one.multiply_adds or 0)), default=None)


def best_first(tried: Sequence[Tried]) -> list[Tried]:
    """Finished networks by score, then stopped ones by how far they came and by score, then failed ones."""
    order = ("finished", "stopped", "failed")
    return sorted(tried, key=lambda one: (order.index(one.status), -one.epochs, -(one.score or 0.0)))


def search_figure(tried: Sequence[Tried], *, narrow: bool = False) -> Figure:
    """Last validation accuracy in percent by the order in which the networks ended; failed ones stand at the foot."""
    figure = Figure(figsize=(NARROW if narrow else 11, 4.6), layout="constrained")
    axes = figure.subplots()
    lowest = min((one.score for one in tried if one.score is not None), default=0.0)
    for status, colour in _COLOURS.items():
        points = [(place, one) for place, one in enumerate(tried, 1) if one.status == status]
        if points:
            heights = [lowest if one.score is None else one.score for _, one in points]
            marker = {"finished": "o", "stopped": "v", "failed": "x"}[status]
            label = f"{status} ({len(points)})"
            axes.scatter([place for place, _ in points], heights, c=colour, marker=marker, s=34, label=label)
    axes.set_xlabel("trial, in the order of their ends")
    axes.set_ylabel("validation accuracy at its end, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    if tried:
        axes.legend(frameon=False, fontsize=9)
    return figure


def render_search(
    tried: Sequence[Tried],
    *,
    title: str,
    sentences: Sequence[str],
    facts: Mapping[str, str],
    winners: Sequence[Mapping[str, object]] = (),
) -> str:
    """One self-contained HTML page.

    Args:
        tried: all networks, in the order in which they ended.
        title: heading of the page.
        sentences: what came out.
        facts: what a reader needs to repeat the run.
        winners: rows of a table of networks that were trained in full; keys become columns.
    """
    caption = "Each point is one network. A stopped one is drawn where it stood when it was stopped."
    told = "".join(f"<p>{escape(sentence)}</p>" for sentence in (*sentences, NOT_COMPARABLE))
    parts = [
        f'<div class="summary">{told}</div>',
        "<h2>The search</h2>" + drawing(partial(search_figure, tried), caption),
        "<h2>Networks</h2>",
        _networks(tried),
    ]
    failures = [[escape(one.network), escape(one.reason)] for one in tried if one.status == "failed"]
    if failures:
        parts += ["<h2>Failures</h2>", table(["network", "reason"], failures, kind="wide text")]
    if winners:
        keys = list(dict.fromkeys(key for winner in winners for key in winner))
        rows = [[escape(plain(winner.get(key))) for key in keys] for winner in winners]
        parts += ["<h2>Winners</h2>", table(keys, rows)]
    rows = [[escape(key), escape(value)] for key, value in facts.items()]
    parts += ["<h2>Facts</h2>", table(["what", "value"], rows, kind="wide text")]
    return page(title, parts)


def _networks(tried: Sequence[Tried]) -> str:
    trial = {one.network: place for place, one in enumerate(tried, 1)}
    with_truth = any(one.truth is not None for one in tried)
    heads = ["network", "end", "validation accuracy, %", "epochs", "trial", "parameters", "multiply-adds"]
    rows = []
    for one in best_first(tried):
        cells = [one.network, one.status, number(one.score), str(one.epochs), str(trial[one.network])]
        cells += ["–" if cost is None else f"{cost:,}" for cost in (one.parameters, one.multiply_adds)]
        rows.append([escape(cell) for cell in cells] + ([number(one.truth)] if with_truth else []))
    return table(heads + (["reference, %"] if with_truth else []), rows, kind="wide tall")
