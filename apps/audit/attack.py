"""How well scores tell members from non-members: AUC, advantage, and hits at few false alarms, with 95 % intervals.

An attack gives every image a score, larger for members. What it is worth is counted, never its best value picked on
the images that it is counted on.
"""

# M members, N non-members

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import binom, binomtest, norm, rankdata

from atom.errors import ConfigError
from atom.streams import stream

CONFIDENCE = 0.95
FALSE_ALARMS = 0.01
"""False-positive rate at which hits are counted. Source: Carlini et al., S&P 2022, who count at 0.1 % and 1 %."""
FEWEST = 2
"""Members, and non-members, from which a score can be judged: one on each side of a split in halves."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; `value` is None where there are too few images to tell it."""

    value: float | None
    low: float
    high: float

    @property
    def text(self) -> str:
        """For tables."""
        shown = "?" if self.value is None else f"{self.value:.2f}"
        return f"{shown} [{self.low:.2f}, {self.high:.2f}]".replace("-0.00", "0.00")

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Verdict:
    """What an attack is worth.

    Attributes:
        advantage: true-positive less false-positive rate, from -1 to 1; 0 is chance.
        auc: chance that a member has a larger score than a non-member, ties half; 0.5 is chance.
        hits: share of members found where 1 % of non-members are taken for members; 0.01 is chance.
        num_members, num_non_members: that were scored.
    """

    advantage: Estimate
    auc: Estimate
    hits: Estimate
    num_members: int
    num_non_members: int


def judge(scores_M: np.ndarray, scores_N: np.ndarray, *, seed: int) -> Verdict:
    """The worth of scores, float [M] of members and [N] of non-members; larger means member.

    Args:
        scores_M, scores_N: finite, two or more each.
        seed: of the halves that thresholds are chosen on.

    Raises:
        ConfigError: fewer than two members or non-members, or a score is not finite.
    """
    scores_M, scores_N = np.asarray(scores_M, np.float64), np.asarray(scores_N, np.float64)
    if min(len(scores_M), len(scores_N)) < FEWEST:
        raise ConfigError(
            f"audit: {len(scores_M)} members and {len(scores_N)} non-members; expected {FEWEST} or more of each."
        )
    if not (np.isfinite(scores_M).all() and np.isfinite(scores_N).all()):
        raise ConfigError("audit: a score is NaN or infinite; expected finite numbers.")
    return Verdict(
        advantage=advantage(scores_M, scores_N, seed=seed),
        auc=auc(scores_M, scores_N),
        hits=hits(scores_M, scores_N),
        num_members=len(scores_M),
        num_non_members=len(scores_N),
    )


def auc(scores_M: np.ndarray, scores_N: np.ndarray) -> Estimate:
    """Mann-Whitney's area, and Newcombe's score interval, which holds at 0 and 1 and for few images too.

    The interval inverts a normal test whose variance is Hanley and McNeil's at the tested area. Source: Newcombe,
    Statistics in Medicine 25 (2006) 559-573, method 5, recalled; its coverage is a test of this file.
    """
    num, other = len(scores_M), len(scores_N)
    ranks = rankdata(np.concatenate([scores_M, scores_N]))
    value = float((ranks[:num].sum() - num * (num + 1) / 2) / (num * other))
    return Estimate(value, _area_limit(value, num, other), 1 - _area_limit(1 - value, other, num))


def _area_limit(value: float, num: int, other: int) -> float:
    """Smallest area that a test does not refuse where `value` was found."""
    if value <= 0:
        return 0.0
    z, mean = float(norm.ppf((1 + CONFIDENCE) / 2)), (num + other) / 2

    def beyond(area: float) -> float:
        spread = 1 + (mean - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        return value - area - z * math.sqrt(area * (1 - area) * spread / (num * other))

    # At 1 the variance is 0, and 1 itself a root that says nothing.
    return root_scalar(beyond, bracket=(0.0, min(value, 1 - 1e-12)), method="brentq").root


def advantage(scores_M: np.ndarray, scores_N: np.ndarray, *, seed: int) -> Estimate:
    """True-positive less false-positive rate at thresholds that were chosen on other images.

    The images are cut into halves at random; each half is counted at the threshold that is best on the other, so every
    image counts once and none chooses for itself. The largest difference over all thresholds is above 0 for scores
    that know nothing: 0.04 on average for 400 images on either side.

    The interval is Newcombe's for a difference of two shares, of Wilson's intervals (Statistics in Medicine 17 (1998)
    873-890, method 10).
    """
    in_first_M, in_first_N = _first_half(len(scores_M), seed, 0), _first_half(len(scores_N), seed, 1)
    found = alarms = 0
    for own_M, own_N in ((in_first_M, in_first_N), (~in_first_M, ~in_first_N)):
        threshold = best_threshold(scores_M[~own_M], scores_N[~own_N])
        found += int((scores_M[own_M] >= threshold).sum())
        alarms += int((scores_N[own_N] >= threshold).sum())
    return _difference(found, len(scores_M), alarms, len(scores_N))


def best_threshold(scores_M: np.ndarray, scores_N: np.ndarray) -> float:
    """The score from which on images are called members where that divides these best; the highest of equal ones.

    Example:
        >>> best_threshold(np.array([3.0, 2.0, 0.0]), np.array([1.0, 0.0]))
        2.0
    """
    thresholds_T = np.unique(np.concatenate([scores_M, scores_N]))
    found_T = len(scores_M) - np.searchsorted(np.sort(scores_M), thresholds_T)
    alarms_T = len(scores_N) - np.searchsorted(np.sort(scores_N), thresholds_T)
    gain_T = found_T / len(scores_M) - alarms_T / len(scores_N)
    return float(thresholds_T[np.flatnonzero(gain_T == gain_T.max())[-1]])


def _first_half(count: int, seed: int, side: int) -> np.ndarray:
    """Which images are in the first of two random halves, bool [count]."""
    half = np.zeros(count, dtype=bool)
    half[stream(seed, "audit/halves", 0, side).permutation(count)[: count // 2]] = True
    return half


def _difference(found: int, num: int, alarms: int, other: int) -> Estimate:
    shares = []
    for count, total in ((found, num), (alarms, other)):
        limits = binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
        shares.append((count / total, limits.low, limits.high))
    (p, p_low, p_high), (q, q_low, q_high) = shares
    return Estimate(
        p - q, p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)
    )


def hits(scores_M: np.ndarray, scores_N: np.ndarray, *, rate: float = FALSE_ALARMS) -> Estimate:
    """Share of members above the threshold that a share `rate` of the non-members passes.

    The threshold is estimated as well, so the interval is of two parts, each wrong in at most 2.5 % of all cases: the
    threshold lies between two order statistics of the non-members, and above these the share of members has its exact
    binomial limits (Clopper and Pearson). With fewer than 436 non-members 1 % of them may be none, so the lower limit
    is 0; with fewer than 100 there is no value.
    """
    descending_N = np.sort(scores_N)[::-1]
    num, other, tail = len(scores_M), len(scores_N), (1 - CONFIDENCE) / 2
    fewest, most = (int(binom.ppf(q, other, rate)) for q in (tail / 2, 1 - tail / 2))
    low, high = 0.0, 1.0
    if fewest:
        sure = int((scores_M >= descending_N[fewest - 1]).sum())
        low = binomtest(sure, num).proportion_ci(1 - tail, method="exact").low
    if most < other:
        possible = int((scores_M > descending_N[most]).sum())
        high = binomtest(possible, num).proportion_ci(1 - tail, method="exact").high
    allowed = int(rate * other)
    value = float((scores_M > descending_N[allowed]).mean()) if allowed else None
    return Estimate(value, float(low), float(high))
