"""Resamples of networks as counts, and both rank correlations on many resamples at once.

A resample is kept as how often each network was drawn, from which the coefficients follow without sorting anew.
"""

# R resamples, r resamples of a block, n networks, G groups of tied networks

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from apps.nas.ranking import dense_codes
from atom.errors import ConfigError
from atom.streams import stream

_BLOCK = 2_000_000  # numbers of a block of resamples: some 16 MB an array

Scales = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Draws:
    """Resamples of n networks: the networks drawn, int32, and how often each was, float32."""

    index_Rn: np.ndarray
    counts_Rn: np.ndarray
    seed: int


def draw(n: int, *, resamples: int, seed: int) -> Draws:
    """The resamples of n networks; they depend on the three arguments alone."""
    if n < 1 or resamples < 1:
        raise ConfigError(
            f"the bootstrap got {resamples} resamples of {n} networks; pass at least 1 of each."
        )
    index_Rn = stream(seed, "nas/bootstrap").integers(n, size=(resamples, n), dtype=np.int32)
    counts_Rn = np.empty((resamples, n), dtype=np.float32)
    for rows in blocks(resamples, n):
        block = index_Rn[rows] + n * np.arange(len(index_Rn[rows]), dtype=np.int64)[:, None]
        counts_Rn[rows] = np.bincount(block.ravel(), minlength=block.size).reshape(block.shape)
    return Draws(index_Rn, counts_Rn, seed)


def weighted(
    coefficient: str, proxy_n: np.ndarray, truth_n: np.ndarray, *, counts_Rn: np.ndarray
) -> np.ndarray:
    """The coefficient on each resample, float64 [R], as if each network were repeated by its count.

    NaN where fewer than two distinct scores or truths were drawn. All sums are of whole numbers or quarters,
    hence exact and the same on every machine.
    """
    x_n, y_n = dense_codes(proxy_n), dense_codes(truth_n)
    compute = {"kendall": _kendall, "spearman": _spearman}[coefficient](x_n, y_n)
    samples_R = np.empty(len(counts_Rn))
    for rows in blocks(*counts_Rn.shape):
        numerator, x_scale, y_scale = compute(counts_Rn[rows])
        with np.errstate(invalid="ignore"):
            samples_R[rows] = numerator / (np.sqrt(x_scale) * np.sqrt(y_scale))
    # Square roots may push a perfect correlation one rounding beyond 1.
    return np.clip(samples_R, -1, 1)


def _kendall(x_n: np.ndarray, y_n: np.ndarray) -> Callable[[np.ndarray], Scales]:
    """Twice C - D, X and Y of tau-b, from counts w: wᵀSw with S_ij = sign(x_i - x_j) sign(y_i - y_j)."""
    # Entries and sums of w and S are whole numbers up to n**2, which float32 holds exactly while below 2**24.
    dtype = np.float32 if len(x_n) <= 4096 else np.float64
    sign_nn = np.sign(x_n[:, None] - x_n) * np.sign(y_n[:, None] - y_n)
    sign_nn = sign_nn.astype(dtype)

    def compute(counts_rn: np.ndarray) -> Scales:
        counts_rn = counts_rn.astype(dtype, copy=False)
        pairs_r = np.einsum("rn,rn->r", counts_rn @ sign_nn, counts_rn).astype(np.float64)
        all_r = counts_rn.sum(axis=1, dtype=np.float64) ** 2
        x_r, y_r = (all_r - (group_sums(counts_rn, codes_n) ** 2).sum(axis=1) for codes_n in (x_n, y_n))
        return pairs_r, x_r, y_r

    return compute


def _spearman(x_n: np.ndarray, y_n: np.ndarray) -> Callable[[np.ndarray], Scales]:
    """Covariance and variances of the mid-ranks, from counts."""

    def centred(counts_rn: np.ndarray, codes_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        groups_rG = group_sums(counts_rn, codes_n)
        upto_rG = np.cumsum(groups_rG, axis=1)
        # Mid-rank less its mean: (below + (group + 1) / 2) - (all + 1) / 2.
        rank_rG = upto_rG - groups_rG / 2 - upto_rG[:, -1:] / 2
        return np.take(rank_rG, codes_n, axis=1), (groups_rG * rank_rG**2).sum(axis=1)

    def compute(counts_rn: np.ndarray) -> Scales:
        (x_rn, x_r), (y_rn, y_r) = centred(counts_rn, x_n), centred(counts_rn, y_n)
        return np.einsum("rn,rn,rn->r", counts_rn, x_rn, y_rn, dtype=np.float64), x_r, y_r

    return compute


def group_sums(counts_rn: np.ndarray, codes_n: np.ndarray) -> np.ndarray:
    """Networks drawn of each group of ties, float64 [r, G], in the order of the codes."""
    order_n = np.argsort(codes_n, kind="stable")
    starts_G = np.flatnonzero(np.diff(codes_n[order_n], prepend=-1))
    sorted_rn = np.take(counts_rn, order_n, axis=1).astype(np.float64)
    if len(starts_G) == len(order_n):
        return sorted_rn
    return np.add.reduceat(sorted_rn, starts_G, axis=1)


def blocks(num_rows: int, num_columns: int) -> list[slice]:
    """Slices of rows that bound the memory of a step; they change no result."""
    size = max(1, _BLOCK // max(1, num_columns))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
