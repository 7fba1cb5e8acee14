"""A memory that changes inside a step: every image of the stream passes once, and stays if its random number is small.

Whatever the order in which images pass, those with the smallest numbers are left: after the step the memory is the one
that `apps.continual.memory` makes of the whole step at once.
"""

# N images of the step, M images in memory when it begins, P = M + N, B batches

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Passing:
    """By what the images of a step, and those in memory when it begins, are kept.

    Attributes:
        keys_before, keys_current: numbers [M] and [N]; the smaller is kept.
        lots_current: int64 [N], lot of each image of the step, see `apps.continual.stream`.
        kept: images that each lot may keep, from the beginning of the step on; read without `capacity`.
        capacity: of a reservoir, in which all lots compete; None: each lot has its own room.
    """

    keys_before: np.ndarray
    keys_current: np.ndarray
    lots_current: np.ndarray
    kept: Mapping[int, int]
    capacity: int | None = None

    def stays(self, lots_before_M: np.ndarray, batch_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From which training step on each image is in memory, and at which it is no more: int64 [P] each.

        An image of batch b can be drawn from training step b + 1 on. One that never enters has two equal numbers; one
        that is left at the end, B + 1 for the second.

        Args:
            lots_before_M: lots of the images in memory.
            batch_N: the batch in which each image of the step passes, from 0.
        """
        keys_P = np.concatenate([self.keys_before, self.keys_current])
        lots_P = np.concatenate([lots_before_M, self.lots_current])
        num_before, num_batches = len(lots_before_M), int(batch_N.max(initial=-1)) + 1
        since_P = np.concatenate([np.zeros(num_before, np.int64), batch_N + 1])
        until_P = np.full(len(keys_P), num_batches + 1)
        kept_n = np.arange(num_before)
        for batch in range(-1, num_batches):
            candidates_n = np.concatenate([kept_n, num_before + np.flatnonzero(batch_N == batch)])
            kept_n = candidates_n[self._smallest(keys_P[candidates_n], lots_P[candidates_n])]
            until_P[np.setdiff1d(candidates_n, kept_n)] = batch + 1
        return since_P, until_P

    def _smallest(self, keys_n: np.ndarray, lots_n: np.ndarray) -> np.ndarray:
        """Whether each of some images is kept."""
        groups_n = lots_n if self.capacity is None else np.zeros_like(lots_n)
        room = self.kept if self.capacity is None else {0: self.capacity}
        order_n = np.lexsort((keys_n, groups_n))
        _, first_n, sizes = np.unique(groups_n[order_n], return_index=True, return_counts=True)
        place_n = np.arange(len(keys_n)) - np.repeat(first_n, sizes)
        inside_n = np.empty(len(keys_n), bool)
        inside_n[order_n] = place_n < np.array([room[group] for group in groups_n[order_n].tolist()])
        return inside_n


__all__ = ["Passing"]
