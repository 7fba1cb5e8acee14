"""What people read of a version: its model card, its report, and the table of what of whose data is where."""

# K classes

from collections.abc import Sequence
from html import escape

from apps.learner.directory import ANSWERS, INITIAL, MODEL, PREPROCESS, folder_of
from apps.learner.gate import COLUMNS, accuracy_rows
from apps.learner.record import Learner, Version
from apps.page import page, table

MEMORY_COLUMNS = ("class", "memory", "images", "bytes", "stands for")
PRIVACY_COLUMNS = ("what", "of whose data", "where")


def memory_rows(version: Version) -> list[list[str]]:
    """Class, form, stored images, bytes and real images behind them, by label, and their sums."""
    kept = {name: version.memory[name] for name in version.classes if name in version.memory}
    rows = [
        [name, one.kind, str(one.images), f"{one.num_bytes:,}", str(one.stands_for)]
        for name, one in kept.items()
    ]
    sums = [
        sum(getattr(one, part) for one in kept.values()) for part in ("images", "num_bytes", "stands_for")
    ]
    return [*rows, ["all", "", str(sums[0]), f"{sums[1]:,}", str(sums[2])]]


def privacy_rows(learner: Learner, version: Version) -> list[list[str]]:
    """What of whose data lies where, by how directly it shows it."""
    rows = []
    real = [name for name, one in version.memory.items() if one.kind != "distilled"]
    made = [name for name, one in version.memory.items() if one.kind == "distilled"]
    if version.tests:
        tests = version.tests.values()
        rows.append(
            [
                f"{sum(one.images for one in tests)} real test images,"
                f" {sum(one.num_bytes for one in tests):,} bytes",
                _names(list(version.tests)),
                "tests/",
            ]
        )
    if real:
        rows.append([f"{_images(version, real)} real images", _names(real), "memory/"])
    if made:
        rows.append([f"{_images(version, made)} images made from real ones", _names(made), "memory/"])
    first = learner.versions[0] if learner.versions else version
    first_names = _names(list(first.learned))
    whitened = learner.settings["distill"]["zca"] == "on"
    rows += [
        [
            f"mean and spread of pixels{', covariances, a mean image' if whitened else ''}",
            first_names,
            PREPROCESS,
        ],
        [
            "weights that were trained on the images",
            _names(version.classes),
            f"versions/*/{MODEL}, MLflow",
        ],
    ]
    if ANSWERS in version.sha256:
        rows.append(
            ["a network's answers to remembered images", _names(version.classes), f"versions/*/{ANSWERS}"]
        )
    if learner.given_weights:
        rows.append(["weights that you gave", "whoever they were trained on", INITIAL])
    rows.append(
        ["names of classes, numbers of images, accuracies", _names(version.classes), "learner.json, MLflow"]
    )
    rows.append(
        [
            "real images, half-made ones",
            "of the classes of a step",
            "workers' memory, work/, while a step runs",
        ]
    )
    return rows


def _images(version: Version, names: Sequence[str]) -> int:
    return sum(version.memory[name].images for name in names)


def _names(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def history_rows(learner: Learner, current: int) -> list[list[str]]:
    """Version, the one before, what was done to how many classes, real images, accuracy and state, the oldest first."""
    rows = []
    for one in learner.versions:
        state = "refused" if one.note else "deleted" if one.removed else ""
        rows.append(
            [
                str(one.number),
                str(one.parent or "–"),
                f"{one.step}, {len(one.learned)} classes" if one.learned else one.step,
                str(sum(one.learned.values()) or ""),
                str(len(one.classes)),
                accuracy_rows(one.classes, one.accuracies)[-1][2],
                "current" if one.number == current else state,
            ]
        )
    return rows


HISTORY_COLUMNS = ("version", "after", "step", "images", "classes then", "accuracy, %", "")


def readme(learner: Learner, version: Version) -> str:
    """The model card, with code that uses the version and code that rebuilds it step by step."""
    own = ":" in learner.network
    return _README.format(
        number=version.number,
        step=f"It goes on from version {version.parent}." if version.parent else "It is the first version.",
        learned=", ".join(f"{_text(name)} ({number})" for name, number in version.learned.items()) or "none",
        classes=_table(("label", "class"), [[str(k), name] for k, name in enumerate(version.classes)]),
        judged=f"Test images: {version.judged_by}." if version.judged_by else "There were no test images.",
        accuracies=_table(COLUMNS, accuracy_rows(version.classes, version.accuracies)),
        memory=_table(MEMORY_COLUMNS, memory_rows(version)),
        privacy=_table(PRIVACY_COLUMNS, privacy_rows(learner, version)),
        network=learner.network,
        learner=learner.settings["choices"]["learner"],
        shape=f"{learner.channels} x {learner.image_size[0]} x {learner.image_size[1]}",
        given=f', network="PATH/{learner.network}"' if own else "",
        name=f"PATH/{learner.network}" if own else learner.network,
        channels=learner.channels,
        size=tuple(learner.image_size),
        count=len(version.classes),
        folder=folder_of(version.number),
    )


def report(learner: Learner, version: Version) -> str:
    """One HTML page that opens anywhere and fetches nothing."""
    judged = f"Test images: {version.judged_by}." if version.judged_by else "There were no test images."
    learned = ", ".join(f"{name} ({number})" for name, number in version.learned.items())
    parts = [
        f'<ul class="summary"><li>{escape(version.step)}: {escape(learned)} real images.</li>'
        f"<li>{escape(judged)}</li></ul>",
        "<h2>Accuracy by class</h2>",
        _html(COLUMNS, accuracy_rows(version.classes, version.accuracies)),
        "<h2>Memory</h2>",
        _html(MEMORY_COLUMNS, memory_rows(version)),
        "<h2>What of whose data is where</h2>",
        _html(PRIVACY_COLUMNS, privacy_rows(learner, version), kind="wide text"),
    ]
    return page(f"Learner, version {version.number}", parts)


def _html(columns: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "wide") -> str:
    return table(columns, [[escape(cell) for cell in row] for row in rows], kind=kind)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_text(cell) for cell in line)} |" for line in lines)


def _text(value: str) -> str:
    """One line that Markdown shows as it is, in a table too."""
    return escape(" ".join(value.split())).replace("|", "\\|")


_README = """# Version {number} of a learner

{step} Real images that it learned in this step: {learned}. Network `{network}`, learner `{learner}`, images
{shape}.

{classes}

## Accuracy

{judged}

{accuracies}

## Memory

{memory}

## What of whose data is where

{privacy}

## How to use it

From the learner's directory:

```python
import torch

from apps.learner.serving import load_version

net, preprocess, classes = load_version("."{given}, number={number})
images = torch.zeros(5, {channels}, *{size}, dtype=torch.uint8)  # yours: N x {shape}
with torch.no_grad():
    logits = net(preprocess.apply(images))
print([classes[k] for k in logits.argmax(dim=1)])
```

## The same, step by step

```python
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from atom import nets
from atom.preprocess import Preprocess

told = json.loads(Path("learner.json").read_text(encoding="utf-8"))
classes = next(one["classes"] for one in told["versions"] if one["number"] == {number})
net = nets.build("{name}", channels={channels}, image_size={size}, num_classes={count})
net.load_state_dict(load_file("{folder}/model.safetensors"))
net.eval()
preprocess = Preprocess.from_tensors(load_file("preprocess.safetensors"))
images = torch.zeros(5, {channels}, *{size}, dtype=torch.uint8)
with torch.no_grad():
    logits = net(preprocess.apply(images))
print([classes[k] for k in logits.argmax(dim=1)])
```
"""

__all__ = [
    "HISTORY_COLUMNS",
    "MEMORY_COLUMNS",
    "PRIVACY_COLUMNS",
    "history_rows",
    "memory_rows",
    "privacy_rows",
    "readme",
    "report",
]
