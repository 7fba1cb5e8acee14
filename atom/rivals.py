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


_RANDOM = ("random", "set (random)")
"""Names of random images themselves, which are not compared with random images."""


def against_random(results: Sequence[Mapping[str, Any]], method: str) -> list[Comparison]:
    """Comparisons for every network that was trained on both.

    Args:
        results: evaluation rows as in `DistilledSet.results`.
        method: of the set's own rows.
    """
    rows = {(row.get("method"), network_label(row)): row for row in results if _is_number(row.get("mean"))}
    found = []
    for (name, network), row in rows.items():
        random = rows.get(("random", network))
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
    lost = [one for one in against_random(results, method) if one.ahead < 0]
    clearly, barely = (", ".join(_told(one) for one in lost if one.clear is clear) for clear in (True, False))
    told = (
        [f"Worse than random images for {clearly}: do not use this set for such networks."] if clearly else []
    )
    told += [f"No better than random images, within the spread, for {barely}."] if barely else []
    return " ".join(told) or None


def network_label(row: Mapping[str, Any]) -> str:
    """How tables call the network of a row."""
    count = row.get("statistics_images")
    return f"{row.get('network')} ({count} real)" if count else str(row.get("network"))


def accuracy_text(row: Mapping[str, Any]) -> str:
    """Mean and spread of a row, with one decimal; a single training has no spread."""
    spread = row.get("std") if row.get("n") != 1 else None
    return f"{row['mean']:.1f} ± {spread:.1f}" if _is_number(spread) else f"{row['mean']:.1f}"


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


__all__ = ["Comparison", "accuracy_text", "against_random", "lost_to_random", "network_label"]
