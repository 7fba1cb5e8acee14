"""The report of a comparison: one HTML page that opens anywhere and fetches nothing."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from html import escape

from apps.compare.findings import accuracy_of, cost_of, difference_of, findings, own_trainings
from apps.compare.pairing import LEVEL
from apps.compare.pictures import MOST_CLASSES, MOST_IMAGES, Strips
from apps.compare.plots import cost_figure
from apps.compare.published import Published
from apps.compare.results import Compared, Entry
from apps.page import drawing, duration, number, page, table
from atom.rivals import auc_text, balanced_text

_READING = (
    "Accuracies are on test images, in percent: mean over trainings ± one standard deviation. − random and − best are "
    f"paired differences in points: of trainings of equal seed, with Student's {100 * LEVEL:g} % interval of their "
    "mean, over as many pairs as there are seeds; where all pairs differ by the same there is none. Nothing is "
    "adjusted for the number of comparisons, the best row is the one of these very accuracies, so that its lead is "
    "rather too large, and one synthesis of each set stands for its method. All rows of a table have the same number "
    "of stored images and are trained on alike, except those that say “own training”."
)
_COST = (
    "Distil: seconds of all workers, preparations such as experts included, also where several rows share them; real "
    "images take none. Judge: seconds of all workers for the trainings. Memory: the most that a worker process held "
    "while it worked at the row, with its libraries and what it kept of other rows. Bytes: a set's file holds four a "
    "value and its soft labels, real images are one a value."
)
_FIGURE = (
    "Up is better and left is cheaper; bars are one standard deviation over trainings. Broken lines are real images, "
    "which took no distillation."
)


def render_comparison(
    compared: Compared, *, title: str, pictures: Mapping[int, Sequence[Strips]] | None = None
) -> str:
    """The comparison as one self-contained HTML page.

    Args:
        compared: all rows.
        title: heading of the page.
        pictures: images of the sets of each number of images a class.
    """
    parts = [_listed(findings(compared), "summary")]
    for ipc in compared.ipcs:
        parts += [f"<h2>{_a_class(ipc)}</h2>", _result_table(compared, ipc)]
    parts += [
        f"<details><summary>How to read this</summary>{_note(_READING)}{_note(_COST)}</details>",
        *_published(compared),
    ]
    trained = own_trainings(compared)
    if trained:
        parts.append(f"<details><summary>Own trainings</summary>{_listed(trained, 'note')}</details>")
    if any(entry.cost.distil_s and entry.accuracies for entry in compared.entries):
        parts.append(
            "<h2>Accuracy and cost</h2>" + drawing(partial(cost_figure, compared), _figure(compared))
        )
    parts += _pictures(pictures or {})
    rows = [[escape(key), escape(value)] for key, value in compared.facts.items()]
    return page(title, [*parts, "<h2>Facts</h2>", table(["what", "value"], rows, kind="wide text")])


def _listed(sentences: Sequence[str], kind: str) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _figure(compared: Compared) -> str:
    lost = [one for one in compared.entries if one.accuracies and one.cost.distil_s is None]
    unknown = [f"{one.method} at ipc {one.ipc}" for one in lost]
    return _FIGURE + (f" Left out, cost unknown: {escape(', '.join(unknown))}." if unknown else "")


def _a_class(ipc: int) -> str:
    return "One image a class" if ipc == 1 else f"{ipc} images a class"


def _result_table(compared: Compared, ipc: int) -> str:
    rows = []
    known = {network for entry in compared.of(ipc) for network in entry.published}
    for entry in compared.of(ipc):
        row = [escape(entry.method)]
        for network in compared.networks:
            row += [
                escape(accuracy_of(entry, network)) + _scores(entry, network),
                _difference(difference_of(compared.against_random(entry, network))),
                _difference(difference_of(compared.against_best(entry, network))),
            ]
            if network in known:
                row.append(_beside(entry.published.get(network)))
        distil, *others = cost_of(entry)
        if entry.cost.shared_s:
            distil += f"<small>{duration(entry.cost.shared_s)} shared</small>"
        rows.append([*row, distil, *others, str(entry.images or "–")])
    heads, groups = ["method"], [("", 1)]
    for network in compared.networks:
        columns = ["accuracy, %", "− random", "− best", *(["published"] if network in known else [])]
        heads += columns
        groups.append((network, len(columns)))
    heads += ["distil", "judge", "memory", "bytes", "images"]
    groups.append(("cost", 5))
    return table(heads, rows, groups=groups)


def _scores(entry: Entry, network: str) -> str:
    """Below the accuracy, where the classes of the test part are uneven."""
    scores = entry.scores.get(network)
    if not scores:
        return ""
    told = [f"balanced {balanced_text(scores)}", f"AUC {auc_text(scores)}"]
    return "".join(f"<small>{escape(text)}</small>" for text in told)


def _difference(text: str) -> str:
    value, bracket, bounds = text.partition(" [")
    return escape(value) + (f"<small>{escape('[' + bounds)}</small>" if bracket else "")


def _beside(known: Published | None) -> str:
    if known is None:
        return "–"
    spread = "" if known.std is None else f" ± {number(known.std, 1)}"
    return f"{number(known.mean, 1)}{spread}"


def _published(compared: Compared) -> Iterable[str]:
    sources: dict[str, list[str]] = {}
    for entry in compared.entries:
        for known in entry.published.values():
            rows = sources.setdefault(known.source, [])
            if entry.method not in rows:
                rows.append(entry.method)
    if not sources:
        yield _note("There is no published number for this setting.")
        return
    told = "; ".join(f"{', '.join(methods)}: {source}" for source, methods in sources.items())
    yield _note(
        f"Published numbers, of other budgets and protocols, none of them repeated here: {escape(told)}."
    )


def _pictures(pictures: Mapping[int, Sequence[Strips]]) -> Iterable[str]:
    for ipc, sets in sorted(pictures.items()):
        if not sets:
            continue
        yield f"<h2>Images, {ipc} a class</h2>" + _side_by_side(sets)
        few = [f"The first {MOST_CLASSES} classes and {MOST_IMAGES} images of each are shown at most."]
        stretched = [one.method for one in sets if one.stretched]
        if stretched:
            few.append(
                f"Of {', '.join(stretched)} each image is stretched for display by itself, since many values lie"
                " outside what a screen shows: not as trained on."
            )
        yield _note(escape(" ".join(few)))


def _side_by_side(sets: Sequence[Strips]) -> str:
    names = sets[0].class_names
    rows = [
        [escape(name), *(_image(one, row, name) for one in sets if row < len(one.images))]
        for row, name in enumerate(names)
    ]
    return table(["class", *(one.method for one in sets)], rows)


def _image(one: Strips, row: int, name: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(one.images[row]).decode()}"
    # These are pixels: enlarged by whole factors, and not blown up by the style of drawings.
    height = one.height * max(1, round(48 / one.height))
    style = f"height:{height}px;width:auto;min-width:0;padding:0;image-rendering:pixelated"
    return f'<img src="{source}" alt="{escape(f"{name} by {one.method}")}" style="{style}">'


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'


__all__ = ["render_comparison"]
