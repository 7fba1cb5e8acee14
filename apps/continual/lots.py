"""Which lot of a stream each real image belongs to, see `apps.continual.stream`: the other half of a protocol."""

# N images, K classes

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from apps.continual.looks import LOOKS, under_look
from apps.continual.stream import BLURRED, DOMAINS, PLAIN, RETURNING
from atom.data import ImageSet, RealData
from atom.data.image_set import Labels
from atom.errors import ConfigError
from atom.streams import stream

SEPARATOR = "/"
"""Between session and class in the class names of a source of sessions."""


@dataclass(frozen=True, eq=False)
class Lots:
    """Real images, and the part of its class that each is in; the makers below.

    Attributes:
        real: labels are classes.
        protocol: one of the four.
        parts: int64 [N] of each training image, from 0; None: all are part 0.
        judged_parts: whether test and validation images have parts too: these, by name; else theirs are part 0.
        names: of the parts, such as looks or sessions; empty where they have none.
    """

    real: RealData
    protocol: str = PLAIN
    parts: Labels | None = None
    judged_parts: Mapping[str, Labels] | None = None
    names: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether every class is one lot."""
        return self.parts is None

    def train(self) -> Labels:
        """Lot of each training image, int64 [N]: part * K + class."""
        return self._lots(self.real.train, self.parts)

    def judged(self, name: str) -> Labels:
        """Lot of each image of "test" or "validation", int64 [N]."""
        images = getattr(self.real, name)
        return self._lots(images, None if self.judged_parts is None else self.judged_parts[name])

    def counts(self) -> dict[int, int]:
        """Training images of every lot that has some, by ascending number."""
        lots, counts = np.unique(self.train(), return_counts=True)
        return dict(zip(lots.tolist(), counts.tolist(), strict=True))

    def name(self, lot: int) -> str:
        """Of a lot, for people: its class, and its part if that has a name."""
        part, class_id = divmod(lot, self.real.train.num_classes)
        of_class = self.real.train.class_names[class_id]
        if self.names:
            return f"{of_class} ({self.names[part]})"
        return f"{of_class} (part {part + 1})" if part else of_class

    @property
    def key(self) -> dict[str, str]:
        """For keys of results: digests of the parts; nothing where every class is one lot."""
        if self.parts is None:
            return {}
        # Where an image is judged is not in its fingerprint.
        judged = {
            f"judged_lots_{name}": _digest(parts_N) for name, parts_N in (self.judged_parts or {}).items()
        }
        return {"lots": _digest(self.parts), **judged}

    def _lots(self, images: ImageSet, parts_N: Labels | None) -> Labels:
        return images.labels if parts_N is None else parts_N * images.num_classes + images.labels


def _digest(parts_N: Labels) -> str:
    return hashlib.sha256(parts_N.astype("<i8").tobytes()).hexdigest()


def under_looks(real: RealData, looks: Sequence[str]) -> Lots:
    """All images once under each look: a part is a look. As in permuted and rotated MNIST, every part is a whole set.

    Raises:
        ConfigError: fewer than two looks, an unknown one, or one twice.
    """
    unknown = [look for look in looks if look not in LOOKS]
    if unknown:
        raise ConfigError(f"--looks {unknown[0]}: unknown; known are {', '.join(LOOKS)}.")
    if len(looks) < 2 or len(set(looks)) < len(looks):
        raise ConfigError(
            f"--looks {' '.join(looks) or 'names none'}: pass two or more, each once; one a step."
        )

    def shown(images: ImageSet, counter: int) -> ImageSet:
        under = [under_look(images.images, look, counter=counter) for look in looks]
        return ImageSet.create(np.concatenate(under), np.tile(images.labels, len(looks)), images.class_names)

    def parts(images: ImageSet) -> Labels:
        return np.repeat(np.arange(len(looks)), len(images))

    return _lots_of(real, lambda images, counter: (shown(images, counter), parts(images)), tuple(looks))


def by_session(real: RealData) -> Lots:
    """Images of sessions, whose class names are SESSION/CLASS, by class: a part is a session, in the order of names."""
    pairs = [name.split(SEPARATOR, 1) for name in real.train.class_names]
    sessions, classes = (tuple(sorted({pair[place] for pair in pairs})) for place in (0, 1))
    part_of = np.array([sessions.index(session) for session, _ in pairs])
    class_of = np.array([classes.index(name) for _, name in pairs])

    def told(images: ImageSet, counter: int) -> tuple[ImageSet, Labels]:
        return ImageSet.create(images.images, class_of[images.labels], classes), part_of[images.labels]

    return _lots_of(real, told, sessions)


def _lots_of(
    real: RealData, change: Callable[[ImageSet, int], tuple[ImageSet, Labels]], names: tuple[str, ...]
) -> Lots:
    """Training, test and validation images changed alike, each with parts."""
    splits = {name: getattr(real, name) for name in ("train", "test", "validation")}
    changed: dict[str, Any] = {
        name: change(images, counter)
        for counter, (name, images) in enumerate(splits.items())
        if images is not None
    }
    parts = {name: parts_N.astype(np.int64) for name, (_, parts_N) in changed.items()}
    images = {name: image_set for name, (image_set, _) in changed.items()}
    return Lots(replace(real, **images), DOMAINS, parts.pop("train"), parts, names)


def blurred(real: RealData, *, share: float, num_steps: int) -> Lots:
    """A share of each class's training images in other steps, evenly: part p is the p-th step after the class's own.

    Drawn by class, stream "continual/blurred", so for all class orders alike.

    Raises:
        ConfigError: one step, or so small a share that no class has an image elsewhere.
    """
    if num_steps < 2:
        raise ConfigError(
            f"--blurred {share:g}: with {num_steps} step there is no border; pass --steps 2 or more."
        )

    def of_class(class_id: int, number: int) -> Labels:
        parts_n = np.zeros(number, np.int64)
        rng = stream(0, "continual/blurred", 0, class_id)
        moved = rng.permutation(number)[: round(share * number)]
        # From a step of its own: else those next to a class would get all that does not divide.
        parts_n[moved] = 1 + (np.arange(len(moved)) + rng.integers(num_steps - 1)) % (num_steps - 1)
        return parts_n

    parts_N = _by_class(real, of_class)
    if not parts_N.any():
        raise ConfigError(f"--blurred {share:g}: of no class that is one whole image; pass a larger share.")
    return Lots(real, BLURRED, parts_N)


def returning(real: RealData) -> Lots:
    """The training images of each class in two halves, parts 0 and 1, stream "continual/returning".

    Raises:
        ConfigError: a class of one image.
    """
    counts_K = real.train.per_class_counts()
    if counts_K.min() < 2:
        name = real.train.class_names[int(counts_K.argmin())]
        raise ConfigError(
            f"--return-after: class {name!r} has one training image, which cannot come in two halves."
        )

    def of_class(class_id: int, number: int) -> Labels:
        return stream(0, "continual/returning", 0, class_id).permutation(number) * 2 // number

    return Lots(real, RETURNING, _by_class(real, of_class))


def _by_class(real: RealData, of_class: Callable[[int, int], Labels]) -> Labels:
    parts_N = np.zeros(len(real.train), np.int64)
    for class_id in range(real.train.num_classes):
        rows = real.train.indices_of(class_id)
        parts_N[rows] = of_class(class_id, len(rows))
    return parts_N


__all__ = ["SEPARATOR", "Lots", "blurred", "by_session", "returning", "under_looks"]
