"""Which columns of a parquet file hold images and labels, and what the classes are called."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atom.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_NAMES = ("image", "img", "images")
LABEL_NAMES = ("label", "labels", "fine_label", "target", "class")


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


def find_columns(schema: "pa.Schema", file: Path) -> Columns:
    """The image and label columns of a schema.

    The metadata Hugging Face writes decides; without it, the usual names; without those, the only column of
    the right type. Of several label columns the first usual name is taken: CIFAR-100 gives its fine labels.

    Raises:
        DataError: there is no such column, or the choice is ambiguous, or its type does not fit.
    """
    import pyarrow as pa

    features = _features(schema, file)
    image = _choose(
        [name for name in schema.names if features.get(name, {}).get("_type") == "Image"],
        [field.name for field in schema if _holds_images(field.type)],
        IMAGE_NAMES,
    )
    label = _choose(
        [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"],
        [field.name for field in schema if pa.types.is_integer(field.type) or _is_text(field.type)],
        LABEL_NAMES,
    )
    for what, found in (("images ({bytes, path})", image), ("labels (integers)", label)):
        if found is None:
            raise DataError(
                f"{file}: no column could be told to hold the {what} among {', '.join(schema.names)}; "
                "call them image and label."
            )
    assert image is not None
    assert label is not None
    names = features.get(label, {}).get("names")
    usable = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return Columns(image, label, tuple(names) if usable else None, _is_text(schema.field(label).type))


def _features(schema: "pa.Schema", file: Path) -> dict[str, dict[str, Any]]:
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


def _choose(described: list[str], fitting: list[str], usual: tuple[str, ...]) -> str | None:
    for candidates in ([name for name in described if name in fitting], fitting):
        for name in usual:
            if name in candidates:
                return name
        if len(candidates) == 1:
            return candidates[0]
    return None


def _holds_images(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
