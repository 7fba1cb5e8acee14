"""Samples of a tar file as WebDataset writes them: members of one name with several endings, one after another."""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

from atom.data.parquet_schema import LABEL_NAMES
from atom.data.place import Place, Remote, Slice, reading
from atom.errors import DataError

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
LABEL_BYTES = 2**20
"""Of a label, at most; a stop for archives that would fill the memory. Chosen."""

_FAR_BUFFER_BYTES = 2**22
"""Read ahead of a file behind a network: asked for one by one, its headers were a request each. Chosen."""
_SAMPLE = re.compile(r"(?:\./)?((?:.*/)?[^./][^./]*)\.([^/]+)")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and its label, as far as they are there."""

    name: str
    """Path of the image in the archive, or of the sample where it has none."""
    image: Slice | None
    label: int | str | None


def samples_of(shard: Place, *, label_field: str | None = None) -> Iterator[Sample]:
    """The samples of one tar file in their order; only its headers and labels are read.

    The label is the whole number in KEY.cls, else the field in KEY.json.

    Args:
        shard: the file.
        label_field: of the JSON objects; None: the first of the usual ones.

    Raises:
        DataError: the file is damaged or cut off, a sample has two images, or a label is none.
    """
    key, fields = "", {}
    for name, start, size, content in _members(shard):
        match = _SAMPLE.fullmatch(name)
        if match is None or match[1].startswith("__MACOSX/"):
            continue
        if match[1] != key and _counts(fields):
            yield _sample(shard, key, fields, label_field)
        if match[1] != key:
            key, fields = match[1], {}
        ending = match[2].lower()
        if ending in fields:
            raise DataError(f"{shard}, {key}: has two members .{ending}; write the archive again.")
        fields[ending] = (name.removeprefix("./"), Slice(shard, start, size), content)
    if _counts(fields):
        yield _sample(shard, key, fields, label_field)


def _counts(fields: "dict[str, Field]") -> bool:
    """Whether members of one name are a sample: a README.md or an index.json in the archive is none."""
    return bool({"cls", *IMAGE_ENDINGS} & fields.keys())


Field = tuple[str, Slice, bytes]


def _sample(shard: Place, key: str, fields: dict[str, Field], label_field: str | None) -> Sample:
    images = [ending for ending in IMAGE_ENDINGS if ending in fields]
    if len(images) > 1:
        raise DataError(f"{shard}, {key}: has {len(images)} images, .{' and .'.join(images)}; expected one.")
    label: int | str | None = None
    if "cls" in fields:
        label = _whole(f"{shard}, {fields['cls'][0]}", fields["cls"][2])
    elif "json" in fields:
        label = _in_json(f"{shard}, {fields['json'][0]}", fields["json"][2], label_field)
    if not images:
        return Sample(key, None, label)
    name, image, _ = fields[images[0]]
    return Sample(name, image, label)


def _members(shard: Place) -> Iterator[tuple[str, int, int, bytes]]:
    """Name, start, size and, of labels, content of every file in a tar."""
    last = "its beginning"
    try:
        with reading(shard), _opened(shard) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                cast(Any, archive).members.clear()  # which else hold every header
                last = member.name
                if not member.isreg() or member.issparse():
                    _check_link(shard, member)
                    continue
                content = b""
                if member.name.lower().endswith((".cls", ".json")):
                    if member.size > LABEL_BYTES:
                        raise DataError(f"{shard}, {last}: has {member.size} bytes, too many for a label.")
                    content = cast(IO[bytes], archive.extractfile(member)).read()
                yield member.name, member.offset_data, member.size, content
            # The module takes whatever is no header for the end, and a set that was cut off would be a smaller one.
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise DataError(f"{shard}: damaged or cut off after {last}; fetch the file again.")
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{shard}: damaged or cut off after {last} ({error}); fetch the file again."
        ) from error


def _check_link(shard: Place, member: tarfile.TarInfo) -> None:
    """Refuse what looks like a part of a sample and has no content here: left out, the set would be a smaller one."""
    ending = member.name.rpartition(".")[2].lower()
    if not member.isdir() and ending in (*IMAGE_ENDINGS, "cls", "json"):
        raise DataError(
            f"{shard}, {member.name}: is a link, or sparse; write the archive again with --dereference"
            " --hard-dereference."
        )


@contextmanager
def _opened(shard: Place) -> Iterator[IO[bytes]]:
    if not isinstance(shard, Remote):
        with shard.open("rb") as stream:
            yield stream
        return
    with shard.open_file() as far:
        yield cast(IO[bytes], io.BufferedReader(cast(io.RawIOBase, far), _FAR_BUFFER_BYTES))


def _whole(where: str, content: bytes) -> int:
    text = content.decode("utf-8", "replace").strip()
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise DataError(f"{where}: holds {text[:40]!r}; expected the number of a class.")
    return int(text)


def _in_json(where: str, content: bytes, label_field: str | None) -> int | str | None:
    try:
        told: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON ({error}); write the archive again.") from error
    if not isinstance(told, dict):
        raise DataError(
            f"{where}: holds {type(told).__name__}; expected an object with a field for the label."
        )
    names = (label_field,) if label_field is not None else (*LABEL_NAMES, "cls")
    name = next((name for name in names if name in told), None)
    label = told.get(name) if name is not None else None
    if isinstance(label, float) and label.is_integer():
        return int(label)
    if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
        raise DataError(
            f"{where}: field {name!r} holds {label!r:.40}; expected the number or name of a class."
        )
    return label


__all__ = ["IMAGE_ENDINGS", "Sample", "samples_of"]
