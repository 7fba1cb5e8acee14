"""The dataset card of a distilled set: README.md in the form of the Hugging Face Hub."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atom.coreset import METHODS as CORESETS
from atom.hub import MOST_NAMED, licence_id, write_header
from atom.methods.lookup import find_method
from atom.methods.registry import NAMES as METHODS
from atom.methods.teachers import CITATION
from atom.rivals import RIVALS, against_random, auc_text, balanced_text, name_in, network_label, training_text
from atom.set_values import SetValues
from atom.sheet import STRETCH_FROM_FRAC, classes_shown

_USE = """```python
from atom.distilled import DistilledSet

distilled = DistilledSet.load(".")  # this directory
images, labels = distilled.decode()  # float32 [M, C, H, W] to train on; int64 [M], soft labels float32 [M, K]
dataset = distilled.dataset()  # the same as a torch Dataset of (image, label)
pixels = distilled.pixels()  # [M, C, H, W] in [0, 1], to look at
```

The images live in the space of the set's own preprocessing. **Bring test images there first**, or accuracy
collapses: `distilled.preprocess_images(real)` takes uint8 images, or floating pixels in [0, 1].

`datasets.load_dataset` opens this directory too, as 8-bit pictures: to look at, not to train on."""


def write_card(distilled: SetValues) -> str:
    """The card, YAML header included; everything that came from outside is escaped."""
    source = distilled.source
    raw_title = str(source.get("title") or source.get("name") or "an image set")
    title = _title(source)
    num_decoded = len(distilled.labels) * distilled.factor**2
    parts = [
        write_header(distilled, pretty_name=_pretty_name(distilled, raw_title), num_images=num_decoded),
        f"# {_pretty_name(distilled, title)}",
        _pictures(distilled),
        _what_it_is(distilled, title, num_decoded),
        "## How it was made\n\n" + _how_it_was_made(distilled, title),
        "## Accuracy\n\n" + _results(distilled.results) + _own_training(distilled),
        *_networks(distilled),
        *_audit(distilled),
        "## How to use it\n\n" + _USE,
        "## Limits\n\n" + _limits(distilled),
        "## Licence of the source\n\n" + "\n\n".join(map(_licence_text, distilled.sources)),
        "## Citation\n\n" + _citation(distilled),
    ]
    return "\n\n".join(parts) + "\n"


def _title(source: Mapping[str, Any]) -> str:
    return _text(source.get("title") or source.get("name") or "an image set")


def _pretty_name(distilled: SetValues, title: str) -> str:
    per_class = f"{distilled.ipc} image{'s' if distilled.ipc > 1 else ''} per class"
    number = per_class if distilled.is_even else distilled.size
    factor = f", factor {distilled.factor}" if distilled.factor > 1 else ""
    return f"{title}, {'chosen' if distilled.method in CORESETS else 'distilled'} to {number}{factor}"


def _what_it_is(distilled: SetValues, title: str, num_decoded: int) -> str:
    channels, height, width = distilled.images_NCHW.shape[1:]
    made = _text(_about(distilled).get("made_by") or distilled.method)
    number = len(distilled.labels)
    of_classes = f"{distilled.ipc} for each of {distilled.num_classes} classes"
    if not distilled.is_even:
        of_classes = f"in all, for {distilled.num_classes} classes, which their soft labels tell of"
    text = (
        f"{number} image{'s' if number > 1 else ''} of {height}x{width} pixels and {channels} channel(s),"
        f" {of_classes},"
        f" that stand for the training images of {title}, made by {made}."
        " A network trained on them alone is meant to do well on the real test images."
    )
    if distilled.factor > 1:
        text += (
            f" Each stored image is a grid of {distilled.factor}x{distilled.factor} smaller ones,"
            f" so there are {num_decoded} to train on."
        )
    if distilled.num_classes > MOST_NAMED:
        text += " The names of the classes are in `set.json`."
    return text


def _how_it_was_made(distilled: SetValues, title: str) -> str:
    source, zca = distilled.source, distilled.preprocess.zca is not None
    rows = [("method", distilled.method), ("source", source.get("name") or title)]
    rows += [
        (f"source {key}", source[key]) for key in ("num_train", "fingerprint") if source.get(key) is not None
    ]
    rows += [("started from a set of", _title(one)) for one in distilled.source.get("started_from") or ()]
    rows += [("preprocessing", "mean, std, ZCA whitening" if zca else "mean, std")]
    rows += [("commit", distilled.git_commit or "not known")]
    rows += [(f"{name} version", version) for name, version in distilled.versions.items()]
    for one in distilled.earlier_programs:
        libraries = ", ".join(f"{name} {version}" for name, version in (one.get("versions") or {}).items())
        rows += [("begun by commit", f"{one.get('git_commit') or 'not known'} {libraries}".strip())]
    table = _table(("what", "value"), [(_text(name), _text(value)) for name, value in rows])
    settings = [(_code(name), _code(value)) for name, value in _flat(distilled.settings)]
    return table if not settings else f"{table}\n\n{_table(('setting', 'value'), settings)}"


def _results(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "Not evaluated yet."
    told = {name: text for name, text in _TOLD.items() if any(map(text, rows))}
    names = dict.fromkeys(("method", "network", *told, *(name for row in rows for name in row)))
    nested = {name for row in rows for name, value in row.items() if isinstance(value, list | dict)}
    shown = [name for name in names if name not in _NUMBERS | nested]
    cells = [[told[n](row) if n in told else _text(row.get(n, "")) for n in shown] for row in rows]
    note = "Mean ± standard deviation over trainings; n is their number."
    return f"{_table([_text(name) for name in shown], cells)}\n\n{note}"


def _own_training(distilled: SetValues) -> str:
    if not distilled.training:
        return ""
    carried = training_text(distilled.training)
    return (
        f"\n\nThe set carries a training of its own, {_text(carried)}. Rows with (own training) were trained by it, all"
        " others by the same protocol."
    )


def _pictures(distilled: SetValues) -> str:
    listed, clipped_frac = classes_shown(distilled), distilled.clipped_frac()
    what = "All images, one row a class"
    if listed < distilled.num_classes:
        what = f"Images of the first {listed} of {distilled.num_classes} classes, one row a class"
    shown = f"![{what}](sheet.png)"
    if clipped_frac <= STRETCH_FROM_FRAC:
        return shown
    return (
        f"{shown}\n\nAs they are: {100 * clipped_frac:.0f} % of the values lie outside what a picture can"
        f" show and are cut off; from {100 * STRETCH_FROM_FRAC:.0f} % on there is a second picture, stretched for"
        " display, each image by itself:\n\n![All images, stretched for display](sheet-stretched.png)"
    )


def _networks(distilled: SetValues) -> list[str]:
    """Which networks the set was tried on, and which it fails."""
    name = name_in(distilled.results, distilled.method)
    own = [row for row in distilled.results if row.get("method") == name]
    if not own:
        return []
    tried = ", ".join(dict.fromkeys(_text(network_label(row)) for row in own))
    lines = [f"* Tried on: {tried}. What it does for other networks is not known."]
    compared = []
    for labels, rival in RIVALS.items():
        beside = against_random(distilled.results, name, labels=labels)
        for clear, verdict in ((True, "**Fails**, below"), (False, "Within the spread, no better than")):
            lost = [one for one in beside if one.ahead < 0 and one.clear is clear]
            listed = ", ".join(f"{_text(one.network)} ({one.own} against {one.random})" for one in lost)
            storage = "" if labels else " of the same storage"
            lines += [f"* {verdict} {rival}{storage}: {listed}."] if listed else []
        compared += beside
    if compared and all(one.ahead >= 0 for one in compared):
        lines.append("* Fails none of those that were trained on random images of the same storage too.")
    elif not compared:
        lines.append("* Random images were not tried beside it, so which networks it fails is not known.")
    return ["## Networks\n\n" + "\n".join(lines)]


def _audit(distilled: SetValues) -> list[str]:
    """What the set gives away, where that was asked; every value may be anything, it came from outside."""
    audit = distilled.audit
    found = _records(audit.get("findings"))
    if not found:
        return []
    shown = ("advantage", "auc", "hits_at_1_percent")
    head = ("set", "members: images", "attack", "advantage", "AUC", "found at 1 %", "members", "non-members")
    rows = [
        [
            *(_text(one.get(name, "")) for name in ("set", "members", "attack")),
            *(_estimate(one.get(name)) for name in shown),
            *(_text(one.get(name, "")) for name in ("num_members", "num_non_members")),
        ]
        for one in found
    ]
    copies = audit.get("copies")
    near = copies.get(found[0].get("set")) if isinstance(copies, Mapping) else None
    said = [
        "Can images that the set was made from be told from others, by its images (pixels, features) or by the loss of"
        " networks trained on it? Advantage 0, AUC 0.5 and 0.01 found at 1 % false alarms are chance; in brackets 95 %"
        " intervals. Chance is no proof: stronger attacks exist.",
        _table(head, rows),
        f"Non-members: {_text(audit.get('non_members', 'not known'))}. {_text(audit.get('caveat', ''))}",
    ]
    if isinstance(near, Mapping):
        said.append(
            f"Near-copies of an image that it was made from: {_text(near.get('num_near', '?'))} of"
            f" {_text(near.get('num_images', '?'))} images."
        )
    return ["## What it gives away\n\n" + "\n\n".join(text.strip() for text in said)]


def _estimate(value: object) -> str:
    if not isinstance(value, Mapping):
        return ""
    numbers = [value.get(name) for name in ("value", "low", "high")]
    told = [f"{one:.2f}" if isinstance(one, int | float) else "?" for one in numbers]
    return f"{told[0]} ({told[1]} to {told[2]})".replace("-0.00", "0.00")


def _records(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _accuracy(row: Mapping[str, Any]) -> str:
    mean, std = row.get("mean"), row.get("std")
    if not isinstance(mean, int | float):
        return "not measured"
    if row.get("n") == 1:
        return f"{mean:.2f} (one training)"
    return f"{mean:.2f} ± {std:.2f}" if isinstance(std, int | float) else f"{mean:.2f} (spread not known)"


_TOLD: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "test accuracy %": _accuracy,
    "balanced accuracy %": balanced_text,
    "AUC and its 95 % interval": auc_text,
}
"""Columns of the card that are written from several numbers of a row."""
_NUMBERS = {"mean", "std", "balanced_mean", "balanced_std", "auc_mean", "auc_std", "auc_low", "auc_high"}
"""These numbers."""


def _limits(distilled: SetValues) -> str:
    real = distilled.method in CORESETS
    nature = (
        "The images are real training images, with whatever they show."
        if real
        else "The pixels are learned, not photographed, and may still show training images or parts of them,"
        " persons included: the set is no means of anonymising data."
    )
    return "\n".join(
        [
            f"* {nature}",
            "* The 8-bit pictures in `data/` and `sheet.png` are clipped to [0, 1], which the images"
            " themselves exceed; train on `distilled.safetensors`.",
            "* The set was made for one image size and one number of images per class, and with one"
            " family of networks; others often do less well on it.",
            "* Biases and label errors of the source are in it, and rare cases of a class are likely lost.",
        ]
    )


def _licence_text(source: Mapping[str, Any]) -> str:
    title = _title(source)
    homepage = f" Its page: <{source['homepage']}>." if _is_address(source.get("homepage")) else ""
    if licence_id(source.get("licence")) == "unknown":
        return f"The terms of {title} are not known here; look them up before you pass this set on.{homepage}"
    terms = _text(source["licence"]).rstrip(".")
    return f"{title}: {terms}. This set is made from it; respect those terms here too.{homepage}"


def _is_address(value: object) -> bool:
    return re.fullmatch(r"https?://[\w./~+%=?&#-]+", str(value)) is not None


def _citation(distilled: SetValues) -> str:
    cited = dict.fromkeys(_text(one["citation"]) for one in distilled.sources if one.get("citation"))
    source = f"The source: {' '.join(cited)}" if cited else "The source names no citation."
    known = find_method(distilled.method).about.citation if distilled.method in METHODS else ""
    citation = known or _text(_about(distilled).get("citation") or "")
    if "teacher" in distilled.settings and known != CITATION:
        source = f"Labels by a teacher:\n\n{CITATION}\n\n{source}"
    return f"The method:\n\n{citation}\n\n{source}" if citation else source


def _about(distilled: SetValues) -> Mapping[str, str]:
    """What is known of a method of this project, and of another what the set says."""
    if distilled.method in METHODS:
        return {"made_by": find_method(distilled.method).about.made_by}
    return distilled.about


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in settings.items():
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            value = {str(number): one for number, one in enumerate(value)}
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _text(value: object) -> str:
    """Text that Markdown and HTML take literally, on one line."""
    line = " ".join(html.escape(str(value), quote=False).split())
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)


def _code(value: object) -> str:
    """A code span; inside a table only the bar and the backtick need care."""
    line = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return f"`{line}`" if line else ""
