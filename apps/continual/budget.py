"""How large a memory may be: in images a class, in images altogether, or in bytes."""

import re
from dataclasses import dataclass
from fractions import Fraction

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
_FORMS = '"20/class", "2000 images", or bytes as "600kB", "6MB", "6MiB"'


@dataclass(frozen=True)
class Budget:
    """A limit of exactly one kind; `images` and `num_bytes` are shared by all classes seen so far.

    All classes get the same number of images. What does not divide stays unused, so no class is larger
    because of its place in the order. Bytes are those of the images as stored, see `exemplars.image_bytes`.

    Example:
        >>> Budget(images=500).quota(7, bytes_per_image=3072), Budget(num_bytes=61440).quota(2, 3072)
        (71, 10)
    """

    per_class: int | None = None
    """Images of every class, from its first step to the end."""
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
                f"memory budget: received {given or 'nothing'}; expected exactly one of per_class, images and"
                " num_bytes, of 1 or more."
            )

    def quota(self, num_seen_classes: int, bytes_per_image: int) -> int:
        """Images each class may keep while `num_seen_classes` >= 1 have been seen; may be 0."""
        if self.per_class is not None:
            return self.per_class
        return self._all_images(bytes_per_image) // num_seen_classes

    def capacity(self, num_classes: int, bytes_per_image: int) -> int:
        """Images altogether once all `num_classes` have been seen: the size of a reservoir.

        A limit by class gives the reservoir its last size from the first step on, since it cannot grow and
        stay a uniform sample; before the last step it holds more than a memory by class does.
        """
        if self.per_class is not None:
            return self.per_class * num_classes
        return self._all_images(bytes_per_image)

    def check(self, num_classes: int, bytes_per_image: int) -> None:
        """Refuse a budget that leaves a class without an image at the last step.

        Raises:
            ConfigError: says how much is needed.
        """
        if self.quota(num_classes, bytes_per_image) >= 1:
            return
        needed = f"{num_classes} images"
        if self.num_bytes is not None:
            needed = f"{num_classes * bytes_per_image} bytes, {bytes_per_image} an image,"
        raise ConfigError(
            f"memory budget of {self}: {num_classes} classes need {needed} or more at the last step; raise it."
        )

    def __str__(self) -> str:
        if self.per_class is not None:
            return f"{self.per_class} images a class"
        return f"{self.images} images" if self.images is not None else f"{self.num_bytes} bytes"

    def _all_images(self, bytes_per_image: int) -> int:
        if self.images is not None:
            return self.images
        return (self.num_bytes or 0) // bytes_per_image


def parse_budget(text: str) -> Budget:
    """A budget as a user writes it: "20/class", "2000 images", "600kB", "6MB" (10**6), "6MiB" (2**20).

    Letters may be small or capital. Bytes may have decimals, and a part of a byte is dropped.

    Raises:
        ConfigError: not one of these forms, or below 1.

    Example:
        >>> parse_budget("20/class"), parse_budget("1.5 kB").num_bytes
        (Budget(per_class=20, images=None, num_bytes=None), 1500)
    """
    match = re.fullmatch(r"(\d+)(\.\d+)?\s*(/\s*class|images?|[kmg]i?b|b)", text.strip().lower())
    unit = match.group(3) if match else ""
    if match is None or (match.group(2) and unit not in _UNITS):
        raise ConfigError(f"memory budget {text!r} is not understood; write {_FORMS}.")
    if unit.startswith("/"):
        return Budget(per_class=int(match.group(1)))
    if unit.startswith("image"):
        return Budget(images=int(match.group(1)))
    # Fractions are exact; 0.29 as a float is not.
    return Budget(num_bytes=int(Fraction(match.group(1) + (match.group(2) or "")) * _UNITS[unit]))


__all__ = ["Budget", "parse_budget"]
