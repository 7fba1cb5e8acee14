"""Tiny ImageNet in its official directory layout; the official validation part serves as the test part."""

from dataclasses import replace
from pathlib import Path

from atom.data import about, official
from atom.data.cache import cached
from atom.data.class_folders import images_folder, visible
from atom.data.decode import Entry, decode_all
from atom.data.image_set import ImageSet, RealData
from atom.data.imagenet_tables import first_names
from atom.data.request import Request
from atom.errors import DataError

FOLDER = "tiny-imagenet-200"
SIDE = 64


def read_tinyimagenet(request: Request) -> RealData:
    """100,000 training and 10,000 validation images, 64x64 RGB, grey ones widened to three channels.

    Classes have the order of wnids.txt and the first of their names in words.txt. The labels of the official
    test part were never published.

    Raises:
        DataError: a file of the layout is missing or damaged.
    """
    root = _locate(request)
    wnids = _lines(root / "wnids.txt")
    words = dict(line.split("\t", 1) for line in _lines(root / "words.txt") if "\t" in line)
    class_names = first_names(words, wnids)
    parts = [_class_entries(root / "train", wnids), _val_entries(root, wnids)]
    size = SIDE if request.image_size is None else None
    decoding = replace(request.decoding, always_rgb=True, expected_size=size)

    def build() -> RealData:
        train, test = (decode_all(part, decoding, num_entries=len(part)) for part in parts)
        data = RealData(
            request.name,
            request.spec,
            ImageSet.create(train.images, train.labels, class_names),
            ImageSet.create(test.images, test.labels, class_names),
            about.TINYIMAGENET,
            (*train.skipped, *test.skipped),
        )
        data = official.compared(data, official.TINYIMAGENET)
        if data.source is not about.TINYIMAGENET:
            return data
        remark = "the images are Tiny ImageNet's by their counts only; their pixels and labels could not be compared"
        return replace(data, remarks=(*data.remarks, remark))

    images = [entry.source for part in parts for entry in part if isinstance(entry.source, Path)]
    tables = [root / "wnids.txt", root / "words.txt", root / "val" / "val_annotations.txt"]
    return cached(request, root, [*images, *tables], name=request.name, build=build)


def _locate(request: Request) -> Path:
    for root in (request.root, request.root / FOLDER):
        if (root / "wnids.txt").is_file():
            return root
    raise DataError(
        f"{request.spec}: wnids.txt is neither in {request.root} nor in {request.root / FOLDER}; unpack "
        f"{about.TINYIMAGENET.homepage} there, or name its folder as tinyimagenet:PATH."
    )


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); unpack the official archive again.") from error
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{file}: the file is empty; unpack the official archive again.")
    return lines


def _class_entries(part: Path, wnids: list[str]) -> list[Entry]:
    """The images of part/<wnid>/, or of part/<wnid>/images/."""
    entries: list[Entry] = []
    for label, wnid in enumerate(wnids):
        directory = images_folder(part / wnid)
        # Tables of boxes lie beside the images where these were moved up.
        files = [f for f in visible(directory) if f.suffix != ".txt"] if directory.is_dir() else []
        if not files:
            raise DataError(f"{directory}: no images of class {wnid}; unpack the official archive again.")
        entries += [Entry(str(file), label, file) for file in files]
    return entries


def _val_entries(root: Path, wnids: list[str]) -> list[Entry]:
    """The validation images: in directories of their class if they were sorted, else by their table."""
    if any((root / "val" / wnid).is_dir() for wnid in wnids):
        return _class_entries(root / "val", wnids)
    table = root / "val" / "val_annotations.txt"
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    present = (
        {file.name: file for file in visible(root / "val" / "images")}
        if (root / "val" / "images").is_dir()
        else {}
    )
    entries: list[Entry] = []
    for number, line in enumerate(_lines(table), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if wnid not in label_of:
            raise DataError(f"{table}, line {number}: class {wnid!r} is not in {root / 'wnids.txt'}.")
        # A missing image is an entry without content: decoding names it, or skips it if asked to.
        entries.append(Entry(str(root / "val" / "images" / name), label_of[wnid], present.get(name)))
    return entries
