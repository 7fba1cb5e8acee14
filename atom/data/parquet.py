"""Images in the Hugging Face parquet layout: a column of {bytes, path} and a column of labels."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atom.data import about
from atom.data.cache import cached
from atom.data.decode import Decoded, Entry, decode_all
from atom.data.image_set import RealData
from atom.data.parquet_layout import Layout, find_layout, set_folder
from atom.data.parquet_schema import LABEL_NAMES, Columns, find_columns
from atom.data.parts import joined_parts
from atom.data.place import Place, Remote
from atom.data.request import Request, required_directory, slug
from atom.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 1024
_BUFFER_BYTES = 2**16
"""Of a column, read at once. Chosen."""
_FAR_BUFFER_BYTES = 2**23
"""The same, of a file behind a network, where each reading is a request. Chosen."""
_NAMED = 10
"""Class names in a remark."""


@dataclass(frozen=True)
class _Part:
    """The files of one part, what their schema says, and the labels of their rows."""

    files: tuple[Place, ...]
    columns: Columns
    labels: tuple[Any, ...]

    @property
    def unlabelled(self) -> bool:
        """Whether no row has a label: -1 is what competitions give their test images."""
        return all(label is None or label == -1 for label in self.labels)


def read_parquet(request: Request) -> RealData:
    """Images of `train-*.parquet` and `test-*.parquet` (or `validation-*`), in one of the Hub's layouts.

    Raises:
        DataError: a part, a column or a shard is missing, a file is damaged, a label or an image is broken.
    """
    root = required_directory(request)
    layout = find_layout(request, root)
    name = slug(set_folder(root))

    def build() -> RealData:
        train_part = _part(layout.train, request, request.label_column)
        test_part, remarks = _test_part(layout, request, train_part.columns.label)
        _check_same_classes(train_part, test_part)
        values = _class_values(train_part)
        present = {*train_part.labels, *test_part.labels}
        kept = [value for value in values if value in present]
        train = _decode(train_part, values, kept, request)
        test = _decode(test_part, values, kept, request)
        class_names = tuple(str(_names(train_part, value)) for value in kept)
        absent = [str(_names(train_part, value)) for value in values if value not in present]
        return joined_parts(
            request,
            train,
            test,
            class_names,
            name=name,
            source=about.unknown_source(name, "parquet"),
            remarks=(*remarks, *on_absent(absent, len(values))),
        )

    return cached(request, root, layout.files, name=name, build=build)


def _part(files: tuple[Place, ...], request: Request, label: str | None) -> _Part:
    columns = _columns(files, request, label)
    return _Part(
        files,
        columns,
        tuple(label for file in files for _, label, _ in _rows(file, columns, with_images=False)),
    )


def _test_part(layout: Layout, request: Request, label: str) -> tuple[_Part, tuple[str, ...]]:
    """The first part that has labels, and what to say of those that were passed over."""
    passed: list[str] = []
    for name, files in layout.tests.items():
        part = _labelled_part(files, request, label)
        if part is not None and not (part.unlabelled and part.labels):
            have = "part has" if len(passed) == 1 else "parts have"
            what = f"the {' and '.join(passed)} {have} no labels, so the {name} part is the test part"
            return part, (what,) if passed else ()
        passed.append(name)
    files = layout.tests[passed[0]]
    raise DataError(
        f"{files[0]}: the {passed[0]} part has no labels (-1, nothing, or no column {label!r}), as in competitions; "
        "name a part that has them as --test-part, or hold one out of the training part yourself."
    )


def _labelled_part(files: tuple[Place, ...], request: Request, label: str) -> _Part | None:
    """The part with the training part's column of labels, else with one that its name or metadata shows to be one.

    A part for predictions has neither, and another column, such as its row numbers, is none.
    """
    if _has_column(files[0], label):
        return _part(files, request, label)
    if request.label_column is not None:
        return None
    try:
        part = _part(files, request, None)
    except DataError:
        return None
    return part if part.columns.label in LABEL_NAMES or part.columns.class_names else None


def on_absent(names: list[str], num_classes: int) -> tuple[str, ...]:
    """What to say of class names without images, of so many."""
    if not names:
        return ()
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return (f"{len(names)} of {num_classes} class names have no images and are left out: {shown}",)


def _open(file: Place) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not buffered ahead: that holds the whole file.
        if isinstance(file, Remote):
            return pq.ParquetFile(
                file.path,
                filesystem=file.disk.filesystem,
                pre_buffer=False,
                buffer_size=_FAR_BUFFER_BYTES,
            )
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, "not a whole parquet file", error) from error


def _has_column(file: Place, name: str) -> bool:
    with _open(file) as table:
        return name in table.schema_arrow.names


def _columns(files: tuple[Place, ...], request: Request, label: str | None) -> Columns:
    """The columns all files of one part share."""
    columns: Columns | None = None
    for file in files:
        with _open(file) as table:
            found = find_columns(table.schema_arrow, file, image=request.image_column, label=label)
        if columns is not None and found != columns:
            raise DataError(f"{file}: its columns or class names differ from those of {files[0]}.")
        columns = found
    assert columns is not None  # find_layout gives one file or more
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


def _class_values(part: _Part) -> list[Any]:
    """What stands in the label column for each class, in the order of the classes: sorted without metadata."""
    columns = part.columns
    if columns.class_names is not None:
        return list(columns.class_names if columns.text_labels else range(len(columns.class_names)))
    if None in part.labels:
        raise DataError(f"{part.files[0].parent}: column {columns.label!r} has rows without a label.")
    return sorted(set(part.labels))


def _names(part: _Part, value: Any) -> Any:
    """Name of the class that a value of the label column stands for."""
    names = part.columns.class_names
    return value if names is None or part.columns.text_labels else names[value]


def _decode(part: _Part, values: list[Any], kept: list[Any], request: Request) -> Decoded:
    columns = part.columns
    label_of = {value: position for position, value in enumerate(kept)}

    def entries() -> Iterator[Entry]:
        for file in part.files:
            for row, label, content in _rows(file, columns, with_images=True):
                where = f"{file}, row {row}"
                if label not in label_of:
                    positions = columns.labels_are_positions
                    known = f"0 to {len(values) - 1}" if positions else "one of the training part's labels"
                    raise DataError(f"{where}: column {columns.label!r} holds {label!r}; expected {known}.")
                yield Entry(where, label_of[label], content)

    num_rows = 0
    for file in part.files:
        with _open(file) as table:
            num_rows += table.metadata.num_rows
    return decode_all(entries(), request.decoding, num_entries=num_rows)


def _rows(file: Place, columns: Columns, *, with_images: bool) -> Iterator[tuple[int, Any, bytes | None]]:
    """(row, label, encoded image) of one file, rows counted from 0."""
    import pyarrow as pa

    wanted = [columns.label, *([columns.image] if with_images else [])]
    row = 0
    with _open(file) as table:
        batches = _batches(table, wanted)
        while True:
            try:
                batch = next(batches, None)
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(file, f"damaged after row {row}", error) from error
            if batch is None:
                return
            labels = batch.column(columns.label).to_pylist()
            if any(isinstance(label, float) for label in labels):
                labels = [_whole(label, f"{file}, row {row + i}", columns) for i, label in enumerate(labels)]
            images = batch.column(columns.image).to_pylist() if with_images else [None] * len(labels)
            for label, image in zip(labels, images, strict=True):
                yield row, label, image.get("bytes") if isinstance(image, dict) else image
                row += 1


def _batches(table: "pq.ParquetFile", columns: list[str]) -> "Iterator[pa.RecordBatch]":
    """Of one row group after another: asked for all at once, Arrow keeps the groups that were read."""
    for group in range(table.num_row_groups):
        yield from table.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=columns)


def _whole(label: float | None, where: str, columns: Columns) -> int | None:
    """A label that was stored as a fraction, as pandas does where some are missing."""
    if label is None or math.isnan(label):
        return None
    if not label.is_integer():
        raise DataError(
            f"{where}: column {columns.label!r} holds {label:g}; expected whole numbers or names, one a class."
        )
    return int(label)


def _unreadable(file: Place, what: str, error: Exception) -> DataError:
    """Of a disk the file is at fault; of a network nobody knows."""
    if isinstance(file, Remote):
        return DataError(
            f"{file}: cannot be read, or is {what} ({_first_line(error)}); run the same command again, and if it says"
            " the same, put the file there again."
        )
    return DataError(f"{file}: {what} ({_first_line(error)}); fetch the file again.")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
