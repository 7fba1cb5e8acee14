"""Directories of images: which are parts, which are classes, and which files in them are images."""

import unicodedata
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TypeVar, cast

from atom.data.decode import Entry
from atom.data.place import Place, list_ahead
from atom.data.request import Request
from atom.errors import DataError

P = TypeVar("P", bound=Place)

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "val", "validation", "valid")
"""The first that exists and has labels is the test part."""
LEFT_BEHIND = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"})
"""What file managers and archivers leave in folders of images."""

_TINY_TABLE = "val_annotations.txt"


def visible(directory: P) -> list[P]:
    """What a directory holds, sorted by name, hidden names and what file managers leave behind left out.

    Raises:
        DataError: the directory cannot be read.
    """
    try:
        paths = sorted(cast(Iterator[P], directory.iterdir()), key=lambda path: path.name)
    except OSError as error:
        raise DataError(
            f"{directory}: cannot be listed ({error.strerror}); check its permissions."
        ) from error
    return [path for path in paths if not path.name.startswith(".") and path.name.lower() not in LEFT_BEHIND]


def part_folders(request: Request, root: Place, names: tuple[str, ...]) -> list[Place]:
    """The directories of these names in whatever case, in the order of the names.

    Raises:
        DataError: there is none, or there are two of one name.
    """
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


def class_folders(request: Request, part: Place, skipped: list[str]) -> dict[str, Place]:
    """The class directories of a part by their names in one Unicode form: archives of macOS use another.

    Raises:
        DataError: there are none, or files among them, or names that are the same or no text.
    """
    classes: dict[str, Place] = {}
    for path in visible(part):
        if path.is_dir():
            if not _is_text(path.name):
                raise DataError(
                    f"{part}: the name of the class directory {path.name!a} is not UTF-8, as names of classes"
                    " have to be; rename it."
                )
            other = classes.setdefault(normal(path.name), path)
            if other != path:
                raise DataError(
                    f"{part}: two directories are called {normal(path.name)!r}, {other.name!a} and "
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
    list_ahead(classes.values())
    list_ahead(inner for path in classes.values() if (inner := path / "images").is_dir())
    return classes


def entries_of(
    classes: Mapping[str, Place],
    part: Place,
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


def images_folder(directory: Place) -> Place:
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


def normal(name: str) -> str:
    """A name in the one Unicode form of class names."""
    return unicodedata.normalize("NFC", name)
