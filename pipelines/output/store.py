"""Outputs on a local disk or a URI (s3://, gs://, file://, ...), written so that no reader sees half a file.

On a local disk a file is written under a temporary name in its own directory, flushed to the device and
renamed. On an object store an object appears only when its upload is complete, which is the same promise.
"""

import errno
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs

from atom.errors import StoreError
from atom.redact import without_secrets

LOCK_NAME = ".lock"
# Windows drive letters are one character, so a scheme has at least two.
_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_TEMPORARY = ".partial-"

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space or pass another --output"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or pass another --output"),
    errno.EACCES: ("permission is denied", "make it writable or pass another --output"),
    errno.EPERM: ("permission is denied", "make it writable or pass another --output"),
    errno.EROFS: ("the file system is read-only", "pass another --output"),
    errno.EEXIST: ("a part of the path is a file, not a directory", "pass another --output"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "pass another --output"),
}


def store_error(action: str, where: str, error: OSError) -> StoreError:
    """One sentence: what was tried, where, why it failed, what to do."""
    reason, advice = _REASONS.get(
        error.errno or 0, (str(error), "check the location or pass another --output")
    )
    return StoreError(f"Cannot {action} {where}: {reason}; {advice}.")


class Store:
    """A directory of named outputs; names are relative and use "/".

    Args:
        filesystem: where the bytes live.
        root: the directory's path on `filesystem`.
        local: the same directory as a local path, or None for a remote store.
    """

    def __init__(self, filesystem: pafs.FileSystem, root: str, *, local: Path | None = None) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self.local_path = local

    @classmethod
    def open(cls, location: str | Path) -> "Store":
        """The store at a path or URI; nothing is created before the first write.

        Raises:
            StoreError: the URI's scheme is unknown, or its file system cannot be reached.
        """
        text = os.fspath(location)
        if not _URI.match(text):
            path = Path(text).expanduser().absolute()
            return cls(pafs.LocalFileSystem(), path.as_posix(), local=path)
        try:
            filesystem, root = pafs.FileSystem.from_uri(text)
        except (OSError, ValueError, NotImplementedError) as error:
            raise StoreError(
                f"Cannot open the output {text}: {error}; pass a path, or a URI such as s3://bucket/folder, "
                "gs://bucket/folder or file:///folder."
            ) from error
        local = Path(root) if isinstance(filesystem, pafs.LocalFileSystem) else None
        return cls(filesystem, root, local=local)

    def inside(self, name: str) -> "Store":
        """The store of a directory of this one, on the same file system."""
        local = None if self.local_path is None else self.local_path / name
        return Store(self._filesystem, self._path(name), local=local)

    def __str__(self) -> str:
        return str(self.local_path) if self.local_path else f"{self._filesystem.type_name}://{self._root}"

    def where(self, name: str) -> str:
        """Full path of a name, for messages."""
        return f"{self}/{name}"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def read_bytes(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            StoreError: it is missing or cannot be read.
        """
        try:
            with self._filesystem.open_input_stream(self._path(name)) as stream:
                return stream.read()
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.where(name)} does not exist; was it deleted, or is --output another one?"
            ) from error
        except OSError as error:
            raise store_error("read", self.where(name), error) from error

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, replacing an older one.

        Raises:
            StoreError: disk full, no permission, or the like; the temporary file is removed.
        """
        try:
            if self.local_path is not None:
                _write_local(self.local_path / name, data)
            else:
                self._filesystem.create_dir(self._path(name).rpartition("/")[0], recursive=True)
                with self._filesystem.open_output_stream(self._path(name)) as stream:
                    stream.write(data)
        except OSError as error:
            raise store_error("write", self.where(name), error) from error

    def write_json(self, name: str, value: object) -> None:
        """Write a value as indented JSON, without passwords; same promise and errors as `write_bytes`."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text, without passwords; same promise and errors as `write_bytes`."""
        self.write_bytes(name, without_secrets(text).encode())

    def write_new(self, name: str, data: bytes) -> None:
        """Write a file of a local store unless there is one: of several processes the first one's stays.

        Raises:
            StoreError: as `write_bytes`.
        """
        assert self.local_path is not None, "an object store cannot do this"
        try:
            _write_local(self.local_path / name, data, place=_place_new)
        except OSError as error:
            raise store_error("write", self.where(name), error) from error

    def exists(self, name: str) -> bool:
        """Whether a file or directory of this name is there."""
        try:
            return self._filesystem.get_file_info(self._path(name)).type != pafs.FileType.NotFound
        except OSError as error:
            raise store_error("look for", self.where(name), error) from error

    def list(self, prefix: str = "") -> list[str]:
        """Sorted names of the files in a directory of the store and below; temporary files are left out."""
        selector = pafs.FileSelector(self._path(prefix), allow_not_found=True, recursive=True)
        try:
            infos = self._filesystem.get_file_info(selector)
        except OSError as error:
            raise store_error("list", self.where(prefix), error) from error
        names = (
            info.path[len(self._root) :].lstrip("/") for info in infos if info.type == pafs.FileType.File
        )
        return sorted(name for name in names if _TEMPORARY not in name and name != LOCK_NAME)

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        try:
            self._filesystem.delete_file(self._path(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise store_error("delete", self.where(name), error) from error

    def remove_partial(self) -> None:
        """Remove what a killed writer left half-written; only for the one who holds the lock of a local store."""
        if self.local_path is None:
            return
        for path in sorted(self.local_path.rglob(f"{_TEMPORARY}*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def publish_directory(self, name: str) -> Iterator[Path]:
        """Local directory to fill; on leaving without an exception it becomes `name`, replacing an older one.

        On a local disk that is a rename; to a remote store the files are uploaded one by one, sorted.

        Raises:
            StoreError: it cannot be created, filled (OSError inside the block), or moved into place.
        """
        staging: Path | None = None
        try:
            if self.local_path is not None:
                (self.local_path / name).parent.mkdir(parents=True, exist_ok=True)
            parent = None if self.local_path is None else (self.local_path / name).parent
            staging = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=parent))
            staging.chmod(0o755)
            yield staging
            if self.local_path is not None:
                _replace_directory(staging, self.local_path / name)
            else:
                for path in sorted(p for p in staging.rglob("*") if p.is_file()):
                    self.write_bytes(f"{name}/{path.relative_to(staging).as_posix()}", path.read_bytes())
        except OSError as error:
            raise store_error("write", self.where(name), error) from error
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)


def _write_local(path: Path, data: bytes, *, place: Callable[[Path, Path], None] = os.replace) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(6)}-{path.name}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _place_new(temporary: Path, path: Path) -> None:
    """Give a file its name unless that is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:
        # A file system without links, which cannot do both in one step.
        if not path.exists():
            os.replace(temporary, path)


def _sync_directory(path: Path) -> None:
    """Make a rename in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_directory(staging: Path, target: Path) -> None:
    for path in staging.rglob("*"):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
    retired = target.with_name(f"{_TEMPORARY}{secrets.token_hex(6)}-{target.name}")
    if target.exists():
        os.replace(target, retired)
    os.replace(staging, target)
    shutil.rmtree(retired, ignore_errors=True)
    _sync_directory(target.parent)
