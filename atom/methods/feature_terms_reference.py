"""What may be matched beside means, and the calibration, as the papers describe them, in slow float64 loops.

For the tests of `atom.methods.feature_terms` and `atom.methods.trained_features`, and not shared with them.
"""

# N images, D features, F frequencies, K classes, P weights

import cmath
import math
from collections.abc import Sequence

from torch import Tensor

Rows = Sequence[Sequence[float]]


def characteristic_distance(real_ND: Rows, synthetic_ND: Rows, frequencies_FD: Rows) -> float:
    """NCFM's loss without its factor: amplitude and phase apart, with weights 1/2, as in its equation and its code."""
    total = 0.0
    for frequency in frequencies_FD:
        real, synthetic = (
            sum(cmath.exp(1j * _inner(frequency, _normalised(row))) for row in rows) / len(rows)
            for rows in (real_ND, synthetic_ND)
        )
        amplitude = (abs(real) - abs(synthetic)) ** 2
        phase = 2 * (abs(real) * abs(synthetic) - real.real * synthetic.real - real.imag * synthetic.imag)
        total += math.sqrt(0.5 * amplitude + 0.5 * max(phase, 0.0))
    return total / len(frequencies_FD)


def covariance_distance(real_ND: Rows, synthetic_ND: Rows) -> float:
    """Sum of the squared differences of two unbiased covariances, over the number of features."""
    size = len(real_ND[0])
    total = 0.0
    for first in range(size):
        for second in range(size):
            total += (_covariance(real_ND, first, second) - _covariance(synthetic_ND, first, second)) ** 2
    return total / size


def cross_entropy(logits_NK: Rows, label: int) -> float:
    """Mean over the images, all of one class."""
    return sum(math.log(sum(map(math.exp, row))) - row[label] for row in logits_NK) / len(logits_NK)


def between(start_P: Sequence[float], end_P: Sequence[float], share: float) -> list[float]:
    """Weights with that share of the start."""
    return [share * start + (1 - share) * end for start, end in zip(start_P, end_P, strict=True)]


def rows_of(values_ND: Tensor) -> list[list[float]]:
    """As Python's numbers."""
    return values_ND.detach().double().tolist()


def _covariance(rows_ND: Rows, first: int, second: int) -> float:
    means = [sum(row[place] for row in rows_ND) / len(rows_ND) for place in (first, second)]
    products = [(row[first] - means[0]) * (row[second] - means[1]) for row in rows_ND]
    return sum(products) / (len(rows_ND) - 1)


def _inner(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def _normalised(row: Sequence[float]) -> list[float]:
    norm = math.sqrt(_inner(row, row))
    return [value / norm for value in row] if norm > 0 else list(row)
