"""Bootstrap over networks: how far a rank statistic may move had other networks been searched.

Each resample draws n networks with replacement, and all proxies meet the same resamples.
"""

# R resamples, r resamples of a block, n networks, G groups of tied networks, K values of k

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from apps.nas import ranking
from apps.nas.findings import Estimate, TopK
from apps.nas.resampling import Draws, blocks, group_sums, weighted
from atom.streams import stream

LEVEL = 0.95
"""Confidence of the intervals. Source: `scipy.stats.bootstrap`."""


@dataclass(frozen=True, eq=False)
class Replicates:
    """A statistic on all networks (None where undefined), on each resample, and with each network left out.

    NaN stands for resamples on which it is undefined.
    """

    value: float | None
    samples_R: np.ndarray
    jackknife_n: np.ndarray


def replicate(
    coefficient: str, proxy_n: np.ndarray, truth_n: np.ndarray, *, draws: Draws | None
) -> Replicates:
    """A coefficient of `ranking.COEFFICIENTS` with its replicates; without draws only its value."""
    value = ranking.COEFFICIENTS[coefficient](proxy_n, truth_n)
    if draws is None or value is None:
        return Replicates(value, np.empty(0), np.empty(0))
    n = len(truth_n)
    left_out_nn = np.ones((n, n), dtype=np.float32) - np.eye(n, dtype=np.float32)
    return Replicates(
        value,
        weighted(coefficient, proxy_n, truth_n, counts_Rn=draws.counts_Rn),
        weighted(coefficient, proxy_n, truth_n, counts_Rn=left_out_nn),
    )


def interval(replicates: Replicates, *, level: float = LEVEL) -> Estimate:
    """BCa interval of a statistic: bias-corrected, and accelerated by the jackknife over networks.

    Resamples on which the statistic is undefined are left out; where these are more than half there is no
    interval. Where BCa itself is undefined (all replicates on one side of the value, or a jackknife without
    spread) it is the percentile interval. Elsewhere it equals that of `scipy.stats.bootstrap` with method
    "BCa", given the same resamples. Normal scores with known correlations (n = 50, 800 data sets) were covered
    in 94 to 97 % at level 0.95, and so were differences of two proxies.
    """
    if replicates.value is None or not _enough(replicates.samples_R):
        return Estimate(replicates.value, None, None)
    low, high = _limits(replicates, *_correction(replicates), level)
    return Estimate(replicates.value, low, high)


def compare(first: Replicates, second: Replicates, *, level: float = LEVEL) -> tuple[Estimate, float | None]:
    """Interval of first minus second, both on the same resamples, and a two-sided p.

    p is the level of significance at which the interval just touches 0: BCa solved for 1 - level. It is at
    least 2 / (R + 1), which R resamples cannot go below, and None where there is no interval.
    """
    if first.value is None or second.value is None:
        return Estimate(None, None, None), None
    difference = Replicates(
        first.value - second.value,
        first.samples_R - second.samples_R,
        first.jackknife_n - second.jackknife_n,
    )
    estimate = interval(difference, level=level)
    if estimate.low is None:
        return estimate, None
    return estimate, _p_value(difference)


def top_k(
    proxy_n: np.ndarray, truth_n: np.ndarray, *, ks: Sequence[int], draws: Draws | None, level: float = LEVEL
) -> list[TopK]:
    """Precision@k, best rank@k and regret@k for each k, with percentile intervals.

    Values are those of `ranking`. In a resample, copies of one network are networks of their own, ties of the
    proxy are broken at random, and true ranks and the best truth are those within the resample. The bootstrap
    is rough for extremes such as these; read the intervals as an order of magnitude.
    """
    statistics = (ranking.precision_at_k, ranking.best_rank_at_k, ranking.regret_at_k)
    values = [[statistic(proxy_n, truth_n, k=k) for statistic in statistics] for k in ks]
    if draws is None or not ks:
        return [
            TopK(k, *(Estimate(value, None, None) for value in row))
            for k, row in zip(ks, values, strict=True)
        ]
    samples_3RK = _top_samples(proxy_n, np.asarray(truth_n, dtype=np.float64), ks, draws)
    limits_23K = np.quantile(samples_3RK, _tails(level), axis=1)
    return [
        TopK(k, *(Estimate(row[i], *map(float, limits_23K[:, i, place])) for i in range(3)))
        for place, (k, row) in enumerate(zip(ks, values, strict=True))
    ]


def _top_samples(proxy_n: np.ndarray, truth_n: np.ndarray, ks: Sequence[int], draws: Draws) -> np.ndarray:
    """Precision, best rank and regret at each k on each resample, float64 [3, R, K]."""
    num_resamples, n = draws.index_Rn.shape
    rng = stream(draws.seed, "nas/bootstrap-ties")
    descending_n, codes_n = -ranking.dense_codes(proxy_n), ranking.dense_codes(truth_n)
    levels_G = np.unique(truth_n)
    samples_3RK = np.empty((3, num_resamples, len(ks)))
    most = max(ks)
    for rows in blocks(num_resamples, n):
        index_rn = draws.index_Rn[rows]
        key_rn = descending_n[index_rn] + rng.random(index_rn.shape)
        first_rk = np.argpartition(key_rn, most - 1, axis=1)[:, :most]
        order_rk = np.argsort(np.take_along_axis(key_rn, first_rk, axis=1), axis=1)
        picks_rk = np.take_along_axis(index_rn, np.take_along_axis(first_rk, order_rk, axis=1), axis=1)
        groups_rG = group_sums(draws.counts_Rn[rows], codes_n)
        rank_rG = n - np.cumsum(groups_rG, axis=1) + 1
        rank_rk = np.take_along_axis(rank_rG, codes_n[picks_rk], axis=1)
        best_r = levels_G[-1 - np.argmax(groups_rG[:, ::-1] > 0, axis=1)]
        for place, k in enumerate(ks):
            samples_3RK[0, rows, place] = (rank_rk[:, :k] <= k).mean(axis=1)
            samples_3RK[1, rows, place] = rank_rk[:, :k].min(axis=1)
            samples_3RK[2, rows, place] = best_r - truth_n[picks_rk[:, :k]].max(axis=1)
    return samples_3RK


def _correction(replicates: Replicates) -> tuple[float, float]:
    """Bias correction and acceleration; both 0, which makes the percentile interval, where undefined."""
    value, samples_R, jackknife_n = replicates.value, replicates.samples_R, replicates.jackknife_n
    bias = float(special.ndtri(_share_below(samples_R, value or 0.0)))
    gap_n = jackknife_n.mean() - jackknife_n
    # Also catches NaN; gaps of rounding alone have no meaning.
    if not math.isfinite(bias) or not np.abs(gap_n).max() > 1e-12:
        return 0.0, 0.0
    return bias, float((gap_n**3).sum() / (6 * (gap_n**2).sum() ** 1.5))


def _limits(replicates: Replicates, bias: float, acceleration: float, level: float) -> tuple[float, float]:
    shares = []
    for normal in special.ndtri(_tails(level)):
        slope = 1 - acceleration * (bias + normal)
        # A slope below 0 is past the pole, where the share has already reached its end.
        shares.append(special.ndtr(bias + (bias + normal) / slope) if slope > 0 else float(normal > 0))
    samples_R = replicates.samples_R
    low, high = np.quantile(samples_R[~np.isnan(samples_R)], shares)
    return float(low), float(high)


def _p_value(difference: Replicates) -> float:
    bias, acceleration = _correction(difference)
    num = int((~np.isnan(difference.samples_R)).sum())
    share = min(max(_share_below(difference.samples_R, 0.0), 1 / (num + 1)), num / (num + 1))
    shift = float(special.ndtri(share)) - bias
    slope = 1 + acceleration * shift
    tail = shift / slope - bias if slope > 0 else math.inf
    return min(1.0, max(2 * float(special.ndtr(-abs(tail))), 2 / (num + 1)))


def _share_below(samples_R: np.ndarray, value: float) -> float:
    """Share of the defined replicates below the value, those equal to it counted by half."""
    samples_R = samples_R[~np.isnan(samples_R)]
    return float(((samples_R < value).mean() + (samples_R <= value).mean()) / 2)


def _enough(samples_R: np.ndarray) -> bool:
    return len(samples_R) > 0 and float(np.isnan(samples_R).mean()) <= 0.5


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]
