"""Images of methods side by side: for each class a strip of each method's."""

# M decoded images

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from atom.set_values import SetValues
from atom.sheet import needs_stretching, png_bytes, to_pictures

MOST_CLASSES, MOST_IMAGES = 10, 10
"""Shown of a set: a page of a hundred classes has nothing to say that ten do not."""


@dataclass(frozen=True)
class Strips:
    """Of one set.

    Attributes:
        method: as tables call it.
        images: a PNG file a class, the first images beside each other.
        class_names: of the classes shown.
        width, height: of an image, pixels.
        stretched: whether contrast was raised for display.
    """

    method: str
    images: Sequence[bytes]
    class_names: Sequence[str]
    width: int
    height: int
    stretched: bool


def strips(distilled: SetValues, method: str) -> Strips:
    """The first images of the first classes, decoded, as pixels."""
    stretched = needs_stretching(distilled)
    pictures = to_pictures(distilled.pixels(stretched=stretched))
    per_class = distilled.ipc * distilled.factor**2
    shown = min(per_class, MOST_IMAGES)
    width, height = pictures[0].size
    found = []
    for class_id in range(min(distilled.num_classes, MOST_CLASSES)):
        strip = Image.new("RGB", (shown * (width + 1) - 1, height), "white")
        for place in range(shown):
            strip.paste(pictures[class_id * per_class + place].convert("RGB"), (place * (width + 1), 0))
        found.append(png_bytes(strip))
    return Strips(method, found, distilled.class_names[: len(found)], width, height, stretched)


__all__ = ["MOST_CLASSES", "MOST_IMAGES", "Strips", "strips"]
