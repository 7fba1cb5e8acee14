"""The dataset card of a distilled set: README.md in the form of the Hugging Face Hub."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from atom.coreset import METHODS as CORESETS
from atom.hub import licence_id, write_header
from atom.rivals import against_random, network_label
from atom.set_values import SetValues
from atom.sheet import STRETCH_FROM_FRAC

_METHODS = {
    "atom": "matching of spatial and channel attention (ATOM)",
    "spatial": "matching of spatial attention (the objective of DataDAM)",
    "channel": "matching of channel attention",
    "dm": "matching of mean embeddings (DM)",
    "random": "drawing real images at random",
    "herding": "herding: real images whose mean matches that of their class",
    "kcenter": "k-center: real images far from each other",
}
_DATADAM = (
    "Its objective: Sajedi et al., *DataDAM: Efficient Dataset Distillation with Attention Matching*,"
    " ICCV 2023."
)
_DM = "Its objective: Zhao and Bilen, *Dataset Condensation with Distribution Matching*, WACV 2023."
_OBJECTIVES = {"atom": "", "channel": "", "spatial": f"{_DATADAM}\n\n", "dm": f"{_DM}\n\n"}

_ATOM_BIBTEX = """@inproceedings{khaki2024atom,
  title     = {{ATOM}: Attention Mixer for Efficient Dataset Distillation},
  author    = {Khaki, Samir and Sajedi, Ahmad and Wang, Kai and Liu, Lucy Z. and Lawryshyn, Yuri A.
               and Plataniotis, Konstantinos N.},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops},
  year      = {2024},
  note      = {arXiv:2405.01373}
}"""

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
        "## Accuracy\n\n" + _results(distilled.results),
        *_networks(distilled),
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
    factor = f", factor {distilled.factor}" if distilled.factor > 1 else ""
    return f"{title}, {'chosen' if distilled.method in CORESETS else 'distilled'} to {per_class}{factor}"


def _what_it_is(distilled: SetValues, title: str, num_decoded: int) -> str:
    channels, height, width = distilled.images_NCHW.shape[1:]
    made = _METHODS.get(distilled.method, _text(distilled.method))
    text = (
        f"{len(distilled.labels)} images of {height}x{width} pixels and {channels} channel(s),"
        f" {distilled.ipc} for each of {distilled.num_classes} classes,"
        f" that stand for the training images of {title}, made by {made}."
        " A network trained on them alone is meant to do well on the real test images."
    )
    if distilled.factor > 1:
        text += (
            f" Each stored image is a grid of {distilled.factor}x{distilled.factor} smaller ones,"
            f" so there are {num_decoded} to train on."
        )
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
    names = dict.fromkeys(("method", "network", "test accuracy %", *(name for row in rows for name in row)))
    nested = {name for row in rows for name, value in row.items() if isinstance(value, list | dict)}
    shown = [name for name in names if name not in {"mean", "std"} | nested]
    cells = [
        [_accuracy(row) if n == "test accuracy %" else _text(row.get(n, "")) for n in shown] for row in rows
    ]
    note = "Mean ± standard deviation over trainings; n is their number."
    return f"{_table([_text(name) for name in shown], cells)}\n\n{note}"


def _pictures(distilled: SetValues) -> str:
    shown, clipped_frac = "![All images, one row a class](sheet.png)", distilled.clipped_frac()
    if clipped_frac <= STRETCH_FROM_FRAC:
        return shown
    return (
        f"{shown}\n\nAs they are: {100 * clipped_frac:.0f} % of the values lie outside what a picture can"
        f" show and are cut off; from {100 * STRETCH_FROM_FRAC:.0f} % on there is a second picture, stretched for"
        " display, each image by itself:\n\n![All images, stretched for display](sheet-stretched.png)"
    )


def _networks(distilled: SetValues) -> list[str]:
    """Which networks the set was tried on, and which it fails."""
    own = [row for row in distilled.results if row.get("method") == distilled.method]
    if not own:
        return []
    tried = ", ".join(dict.fromkeys(_text(network_label(row)) for row in own))
    lines = [f"* Tried on: {tried}. What it does for other networks is not known."]
    compared = against_random(distilled.results, distilled.method)
    for clear, verdict in ((True, "**Fails**, below"), (False, "Within the spread, no better than")):
        lost = [one for one in compared if one.ahead < 0 and one.clear is clear]
        listed = ", ".join(f"{_text(one.network)} ({one.own} against {one.random})" for one in lost)
        lines += [f"* {verdict} random images of the same storage: {listed}."] if listed else []
    if compared and all(one.ahead >= 0 for one in compared):
        lines.append("* Fails none of those that were trained on random images of the same storage too.")
    elif not compared:
        lines.append("* Random images were not tried beside it, so which networks it fails is not known.")
    return ["## Networks\n\n" + "\n".join(lines)]


def _accuracy(row: Mapping[str, Any]) -> str:
    mean, std = row.get("mean"), row.get("std")
    if not isinstance(mean, int | float):
        return "not measured"
    if row.get("n") == 1:
        return f"{mean:.2f} (one training)"
    return f"{mean:.2f} ± {std:.2f}" if isinstance(std, int | float) else f"{mean:.2f} (spread not known)"


def _limits(distilled: SetValues) -> str:
    real = distilled.method in CORESETS
    nature = (
        "The images are real training images, with whatever they show."
        if real
        else "The pixels are learned, not photographed, and may still show training images or parts of them,"
        " persons included: the set is no means of anonymising data."
    )
    soft = ["* Its soft labels are in `distilled.safetensors` alone; `data/` holds the classes."]
    soft = soft if distilled.soft_labels is not None else []
    return "\n".join(
        [
            f"* {nature}",
            "* The 8-bit pictures in `data/` and `sheet.png` are clipped to [0, 1], which the images"
            " themselves exceed; train on `distilled.safetensors`.",
            *soft,
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
    if distilled.method not in _OBJECTIVES:
        return source
    objective = _OBJECTIVES[distilled.method]
    return f"The method:\n\n```bibtex\n{_ATOM_BIBTEX}\n```\n\n{objective}{source}"


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
