"""Images in WebDataset's layout: tar files of samples, read where they lie, on a disk or at a URI."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from atom.data import about
from atom.data.cache import cached
from atom.data.decode import Entry
from atom.data.image_set import RealData
from atom.data.parquet import on_absent
from atom.data.parquet_layout import set_folder
from atom.data.parts import decode_parts
from atom.data.place import Place, Remote
from atom.data.request import Request, slug
from atom.data.shards import TEST_PARTS, TRAIN, find_shards, part_of, spelt
from atom.data.tar_samples import Sample, samples_of
from atom.errors import DataError

Label = int | str

NAMES_FILES = ("classes.txt", "classnames.txt")
"""Beside the shards, one class a line in the order of their numbers."""
_FAR_SHARDS = 8
"""Whose headers are read at once from behind a network. Chosen."""


def read_webdataset(request: Request) -> RealData:
    """Images of the shards called train*, and of test*, else val* or validation*; or of such directories.

    Images are sorted by class and then by their paths in the archives, so that neither the number of shards nor the
    order in them matters.

    Raises:
        DataError: a part, a shard or a label is missing, or one of them or an image is broken.
    """
    root, shards = find_shards(request)
    alone = not request.pattern and request.place == shards[0]
    name = slug(root / shards[0].stem if alone else set_folder(root))
    names_file = _names_file(root, shards)

    def build() -> RealData:
        parts = _Parts(root, shards, request)
        train = parts.of(TRAIN)
        if not train:
            raise DataError(
                f"{request.spec}: {root} holds no sample to train on; expected shards called train*, or in a directory"
                " train/."
            )
        test_part, remarks = _test_part(parts, request)
        test = parts.of(test_part)
        classes = _classes(request, train, test, names_file)
        return decode_parts(
            request,
            (_entries(train, classes.values), _entries(test, classes.values)),
            classes.names,
            name=name,
            source=about.unknown_source(name, "webdataset"),
            remarks=(*parts.remarks, *remarks, *classes.remarks),
        )

    files = [*shards, *([names_file] if names_file else [])]
    return cached(request, root, files, name=name, build=build, facts=request.class_names)


@dataclass(frozen=True, slots=True)
class _Found:
    """A sample and where it was found."""

    shard: Place
    sample: Sample

    @property
    def where(self) -> str:
        return f"{self.shard}, {self.sample.name}"


class _Parts:
    """The samples of each part, whose shards are read when somebody asks for it."""

    def __init__(self, root: Place, shards: Iterable[Place], request: Request) -> None:
        self._request, self._far = request, isinstance(root, Remote)
        self._shards: dict[str | None, list[Place]] = defaultdict(list)
        self._found: dict[str, list[_Found]] = {}
        for shard in shards:
            below = str(shard).removeprefix(str(root)).strip("/").split("/")
            self._shards[part_of(below[::-1], request.test_part)].append(shard)
        self._mixed: dict[str, list[_Found]] = defaultdict(list)
        unknown = self._shards.pop(None, [])
        self.remarks: tuple[str, ...] = ()
        if TRAIN in self._shards and unknown:
            what = "shards are" if len(unknown) > 1 else "shard is"
            self.remarks = (
                f"{len(unknown)} {what} called after no part and left out, the first: {unknown[0]}",
            )
            return
        for found in self._read(unknown):
            # Of an archive that holds several parts the directories inside tell, and the outermost knows: below it a
            # class may be called like a part, as one of CIFAR-100 is.
            part = part_of(found.sample.name.split("/")[:-1], request.test_part)
            if part is None:
                raise DataError(
                    f"{found.where}: nothing tells whether it is for training or testing; call shards train-*.tar and"
                    " test-*.tar, or put them, or what is in them, in directories train/ and test/."
                )
            self._mixed[part].append(found)

    def of(self, part: str) -> list[_Found]:
        """The samples of a part, in the order of the shards."""
        if part not in self._found:
            self._found[part] = [*self._read(self._shards.get(part, [])), *self._mixed.get(part, [])]
        return self._found[part]

    def _read(self, shards: list[Place]) -> Iterator[_Found]:
        def read(shard: Place) -> list[_Found]:
            label_field = self._request.label_column
            return [_Found(shard, sample) for sample in samples_of(shard, label_field=label_field)]

        with ThreadPoolExecutor(_FAR_SHARDS if self._far else 1) as pool:
            for found in pool.map(read, shards):
                yield from found


def _test_part(parts: _Parts, request: Request) -> tuple[str, tuple[str, ...]]:
    """The first part that has labels, and what to say of those that were passed over."""
    wanted = (spelt(request.test_part),) if request.test_part else TEST_PARTS
    if wanted[0] == TRAIN:
        raise DataError(f"--test-part {request.test_part}: is the training part; name another.")
    present = [part for part in wanted if parts.of(part)]
    for number, part in enumerate(present):
        if any(found.sample.label not in (None, -1) for found in parts.of(part)):
            remark = f"the {present[0]} part has no labels, so the {part} part is the test part"
            return part, (remark,) if number else ()
    if present:
        raise DataError(
            f"{request.spec}: the {' and the '.join(present)} part has no labels; name a part that has them as"
            " --test-part, or hold one out of the training part yourself."
        )
    raise DataError(
        f"{request.spec}: no shards of a part to test on; expected some called {'*, '.join(wanted)}*, beside those"
        " called train*, or in directories of these names; a pattern has to mean both, as"
        " {train,val}-{0000..0009}.tar does."
    )


@dataclass(frozen=True)
class _Classes:
    """What the labels in the shards stand for."""

    values: list[Label]
    """Labels in the order of the classes."""
    names: tuple[str, ...]
    remarks: tuple[str, ...]


def _classes(request: Request, train: list[_Found], test: list[_Found], names_file: Place | None) -> _Classes:
    """The classes that have images: those of a file of names, else the sorted labels of the training part."""
    train_labels = {_label(found) for found in train}
    present = train_labels | {_label(found) for found in test}
    numbers = [label for label in present if isinstance(label, int)]
    if numbers and len(numbers) < len(present):
        raise DataError(f"{request.spec}: some labels are numbers and others names; write all in one way.")
    listed: list[str] = [] if names_file is None else _lines(names_file)
    named: list[Label] = [*range(len(listed))] if numbers else [*listed]
    values = _ordered(train_labels) if names_file is None else named
    known = set(values)
    stranger = next((found for found in (*train, *test) if found.sample.label not in known), None)
    if stranger is not None:
        of = (
            "the training part's labels"
            if names_file is None
            else f"the {len(listed)} classes of {names_file}"
        )
        raise DataError(f"{stranger.where}: its label is {stranger.sample.label!r}; expected one of {of}.")
    by_number = names_file is not None and bool(numbers)
    name_of = {value: listed[int(value)] if by_number else str(value) for value in values}
    kept = [value for value in values if value in present]
    absent = [name_of[value] for value in values if value not in present]
    names = _as_asked(request, tuple(name_of[value] for value in kept), kept, names_file)
    return _Classes(kept, names, on_absent(absent, len(values)))


def _label(found: _Found) -> Label:
    if found.sample.label is None:
        raise DataError(
            f"{found.where}: has no label; expected the number of its class in a member .cls, or a field of a member"
            " .json, which --label-column names."
        )
    return found.sample.label


def _ordered(labels: set[Label]) -> list[Label]:
    """Numbers as numbers, names as names; never both."""
    return sorted(labels, key=lambda label: (label, "") if isinstance(label, int) else (0, label))


def _as_asked(
    request: Request, names: tuple[str, ...], labels: list[Label], names_file: Place | None
) -> tuple[str, ...]:
    """Class names with the user's, which are for numbers that nothing else gives a name."""
    asked = request.class_names
    if asked is None or asked == names:
        return names
    if names_file is None and labels == list(range(len(asked))):
        return asked
    if names_file is None and all(isinstance(label, int) for label in labels):
        raise DataError(
            f"{request.spec}: --class-names names {len(asked)} classes ({', '.join(asked[:10])}), but the labels are"
            f" {', '.join(names[:10])}; name each once, in the order of their numbers, from 0."
        )
    raise DataError(
        f"{request.spec}: --class-names names other classes than {names_file or 'the labels'}"
        f" ({', '.join(names[:10])}); leave it out."
    )


def _entries(found: list[_Found], values: list[Label]) -> list[Entry]:
    label_of = {value: label for label, value in enumerate(values)}
    entries = [Entry(one.where, label_of[_label(one)], one.sample.image) for one in found]
    order = sorted(range(len(found)), key=lambda i: (entries[i].label, found[i].sample.name))
    return [entries[i] for i in order]


def _names_file(root: Place, shards: list[Place]) -> Place | None:
    folders = dict.fromkeys([root, *(shard.parent for shard in shards)])
    files = (folder / name for folder in folders for name in NAMES_FILES)
    return next((file for file in files if file.is_file()), None)


def _lines(file: Place) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); write one class a line, in UTF-8.") from error
    return [line for line in lines if line]


__all__ = ["read_webdataset"]
