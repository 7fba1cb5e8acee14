"""The real images of a step: loaded, as the learner takes them, and cut into what is learned, kept and judged by."""

# N images, T test images, C channels, H height, W width

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.learner.merging import new_order
from apps.learner.record import Learner
from apps.learner.serving import fitting
from apps.learner.settings import StepImages
from apps.learner.step import Pixels
from atom.data import ImageSet
from atom.data.labelled import Labelled, load_labelled
from atom.errors import ConfigError, DataError
from atom.streams import stream
from pipelines.real_images import Loading


@dataclass(frozen=True, eq=False)
class StepReal:
    """The images of a step, by label.

    Attributes:
        classes: all that the learner knows after the step, by label.
        num_old: classes that it knew before.
        train: uint8 [n, C, H, W] of each class of the step.
        kept_tests: put aside to be kept.
        validation: put aside to compare memories by, or None.
        judged: given test images of known classes, or None.
        fingerprint: of all images of the step.
        judged_fingerprint: of the given test images; nothing where there are none.
        remarks: one sentence each, without a full stop.
    """

    classes: tuple[str, ...]
    num_old: int
    train: dict[int, np.ndarray]
    kept_tests: dict[int, np.ndarray]
    validation: Pixels | None
    judged: Pixels | None
    fingerprint: str
    judged_fingerprint: str
    remarks: tuple[str, ...]

    @property
    def current(self) -> Pixels:
        """What is learned."""
        return joined(self.train)

    @property
    def returned(self) -> list[int]:
        """Labels of classes that come back."""
        return [label for label in self.train if label < self.num_old]

    def num_images(self, label: int) -> int:
        """Real images of a class in this step, those put aside included."""
        aside = 0 if self.validation is None else int((self.validation.labels_N == label).sum())
        return len(self.train[label]) + len(self.kept_tests.get(label, ())) + aside


def joined(images: dict[int, np.ndarray]) -> Pixels:
    """Images by label as one batch, in the order of the labels."""
    labels = sorted(images)
    return Pixels(
        np.concatenate([images[label] for label in labels]),
        np.repeat(np.array(labels, dtype=np.int64), [len(images[label]) for label in labels]),
    )


def load_step(asked: StepImages, *, image_size: int | None) -> Labelled:
    """The images that --data names, of --classes alone where these are named.

    Raises:
        ConfigError: no --data, or an unknown class.
        DataError: see `load_labelled`.
    """
    if not asked.data:
        raise ConfigError(
            "--data is missing; pass folder:PATH, with a directory a class, or another source of images."
        )
    loaded = _load(asked.data, asked, image_size)
    return loaded if asked.classes is None else loaded.only(asked.classes)


def load_tests(asked: StepImages, *, image_size: int | None) -> ImageSet | None:
    """The images that --test names: a test part, or all; None where it names none."""
    if not asked.test:
        return None
    loaded = _load(asked.test, asked, image_size)
    return loaded.images if loaded.test is None else loaded.test


def _load(spec: str, asked: StepImages, image_size: int | None) -> Labelled:
    with Loading() as loading:
        return load_labelled(
            spec,
            data_dir=asked.data_dir,
            image_size=image_size,
            allow_download=asked.download,
            skip_broken=asked.skip_broken,
            **loading.hooks,
        )


def cut(
    learner: Learner,
    loaded: Labelled,
    tests: ImageSet | None,
    *,
    asked: StepImages,
    known: Sequence[str],
    keep_tests: int,
    seed: int,
    number: int,
) -> StepReal:
    """The images of a step in its parts; which image goes where follows from seed, version and class.

    Args:
        learner: has the shape of images.
        loaded: the new images.
        tests: given ones, or None.
        asked: by the user.
        known: classes before the step, by label.
        keep_tests: real images of each class to keep.
        seed, number: of the learner, and of the version that is made.

    Raises:
        DataError: images of another shape, or a class with too few of them.
        ConfigError: the given test images show no class of the learner.
    """
    images = loaded.images
    pixels_NCHW = fitting(images.images, learner, f"--data {asked.data}")
    classes = new_order(known, images.class_names)
    train, kept, aside = {}, {}, {}
    for own, name in enumerate(images.class_names):
        label, rows = classes.index(name), images.indices_of(own)
        order = rows[stream(seed, "learner/parts", number, label).permutation(len(rows))]
        num_aside = round(asked.validation_frac * len(rows)) if asked.validation_frac else 0
        num_aside = max(num_aside, 1 if asked.validation_frac else 0)
        if len(rows) <= keep_tests + num_aside:
            raise DataError(
                f"--data {asked.data}: class {name!r} has {len(rows)} images, of which {keep_tests} are to be kept for"
                f" tests and {num_aside} put aside to compare memories, so none is left to learn from; add images."
            )
        parts = np.split(order, [keep_tests, keep_tests + num_aside])
        kept[label], aside[label], train[label] = (pixels_NCHW[np.sort(part)] for part in parts)
    judged, left_out = None, ()
    if tests is not None:
        judged, left_out = _judged(learner, tests, classes, asked.test)
    return StepReal(
        classes=tuple(classes),
        num_old=len(known),
        train={label: train[label] for label in sorted(train)},
        kept_tests={label: kept[label] for label in sorted(kept) if keep_tests},
        validation=joined(aside) if asked.validation_frac else None,
        judged=judged,
        fingerprint=images.fingerprint,
        judged_fingerprint="" if tests is None else tests.fingerprint,
        remarks=(*loaded.remarks, *left_out),
    )


def _judged(
    learner: Learner, tests: ImageSet, classes: Sequence[str], spec: str
) -> tuple[Pixels, tuple[str, ...]]:
    known = [own for own, name in enumerate(tests.class_names) if name in classes]
    rows = np.flatnonzero(np.isin(tests.labels, known))
    if not len(rows):
        raise ConfigError(
            f"--test {spec}: none of its classes, {', '.join(tests.class_names)[:200]}, is one of this learner; pass"
            " images of its classes."
        )
    pixels = fitting(tests.images[rows], learner, f"--test {spec}")
    labels = np.array([classes.index(tests.class_names[own]) for own in tests.labels[rows]], dtype=np.int64)
    strange = [name for name in tests.class_names if name not in classes]
    left = (f"test images of {', '.join(strange[:5])} are left out, since the learner does not know them",)
    return Pixels(pixels, labels), left if strange else ()


__all__ = ["StepReal", "cut", "joined", "load_step", "load_tests"]
