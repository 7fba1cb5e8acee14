"""ImageNet as it is published or as Kaggle has it; the official validation part serves as the test part."""

from collections.abc import Mapping
from dataclasses import dataclass

from atom.data import about, official
from atom.data.class_folders import (
    TEST_FOLDERS,
    TRAIN_FOLDERS,
    class_folders,
    entries_of,
    normal,
    part_folders,
    visible,
)
from atom.data.decode import Entry
from atom.data.image_set import RealData, SourceInfo
from atom.data.imagenet_tables import (
    DEVKITS,
    META_FILE,
    SOLUTION_FILE,
    TRUTH_FILE,
    Tables,
    first_names,
    is_wnid,
)
from atom.data.parts import decoded_parts
from atom.data.place import Place
from atom.data.request import Request, required_directory
from atom.errors import DataError

NESTED = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
"""Where the archives of the challenge, and Kaggle's, have the images."""
FLAT = "ILSVRC2012_val_"
"""How validation images begin that lie in one directory."""


def read_imagenet(request: Request) -> RealData:
    """All classes under train/, by WordNet's identifiers in alphabetical order, as everybody numbers them.

    Classes are called by the first of their names where a table has these, else by their identifiers.

    Raises:
        DataError: a directory is called otherwise; or see `read_layout`.
    """
    data = read_layout(request, "imagenet", about.IMAGENET)
    counts = tuple(data.train.per_class_counts().tolist())
    # How many training images each class has was not looked up: the sum tells, and the part that judges.
    train = counts if sum(counts) == official.IMAGENET_TRAIN else (official.IMAGENET_TRAIN,)
    return official.compared(data, (official.Part(train), official.Part((50,) * 1000)))


def read_layout(
    request: Request, name: str, source: SourceInfo, *, chosen: Mapping[str, str] | None = None
) -> RealData:
    """Images of train/<wnid>/, and of val/<wnid>/ or of val/ with a table of their classes.

    Validation images of classes that are not read are left out, as in a folder of 100 of the 1000 classes.

    Args:
        request: where, and how they are decoded.
        name: of the set.
        source: of the set.
        chosen: the classes to read by their identifiers, in the order of the labels, and what they are called; None:
            all that have training images.

    Raises:
        DataError: a part, a class, an image or the table is missing, or one of them is broken.
    """
    root = required_directory(request)
    images = next((root / inner for inner in NESTED if (root / inner).is_dir()), root)
    tables = Tables([root, images, *(root / devkit for devkit in DEVKITS)])
    train_dir = part_folders(request, images, TRAIN_FOLDERS)[0]
    skipped: list[str] = []
    train = class_folders(request, train_dir, skipped)
    reads_all = chosen is None
    if chosen is None:
        wnids = _checked_wnids(train, root)
        chosen = dict(zip(wnids, first_names(tables.words(), wnids), strict=True))
    _check_chosen(request, chosen, train_dir, train)
    part = _test_part(request, images, train_dir, set(train))
    if part.is_flat:
        tables.folders.append(part.folder)
        test, left_out = _flat_entries(part.folder, tables, tuple(chosen))
    else:
        classes = class_folders(request, part.folder, skipped)
        _check_chosen(request, chosen, part.folder, classes)
        test = entries_of(classes, part.folder, tuple(chosen))
        left_out = f"{len(classes) - len(chosen)} classes" if len(classes) > len(chosen) else ""
    remark = f"{left_out} of {part.folder.name}/ have no training images and are left out"
    return decoded_parts(
        request,
        root,
        (entries_of(train, train_dir, tuple(chosen)), test),
        tuple(chosen.values()),
        name=name,
        source=source,
        skipped=skipped,
        remarks=(*part.remarks, *((remark,) if left_out and reads_all else ())),
        tables=tables.files,
    )


@dataclass(frozen=True)
class _TestPart:
    folder: Place
    is_flat: bool
    remarks: tuple[str, ...]


def _test_part(request: Request, images: Place, train_dir: Place, classes: set[str]) -> _TestPart:
    """The first part that has class directories or validation images, and what to say of those passed over."""
    passed: list[str] = []
    for part in part_folders(request, images, TEST_FOLDERS):
        inside = visible(part)
        # A single directory that is no class, such as another set's test/images, sorts nothing.
        folders = {normal(path.name) for path in inside if path.is_dir()}
        is_flat = any(path.name.startswith(FLAT) for path in inside)
        if is_flat or classes & folders or len(folders) > 1:
            have = "has" if len(passed) == 1 else "have"
            what = f"{' and '.join(passed)} {have} no labels, so {part.name}/ is the test part"
            return _TestPart(part, is_flat, (what,) if passed else ())
        passed.append(f"{part.name}/")
    raise DataError(
        f"{request.spec}: {' and '.join(passed)} in {images} holds neither directories of the classes of {train_dir}"
        f" nor images called {FLAT}*; unpack ILSVRC2012_img_val.tar into {images / 'val'}."
    )


def _flat_entries(part: Place, tables: Tables, wnids: tuple[str, ...]) -> tuple[list[Entry], str]:
    """The validation images class by class, in the order of their names, and what is of other classes."""
    class_of = tables.classes_of_validation()
    if class_of is None:
        folders = ", ".join(str(folder) for folder in tables.folders if folder.is_dir())
        raise DataError(
            f"{part}: holds ImageNet's validation images in one directory, and no table tells their classes; looked"
            f" for {SOLUTION_FILE}, and for {TRUTH_FILE} with {META_FILE}, in {folders}; put one of them there."
        )
    images = [path for path in visible(part) if path not in tables.files and path.name.startswith(FLAT)]
    present = {path.stem: path for path in images}
    unknown = next((path for stem, path in present.items() if stem not in class_of), None)
    if unknown is not None:
        raise DataError(f"{unknown}: {tables.files[-1]} does not tell its class; fetch the table again.")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    # An image that is missing is an entry without content: decoding names it, or skips it if asked to.
    entries = [
        Entry(str(present.get(stem, part / f"{stem}.JPEG")), label_of[wnid], present.get(stem))
        for stem, wnid in sorted(class_of.items())
        if wnid in label_of
    ]
    others = sum(class_of[stem] not in label_of for stem in present)
    return sorted(entries, key=lambda entry: entry.label), f"{others} images" if others else ""


def _checked_wnids(classes: Mapping[str, Place], root: Place) -> list[str]:
    stranger = next((path for name, path in classes.items() if not is_wnid(name)), None)
    if stranger is not None:
        raise DataError(
            f"{stranger}: is not called by WordNet's identifier, such as n01440764; pass folder:{root} for classes of"
            " your own."
        )
    return sorted(classes)


def _check_chosen(
    request: Request, chosen: Mapping[str, str], part: Place, classes: Mapping[str, Place]
) -> None:
    missing = [f"{wnid} ({name})" for wnid, name in chosen.items() if wnid not in classes]
    if missing:
        raise DataError(
            f"{request.spec}: {part} has no directory {', '.join(missing[:10])}; expected {part.name}/<wnid>/* for the"
            f" {len(chosen)} classes of {request.name}."
        )


__all__ = ["FLAT", "read_imagenet", "read_layout"]
