"""How large a memory may be: in images a class, in images altogether, or in bytes; and what a class can fill."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from atom.errors import ConfigError

_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_FORMS = '"20/class", "2000 images", or bytes as "600kB", "6MiB", "61.44kB/class"'


@dataclass(frozen=True)
class Budget:
    """A limit of exactly one kind; `images` and `num_bytes` are shared by all classes seen so far.

    The two by class let nothing shrink: a class keeps from its first step to the end what it was given.

    All classes get the same number of images, as far as they have them: a rare class leaves the rest of its share
    unused and shrinks no other. What does not divide stays unused, so no class is larger because of its place.
    Bytes are those of the images as stored, see `exemplars.image_bytes`.

    Example:
        >>> Budget(images=500).quota(7, bytes_per_image=3072), Budget(num_bytes=61440).quota(2, 3072)
        (71, 10)
        >>> Budget(bytes_per_class=61440).quota(7, bytes_per_image=3072)
        20
    """

    per_class: int | None = None
    """Images of every class."""
    bytes_per_class: int | None = None
    """Bytes of the images of every class."""
    images: int | None = None
    """Images of all classes together."""
    num_bytes: int | None = None
    """Bytes of the images of all classes together."""

    def __post_init__(self) -> None:
        """Refuse what is no limit, or more than one.

        Raises:
            ConfigError: not exactly one is given, or it is below 1.
        """
        given = {name: number for name, number in vars(self).items() if number is not None}
        if len(given) != 1 or min(given.values()) < 1:
            raise ConfigError(
                f"memory budget: received {given or 'nothing'}; expected exactly one of per_class, bytes_per_class,"
                " images and num_bytes, of 1 or more."
            )

    def quota(self, num_seen_classes: int, bytes_per_image: int) -> int:
        """Images each class may keep while `num_seen_classes` >= 1 have been seen; may be 0."""
        if self.by_class:
            return self._images_of_class(bytes_per_image)
        return self._all_images(bytes_per_image) // num_seen_classes

    def capacity(self, num_classes: int, bytes_per_image: int) -> int:
        """Images altogether once all `num_classes` have been seen: the size of a reservoir.

        A limit by class gives the reservoir its last size from the first step on, since it cannot grow and
        stay a uniform sample; before the last step it holds more than a memory by class does.
        """
        if self.by_class:
            return self._images_of_class(bytes_per_image) * num_classes
        return self._all_images(bytes_per_image)

    def share(self, num_seen_classes: int) -> int | None:
        """Bytes of each class while so many have been seen; None for a limit in images."""
        return self.bytes_per_class or (self.num_bytes and self.num_bytes // num_seen_classes)

    def all_bytes(self, num_classes: int) -> int | None:
        """Bytes altogether once all classes have been seen, of a reservoir from the first step on, see `capacity`."""
        return self.num_bytes or (self.bytes_per_class and self.bytes_per_class * num_classes)

    @property
    def by_class(self) -> bool:
        """Whether every class has a limit of its own, so that none shrinks when others arrive."""
        return self.per_class is not None or self.bytes_per_class is not None

    def check(self, num_classes: int, bytes_per_image: int) -> None:
        """Refuse a budget that leaves a class without an image at the last step.

        Raises:
            ConfigError: says how much is needed.
        """
        if self.quota(num_classes, bytes_per_image) >= 1:
            return
        needed = f"{num_classes} images"
        if self.bytes_per_class is not None:
            raise ConfigError(
                f"memory budget of {self}: an image takes {bytes_per_image} bytes; raise it to that or more."
            )
        if self.num_bytes is not None:
            needed = f"{num_classes * bytes_per_image} bytes, {bytes_per_image} an image,"
        raise ConfigError(
            f"memory budget of {self}: {num_classes} classes need {needed} or more at the last step; raise it."
        )

    def __str__(self) -> str:
        if self.per_class is not None:
            return f"{self.per_class} images a class"
        if self.bytes_per_class is not None:
            return f"{self.bytes_per_class} bytes a class"
        return f"{self.images} images" if self.images is not None else f"{self.num_bytes} bytes"

    def _images_of_class(self, bytes_per_image: int) -> int:
        if self.per_class is not None:
            return self.per_class
        return (self.bytes_per_class or 0) // bytes_per_image

    def _all_images(self, bytes_per_image: int) -> int:
        if self.images is not None:
            return self.images
        return (self.num_bytes or 0) // bytes_per_image


def parse_budget(text: str) -> Budget:
    """A budget as a user writes it: "20/class", "2000 images", "600kB", "6MB" (10**6), "6MiB" (2**20), "8kB/class".

    Letters may be small or capital. Bytes may have decimals, and a part of a byte is dropped.

    Raises:
        ConfigError: not one of these forms, or below 1.

    Example:
        >>> parse_budget("20/class").per_class, parse_budget("1.5 kB").num_bytes
        (20, 1500)
        >>> parse_budget("7.84kB/class").bytes_per_class
        7840
    """
    match = re.fullmatch(r"(\d+)(\.\d+)?\s*(images?|[kmg]i?b|b)?\s*(/\s*class)?", text.strip().lower())
    unit = (match.group(3) or "") if match else ""
    by_class = bool(match and match.group(4))
    # A bare number would not say of what, and images have no decimals.
    if match is None or not (unit or by_class) or (match.group(2) and unit not in _UNITS):
        raise ConfigError(f"memory budget {text!r} is not understood; write {_FORMS}.")
    if not float(match.group(1) + (match.group(2) or "")):
        raise ConfigError(f"memory budget {text!r} is nothing; expected room of 1 or more, such as {_FORMS}.")
    if unit in _UNITS:
        # Fractions are exact; 0.29 as a float is not.
        num_bytes = int(Fraction(match.group(1) + (match.group(2) or "")) * _UNITS[unit])
        return Budget(bytes_per_class=num_bytes) if by_class else Budget(num_bytes=num_bytes)
    number = int(match.group(1))
    return Budget(per_class=number) if by_class else Budget(images=number)


def num_distilled(quota: int, num_real: int, *, factor: int, init: str) -> int:
    """Images that a class is distilled into: what it may keep, but no more than its own real images allow.

    A start from real images takes factor x factor of them for each; from noise a class is made into no more images
    than it has. 0 where it has too few for one.

    Example:
        >>> num_distilled(20, 100, factor=2, init="real"), num_distilled(20, 8, factor=1, init="noise")
        (20, 8)
    """
    return min(quota, num_real if init == "noise" else num_real // factor**2)


def priorities(num_real: int, num_images: int) -> np.ndarray:
    """How much the images of a lot count, the most important first: Webster's n / (2k + 1), float64 [num_images].

    Args:
        num_real: n, the real images that the lot stands for.
        num_images: that it has.
    """
    return num_real / (2.0 * np.arange(num_images) + 1)


def apportion(quota: int, sizes: Sequence[int], most: Sequence[int]) -> list[int]:
    """How a class's quota is shared by its lots, in proportion to the images that each stands for.

    By Webster's method, see `priorities`: the largest go in, of equal ones that of the lot that came first. So a lot
    that comes, or a quota that falls, takes images away from the others and gives none back: what has been dropped
    could not return.

    Example:
        >>> apportion(20, (90, 10), (90, 10)), apportion(3, (50, 50), (50, 50)), apportion(5, (8, 2), (3, 2))
        ([18, 2], [2, 1], [3, 2])
    """
    numbers = [min(quota, number) for number in most]
    counts_N = np.concatenate([priorities(n, number) for n, number in zip(sizes, numbers, strict=True)])
    lots_N = np.repeat(np.arange(len(sizes)), numbers)
    taken = lots_N[np.argsort(-counts_N, kind="stable")[:quota]]
    return np.bincount(taken, minlength=len(sizes)).tolist()


def by_images(number: Mapping[int, int]) -> dict[int, list[int]]:
    """Classes by the images that each is distilled into: those that are distilled together have the same number.

    Example:
        >>> by_images({0: 9, 1: 9, 2: 4, 3: 9})
        {4: [2], 9: [0, 1, 3]}
    """
    return {
        images: sorted(class_id for class_id in number if number[class_id] == images)
        for images in sorted(set(number.values()))
    }


__all__ = ["Budget", "apportion", "by_images", "num_distilled", "parse_budget", "priorities"]
