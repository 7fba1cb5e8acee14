"""A set beside random real images of its storage, network by network: what card, screen and MLflow say of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """A set and random images, both trained on by one network; test accuracies in percent.

    Attributes:
        network: its name, and where its BatchNorm statistics come from if not from the training.
        own, random: mean and standard deviation as tables show them.
        ahead: points by which the set's mean is above that of random images; negative where it loses.
        clear: whether that is more than the standard error of the difference; without spreads, whether it is not 0.
    """

    network: str
    own: str
    random: str
    ahead: float
    clear: bool


WITH_TEACHER = " + teacher labels"
"""After the name of a coreset that has the soft labels of a set's teachers."""

_RANDOM = ("random", "set (random)")
"""Names of random images themselves, which are not compared with random images."""

RIVALS = {"": "random images", WITH_TEACHER: "random images with the same teacher's labels"}
"""Random images that a set is compared with, by what follows their name; the second where the set has soft labels."""


def name_beside(method: str, baselines: Sequence[str]) -> str:
    """How tables call a set of a method: by that, unless a coreset beside it has the name.

    Example:
        >>> name_beside("dm", ["random"]), name_beside("random", ["random"])
        ('dm', 'set (random)')
    """
    return f"set ({method})" if method in baselines else method


def name_in(results: Sequence[Mapping[str, Any]], method: str) -> str:
    """How these rows call the set whose method that is."""
    beside = name_beside(method, [method])
    return beside if any(row.get("method") == beside for row in results) else method


def against_random(
    results: Sequence[Mapping[str, Any]], method: str, *, labels: str = ""
) -> list[Comparison]:
    """Comparisons for every network that was trained on both.

    Args:
        results: evaluation rows as in `DistilledSet.results`.
        method: of the set's own rows.
        labels: of the random images: hard, or `WITH_TEACHER`.
    """
    rows = {(row.get("method"), network_label(row)): row for row in results if _is_number(row.get("mean"))}
    found = []
    for (name, network), row in rows.items():
        random = rows.get((f"random{labels}", network))
        if name == method and method not in _RANDOM and random is not None:
            ahead = float(row["mean"]) - float(random["mean"])
            error = math.hypot(_error(row), _error(random))
            found.append(
                Comparison(network, accuracy_text(row), accuracy_text(random), ahead, abs(ahead) > error)
            )
    return found


def lost_to_random(results: Sequence[Mapping[str, Any]], method: str) -> str | None:
    """One sentence on the networks for which the set is worse than random images; None where there are none.

    Example:
        >>> rows = [{"method": m, "network": "vgg11", "mean": a} for m, a in (("atom", 11.3), ("random", 14.0))]
        >>> lost_to_random(rows, "atom")
        'Worse than random images for vgg11 (11.3 against 14.0): do not use this set for such networks.'
    """
    told = []
    for labels, rival in RIVALS.items():
        lost = [one for one in against_random(results, method, labels=labels) if one.ahead < 0]
        clearly, barely = (
            ", ".join(_told(one) for one in lost if one.clear is clear) for clear in (True, False)
        )
        told += (
            [f"Worse than {rival} for {clearly}: do not use this set for such networks."] if clearly else []
        )
        told += [f"No better than {rival}, within the spread, for {barely}."] if barely else []
    return " ".join(told) or None


def network_label(row: Mapping[str, Any]) -> str:
    """How tables call the network of a row."""
    count = row.get("statistics_images")
    return f"{row.get('network')} ({count} real)" if count else str(row.get("network"))


def accuracy_text(row: Mapping[str, Any]) -> str:
    """Mean and spread of a row, with one decimal; a single training has no spread."""
    spread = row.get("std") if row.get("n") != 1 else None
    return f"{row['mean']:.1f} ± {spread:.1f}" if _is_number(spread) else f"{row['mean']:.1f}"


def balanced_text(row: Mapping[str, Any]) -> str:
    """Balanced accuracy of a row in percent, as `accuracy_text`; empty where it was not measured."""
    mean = row.get("balanced_mean")
    return accuracy_text({**row, "mean": mean, "std": row.get("balanced_std")}) if _is_number(mean) else ""


def auc_text(row: Mapping[str, Any]) -> str:
    """Area under the ROC curve of a row, and its interval; empty where it was not measured.

    Example:
        >>> auc_text({"n": 5, "auc_mean": 0.912, "auc_std": 0.0104, "auc_low": 0.887, "auc_high": 0.937})
        '0.912 ± 0.010 [0.887, 0.937]'
    """
    mean, std, low, high = (row.get(f"auc_{name}") for name in ("mean", "std", "low", "high"))
    if not _is_number(mean):
        return ""
    spread = f" ± {std:.3f}" if _is_number(std) and row.get("n") != 1 else ""
    return f"{mean:.3f}{spread}" + (
        f" [{low:.3f}, {high:.3f}]" if _is_number(low) and _is_number(high) else ""
    )


def training_text(training: Mapping[str, Any]) -> str:
    """How a set is trained on by what it carries, many numbers by the smallest and the largest, four digits each.

    Example:
        >>> training_text({"epochs": 2, "step_sizes": [0.1, 0.25, 0.0312, 0.1]})
        'epochs=2, step_sizes=4 from 0.0312 to 0.25'
    """

    def value_text(value: Any) -> str:
        if isinstance(value, list | tuple) and value:
            return f"{len(value)} from {min(value):.4g} to {max(value):.4g}"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name}={value_text(value)}" for name, value in training.items())


def _told(one: Comparison) -> str:
    return f"{one.network} ({one.own} against {one.random})"


def _error(row: Mapping[str, Any]) -> float:
    """Standard error of a row's mean; 0 where its spread is not known."""
    spread, count = row.get("std"), row.get("n")
    if not isinstance(spread, int | float) or not isinstance(count, int) or count < 1:
        return 0.0
    return spread / math.sqrt(count)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


__all__ = [
    "RIVALS",
    "WITH_TEACHER",
    "Comparison",
    "accuracy_text",
    "against_random",
    "auc_text",
    "balanced_text",
    "lost_to_random",
    "name_beside",
    "name_in",
    "network_label",
    "training_text",
]
