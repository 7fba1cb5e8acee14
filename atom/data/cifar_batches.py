"""What is inside CIFAR's published files: Python and binary batches, in a folder or in the archive."""

# N images, C channels, H height, W width

import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from atom.data.download import RemoteFile
from atom.data.image_set import Images, ImageSet, Labels, SourceInfo
from atom.data.official import Part
from atom.data.safe_pickle import read_plain_pickle
from atom.errors import DataError

MAX_BATCH_BYTES = 1 << 28
"""Largest file that is read, 268 MB; CIFAR-100's training batch has 155 MB."""
PIXELS = 3 * 32 * 32

ReadFile = Callable[[str], bytes]


@dataclass(frozen=True)
class CifarSource:
    """The published files of one of the two sets."""

    archive: RemoteFile
    python_folder: str
    python_parts: tuple[tuple[str, ...], tuple[str, ...]]
    python_names: tuple[str, str]
    """File and key of the class names."""
    python_labels: str
    binary_folder: str
    binary_names: str
    md5s: dict[str, str]
    """Of the Python batches, as published."""
    official: tuple[Part, Part]
    names_sha256: str
    """Of the class names in their order, joined by line ends."""
    label_bytes: int
    """Label bytes before the pixels of a binary record; the last one is the (fine) class."""
    num_classes: int
    info: SourceInfo

    @property
    def binary_parts(self) -> tuple[tuple[str, ...], ...]:
        """The binary layout's names of the batches."""
        return tuple(tuple(f"{name}.bin" for name in part) for part in self.python_parts)


def folder_reader(folder: Path) -> ReadFile:
    """Reads files of the unpacked archive by name; a missing one is a DataError that names it."""

    def read(name: str) -> bytes:
        file = folder / name
        try:
            if file.stat().st_size > MAX_BATCH_BYTES:
                raise DataError(
                    f"{file}: larger than {MAX_BATCH_BYTES} bytes; this is not the official file."
                )
            return file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); fetch the archive again.") from error

    return read


def archive_reader(archive: Path, source: CifarSource) -> ReadFile:
    """Reads files of the archive by name; a missing one is a DataError that names it.

    The wanted members are read into memory: nothing is written, so no member's path can lead anywhere.
    """
    wanted = {source.python_names[0], *source.python_parts[0], *source.python_parts[1]}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.parts != (source.python_folder, path.name):
                    continue
                if member.size > MAX_BATCH_BYTES:
                    raise DataError(
                        f"{archive}: {member.name} is too large; this is not the official archive."
                    )
                stream = members.extractfile(member) if path.name in wanted else None
                if stream is not None:
                    contents[path.name] = stream.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{archive}: the archive is damaged ({error}); fetch it again.") from error

    def read(name: str) -> bytes:
        if name not in contents:
            raise DataError(f"{archive}: {source.python_folder}/{name} is missing; fetch the archive again.")
        return contents[name]

    return read


def read_python(read: ReadFile, source: CifarSource, found: Path) -> list[ImageSet]:
    """Training and test part of the Python layout.

    Raises:
        DataError: a file is missing, damaged, not a plain pickle, or not CIFAR.
    """
    names_file, names_key = source.python_names
    names = _unpickled(read, names_file, found).get(names_key)
    class_names = _checked_names(names, source, found / names_file)

    def read_batch(name: str) -> tuple[Images, Labels]:
        batch = _unpickled(read, name, found)
        data, labels = batch.get("data"), batch.get(source.python_labels)
        integers = isinstance(labels, list) and all(isinstance(label, int) for label in labels)
        if not isinstance(data, np.ndarray) or not integers or data.shape != (len(labels), PIXELS):
            raise DataError(
                f"{found / name}: expected 'data' as uint8 [N, {PIXELS}] and {source.python_labels!r} "
                "as a list of N integers; this is not the official file."
            )
        _check_labels(labels, class_names, found / name)
        return data, np.array(labels, dtype=np.int64)

    return [_joined([read_batch(name) for name in part], class_names) for part in source.python_parts]


def read_binary(read: ReadFile, source: CifarSource, found: Path) -> list[ImageSet]:
    """Training and test part of the binary layout: records of one or two label bytes and 3,072 of pixels.

    Raises:
        DataError: a file is missing, cut short, or not CIFAR.
    """
    text = read(source.binary_names).decode("utf-8", errors="replace")
    class_names = _checked_names(text.split(), source, found / source.binary_names)
    record = source.label_bytes + PIXELS

    def read_batch(name: str) -> tuple[Images, Labels]:
        content = read(name)
        if not content or len(content) % record:
            raise DataError(
                f"{found / name}: {len(content)} bytes are not a whole number of {record}-byte records; "
                "fetch the archive again."
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, record)
        labels_N = rows[:, source.label_bytes - 1].astype(np.int64)
        _check_labels(labels_N.tolist(), class_names, found / name)
        return rows[:, source.label_bytes :], labels_N

    return [_joined([read_batch(name) for name in part], class_names) for part in source.binary_parts]


def _unpickled(read: ReadFile, name: str, found: Path) -> dict[str, object]:
    try:
        return read_plain_pickle(read(name))
    except ValueError as error:
        raise DataError(
            f"{found / name}: not a plain pickle of arrays ({error}); fetch the archive again, or if you wrote the "
            "file yourself, write a dict of uint8 arrays, lists, numbers and text."
        ) from error


def _checked_names(names: object, source: CifarSource, file: Path) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) != source.num_classes:
        raise DataError(f"{file}: expected the names of {source.num_classes} classes.")
    return tuple(str(name) for name in names)


def _check_labels(labels: list[int], class_names: tuple[str, ...], file: Path) -> None:
    for row, label in enumerate(labels):
        if not 0 <= label < len(class_names):
            raise DataError(f"{file}: image {row} has label {label}; expected 0 to {len(class_names) - 1}.")


def _joined(batches: list[tuple[Images, Labels]], class_names: tuple[str, ...]) -> ImageSet:
    images_NCHW = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)
    return ImageSet.create(images_NCHW, np.concatenate([labels for _, labels in batches]), class_names)
