"""A user's own images: one directory a class, under train/ and test/."""

from atom.data import about
from atom.data.class_folders import (
    TEST_FOLDERS,
    TRAIN_FOLDERS,
    class_folders,
    entries_of,
    normal,
    part_folders,
    visible,
)
from atom.data.image_set import RealData
from atom.data.imagenet import FLAT, NESTED
from atom.data.parts import decoded_parts
from atom.data.place import Place
from atom.data.request import Request, required_directory, slug
from atom.errors import DataError


def read_folder(request: Request) -> RealData:
    """Images under train/<class>/ and test/<class>/, classes in alphabetical order.

    Raises:
        DataError: a part, a class or an image is missing, broken, without labels or not where it should be.
    """
    root = required_directory(request)
    name = slug(root)
    nested = next((inner for inner in NESTED if (root / inner / "train").is_dir()), None)
    if nested is not None:
        raise DataError(
            f"{root} has the layout of ImageNet, with its images in {nested}/; pass imagenet:{root}."
        )
    train_dir = part_folders(request, root, TRAIN_FOLDERS)[0]
    skipped: list[str] = []
    train_classes = class_folders(request, train_dir, skipped)
    test_dir, remarks = _test_part(request, root, train_dir, set(train_classes))
    test_classes = class_folders(request, test_dir, skipped)
    unknown = sorted(
        folder for folder in set(test_classes) - set(train_classes) if visible(test_classes[folder])
    )
    if unknown:
        raise DataError(_unknown_class(test_classes[unknown[0]], train_dir, len(train_classes)))
    names = tuple(sorted(train_classes))
    return decoded_parts(
        request,
        root,
        (entries_of(train_classes, train_dir, names), entries_of(test_classes, test_dir, names)),
        names,
        name=name,
        source=about.unknown_source(name, "folder"),
        skipped=skipped,
        remarks=remarks,
    )


def _test_part(
    request: Request, root: Place, train_dir: Place, classes: set[str]
) -> tuple[Place, tuple[str, ...]]:
    """The first part that has labels, and what to say of those that were passed over."""
    parts = part_folders(request, root, (request.test_part,) if request.test_part else TEST_FOLDERS)
    parts = [part for part in parts if part != train_dir]
    if not parts:
        raise DataError(f"--test-part {request.test_part}: {train_dir} is the training part; name another.")
    for number, part in enumerate(parts):
        folders = [normal(path.name) for path in visible(part) if path.is_dir()]
        # A single directory that is no class, such as Tiny ImageNet's test/images, sorts nothing.
        if classes & set(folders) or len(folders) > 1:
            unlabelled = " and ".join(f"{passed.name}/" for passed in parts[:number])
            have = "has" if number == 1 else "have"
            remark = f"{unlabelled} {have} no class directories, so {part.name}/ is the test part"
            return part, (remark,) if number else ()
    raise DataError(_unsorted(root, parts[-1], train_dir, len(classes)))


def _unsorted(root: Place, part: Place, train_dir: Place, num_classes: int) -> str:
    """What to do about a part whose images are not in class directories."""
    if (root / "wnids.txt").is_file():
        return (
            f"{root} has the layout of Tiny ImageNet, whose labels are in a table; pass tinyimagenet:{root}."
        )
    if any(path.name.startswith(FLAT) for path in visible(part)):
        return (
            f"{part}: ImageNet's validation images as they are published, in one directory, whose classes a table"
            f" tells; pass imagenet:{root}."
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


def _unknown_class(directory: Place, train_dir: Place, num_classes: int) -> str:
    return (
        f"{directory}: class {normal(directory.name)!r} is not among the {num_classes} classes of {train_dir}; "
        "every test class needs training images."
    )
