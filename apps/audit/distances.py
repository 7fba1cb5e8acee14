"""Distances of images to the nearest of a set: the simplest score of membership, and the search for copies."""

# Q images asked about, S images of a set, P members, D numbers of an image, K classes

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

COPY_QUANTILE = 0.01
"""An image of a set counts as near-copy where it is nearer to a member than this share of members is to another
member. Chosen: real images that near are themselves a hundredth of all."""
_ROWS = 256
"""Images asked about at once: with their differences from two others, 200 MB at 3x128x128 pixels."""


def nearest(images_QD: Tensor, pool_SD: Tensor, *, but_itself: bool = False) -> Tensor:
    """Euclidean distance of every image to the nearest of the pool, float64 [Q]; an equal one has exactly 0.

    Args:
        images_QD: any floating type.
        pool_SD: at least one row.
        but_itself: the images are of the pool: the nearest other one; of a pool of one row infinity.
    """
    if but_itself and len(pool_SD) == 1:
        return torch.full((len(images_QD),), torch.inf, dtype=torch.float64)
    pool_SD = pool_SD.double()
    # About the mean, distances lose fewer digits; who is nearest is found by products, how near by differences.
    centre_D = pool_SD.mean(0)
    pool_SD = pool_SD - centre_D
    squares_S, parts = (pool_SD**2).sum(1), []
    for part_QD in images_QD.split(_ROWS):
        part_QD = part_QD.double() - centre_D
        away_QS = squares_S - 2 * (part_QD @ pool_SD.T)
        rows_QR = away_QS.topk(2 if but_itself else 1, dim=1, largest=False).indices
        found_QR = (part_QD[:, None] - pool_SD[rows_QR]).norm(dim=2)
        parts.append(found_QR.max(1).values if but_itself else found_QR[:, 0])
    return torch.cat(parts)


def nearest_of_class(
    images: Tensor,
    labels_Q: np.ndarray,
    pool: Tensor,
    labels_S: np.ndarray,
    *,
    but_itself: bool = False,
) -> np.ndarray:
    """Distance of every image to the nearest of its class in the pool, float64 [Q]; of all, where it has none.

    Args:
        images, pool: one row an image, of any shape; float32, in one space.
        labels_Q, labels_S: their classes.
        but_itself: see `nearest`.
    """
    found_Q = np.empty(len(labels_Q))
    for class_id in np.unique(labels_Q):
        rows, among = np.flatnonzero(labels_Q == class_id), np.flatnonzero(labels_S == class_id)
        among = among if len(among) else np.arange(len(labels_S))
        found_Q[rows] = nearest(images[rows].flatten(1), pool[among].flatten(1), but_itself=but_itself)
    return found_Q


@dataclass(frozen=True)
class Copies:
    """How near the images of a set are to those that it was made from; in units of the median distance of a member to
    the nearest other member of its class.

    Attributes:
        num_images: of the set, decoded.
        num_near: of these, near-copies; see `COPY_QUANTILE`.
        closest, median: distance of an image of the set to the nearest member.
        real_closest: the distance below which one counts as near-copy.
    """

    num_images: int
    num_near: int
    closest: float
    median: float
    real_closest: float

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dict(vars(self))


def find_copies(to_members_S: np.ndarray, between_members_P: np.ndarray) -> Copies | None:
    """Compare distances of a set's images to members with those of members to other members.

    Args:
        to_members_S: of every image of the set to the nearest member of its class.
        between_members_P: of members to the nearest other one of their class; infinity: there is none.

    Returns:
        None where no class has two members, so that nothing says what is near.
    """
    between_members_P = between_members_P[np.isfinite(between_members_P)]
    if not len(between_members_P):
        return None
    unit = float(np.median(between_members_P))
    edge = float(np.quantile(between_members_P, COPY_QUANTILE))
    # Members that occur twice put the edge at 0, and a copy is one all the same.
    near_S = (to_members_S < edge) | (to_members_S == 0)
    # All members alike: there is no unit, and distances stay as they are.
    unit = unit if unit > 0 else 1.0
    return Copies(
        num_images=len(to_members_S),
        num_near=int(near_S.sum()),
        closest=float(to_members_S.min()) / unit,
        median=float(np.median(to_members_S)) / unit,
        real_closest=edge / unit,
    )
