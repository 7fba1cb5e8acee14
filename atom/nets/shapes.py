"""Sizes of the maps inside a network, and where they may still be halved."""

from collections.abc import Sequence

Size = tuple[int, int]
"""Height and width, in pixels or positions."""


def stem_padding(image_size: Size, kernel: int) -> int:
    """Padding of the first convolution: what keeps the size, and two more for 28x28 images.

    28x28 images become 32x32 maps, which halve evenly five times; 28 would end in 7, and each further pooling
    would drop a row and a column. Source: the published code of DC and its successors, which does this for
    one-channel images, all of them 28x28.
    """
    return kernel // 2 + (2 if tuple(image_size) == (28, 28) else 0)


def stem_size(image_size: Size, kernel: int = 3) -> Size:
    """Height and width after the first convolution of stride 1."""
    grow = 2 * stem_padding(image_size, kernel) - kernel + 1
    return image_size[0] + grow, image_size[1] + grow


def plan_halving(size: Size, wanted: Sequence[bool], *, round_up: bool = False) -> tuple[list[bool], Size]:
    """After which blocks the map is halved, and its size in the end.

    A wanted halving is left out where a side is 1 already, and where it would leave a single position to a
    further block: instance normalisation of a single position is constant, so all features would vanish.

    Args:
        size: height and width at the first block.
        wanted: one flag a block, whether the network halves after it.
        round_up: an odd side 2k+1 becomes k+1 (strided convolution), not k (pooling).

    Example:
        >>> plan_halving((32, 32), [True, True, True])
        ([True, True, True], (4, 4))
        >>> plan_halving((8, 8), [True, True, True, True])
        ([True, True, False, True], (1, 1))
    """
    height, width = size
    planned = []
    for index, want in enumerate(wanted):
        half = ((height + round_up) // 2, (width + round_up) // 2)
        is_last = index == len(wanted) - 1
        do = want and min(height, width) > 1 and (is_last or half[0] * half[1] > 1)
        planned.append(do)
        height, width = half if do else (height, width)
    return planned, (height, width)
