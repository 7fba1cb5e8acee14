"""The one type every source of real images ends in, its checks, and the validation split."""

# N images, C channels, H height, W width, K classes

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atom.data.mapped import is_cut_off, named_file, taken
from atom.errors import ConfigError, DataError, ShapeError
from atom.streams import stream
from atom.symbols import named_like_symbols

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images in memory or mapped from a file; `ImageSet.create` makes one, checked and with its fingerprint.

    Example:
        >>> images = ImageSet.create(np.zeros((4, 1, 8, 8), np.uint8), [0, 1, 1, 0], ["cat", "dog"])
        >>> len(images), images.num_classes, images.per_class_counts().tolist(), images.indices_of(1).tolist()
        (4, 2, [2, 2], [1, 2])
    """

    images: Images
    """uint8 [N, C, H, W], 0..255, C-contiguous, maybe read-only."""
    labels: Labels
    """int64 [N], 0 <= label < K."""
    class_names: tuple[str, ...]
    """The K names, in the order of the labels."""
    fingerprint: str
    """SHA-256 in hexadecimal over shape, type, class names, labels and pixels."""
    class_digests: tuple[bytes, ...] = ()
    """SHA-256 over the pixels of each class, where they lie in a file that others may change; else ()."""

    @classmethod
    def create(
        cls, images: npt.ArrayLike, labels: npt.ArrayLike, class_names: tuple[str, ...] | list[str]
    ) -> "ImageSet":
        """Checked image set with its fingerprint.

        Raises:
            ShapeError: images are not uint8 [N, C, H, W], or the labels are not N integers.
            DataError: a label is out of range, or a class name is empty or repeated.
        """
        images_NCHW = np.ascontiguousarray(images)
        labels_N = np.asarray(labels)
        if images_NCHW.ndim != 4 or images_NCHW.dtype != np.uint8:
            raise ShapeError(
                f"Images are {images_NCHW.dtype} {images_NCHW.shape}; expected uint8 [N, C, H, W]."
            )
        integers = np.issubdtype(labels_N.dtype, np.integer) or labels_N.size == 0
        if labels_N.shape != images_NCHW.shape[:1] or not integers:
            raise ShapeError(
                f"Labels are {labels_N.dtype} {labels_N.shape}; "
                f"expected {len(images_NCHW)} integers, one an image."
            )
        labels_N = np.ascontiguousarray(labels_N, dtype=np.int64)
        names = tuple(class_names)
        if not all(name.strip() for name in names):
            raise DataError(f"Class names {', '.join(map(repr, names))} hold an empty one; rename it.")
        alike = next(_alike(names), None)
        if alike is not None:
            # In ASCII, since what differs in Unicode form only looks the same.
            raise DataError(
                f"Class names {alike[0]!a} and {alike[1]!a} are the same or look the same, so one would hide "
                "the other in every table; rename one."
            )
        outside = np.flatnonzero((labels_N < 0) | (labels_N >= len(names)))
        if outside.size:
            first = int(outside[0])
            raise DataError(
                f"Image {first} has label {labels_N[first]}; expected 0 to {len(names) - 1} "
                f"for the {len(names)} classes."
            )
        return cls(images_NCHW, labels_N, names, *_digests(images_NCHW, labels_N, names))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """K, the number of class names."""
        return len(self.class_names)

    @property
    def symbols(self) -> bool:
        """Whether the classes are called as written symbols are, whose mirror images belong to no class."""
        return named_like_symbols(self.class_names)

    def per_class_counts(self) -> Labels:
        """int64 [K], images of every class."""
        return np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)

    def indices_of(self, class_id: int) -> Labels:
        """Ascending indices of the images of one class; empty if it has none."""
        return np.flatnonzero(self.labels == class_id).astype(np.int64)

    def of_class(self, class_id: int) -> Images:
        """The images of one class, in the order of the set, in memory.

        Raises:
            DataError: the file that they are mapped from has changed since.
        """
        self._check_length()
        images = taken(self.images, self.indices_of(class_id))
        if self.class_digests and hashlib.sha256(images.data).digest() != self.class_digests[class_id]:
            raise self._changed(f"the images of class {self.class_names[class_id]!r}")
        return images

    def checked(self) -> Images:
        """All images where they lie, compared once more with what was decoded; errors as for `of_class`."""
        self._check_length()
        if self.class_digests:
            digests = _digests(self.images, self.labels, self.class_names)[1]
            for name, digest, own in zip(self.class_names, digests, self.class_digests, strict=True):
                if digest != own:
                    raise self._changed(f"the images of class {name!r}")
        return self.images

    def _check_length(self) -> None:
        if self.class_digests and is_cut_off(self.images):
            raise self._changed("its images")

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"{named_file(self.images)}: {what} are no longer what was decoded, since the file has changed; run the"
            " same command again, which decodes them anew."
        )

    def subset(self, indices: npt.ArrayLike, *, folder: Path | None = None) -> "ImageSet":
        """The images at `indices`, in that order, with all class names kept and a fingerprint of its own.

        Args:
            indices: of the images.
            folder: where many of them lie in a file, see `atom.data.mapped.empty`; None: in memory.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        return ImageSet.create(taken(self.images, chosen, folder), self.labels[chosen], self.class_names)


@dataclass(frozen=True)
class SourceInfo:
    """Where images come from, for the card of what is made of them."""

    title: str
    """Name for people, such as "CIFAR-10"."""
    citation: str
    """Whom to cite."""
    licence: str
    """Terms of use as stated by the authors, or that none are known."""
    homepage: str
    """Address of the authors' page; empty if unknown."""


@dataclass(frozen=True, eq=False)
class RealData:
    """A real image set with its official split."""

    name: str
    """Slug for names of runs and files, such as "cifar10"."""
    spec: str
    """The spec it was loaded from."""
    train: ImageSet
    test: ImageSet
    source: SourceInfo
    skipped: tuple[str, ...] = ()
    """What `skip_broken` left out: one "file: reason" an image."""
    remarks: tuple[str, ...] = ()
    """What a user should know of how the files were read: one sentence each, without a full stop."""
    validation: ImageSet | None = None
    """Training images put aside to choose by, or None; see `hold_out`."""
    said_symbols: bool | None = None
    """Whether the images show written symbols, where somebody said so; None: what the class names tell."""

    def __post_init__(self) -> None:
        """Refuse splits that do not fit each other.

        Raises:
            DataError: the splits differ in classes or shape, or a class has no images.
        """
        if self.train.class_names != self.test.class_names:
            raise DataError(f"{self.spec}: train and test name different classes.")
        for part, images in (("train", self.train), ("test", self.test)):
            for class_id in np.flatnonzero(images.per_class_counts() == 0):
                raise DataError(
                    f"{self.spec}: class {images.class_names[class_id]!r} has no {part} images"
                    f"{' left after skipping broken ones' if self.skipped else ''}; "
                    "add some, or remove the class from both parts."
                )
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise DataError(
                f"{self.spec}: training images are {_shape(self.train)}, test images {_shape(self.test)} "
                "(channels x height x width); pass --image-size to bring them to one size."
            )

    @property
    def kind(self) -> str:
        """The kind of source, such as "folder": the spec without a place."""
        return self.spec.partition(":")[0].strip().lower()

    @property
    def symbols(self) -> bool:
        """Whether the images show written symbols, whose mirror images belong to no class."""
        return self.train.symbols if self.said_symbols is None else self.said_symbols

    def with_images(self, train: ImageSet, test: ImageSet) -> "RealData":
        """The same source with other images."""
        return replace(self, train=train, test=test)

    def hold_out(
        self, validation_frac: float, *, train_per_class: int | None = None, folder: Path | None = None
    ) -> "RealData":
        """The same source with a validation part taken out of the training images, and fewer of these kept.

        Which images validate depends on the source and the share alone, so commands that are given the same
        share agree on them, whatever `train_per_class` says.

        Args:
            validation_frac: share of the training images put aside, stratified, 0 <= share < 1; 0: none.
            train_per_class: how many of the others each class keeps, drawn at random; None: all.
            folder: see `ImageSet.subset`.

        Raises:
            ConfigError: the share or the number to keep is out of range; a class has fewer images than that.
            DataError: a class is too small to be split.
        """
        train, validation = self.train, None
        if validation_frac:
            train, validation = split_validation(
                train, fraction_or_count=float(validation_frac), seed=0, folder=folder
            )
        if train_per_class is not None:
            train = _fewer(train, train_per_class, spec=self.spec, folder=folder)
        return replace(self, train=train, validation=validation)


def split_validation(
    image_set: ImageSet, *, fraction_or_count: float, seed: int, folder: Path | None = None
) -> tuple[ImageSet, ImageSet]:
    """Stratified split into a training and a validation part, disjoint and covering, in the original order.

    Args:
        image_set: what to split, usually the training part of a source; every class has two images or more.
        fraction_or_count: a float in (0, 1) is the share of the images that validate, an int their number.
            Either is spread over the classes in proportion to their sizes; each class keeps at least one
            image on both sides.
        seed: seed of the draw; the images of a class depend on it, the class and the class's size only.
        folder: see `ImageSet.subset`.

    Returns:
        (train, validation).

    Raises:
        ConfigError: the share or count is out of range.
        DataError: a class is too small to be split.
    """
    counts_K = image_set.per_class_counts()
    if counts_K.min(initial=2) < 2:
        smallest = int(counts_K.argmin())
        raise DataError(
            f"Class {image_set.class_names[smallest]!r} has {counts_K[smallest]} image(s); "
            "a validation split needs at least 2 of every class."
        )
    quotas_K = _validation_quotas(counts_K, fraction_or_count)
    chosen = np.zeros(len(image_set), dtype=bool)
    for class_id, quota in enumerate(quotas_K):
        indices = image_set.indices_of(class_id)
        order = stream(seed, "data/validation", 0, class_id).permutation(len(indices))
        chosen[indices[order[:quota]]] = True
    kept, aside = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    return image_set.subset(kept, folder=folder), image_set.subset(aside, folder=folder)


def _alike(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Pairs of names that are equal, or canonically equivalent in Unicode."""
    first: dict[str, str] = {}
    for name in names:
        other = first.get(normal := unicodedata.normalize("NFC", name))
        if other is not None:
            yield other, name
        first[normal] = name


def _fewer(images: ImageSet, per_class: int, *, spec: str, folder: Path | None) -> ImageSet:
    """`per_class` images of every class, in the original order."""
    if per_class < 1:
        # A negative number would cut from the end of a class, and leave a set that looks right.
        raise ConfigError(
            f"--train-per-class {per_class}: expected at least 1 training image a class of {spec}."
        )
    counts_K = images.per_class_counts()
    smallest = int(counts_K.argmin())
    if counts_K[smallest] < per_class:
        raise ConfigError(
            f"--train-per-class {per_class}: class {images.class_names[smallest]!r} of {spec} has only "
            f"{counts_K[smallest]} training images; pass --train-per-class {counts_K[smallest]} or less."
        )
    rows = [
        images.indices_of(c)[stream(0, "data/train_per_class", 0, c).permutation(counts_K[c])[:per_class]]
        for c in range(images.num_classes)
    ]
    return images.subset(np.sort(np.concatenate(rows)), folder=folder)


def _validation_quotas(counts_K: Labels, fraction_or_count: float) -> Labels:
    """Validation images of every class: proportional, at least 1, at most all but 1, summing to the total."""
    num_images, num_classes = int(counts_K.sum()), len(counts_K)
    if isinstance(fraction_or_count, float) and 0 < fraction_or_count < 1:
        total = min(max(round(fraction_or_count * num_images), num_classes), num_images - num_classes)
    elif isinstance(fraction_or_count, int) and num_classes <= fraction_or_count <= num_images - num_classes:
        total = int(fraction_or_count)
    else:
        raise ConfigError(
            f"The validation part is {fraction_or_count!r}; expected a share between 0.0 and 1.0, or a "
            f"number of images from {num_classes} to {num_images - num_classes}, "
            "which leaves one of every class on either side."
        )
    ideal_K = total * counts_K / num_images
    quotas_K = np.clip(np.floor(ideal_K).astype(np.int64), 1, counts_K - 1)
    while quotas_K.sum() != total:
        step = 1 if quotas_K.sum() < total else -1
        movable = quotas_K < counts_K - 1 if step > 0 else quotas_K > 1
        gap_K = np.where(movable, step * (ideal_K - quotas_K), -np.inf)
        quotas_K[int(gap_K.argmax())] += step
    return quotas_K


def _digests(
    images_NCHW: Images, labels_N: Labels, class_names: tuple[str, ...]
) -> tuple[str, tuple[bytes, ...]]:
    """The fingerprint, and the digests of the classes where a file can change; the pixels are read once for both."""
    header = json.dumps([list(images_NCHW.shape), "uint8", "int64", list(class_names)])
    digest = hashlib.sha256(header.encode() + b"\0")
    digest.update(labels_N.astype("<i8", copy=False).data)
    if named_file(images_NCHW) is None:
        digest.update(images_NCHW.data)
        return digest.hexdigest(), ()
    of_class = [hashlib.sha256() for _ in class_names]
    for pixels_CHW, label in zip(images_NCHW, labels_N.tolist(), strict=True):
        digest.update(pixels_CHW.data)
        of_class[label].update(pixels_CHW.data)
    return digest.hexdigest(), tuple(own.digest() for own in of_class)


def _shape(image_set: ImageSet) -> str:
    return "x".join(str(size) for size in image_set.images.shape[1:])
