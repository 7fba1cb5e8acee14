"""Which columns of a parquet file hold images and labels, and what the classes are called."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atom.data.place import Place
from atom.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_NAMES = ("image", "img", "images")
_INDEX = "__index_level_"
"""What pandas calls a column of row numbers."""
LABEL_NAMES = ("label", "labels", "fine_label", "target", "class")
_ROW_NAMES = ("id", "idx", "index", "row")


@dataclass(frozen=True)
class Columns:
    """The two columns that are read."""

    image: str
    label: str
    class_names: tuple[str, ...] | None
    """From the schema's metadata, in the order of the labels; None if it has none."""
    text_labels: bool
    """The labels are names rather than numbers."""

    @property
    def labels_are_positions(self) -> bool:
        """The labels count through `class_names`, instead of being the names of their classes."""
        return self.class_names is not None and not self.text_labels


def find_columns(
    schema: "pa.Schema", file: Place, *, image: str | None = None, label: str | None = None
) -> Columns:
    """The image and label columns of a schema.

    The metadata Hugging Face writes decides; without it, the usual names; without those, the only column of
    the right type. Of several label columns the first usual name is taken: CIFAR-100 gives its fine labels.

    Args:
        schema: of one file.
        file: for messages.
        image: the column of the images, if it was chosen.
        label: the column of the labels, if it was chosen.

    Raises:
        DataError: there is no column of images or of labels, or the choice is ambiguous; a chosen column is missing;
            a type does not fit.
    """
    features = _features(schema, file)
    for flag, name in (("--image-column", image), ("--label-column", label)):
        if name is not None and name not in schema.names:
            raise DataError(
                f"{flag} {name}: {file} has the columns {', '.join(schema.names)}; name one of them."
            )
    image = image or _choose(
        [name for name in schema.names if features.get(name, {}).get("_type") == "Image"],
        [field.name for field in schema if _holds_images(field.type)],
        [name for name in IMAGE_NAMES if name in schema.names],
    )
    label = label or _choose(
        [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"],
        [field.name for field in schema if _holds_labels(field.type) and not field.name.startswith(_INDEX)],
        [name for name in LABEL_NAMES if name in schema.names],
        [field.name for field in schema if _is_score_or_empty(field.type) or _numbers_rows(field.name)],
    )
    if image is None:
        raise _unknown("images ({bytes, path})", "image", schema, file)
    if label is None:
        raise _unknown("labels (integers or names)", "label", schema, file)
    _check_types(schema, image, label, file)
    names = features.get(label, {}).get("names")
    usable = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return Columns(image, label, tuple(names) if usable else None, _is_text(schema.field(label).type))


def _unknown(what: str, name: str, schema: "pa.Schema", file: Place) -> DataError:
    return DataError(
        f"{file}: no column could be told to hold the {what} among {', '.join(schema.names)}; "
        f"call it {name}, or name it with --{name}-column."
    )


def _check_types(schema: "pa.Schema", image: str, label: str, file: Place) -> None:
    """Refuse a column that has the right name and the wrong content."""
    import pyarrow as pa

    kind = schema.field(image).type
    if not _holds_images(kind):
        raise DataError(
            f"{file}: column {image!r} holds {kind}, expected the bytes of encoded images, as binary or as "
            "{bytes, path}; --image-column names another column."
        )
    kind = schema.field(label).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        raise DataError(
            f"{file}: column {label!r} holds {kind}, several labels an image; multi-label sets are not supported, "
            "--label-column names a column with one."
        )
    if not _holds_labels(kind):
        raise DataError(
            f"{file}: column {label!r} holds {kind}, expected integers or names; --label-column names another column."
        )


def _features(schema: "pa.Schema", file: Place) -> dict[str, dict[str, Any]]:
    """Column descriptions of the metadata; empty without metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: the 'huggingface' metadata is not readable ({error!r}); fetch the file again."
        ) from error
    if not isinstance(features, dict):
        raise DataError(
            f"{file}: the 'huggingface' metadata does not describe the columns; fetch the file again."
        )
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _choose(
    described: list[str], fitting: list[str], usual: list[str], doubtful: Sequence[str] = ()
) -> str | None:
    """A described column, else one of a usual name, else the only one that fits, doubtful ones last.

    A usual name with the wrong type is chosen before a fitting stranger: the type check then says what it holds.
    """
    candidates = [name for name in described if name in fitting]
    named = [name for name in usual if name in candidates]
    if named or len(candidates) == 1:
        return (named or candidates)[0]
    named = [name for name in usual if name in fitting] or usual
    strangers = [name for name in fitting if name not in doubtful] or fitting
    return named[0] if named else strangers[0] if len(strangers) == 1 else None


def _holds_images(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_labels(kind: "pa.DataType") -> bool:
    """Integers, names, booleans, and fractions, which must turn out whole; a part without labels has only nulls."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):  # how pandas stores a category
        return _holds_labels(kind.value_type)
    numbers = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind)
    return numbers or _is_text(kind) or pa.types.is_null(kind)


def _numbers_rows(name: str) -> bool:
    return name.lower() in _ROW_NAMES or name.lower().endswith("_id")


def _is_score_or_empty(kind: "pa.DataType") -> bool:
    """Fractions are scores and nulls are notes more often than labels."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_score_or_empty(kind.value_type)
    return pa.types.is_floating(kind) or pa.types.is_null(kind)


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
