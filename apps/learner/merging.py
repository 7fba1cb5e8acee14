"""A class that comes back: its new images and what is remembered of its old ones, each by the number it stands for."""

# N new images, M remembered images, C channels, H height, W width

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from apps.continual.exemplars import Exemplars


def repeats(total: int, number: int) -> list[int]:
    """How often each of `number` remembered images is repeated to stand for `total` real ones: equal but for one.

    Example:
        >>> repeats(10, 4), repeats(2, 3)
        ([3, 3, 2, 2], [1, 1, 1])
    """
    return [max(1, len(range(row, total, number))) for row in range(number)]


def weighted(new_NCHW: Tensor, old_MCHW: Tensor, *, stands_for: int) -> Tensor:
    """What a class is distilled from: new images once each, remembered ones as often as they stand for real ones.

    A batch that is drawn evenly from these rows holds new and old images in proportion to the real images that there
    were of both, and so do starts. A remembered image is never left out, though it stand for less than one.

    Args:
        new_NCHW: preprocessed, float32.
        old_MCHW: the same, decoded.
        stands_for: real images behind the old ones.

    Returns:
        [N + max(stands_for, M), C, H, W].
    """
    counts_M = torch.tensor(repeats(stands_for, len(old_MCHW)))
    return torch.cat([new_NCHW, old_MCHW.repeat_interleave(counts_M, dim=0)])


def interleaved(
    number_old: int, number_new: int, *, old_weight: int, new_weight: int, most: int
) -> list[tuple[int, int]]:
    """Which images a memory of real ones keeps of a class that came back, the most important first.

    Both kinds are in order of importance. One after the other, that kind is taken which is behind its share, as long as
    there are any, so that every prefix holds both in proportion to the real images behind them.

    Returns:
        (kind, row) of each, kind 0 for old and 1 for new, at most `most`.

    Example:
        >>> interleaved(5, 5, old_weight=1, new_weight=3, most=4)
        [(1, 0), (1, 1), (0, 0), (1, 2)]
    """
    weights, numbers, taken = (old_weight, new_weight), (number_old, number_new), [0, 0]
    order: list[tuple[int, int]] = []
    while len(order) < min(most, number_old + number_new):
        # Whose next image would still be within its share the most; of equals the new one, which shows the class today.
        behind = [(len(order) + 1) * weights[kind] / sum(weights) - taken[kind] for kind in (0, 1)]
        kind = max((1, 0), key=lambda each: (taken[each] < numbers[each], behind[each]))
        order.append((kind, taken[kind]))
        taken[kind] += 1
    return order


def merged(old: Exemplars, new: Exemplars, *, old_weight: int, new_weight: int, most: int) -> Exemplars:
    """The real images of both that a class keeps, as plain pixels; see `interleaved`."""
    order = interleaved(
        old.num_images, new.num_images, old_weight=old_weight, new_weight=new_weight, most=most
    )
    both = (old.images_NCHW, new.images_NCHW)
    return Exemplars(np.stack([both[kind][row] for kind, row in order]))


def fit_channels(images_NCHW: np.ndarray, channels: int) -> np.ndarray | None:
    """The images with so many channels: grey ones in all three, colour ones that are grey all over in one; or None."""
    found = images_NCHW.shape[1]
    if found == channels:
        return images_NCHW
    if found == 1:
        return np.repeat(images_NCHW, channels, axis=1)
    grey = all(np.array_equal(images_NCHW[:, 0], images_NCHW[:, c]) for c in range(1, found))
    return images_NCHW[:, :1] if channels == 1 and grey else None


def new_order(old: Sequence[str], step: Sequence[str]) -> list[str]:
    """All classes in the order of their labels: old ones keep theirs, new ones follow in the order of their names.

    Example:
        >>> new_order(["dog", "cat"], ["mug", "cat", "ant"])
        ['dog', 'cat', 'ant', 'mug']
    """
    return [*old, *sorted(set(step) - set(old))]


__all__ = ["fit_channels", "interleaved", "merged", "new_order", "repeats", "weighted"]
