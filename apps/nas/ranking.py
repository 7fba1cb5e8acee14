"""How well a proxy's scores order networks: rank correlations and the worth of the proxy's best few.

Signs are kept: a proxy that orders networks backwards is negative. Scores may be -inf, which ranks last.
"""

# n networks, S seeds

import itertools
import math

import numpy as np
from scipy import stats

from atom.errors import ConfigError, DataError, ShapeError


def kendall_tau_b(proxy_n: np.ndarray, truth_n: np.ndarray) -> float | None:
    """Kendall's tau-b in [-1, 1]: concordant minus discordant pairs, over what ties leave possible.

    With C concordant and D discordant pairs, and X and Y pairs that are untied in the proxy and in the truth,
    it is (C - D) / sqrt(X * Y).

    Returns:
        None with fewer than 3 networks, or where either input is constant.

    Raises:
        ShapeError: the inputs are not 1-D of one length.
        DataError: a value is NaN.

    Example:
        >>> round(kendall_tau_b(np.array([1, 2, 3, 4]), np.array([1, 2, 4, 3])), 3)
        0.667
    """
    codes = _comparable(proxy_n, truth_n)
    return None if codes is None else float(stats.kendalltau(*codes, variant="b").statistic)


def spearman_rho(proxy_n: np.ndarray, truth_n: np.ndarray) -> float | None:
    """Spearman's rho in [-1, 1]: Pearson's correlation of the ranks; tied networks share their mid-rank.

    Returns and raises as `kendall_tau_b`.
    """
    codes = _comparable(proxy_n, truth_n)
    return None if codes is None else float(stats.spearmanr(*codes).statistic)


COEFFICIENTS = {"kendall": kendall_tau_b, "spearman": spearman_rho}


def top_networks(truth_n: np.ndarray, share: float) -> np.ndarray:
    """Indices of the true best `share` of the networks, int64, ascending.

    That is share * n networks, halves rounded up, at least one; networks tied with the last of them are in
    too, so that no order of the input decides.

    Args:
        truth_n: larger is better.
        share: 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share of the top networks is {share}, expected above 0 and at most 1; pass 0.2.")
    _check(truth_n, truth_n)
    count = max(1, math.floor(share * len(truth_n) + 0.5))
    return np.flatnonzero(true_ranks(truth_n) <= count)


def true_ranks(truth_n: np.ndarray) -> np.ndarray:
    """Rank of each network, 1 for the best; tied networks share the smallest of their ranks."""
    return stats.rankdata(-np.asarray(truth_n, dtype=np.float64), method="min").astype(np.int64)


def precision_at_k(proxy_n: np.ndarray, truth_n: np.ndarray, *, k: int) -> float:
    """Share of the proxy's k best that are among the true k best, in [0, 1].

    Networks tied with the true k-th count as true top. Where the proxy is tied at its k-th place, this is the
    exact expectation over a random order of the tied; so are `best_rank_at_k` and `regret_at_k`.

    Args:
        proxy_n: scores, larger is better.
        truth_n: finite, larger is better.
        k: 1 <= k <= n.

    Raises:
        ConfigError: k out of range.
        ShapeError, DataError: as `kendall_tau_b`.
    """
    certain, tied, places = _k_best(proxy_n, truth_n, k)
    in_top_n = true_ranks(truth_n) <= k
    return float(in_top_n[certain].sum() + places * in_top_n[tied].mean()) / k


def best_rank_at_k(proxy_n: np.ndarray, truth_n: np.ndarray, *, k: int) -> float:
    """True rank, 1 the best, of the best network among the proxy's k best; see `precision_at_k`."""
    return 0.0 - _expected_best(proxy_n, truth_n, -true_ranks(truth_n).astype(np.float64), k)


def regret_at_k(proxy_n: np.ndarray, truth_n: np.ndarray, *, k: int) -> float:
    """Best truth minus the best truth among the proxy's k best, in the truth's units; see `precision_at_k`."""
    truth_n = np.asarray(truth_n, dtype=np.float64)
    # Not a negation, which would print a regret of none as -0.00.
    return 0.0 - _expected_best(proxy_n, truth_n, truth_n - truth_n.max(initial=-np.inf), k)


def seed_ceiling(truth_nS: np.ndarray) -> tuple[float | None, float | None]:
    """Mean Kendall tau-b and mean Spearman rho between two seeds of the reference, over all pairs of seeds.

    It says how far the reference agrees with itself: what one training of each network on the whole set would
    score against another. The mean over S seeds is steadier than one seed, so a proxy may exceed it a little.

    Args:
        truth_nS: one column a seed.

    Returns:
        (kendall, spearman); None with one seed, or where a pair has no coefficient.
    """
    if truth_nS.ndim != 2:
        raise ShapeError(
            f"reference accuracies have shape {truth_nS.shape}, expected [n, S]; pass a column a seed."
        )
    means: list[float | None] = []
    for coefficient in COEFFICIENTS.values():
        values = [coefficient(first, second) for first, second in itertools.combinations(truth_nS.T, 2)]
        known = [value for value in values if value is not None]
        means.append(math.fsum(known) / len(known) if values and len(known) == len(values) else None)
    return means[0], means[1]


def dense_codes(values_n: np.ndarray) -> np.ndarray:
    """Integers 0, 1, ... in the order of the values, equal where the values are; -inf needs no special care."""
    return np.unique(np.asarray(values_n, dtype=np.float64), return_inverse=True)[1].astype(np.int64)


def _comparable(proxy_n: np.ndarray, truth_n: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes of both inputs, or None where no correlation is defined."""
    _check(proxy_n, truth_n)
    codes = dense_codes(proxy_n), dense_codes(truth_n)
    if len(truth_n) < 3 or not all(code.any() for code in codes):
        return None
    return codes


def _check(proxy_n: np.ndarray, truth_n: np.ndarray) -> None:
    if np.ndim(proxy_n) != 1 or np.shape(proxy_n) != np.shape(truth_n):
        raise ShapeError(
            f"scores have shape {np.shape(proxy_n)} and truth {np.shape(truth_n)}, expected two 1-D arrays of"
            " one length; leave out networks that lack either."
        )
    for what, values_n in (("scores", proxy_n), ("truth", truth_n)):
        if np.isnan(values_n).any():
            place = int(np.flatnonzero(np.isnan(values_n))[0])
            raise DataError(f"{what}: network {place} is NaN, which has no rank; leave failed networks out.")


def _k_best(proxy_n: np.ndarray, truth_n: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Networks certainly among the proxy's k best, those tied at the k-th place, and places left for these."""
    _check(proxy_n, truth_n)
    if not 1 <= k <= len(truth_n):
        raise ConfigError(f"k is {k}, but there are {len(truth_n)} networks; pass k from 1 to that number.")
    proxy_n = np.asarray(proxy_n, dtype=np.float64)
    border = np.sort(proxy_n)[-k]
    certain = np.flatnonzero(proxy_n > border)
    return certain, np.flatnonzero(proxy_n == border), k - len(certain)


def _expected_best(proxy_n: np.ndarray, truth_n: np.ndarray, worth_n: np.ndarray, k: int) -> float:
    """Expected largest worth among the proxy's k best.

    Of m tied networks r are chosen at random. The i-th worthiest of them is the best chosen with probability
    C(m - i, r - 1) / C(m, r): it is in, the i - 1 before it are not, and r - 1 of the m - i after it are.
    """
    certain, tied, r = _k_best(proxy_n, truth_n, k)
    m, floor = len(tied), worth_n[certain].max(initial=-np.inf)
    worths = np.maximum(np.sort(worth_n[tied])[::-1], floor)[: m - r + 1]
    chances = [math.comb(m - i, r - 1) / math.comb(m, r) for i in range(1, m - r + 2)]
    return math.fsum(worth * chance for worth, chance in zip(worths, chances, strict=True))
