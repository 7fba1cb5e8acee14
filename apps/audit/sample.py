"""Which images an audit asks about: as many members as non-members, in every class."""

# N images, K classes

import numpy as np

from atom.streams import stream


def balanced_rows(
    labels_of: tuple[np.ndarray, np.ndarray], *, num_classes: int, most: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of members and of non-members, equally many of each class, at random: a class must not tell them apart.

    Args:
        labels_of: int64 labels of the members, and of the non-members.
        num_classes: K.
        most: of either; a class has at most its share of these, rounded down, and at least one.
        seed: of the draw. A class's rows are the first of one order, so fewer are part of more.

    Returns:
        Two ascending arrays of equal length; a class that is missing on one side is missing on both.
    """
    share = max(1, most // num_classes)
    chosen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for class_id in range(num_classes):
        of_class = [np.flatnonzero(labels_N == class_id) for labels_N in labels_of]
        count = min(share, *map(len, of_class))
        for side, rows in enumerate(of_class):
            order = stream(seed, f"audit/side{side}", 0, class_id).permutation(len(rows))
            chosen[side].append(rows[order[:count]])
    members, non_members = (np.sort(np.concatenate(rows)).astype(np.int64) for rows in chosen)
    return members, non_members
