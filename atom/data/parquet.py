"""Images in the Hugging Face parquet layout: a column of {bytes, path} and a column of labels."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atom.data import about
from atom.data.cache import cached
from atom.data.decode import Decoded, Entry, decode_all, match_channels
from atom.data.image_set import ImageSet, RealData
from atom.data.parquet_schema import Columns, find_columns
from atom.data.request import Request, required_directory, slug
from atom.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

TEST_PARTS = ("test", "validation", "valid", "val")
"""The first that has files is the test part."""
BATCH_ROWS = 1024


@dataclass(frozen=True)
class _Part:
    """The files of one part, and what their schema says."""

    files: tuple[Path, ...]
    columns: Columns


def read_parquet(request: Request) -> RealData:
    """Images of `train-*.parquet` and `test-*.parquet` (or `validation-*`), also under data/.

    Raises:
        DataError: a part, a column or a shard is missing, a file is damaged, a label or an image is broken.
    """
    root = required_directory(request)
    train_files = _shards(request, root, ("train",))
    test_files = _shards(request, root, TEST_PARTS)
    name = slug(root)

    def build() -> RealData:
        train_part = _Part(train_files, _columns(train_files))
        test_part = _Part(test_files, _columns(test_files))
        _check_same_classes(train_part, test_part)
        classes = _classes(train_part)
        positions = train_part.columns.labels_are_positions
        train = _decode(train_part, classes, request, positions=positions)
        test = _decode(test_part, classes, request, positions=positions)
        class_names = tuple(str(value) for value in classes)
        train_images, test_images = match_channels(train.images, test.images)
        return RealData(
            name,
            request.spec,
            ImageSet.create(train_images, train.labels, class_names),
            ImageSet.create(test_images, test.labels, class_names),
            about.unknown_source(name, "parquet"),
            skipped=(*train.skipped, *test.skipped),
            remarks=(*train.remarks, *test.remarks),
        )

    return cached(request, root, [*train_files, *test_files], name=name, build=build)


def _shards(request: Request, root: Path, parts: tuple[str, ...]) -> tuple[Path, ...]:
    """The files of the first part that has any, all shards present."""
    for part in parts:
        for folder in (root, root / "data"):
            files = sorted({*folder.glob(f"{part}-*.parquet"), *folder.glob(f"{part}.parquet")})
            if files:
                _check_complete(files)
                return tuple(files)
    wanted = " or ".join(f"{part}-*.parquet" for part in parts)
    raise DataError(
        f"{request.spec}: no {wanted} in {root} or {root / 'data'}; expected the Hugging Face layout."
    )


def _check_complete(files: list[Path]) -> None:
    """Shards are called part-00000-of-00003: a missing one would silently shrink the set."""
    numbered = [re.search(r"-(\d+)-of-(\d+)(?:-[0-9a-f]+)?$", file.stem) for file in files]
    present = {(int(match[1]), int(match[2])) for match in numbered if match}
    for total in {total for _, total in present}:
        for number in range(total):
            if (number, total) not in present:
                raise DataError(
                    f"{files[0].parent}: shard {number:05d} of {total:05d} is missing "
                    f"beside {files[0].name}; fetch all shards."
                )


def _open(file: Path) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{file}: not a whole parquet file ({_first_line(error)}); fetch the file again."
        ) from error


def _columns(files: tuple[Path, ...]) -> Columns:
    """The columns all files of one part share."""
    columns: Columns | None = None
    for file in files:
        with _open(file) as table:
            found = find_columns(table.schema_arrow, file)
        if columns is not None and found != columns:
            raise DataError(f"{file}: its columns or class names differ from those of {files[0]}.")
        columns = found
    assert columns is not None  # _shards gives one file or more
    return columns


def _check_same_classes(train: _Part, test: _Part) -> None:
    """Refuse parts whose labels mean different classes: the numbers alone would not show it."""
    names = test.columns.class_names
    if (
        names not in (None, train.columns.class_names)
        or test.columns.text_labels != train.columns.text_labels
    ):
        raise DataError(
            f"{test.files[0]}: its kind of labels or its class names differ from those of {train.files[0]}; "
            "write both parts with the same features."
        )


def _classes(part: _Part) -> list[Any]:
    """Names of the classes in the order of the labels; without metadata, the sorted values of the labels."""
    if part.columns.class_names is not None:
        return list(part.columns.class_names)
    values = {label for file in part.files for _, label, _ in _rows(file, part.columns, with_images=False)}
    if None in values:
        raise DataError(f"{part.files[0].parent}: column {part.columns.label!r} has rows without a label.")
    return sorted(values)


def _decode(part: _Part, classes: list[Any], request: Request, *, positions: bool) -> Decoded:
    columns = part.columns
    label_of = {position if positions else value: position for position, value in enumerate(classes)}

    def entries() -> Iterator[Entry]:
        for file in part.files:
            for row, label, content in _rows(file, columns, with_images=True):
                where = f"{file}, row {row}"
                if label not in label_of:
                    known = f"0 to {len(classes) - 1}" if positions else "one of the training part's labels"
                    raise DataError(f"{where}: column {columns.label!r} holds {label!r}; expected {known}.")
                yield Entry(where, label_of[label], content)

    num_rows = 0
    for file in part.files:
        with _open(file) as table:
            num_rows += table.metadata.num_rows
    return decode_all(entries(), request.decoding, num_entries=num_rows)


def _rows(file: Path, columns: Columns, *, with_images: bool) -> Iterator[tuple[int, Any, bytes | None]]:
    """(row, label, encoded image) of one file, rows counted from 0."""
    import pyarrow as pa

    wanted = [columns.label, *([columns.image] if with_images else [])]
    row = 0
    with _open(file) as table:
        batches = table.iter_batches(batch_size=BATCH_ROWS, columns=wanted)
        while True:
            try:
                batch = next(batches, None)
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"{file}: damaged after row {row} ({_first_line(error)}); fetch the file again."
                ) from error
            if batch is None:
                return
            labels = batch.column(columns.label).to_pylist()
            images = batch.column(columns.image).to_pylist() if with_images else [None] * len(labels)
            for label, image in zip(labels, images, strict=True):
                yield row, label, image.get("bytes") if isinstance(image, dict) else image
                row += 1


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
