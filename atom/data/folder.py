"""A user's own images: one directory a class, under train/ and test/."""

import os
import unicodedata
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from atom.data import about
from atom.data.cache import cached
from atom.data.decode import Entry, decode_all, match_channels
from atom.data.image_set import ImageSet, RealData, SourceInfo, split_validation
from atom.data.request import Request, required_directory, slug
from atom.errors import DataError

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "val", "validation", "valid")
"""The first that exists and has labels is the test part."""
LEFT_BEHIND = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"})
"""What file managers and archivers leave in folders of images."""

SESSION_TEST_FRAC = 0.3
"""Share of the images of a session and class to test on, where sessions have no test part. Chosen."""

_TINY_TABLE = "val_annotations.txt"


def read_folder(request: Request) -> RealData:
    """Images under train/<class>/ and test/<class>/, classes in alphabetical order.

    Raises:
        DataError: a part, a class or an image is missing, broken, without labels or not where it should be.
    """
    name = slug(required_directory(request))
    return read_class_folders(request, name, about.unknown_source(name, "folder"))


def read_sessions(request: Request) -> RealData:
    """Images under SESSION/<class>/, each session and class a class of its own, called SESSION/<class>.

    Where there are train/ and test/, sessions lie under both; else a share of `SESSION_TEST_FRAC` of every session and
    class is the test part, the same for every command. A session need not have all classes.

    Raises:
        DataError: see `read_folder`; or a session and class with too few images to test on some.
    """
    root = required_directory(request)
    name = slug(root)
    source = about.unknown_source(name, "sessions")
    skipped: list[str] = []
    has_parts = any(path.is_dir() and path.name.lower() in TRAIN_FOLDERS for path in visible(root))
    train_dir = _parts(request, root, TRAIN_FOLDERS)[0] if has_parts else root
    test_dir = _parts(request, root, TEST_FOLDERS)[0] if has_parts else root
    found = {
        folder: {
            f"{session}/{class_name}": path
            for session, directory in class_folders(request, folder, skipped).items()
            for class_name, path in class_folders(request, directory, skipped).items()
        }
        for folder in dict.fromkeys((train_dir, test_dir))
    }
    names = tuple(sorted(found[train_dir]))
    stranger = next((pair for pair in found[test_dir] if pair not in found[train_dir]), None)
    if stranger is not None:
        raise DataError(
            f"{test_dir / stranger}: has no training images beside it, in {train_dir / stranger}."
        )
    parts = [entries_of(classes, folder, names) for folder, classes in found.items()]

    def build() -> RealData:
        decoded = [decode_all(part, request.decoding, num_entries=len(part)) for part in parts]
        images = [part.images for part in decoded]
        if has_parts:
            images = [*match_channels(*images, folder=request.decoding.folder)]
        sets = [ImageSet.create(own, part.labels, names) for own, part in zip(images, decoded, strict=True)]
        train, test = (
            sets
            if has_parts
            else split_validation(
                *sets, fraction_or_count=SESSION_TEST_FRAC, seed=0, folder=request.decoding.folder
            )
        )
        return RealData(
            name,
            request.spec,
            train,
            test,
            source,
            skipped=(*skipped, *(line for part in decoded for line in part.skipped)),
            remarks=tuple(remark for part in decoded for remark in part.remarks),
        )

    files = [entry.source for part in parts for entry in part if isinstance(entry.source, Path)]
    return cached(request, root, files, name=name, build=build, facts=skipped)


def read_class_folders(
    request: Request, name: str, source: SourceInfo, *, chosen: Mapping[str, str] | None = None
) -> RealData:
    """Images in one directory a class, under the directories of two parts.

    Args:
        request: where, and how they are decoded.
        name: of the set.
        source: of the set.
        chosen: the class directories to read, in the order of the labels, and what their classes are called; None: all,
            in alphabetical order, called by their directories.

    Raises:
        DataError: a part, a class or an image is missing, broken, without labels or not where it should be.
    """
    root = required_directory(request)
    train_dir = _parts(request, root, TRAIN_FOLDERS)[0]
    skipped: list[str] = []
    train_classes = class_folders(request, train_dir, skipped)
    test_dir, remarks = _test_part(request, root, train_dir, set(train_classes))
    test_classes = class_folders(request, test_dir, skipped)
    if chosen is not None:
        _check_chosen(request, chosen, {train_dir: train_classes, test_dir: test_classes})
        train_classes, test_classes = (
            {folder: classes[folder] for folder in chosen} for classes in (train_classes, test_classes)
        )
    unknown = sorted(
        folder for folder in set(test_classes) - set(train_classes) if visible(test_classes[folder])
    )
    if unknown:
        raise DataError(_unknown_class(test_classes[unknown[0]], train_dir, len(train_classes)))
    folders = tuple(sorted(train_classes) if chosen is None else chosen)
    class_names = folders if chosen is None else tuple(chosen.values())
    parts = [entries_of(train_classes, train_dir, folders), entries_of(test_classes, test_dir, folders)]

    def build() -> RealData:
        train, test = (decode_all(part, request.decoding, num_entries=len(part)) for part in parts)
        train_images, test_images = match_channels(train.images, test.images, folder=request.decoding.folder)
        return RealData(
            name,
            request.spec,
            ImageSet.create(train_images, train.labels, class_names),
            ImageSet.create(test_images, test.labels, class_names),
            source,
            skipped=(*skipped, *train.skipped, *test.skipped),
            remarks=(*remarks, *train.remarks, *test.remarks),
        )

    files = [entry.source for part in parts for entry in part if isinstance(entry.source, Path)]
    return cached(request, root, files, name=name, build=build, facts=(skipped, remarks))


def _check_chosen(
    request: Request, chosen: Mapping[str, str], parts: Mapping[Path, Mapping[str, Path]]
) -> None:
    for part, classes in parts.items():
        missing = [f"{folder} ({name})" for folder, name in chosen.items() if folder not in classes]
        if missing:
            raise DataError(
                f"{request.spec}: {part} has no directory {', '.join(missing)}; expected {part.name}/<wnid>/* for the"
                f" {len(chosen)} classes of {request.name}."
            )


def visible(directory: Path) -> list[Path]:
    """What a directory holds, sorted by name, hidden names and what file managers leave behind left out.

    Raises:
        DataError: the directory cannot be read.
    """
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise DataError(
            f"{directory}: cannot be listed ({error.strerror}); check its permissions."
        ) from error
    return [
        directory / name
        for name in sorted(names)
        if not name.startswith(".") and name.lower() not in LEFT_BEHIND
    ]


def _parts(request: Request, root: Path, names: tuple[str, ...]) -> list[Path]:
    """The directories of these names in whatever case, in the order of the names."""
    present = [path for path in visible(root) if path.is_dir()]
    found = [path for name in names for path in present if path.name.lower() == name.lower()]
    if not found:
        wanted = " or ".join(f"{name}/" for name in names)
        others = ", ".join(f"{path.name}/" for path in present[:10]) or "no directory"
        raise DataError(
            f"{request.spec}: {root} has no directory {wanted} ({others} is there); "
            "expected train/<class>/* and test/<class>/*, or the name of the test part as --test-part."
        )
    for one, other in pairwise(found):
        if one.name.lower() == other.name.lower():
            raise DataError(
                f"{root}: two directories for one part, {one.name}/ and {other.name}/; merge or rename one."
            )
    return found


def _test_part(
    request: Request, root: Path, train_dir: Path, classes: set[str]
) -> tuple[Path, tuple[str, ...]]:
    """The first part that has labels, and what to say of those that were passed over."""
    parts = _parts(request, root, (request.test_part,) if request.test_part else TEST_FOLDERS)
    parts = [part for part in parts if part != train_dir]
    if not parts:
        raise DataError(f"--test-part {request.test_part}: {train_dir} is the training part; name another.")
    for number, part in enumerate(parts):
        folders = [_normal(path.name) for path in visible(part) if path.is_dir()]
        # A single directory that is no class, such as Tiny ImageNet's test/images, sorts nothing.
        if classes & set(folders) or len(folders) > 1:
            unlabelled = " and ".join(f"{passed.name}/" for passed in parts[:number])
            have = "has" if number == 1 else "have"
            remark = f"{unlabelled} {have} no class directories, so {part.name}/ is the test part"
            return part, (remark,) if number else ()
    raise DataError(_unsorted(root, parts[-1], train_dir, len(classes)))


def _unsorted(root: Path, part: Path, train_dir: Path, num_classes: int) -> str:
    """What to do about a part whose images are not in class directories."""
    if (root / "wnids.txt").is_file():
        return (
            f"{root} has the layout of Tiny ImageNet, whose labels are in a table; pass tinyimagenet:{root}."
        )
    if any(path.name.startswith("ILSVRC2012_val_") for path in visible(part)):
        return (
            f"{part}: ImageNet's validation images as they are published, in one directory; sort them into "
            f"{part.name}/<wnid>/ by their map (LOC_val_solution.csv, or ILSVRC2012_validation_ground_truth.txt "
            "with the development kit's meta.mat) and run the same command again."
        )
    stranger = next((path for path in visible(part) if path.is_dir()), None)
    if stranger is not None and stranger.name != "images":
        return (
            f"{_unknown_class(stranger, train_dir, num_classes)} If it is no class, sort its images into "
            f"{part.name}/<class>/, or name a part that is sorted as --test-part."
        )
    return (
        f"{part}: no class directories, so its images have no labels; sort them into {part.name}/<class>/, "
        "or name a part that is sorted as --test-part."
    )


def _unknown_class(directory: Path, train_dir: Path, num_classes: int) -> str:
    return (
        f"{directory}: class {_normal(directory.name)!r} is not among the {num_classes} classes of {train_dir}; "
        "every test class needs training images."
    )


def class_folders(request: Request, part: Path, skipped: list[str]) -> dict[str, Path]:
    """The class directories of a part by their names in one Unicode form: archives of macOS use another.

    Raises:
        DataError: there are none, or files among them, or names that are the same or no text.
    """
    classes: dict[str, Path] = {}
    for path in visible(part):
        if path.is_dir():
            if not _is_text(path.name):
                raise DataError(
                    f"{part}: the name of the class directory {path.name!a} is not UTF-8, as names of classes"
                    " have to be; rename it."
                )
            other = classes.setdefault(_normal(path.name), path)
            if other != path:
                raise DataError(
                    f"{part}: two directories are called {_normal(path.name)!r}, {other.name!a} and "
                    f"{path.name!a}, which differ in their Unicode form only; merge them."
                )
            continue
        if path.name == _TINY_TABLE:  # stays behind where Tiny ImageNet's validation images were sorted
            continue
        message = (
            f"{path}: a file where class directories are expected; move or remove it, or pass --skip-broken."
        )
        if not request.skip_broken:
            raise DataError(message)
        skipped.append(message)
    if not classes:
        raise DataError(f"{part}: no class directories; expected {part.name}/<class>/<image>.")
    return classes


def entries_of(
    classes: Mapping[str, Path],
    part: Path,
    class_names: tuple[str, ...],
    *,
    needed: str = "every class needs images in train and test",
) -> list[Entry]:
    """Every file of every class; an empty class is found here, before anything is decoded.

    Raises:
        DataError: a class has no directory or no file, which ends with what is needed, or holds directories.
    """
    entries: list[Entry] = []
    for label, class_name in enumerate(class_names):
        directory = images_folder(classes.get(class_name, part / class_name))
        files = visible(directory) if directory.is_dir() else []
        if not files:
            what = "is empty" if directory.is_dir() else "does not exist"
            raise DataError(f"{directory}: the directory {what}; {needed}.")
        nested = next((file for file in files if file.is_dir()), None)
        if nested is not None:
            raise DataError(
                f"{nested}: a directory where images are expected; put images directly under the class."
            )
        entries += [Entry(str(file), label, file) for file in files]
    return entries


def images_folder(directory: Path) -> Path:
    """`directory/images` where that is all but for text files, as in Tiny ImageNet, else the directory."""
    inner = directory / "images"
    if inner.is_dir() and all(path == inner or path.suffix == ".txt" for path in visible(directory)):
        return inner
    return directory


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
