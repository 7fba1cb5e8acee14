"""Whether a version may become the current one, and the table that says why."""

# T images asked about, K classes

from collections.abc import Mapping, Sequence

import numpy as np

from apps.learner.record import Accuracy


def accuracy_of(logits_TK: np.ndarray, labels_T: np.ndarray) -> dict[int, float]:
    """Share of the images of each class that is asked about whose largest logit is that of their class, in percent.

    Example:
        >>> accuracy_of(np.eye(2), np.array([0, 0]))
        {0: 50.0}
    """
    right_T = logits_TK.argmax(axis=1) == labels_T
    return {int(label): 100 * float(right_T[labels_T == label].mean()) for label in np.unique(labels_T)}


def fallen(accuracies: Mapping[str, Accuracy], *, max_drop: float) -> dict[str, float]:
    """Points that each class lost which lost more than it may; classes without both accuracies are let through.

    Example:
        >>> fallen({"cat": Accuracy(before=90.0, after=75.0), "dog": Accuracy(after=10.0)}, max_drop=10)
        {'cat': 15.0}
    """
    lost = {
        name: one.before - one.after
        for name, one in accuracies.items()
        if one.before is not None and one.after is not None
    }
    # In float arithmetic 90 - 80 may be a little more than 10.
    return {name: points for name, points in lost.items() if points > max_drop + 1e-9}


def refusal(lost: Mapping[str, float], *, max_drop: float) -> str:
    """One sentence on the classes that fell; nothing where none did.

    Example:
        >>> refusal({"cat": 15.0}, max_drop=10)
        "class 'cat' fell by 15.0 points, more than the 10 that --max-drop allows"
    """
    if not lost:
        return ""
    told = " and ".join(f"class {name!r} fell by {points:.1f} points" for name, points in lost.items())
    return f"{told}, more than the {max_drop:g} that --max-drop allows"


def accuracy_rows(classes: Sequence[str], accuracies: Mapping[str, Accuracy]) -> list[list[str]]:
    """Class, before, after, change and number of images, as texts; and the mean over classes as the last row."""
    rows = []
    for name in classes:
        one = accuracies.get(name, Accuracy())
        rows.append([name, percent(one.before), percent(one.after), _change(one), str(one.images or "")])
    before, after = (
        mean([getattr(one, part) for one in accuracies.values()]) for part in ("before", "after")
    )
    return [*rows, ["mean of classes", percent(before), percent(after), "", ""]]


def percent(value: float | None) -> str:
    """One decimal, or a dash."""
    return "–" if value is None else f"{value:.1f}"


def _change(one: Accuracy) -> str:
    return "" if one.before is None or one.after is None else f"{one.after - one.before:+.1f}"


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known; None of none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


COLUMNS = ("class", "before, %", "after, %", "change", "test images")

__all__ = ["COLUMNS", "accuracy_of", "accuracy_rows", "fallen", "mean", "percent", "refusal"]
