"""Differences between two sets that were trained on with the same seeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

LEVEL = 0.95
_EQUAL = 1e-9
"""Standard deviation, points, of differences that are equal but for rounding; one of 10,000 test images makes 0.01."""


@dataclass(frozen=True)
class Paired:
    """First minus second, over the training seeds that both have; points of accuracy.

    Attributes:
        mean: of the differences.
        std: their standard deviation; None for a single pair.
        low, high: Student's t interval of the mean at `LEVEL`; None for a single pair, and where all differences are
            equal: with few test images and pairs they may be, and an interval of no width would claim certainty.
        n: pairs.
        ahead: pairs in which the first is above the second.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    n: int
    ahead: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """The differences by seed; None where the two share no seed.

    A seed decides the weights and the order of the images that a training begins with. So what both have of it cancels
    out, and the interval is narrower than one of independent samples where trainings go up and down together.

    Args:
        first, second: accuracies in percent by training seed.

    Example:
        >>> paired({0: 80.0, 1: 84.0, 2: 82.0}, {0: 70.0, 1: 73.0, 2: 70.0, 3: 99.0}).mean
        11.0
    """
    differences = [accuracy - second[seed] for seed, accuracy in first.items() if seed in second]
    if not differences:
        return None
    mean, n = fmean(differences), len(differences)
    ahead = sum(difference > 0 for difference in differences)
    std = stdev(differences) if n > 1 else None
    if std is None or std < _EQUAL:
        return Paired(mean, std, None, None, n, ahead)
    # Here, since SciPy takes a second to import.
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * std / math.sqrt(n)
    return Paired(mean, std, mean - half, mean + half, n, ahead)


__all__ = ["LEVEL", "Paired", "paired"]
