"""The report of an experiment on a stream: one HTML page that opens anywhere and fetches nothing."""

# S steps

import base64
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape

import numpy as np
from matplotlib.figure import Figure

from apps.continual.findings import cells_by_pair, findings, gains, group_of, percent, size
from apps.continual.plots import accuracy_figure, forgetting_figure, size_figure
from apps.continual.results import (
    ON_STATISTICS,
    CellResult,
    ContinualResults,
    Spread,
    Summary,
    on_whitening,
)
from apps.page import drawing, duration, number, page, table

_SHOWN_STEPS = 20
"""Rows and columns of a matrix on the page; of longer streams only so many steps are printed."""

_Drawing = tuple[Callable[..., Figure], str, str]
_ACCURACY: _Drawing = (
    accuracy_figure,
    "Accuracy as classes arrive",
    "Each panel is one learner and each line one memory, the mean over its complete cells; bands are one standard "
    "deviation over class orders and seeds. A thin line has no complete cell and ends early.",
)
_MORE_CLASSES = (
    " Later points have more classes to tell apart, so lines fall even where nothing is forgotten."
)
_FORGETTING: _Drawing = (
    forgetting_figure,
    "Forgetting",
    "Shorter is better; whiskers are one standard deviation. Dark bars count from the best accuracy on a step before "
    "the last, light ones from the first; both are negative where later steps helped. A learner that starts "
    "afresh in every step forgets only through its memory.",
)
_SIZE: _Drawing = (
    size_figure,
    "Accuracy and size of the memory",
    "Up is better and left is smaller; whiskers are one standard deviation. Bytes are those of the images as stored; "
    "points of the same size are moved apart, to both sides of the line at their size.",
)


def render_continual(
    results: ContinualResults, *, title: str, memory_pictures: Mapping[str, bytes] | None = None
) -> str:
    """The results as one self-contained HTML page.

    Args:
        results: all cells, incomplete ones too, with the summaries of the complete ones.
        title: heading of the page.
        memory_pictures: PNG files by memory, what each holds at the end of one class order.
    """
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in findings(results))
    reading = _note(_READING.format(images=f"{escape(results.score_on)} images"))
    if any(row.other_on_seen_last for row in results.summaries):
        reading += _note(ON_STATISTICS)
    if results.whitening_bytes:
        reading += _note(on_whitening(results.whitening_bytes))
    parts = [
        _result_table(results),
        f"<details><summary>How to read this table</summary>{reading}</details>",
        f'<ul class="summary">{sentences}</ul>',
    ]
    parts += _gain_table(results)
    if any(result.steps for result in results.cells):
        draw, heading, caption = _ACCURACY
        if results.classes_grow:
            parts.append(_drawn(results, (draw, heading, caption + _MORE_CLASSES)))
        else:
            parts.append(_drawn(results, (draw, "Accuracy step by step", caption)))
    if results.summaries:
        parts += [
            _drawn(results, one) for one in (_FORGETTING, _SIZE) if one is _SIZE or results.num_steps > 1
        ]
    parts += [
        *_matrices(results),
        *_classes(results),
        *_pictures(memory_pictures or {}),
        *_incomplete(results),
    ]
    if results.failures:
        rows = [[escape(cell), escape(reason)] for cell, reason in results.failures]
        parts += ["<h2>Failures</h2>", table(["cell", "reason"], rows, kind="wide text")]
    facts = {"stream": results.stream, **results.facts}
    rows = [[escape(key), escape(value)] for key, value in facts.items()]
    return page(title, [*parts, "<h2>Facts</h2>", table(["what", "value"], rows, kind="wide text")])


_READING = (
    "Means over the complete cells ± one standard deviation over class orders and training seeds together, which is "
    "not an interval of the mean. Accuracies are on {images}, in percent and class-incremental: the network is not "
    "told the step, except under “step told”. Average: mean over steps of the accuracy after the last one; "
    "incremental: mean over time of the accuracy on all classes seen. Forgetting is in points, the mean over steps but "
    "the last: from the best accuracy before the last step (Chaudhry et al.), where no step counts below 0 (Mammoth), "
    "and from the first accuracy (Avalanche; backward transfer has the other sign). "
    "Bytes are those of the images as stored after the last step; what joint keeps is not counted. Distillation is "
    "timed once for all cells, training summed over them. Under the complete cells: class orders × seeds among them. "
    "“–” means undefined or unknown."
)


def _result_table(results: ContinualResults) -> str:
    rows, of = [], {(row.learner, row.memory): row for row in results.summaries}
    for (learner, memory), cells in cells_by_pair(results).items():
        row = of.get((learner, memory))
        done = f"{sum(result.complete for result in cells)} of {len(cells)}"
        done += f"<small>{row.num_orders} × {row.num_seeds}</small>" if row else ""
        values = _values(row, forgets=results.num_steps > 1) if row else ["–"] * 10
        rows.append([escape(learner), escape(memory), done, *values])
    heads = ["learner", "memory", "complete", "average", "incremental", "all classes", "step told"]
    heads += ["from best", "at least 0", "from first", "kept", "distil", "train"]
    groups = [("", 2), ("cells", 1), ("accuracy, %", 4), ("forgetting", 3), ("memory", 1)]
    return table(heads, rows, groups=[*groups, ("time", 2)])


def _values(row: Summary, *, forgets: bool) -> list[str]:
    accuracies = (row.final_average, row.average_incremental, row.on_seen_last, row.task_final_average)
    losses = (row.forgetting, row.forgetting_max, row.forgetting_first)
    average, incremental, on_seen, told = (_cell(value) for value in accuracies)
    if row.other_on_seen_last is not None:
        # No column of its own: the table is as wide as a page already.
        others = "as trained" if row.statistics == "step" else "by the step"
        on_seen += f"<small>{others}: {percent(row.other_on_seen_last)}</small>"
    return [
        *(average, incremental, on_seen, told),
        *(_cell(value) if forgets else "–" for value in losses),
        f"{size(row.memory_bytes)}<small>{row.memory_images:,} images</small>",
        duration(row.distil_seconds),
        duration(row.train_seconds),
    ]


def _gain_table(results: ContinualResults) -> Iterable[str]:
    of = {(gain.memory, gain.learner): gain for gain in gains(results)}
    if not of:
        return
    memories, learners = (
        dict.fromkeys(memory for memory, _ in of),
        dict.fromkeys(learner for _, learner in of),
    )
    rows = []
    for memory in memories:
        row = [escape(memory)]
        for one in (of.get((memory, learner)) for learner in learners):
            row += [_cell(one.points), f"{one.num_ahead} of {one.num_pairs}"] if one else ["–", "–"]
        rows.append(row)
    heads = ["memory", *["points", "ahead"] * len(learners)]
    groups = [("", 1), *((learner, 2) for learner in learners)]
    yield "<h2>Compared with random</h2>" + table(heads, rows, groups=groups)
    yield _note(
        "Average accuracy at the end minus that of random, over pairs of cells with the same class order and seed: "
        "mean ± one standard deviation, and the pairs in which the memory is ahead of random. Nothing is adjusted for "
        "the number of comparisons."
    )


def _drawn(results: ContinualResults, one: _Drawing) -> str:
    draw, heading, caption = one
    return f"<h2>{heading}</h2>" + drawing(partial(draw, results), caption)


def _matrices(results: ContinualResults) -> Iterable[str]:
    by_learner: dict[str, list[str]] = {}
    for (learner, memory), cells in cells_by_pair(results).items():
        by_learner.setdefault(learner, []).append(_matrix(memory, cells, results))
    if not by_learner:
        return
    few = (
        f" Of {results.num_steps} steps, {_SHOWN_STEPS} are shown."
        if results.num_steps > _SHOWN_STEPS
        else ""
    )
    yield "<h2>Accuracy on each step</h2>" + _note(
        f"Row i, column j: mean accuracy in percent on the {escape(results.score_on)} images of step j after step i, "
        "class-incremental, over the complete cells. The stronger the colour, the higher. Down a column a step is "
        "forgotten; the diagonal is what was just learnt." + few
    )
    yield _arrivals(results)
    for learner, tables in by_learner.items():
        boxes = "".join(f'<div class="wide" style="max-width:100%">{one}</div>' for one in tables)
        yield f'<h3>{escape(learner)}</h3><div style="display:flex;flex-wrap:wrap;gap:0 2rem">{boxes}</div>'


def _arrivals(results: ContinualResults) -> str:
    """Which classes come at which step, in every class order."""
    rows = [
        [str(order), *(escape(", ".join(names)) for names in steps)] for order, steps in results.steps.items()
    ]
    heads = ["class order", *(f"step {step + 1}" for step in range(results.num_steps))]
    return (
        f"<details><summary>What comes at each step</summary>{table(heads, rows, kind='wide tall')}</details>"
    )


def _classes(results: ContinualResults) -> Iterable[str]:
    """Mean accuracy on each class after the last step, a column a memory and learner."""
    means: dict[tuple[str, str], dict[str, float]] = {}
    for pair, cells in cells_by_pair(results).items():
        lasts = [r.steps[-1].by_class for r in cells if r.complete and r.steps and r.steps[-1].by_class]
        if lasts:
            means[pair] = {name: float(np.mean([last[name] for last in lasts])) for name in lasts[0]}
    if not means:
        return
    rows = [
        [escape(name), str(images), *(number(of_class[name], 1) for of_class in means.values())]
        for name, images in results.class_images.items()
    ]
    groups = [("", 2), *Counter(learner for learner, _ in means).items()]
    heads = ["class", "images", *(memory for _, memory in means)]
    yield "<h2>Accuracy on each class</h2>" + table(heads, rows, groups=groups, kind="wide tall")
    yield _note(
        f"Mean accuracy in percent on the {escape(results.score_on)} images of the class after the last step, "
        "class-incremental, over the complete cells, whatever the step in which the class came."
    )


def _matrix(memory: str, cells: list[CellResult], results: ContinualResults) -> str:
    group, num_steps = group_of(cells), results.num_steps
    if group is None:
        return f'<p class="note"><b>{escape(memory)}</b>: no step is done</p>'
    shown = np.unique(np.linspace(0, num_steps - 1, min(num_steps, _SHOWN_STEPS)).round().astype(int))
    state = f"{len(group.cells)} of {len(cells)} cells"
    if not group.complete:
        state = f"incomplete: {group.num_steps} of {num_steps} steps by {state}"
    percent_SS = np.full((num_steps, num_steps), np.nan)
    percent_SS[: group.num_steps, : group.num_steps] = group.mean_percent()
    heads = "".join(f"<th>{step + 1}</th>" for step in shown)
    if len(results.steps) == 1:
        # With several class orders a step has other classes in each.
        (steps,) = results.steps.values()
        names = "".join(f"<th><small>{_few(steps[step])}</small></th>" for step in shown)
        heads += f"</tr><tr><th></th>{names}"
    body = "".join(
        f'<tr><th scope="row">{i + 1}</th>{"".join(_heat(percent_SS[i, j]) for j in shown)}</tr>'
        for i in shown
    )
    caption = f'<caption style="text-align:left"><b>{escape(memory)}</b> <small>{state}</small></caption>'
    return f"<table>{caption}<thead><tr><th>after</th>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _few(names: Sequence[str]) -> str:
    """Names of classes as they fit above a column, below each other."""
    shown = names if len(names) < 4 else [*names[:2], f"+ {len(names) - 2}"]
    return "<br>".join(escape(name if len(name) < 12 else f"{name[:10]}…") for name in shown)


def _heat(percent: float) -> str:
    if np.isnan(percent):
        return "<td></td>"
    # Never opaque, so that dark and light text can both be read on it.
    return f'<td style="background:rgba(232,126,36,{0.0075 * percent:.2f})">{number(percent, 1)}</td>'


def _pictures(memory_pictures: Mapping[str, bytes]) -> Iterable[str]:
    if memory_pictures:
        yield "<h2>What the memories hold</h2>"
    for memory, png in memory_pictures.items():
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        # As wide as it is, or the page: these are pixels, and the style of drawings would blow them up.
        style = "width:auto;min-width:0;max-width:100%;image-rendering:pixelated"
        image = f'<div><img src="{source}" alt="images in memory {escape(memory)}" style="{style}"></div>'
        yield f"<figure>{image}<figcaption>{escape(memory)}</figcaption></figure>"


def _incomplete(results: ContinualResults) -> Iterable[str]:
    missing = [result for result in results.cells if not result.complete]
    if missing:
        rows = [
            [escape(c.learner), escape(c.memory), str(c.order), str(c.seed), f"{done} of {results.num_steps}"]
            for c, done in ((result.cell, len(result.steps)) for result in missing)
        ]
        listed = table(["learner", "memory", "order", "seed", "steps done"], rows, kind="wide tall")
        yield f"<h2>Cells that are not complete</h2>{listed}"


def _cell(value: Spread) -> str:
    mean, std = value
    return number(mean) + ("" if std is None else f"<small>± {number(std)}</small>")


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'
