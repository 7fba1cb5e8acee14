"""A user's own images: one directory a class, under train/ and test/."""

import os
from pathlib import Path

from atom.data import about
from atom.data.cache import cached
from atom.data.decode import Entry, decode_all, match_channels
from atom.data.image_set import ImageSet, RealData
from atom.data.request import Request, required_directory, slug
from atom.errors import DataError

TEST_FOLDERS = ("test", "val", "validation")
"""The first that exists is the test part; with "test" present, a validation part is left alone."""


def read_folder(request: Request) -> RealData:
    """Images under train/<class>/ and test/<class>/, classes in alphabetical order.

    Raises:
        DataError: a part, a class or an image is missing, broken or not where it should be.
    """
    root = required_directory(request)
    train_dir = _part(request, root, ("train",))
    test_dir = _part(request, root, TEST_FOLDERS)
    skipped: list[str] = []
    class_names = _class_names(request, train_dir, skipped)
    unknown = sorted(set(_class_names(request, test_dir, skipped)) - set(class_names))
    if unknown:
        raise DataError(
            f"{test_dir / unknown[0]}: class {unknown[0]!r} is not among the {len(class_names)} classes of "
            f"{train_dir}; every test class needs training images."
        )
    parts = [_entries(directory, class_names) for directory in (train_dir, test_dir)]
    name = slug(root)

    def build() -> RealData:
        train, test = (decode_all(part, request.decoding, num_entries=len(part)) for part in parts)
        train_images, test_images = match_channels(train.images, test.images)
        return RealData(
            name,
            request.spec,
            ImageSet.create(train_images, train.labels, class_names),
            ImageSet.create(test_images, test.labels, class_names),
            about.unknown_source(name, "folder"),
            skipped=(*skipped, *train.skipped, *test.skipped),
            remarks=(*train.remarks, *test.remarks),
        )

    files = [entry.source for part in parts for entry in part if isinstance(entry.source, Path)]
    return cached(request, root, files, name=name, build=build, facts=skipped)


def visible(directory: Path) -> list[Path]:
    """What a directory holds, sorted by name, hidden names left out.

    Raises:
        DataError: the directory cannot be read.
    """
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise DataError(
            f"{directory}: cannot be listed ({error.strerror}); check its permissions."
        ) from error
    return [directory / name for name in sorted(names) if not name.startswith(".")]


def _part(request: Request, root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    wanted = " or ".join(f"{name}/" for name in names)
    raise DataError(
        f"{request.spec}: {root} has no directory {wanted}; expected train/<class>/* and test/<class>/*."
    )


def _class_names(request: Request, part: Path, skipped: list[str]) -> tuple[str, ...]:
    names: list[str] = []
    for path in visible(part):
        if path.is_dir():
            names.append(path.name)
            continue
        message = (
            f"{path}: a file where class directories are expected; move or remove it, or pass --skip-broken."
        )
        if not request.skip_broken:
            raise DataError(message)
        skipped.append(message)
    if not names:
        raise DataError(f"{part}: no class directories; expected {part.name}/<class>/<image>.")
    return tuple(names)


def _entries(part: Path, class_names: tuple[str, ...]) -> list[Entry]:
    """Every file of every class; an empty class is found here, before anything is decoded."""
    entries: list[Entry] = []
    for label, class_name in enumerate(class_names):
        directory = part / class_name
        files = visible(directory) if directory.is_dir() else []
        if not files:
            what = "is empty" if directory.is_dir() else "does not exist"
            raise DataError(f"{directory}: the directory {what}; every class needs images in train and test.")
        nested = next((file for file in files if file.is_dir()), None)
        if nested is not None:
            raise DataError(
                f"{nested}: a directory where images are expected; put images directly under the class."
            )
        entries += [Entry(str(file), label, file) for file in files]
    return entries
