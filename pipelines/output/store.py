"""Outputs on a local disk or a URI (s3://, gs://, file://, ...), written so that no reader sees half a file.

On a local disk a file is written under a temporary name in its own directory, flushed to the device and
renamed. On an object store an object appears only when its upload is complete, which is the same promise.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pyarrow.fs as pafs

from atom import atomic
from atom.errors import ConfigError, StoreError
from atom.filesystem import is_uri, open_uri
from atom.redact import without_secrets

LOCK_NAME = ".lock"
EXPERTS_FOLDER = "experts"
"""Of an output, where experts are kept if no other place is named."""

_UPLOADS = 8
"""Files that are on their way to an object store at once; chosen: its answer takes tens of milliseconds."""

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space or pass another {flag}"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or pass another {flag}"),
    errno.EACCES: ("permission is denied", "make it writable or pass another {flag}"),
    errno.EPERM: ("permission is denied", "make it writable or pass another {flag}"),
    errno.EROFS: ("the file system is read-only", "pass another {flag}"),
    errno.EEXIST: ("a part of the path is a file, not a directory", "pass another {flag}"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "pass another {flag}"),
}


def store_error(action: str, where: str, error: OSError, *, flag: str = "--output") -> StoreError:
    """One sentence: what was tried, where, why it failed, what to do; `flag` named the place."""
    reason, advice = _REASONS.get(error.errno or 0, (str(error), "check the location or pass another {flag}"))
    return StoreError(f"Cannot {action} {where}: {reason}; {advice.format(flag=flag)}.")


def check_lasting(location: str, *, flag: str) -> None:
    """Refuse a place that would be gone after a Ray job, or that is no place.

    Raises:
        ConfigError: a relative path inside a Ray job, whose directory is deleted when the job has ended; or nothing.
    """
    if not location:
        raise ConfigError(f"{flag}: received an empty text; pass a directory or a URI, or leave it out.")
    in_job = bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))
    if in_job and "://" not in location and not Path(location).is_absolute():
        raise ConfigError(
            f"{flag} {location}: a Ray job runs in a directory that is deleted after it; pass an absolute path"
            " that every node can reach, or a URI such as s3://bucket/path."
        )


class Store:
    """A directory of named outputs; names are relative and use "/".

    Args:
        filesystem: where the bytes live.
        root: the directory's path on `filesystem`.
        local: the same directory as a local path, or None for a remote store.
        flag: that named it, for messages.
    """

    def __init__(
        self, filesystem: pafs.FileSystem, root: str, *, local: Path | None = None, flag: str = "--output"
    ) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self.local_path = local
        self._flag = flag

    @classmethod
    def open(cls, location: str | Path, *, flag: str = "--output") -> "Store":
        """The store at a path or URI; nothing is created before the first write.

        Raises:
            StoreError: the URI's scheme is unknown, or its file system cannot be reached.
        """
        text = os.fspath(location)
        if not is_uri(text):
            path = Path(text).expanduser().absolute()
            return cls(pafs.LocalFileSystem(), path.as_posix(), local=path, flag=flag)
        filesystem, root = open_uri(text, flag=flag)
        local = Path(root) if isinstance(filesystem, pafs.LocalFileSystem) else None
        return cls(filesystem, root, local=local, flag=flag)

    def inside(self, name: str) -> "Store":
        """The store of a directory of this one, on the same file system."""
        local = None if self.local_path is None else self.local_path / name
        return Store(self._filesystem, self._path(name), local=local, flag=self._flag)

    @property
    def flag(self) -> str:
        """What named it, for messages."""
        return self._flag

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
        return self._read(name, None)

    def read_start(self, name: str, count: int) -> bytes:
        """The first bytes of a file, at most so many; errors as for `read_bytes`."""
        return self._read(name, count)

    def _read(self, name: str, count: int | None) -> bytes:
        try:
            with self._filesystem.open_input_stream(self._path(name)) as stream:
                return stream.read(count)
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.where(name)} does not exist; was it deleted, or is {self._flag} another one?"
            ) from error
        except OSError as error:
            raise store_error("read", self.where(name), error, flag=self._flag) from error

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, replacing an older one.

        Raises:
            StoreError: disk full, no permission, or the like; the temporary file is removed.
        """
        try:
            if self.local_path is not None:
                atomic.put_file(self.local_path / name, data)
            else:
                self._filesystem.create_dir(self._path(name).rpartition("/")[0], recursive=True)
                with self._filesystem.open_output_stream(self._path(name)) as stream:
                    stream.write(data)
        except OSError as error:
            raise store_error("write", self.where(name), error, flag=self._flag) from error

    def write_all(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Write files by their names, each once, as `write_bytes` does, in less time than one by one.

        Raises:
            StoreError: as `write_bytes`, for one of them; the others are written or not, each whole.
        """
        if (local := self.local_path) is not None:
            try:
                atomic.put_files((local / name, data) for name, data in files)
            except OSError as error:
                raise store_error("write", str(error.filename), error, flag=self._flag) from error
            return
        left = iter(files)
        with ThreadPoolExecutor(_UPLOADS) as pool:
            while some := list(islice(left, _UPLOADS)):
                list(pool.map(lambda file: self.write_bytes(*file), some))

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
            atomic.put_file(self.local_path / name, data, place=_place_new)
        except OSError as error:
            raise store_error("write", self.where(name), error, flag=self._flag) from error

    def exists(self, name: str) -> bool:
        """Whether a file or directory of this name is there."""
        try:
            return self._filesystem.get_file_info(self._path(name)).type != pafs.FileType.NotFound
        except OSError as error:
            raise store_error("look for", self.where(name), error, flag=self._flag) from error

    def list(self, prefix: str = "") -> list[str]:
        """Sorted names of the files in a directory of the store and below; temporary files are left out."""
        selector = pafs.FileSelector(self._path(prefix), allow_not_found=True, recursive=True)
        try:
            infos = self._filesystem.get_file_info(selector)
        except OSError as error:
            raise store_error("list", self.where(prefix), error, flag=self._flag) from error
        names = (
            info.path[len(self._root) :].lstrip("/") for info in infos if info.type == pafs.FileType.File
        )
        return sorted(name for name in names if atomic.TEMPORARY not in name and name != LOCK_NAME)

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        try:
            self._filesystem.delete_file(self._path(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise store_error("delete", self.where(name), error, flag=self._flag) from error

    def check_writable(self) -> None:
        """Refuse a place on a disk where no file can be written; nothing is made there.

        Raises:
            StoreError: it is a file, or below one, or permission is denied.
        """
        if self.local_path is None:
            return
        nearest = next(path for path in (self.local_path, *self.local_path.parents) if os.path.lexists(path))
        reason = None if os.access(nearest, os.W_OK | os.X_OK) else errno.EACCES
        reason = reason if nearest.is_dir() else errno.ENOTDIR
        if reason is not None:
            raise store_error("write", str(self), OSError(reason, os.strerror(reason)), flag=self._flag)

    def remove_partial(self) -> None:
        """Remove what a killed writer left half-written; only for the one who holds the lock of a local store.

        Experts are for every driver, and the lock keeps none off them: of theirs only what is old is removed.
        """
        if self.local_path is None:
            return
        for path in sorted(self.local_path.rglob(f"{atomic.TEMPORARY}*")):
            if EXPERTS_FOLDER in path.relative_to(self.local_path).parts and not atomic.is_left(path):
                continue
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
        target = None if self.local_path is None else self.local_path / name
        try:
            if target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=atomic.TEMPORARY, dir=target and target.parent))
            staging.chmod(0o755)
            yield staging
            if target is not None:
                atomic.put_directory(staging, target)
            else:
                for path in sorted(p for p in staging.rglob("*") if p.is_file()):
                    self.write_bytes(f"{name}/{path.relative_to(staging).as_posix()}", path.read_bytes())
        except OSError as error:
            raise store_error("write", self.where(name), error, flag=self._flag) from error
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)


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
