"""Which real images a set was made from, and which it has never seen: by what the set records of its source."""

# N images, C channels, H height, W width

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atom.data import ImageSet, RealData
from atom.distilled import DistilledSet
from atom.errors import ConfigError, DataError

TEST_CAVEAT = (
    "The non-members are test images, since the set was made from all training images: where these parts differ"
    " by themselves, that reads as membership. Distil with --validation-frac 0.5 for a strict audit."
)


@dataclass(frozen=True, eq=False)
class Parts:
    """Members and non-members.

    Attributes:
        members: the training images that the set was made from.
        non_members: images that it has never seen, none equal to a member: held-out training images, or test images.
        held_out: whether they were held out.
    """

    members: ImageSet
    non_members: ImageSet
    held_out: bool

    @property
    def caveat(self) -> str:
        """What to bear in mind, or an empty string."""
        return "" if self.held_out else TEST_CAVEAT


def find_parts(
    distilled: DistilledSet, real: RealData, location: str, *, folder: Path | None = None
) -> Parts:
    """Members and non-members of a set.

    Which training images it saw follows from how many it says it saw and how many were put aside, since they are drawn
    by `RealData.hold_out`; the fingerprint proves it.

    Args:
        distilled: the set.
        real: its source, whole: nothing put aside.
        location: what --set says.
        folder: see `ImageSet.subset`.

    Raises:
        ConfigError: the set was made from other images than these.
    """
    seen = _seen(distilled, real, folder)
    if seen is None:
        raise ConfigError(
            f"--set {location}: was made from other training images than --dataset {real.spec} has, or from several"
            " sources, or does not say from which, so nobody can tell members from non-members; pass the source as it"
            " was, and --smoke for a set of a smoke run."
        )
    known = {_digest(image) for image in seen.images}
    for images, held_out in ((real.train, True), (real.test, False)):
        unknown = [row for row, one in enumerate(images.images) if _digest(one) not in known]
        rest = images.subset(unknown, folder=folder)
        if rest.per_class_counts().min() > 0:
            return Parts(seen, rest, held_out)
    raise ConfigError(
        f"--set {location}: a class of --dataset {real.spec} has no image that the set was not made from, neither"
        " among training nor among test images, so there are no non-members; distil with --validation-frac 0.5."
    )


def _seen(distilled: DistilledSet, real: RealData, folder: Path | None) -> ImageSet | None:
    source, total = distilled.source, len(real.train)
    num_train, num_validation = source.get("num_train"), source.get("num_validation", 0)
    if not isinstance(num_train, int) or not isinstance(num_validation, int):
        return None
    fewer = num_train < total - num_validation
    try:
        kept = real.hold_out(
            num_validation / total,
            train_per_class=num_train // real.train.num_classes if fewer else None,
            folder=folder,
        ).train
    except (ConfigError, DataError):
        return None
    same = all(one.get("fingerprint") == kept.fingerprint for one in distilled.sources)
    return kept if same else None


def _digest(image_CHW: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image_CHW).data, digest_size=16).digest()
