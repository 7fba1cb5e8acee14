"""What is known of the well-known sets without having them, so that a copy that differs does not pass for them.

Counts are the publishers'. Sums of pixels follow from channel means that many have published (CIFAR-10's training
images: 125.306918046875 times 51,200,000 pixels of red), and each comes out as a whole number. MD5s are those of the
published files, as torchvision and others check them; those of Fashion-MNIST's unpacked files were computed as well.
"""

# N images, C channels

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from atom.data.image_set import ImageSet, RealData, SourceInfo


@dataclass(frozen=True)
class Part:
    """What is known of one part of a set."""

    counts: tuple[int, ...]
    """Images of every class."""
    sums: tuple[int, ...] = ()
    """Sum of all pixels of every channel; () where it was never published."""
    labels: str = ""
    """SHA-256 of the labels as bytes, in the official order; "" where it is not known."""


CIFAR10 = (
    Part(
        (5_000,) * 10,
        (6_415_714_204, 6_295_060_180, 5_829_907_619),
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    ),
    Part(
        (1_000,) * 10,
        (1_290_492_328, 1_266_775_083, 1_176_108_223),
        "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    ),
)
CIFAR100 = (
    Part((500,) * 100, (6_620_373_279, 6_352_382_090, 5_756_623_363)),
    Part((100,) * 100, (1_328_569_193, 1_272_680_636, 1_153_999_502)),
)
MNIST = (
    Part((5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)),
    Part((980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)),
)
FASHIONMNIST = (Part((6_000,) * 10), Part((1_000,) * 10))
SVHN = (
    Part((4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)),
    Part((1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595)),
)
TINYIMAGENET = (Part((500,) * 200), Part((50,) * 200))
IMAGENET_TRAIN = 1_281_167
"""Training images of ILSVRC 2012, as everybody who lists its size has it."""
COPIED = {
    "cifar10": ((3, 32, 32), CIFAR10),
    "cifar100": ((3, 32, 32), CIFAR100),
    "mnist": ((1, 28, 28), MNIST),
    "fashionmnist": ((1, 28, 28), FASHIONMNIST),
    "svhn": ((3, 32, 32), SVHN),
    "tinyimagenet": ((3, 64, 64), TINYIMAGENET),
}
"""Shape of an image and parts of the sets that others offer in layouts and orders of their own, by name."""


def difference(train: ImageSet, test: ImageSet, known: tuple[Part, Part]) -> str:
    """The first thing that tells the two parts from the official ones, "" if nothing that is known does."""
    parts = list(zip(("training", "test"), (train, test), known, strict=True))
    for part, images, official in parts:
        if len(images) != sum(official.counts):
            return f"{len(images):,} {part} images instead of {sum(official.counts):,}"
    for part, images, official in parts:
        if tuple(images.per_class_counts().tolist()) != official.counts:
            return f"other numbers of {part} images a class"
        if official.labels and _labels_digest(images) != official.labels:
            return f"other labels of the {part} images, or another order"
        if official.sums and tuple(images.images.sum(axis=(0, 2, 3), dtype=np.int64)) != official.sums:
            return f"other pixels in the {part} images"
    return ""


def compared(data: RealData, known: tuple[Part, Part], *, otherwise: str = "") -> RealData:
    """The same images under the set's own name and terms only if they are its own, as far as can be known.

    Args:
        data: read from files in the layout of the set, with the set's source.
        known: what the set's parts hold.
        otherwise: what tells the files from the published ones where all that is known agrees; "" takes them for these.
    """
    what = difference(data.train, data.test, known) or otherwise
    if not what:
        return data
    title = f"{data.source.title} (not the official files: {what})"
    source = SourceInfo(
        title=title,
        citation=f"Unknown, but the layout is that of {data.source.title}: {data.source.citation}",
        licence="Unknown: ask whoever provided the images.",
        homepage="",
    )
    remark = f"this is {title}, so neither its licence nor its published numbers apply"
    return replace(data, source=source, remarks=(*data.remarks, remark))


def is_official(data: RealData) -> bool:
    """Whether these are all images of the well-known set that `data.name` names, as far as can be known.

    Those in the set's own layout were compared as they were read. Others, such as the parquet files of a set, may have
    another order, and are known by their shape, their counts and, where those were published, their sums.
    """
    if data.kind == data.name:
        return bool(data.source.homepage)
    shape, parts = COPIED.get(data.name, ((), ()))
    if not parts or data.train.images.shape[1:] != shape:
        return False
    train, test = (replace(part, labels="") for part in parts)
    return not difference(data.train, data.test, (train, test))


def _labels_digest(images: ImageSet) -> str:
    return hashlib.sha256(images.labels.astype(np.uint8).tobytes()).hexdigest()
