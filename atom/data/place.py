"""Where a source lies: on this machine, or on a remote file system that answers what readers ask of a path."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from atom.errors import DataError
from atom.filesystem import is_uri, open_uri
from atom.redact import HIDDEN

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs as pafs


class Stat(NamedTuple):
    """Of a remote file, called as `os.stat_result` has it."""

    st_size: int
    st_mtime_ns: int


@dataclass(eq=False)
class _Disk:
    """A remote file system and what it has answered: a source does not change while it is read."""

    filesystem: "pafs.FileSystem"
    scheme: str
    found: dict[str, "pafs.FileInfo"] = field(default_factory=dict)
    listed: dict[str, list["Remote"]] = field(default_factory=dict)
    opened: dict[str, "pa.NativeFile"] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type["_Disk"], tuple["pafs.FileSystem", str]]:
        # Another process asks for itself, and open files cannot be sent.
        return _Disk, (self.filesystem, self.scheme)


@dataclass(frozen=True, order=True, slots=True)
class Remote:
    """A file or directory of a remote file system, with the part of `pathlib.Path` that readers of sources use.

    Every directory is listed once, and that tells of all in it; errors are `DataError`s that name the place.
    """

    path: str
    """On the file system, with "/" between names and none at the end."""
    disk: _Disk = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.disk.scheme}://{self.path}"

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.path}/{name}", self.disk)

    @property
    def name(self) -> str:
        """As of `Path`, as are the others below."""
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:  # noqa: D102
        return PurePosixPath(self.path).stem

    @property
    def suffix(self) -> str:  # noqa: D102
        return PurePosixPath(self.path).suffix

    @property
    def parent(self) -> "Remote":  # noqa: D102
        return Remote(self.path.rpartition("/")[0], self.disk)

    @property
    def parents(self) -> "list[Remote]":  # noqa: D102
        return [Remote(str(path), self.disk) for path in PurePosixPath(self.path).parents if path.name]

    def with_name(self, name: str) -> "Remote":  # noqa: D102
        return self.parent / name

    def resolve(self) -> "Remote":  # noqa: D102
        return self

    def exists(self) -> bool:  # noqa: D102
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:  # noqa: D102
        info = self._info()
        return info is not None and info.is_file

    def is_dir(self) -> bool:  # noqa: D102
        import pyarrow.fs as pafs

        info = self._info()
        return info is not None and info.type == pafs.FileType.Directory

    def stat(self) -> Stat:  # noqa: D102
        info = self._info()
        return Stat(0, 0) if info is None else Stat(info.size or 0, info.mtime_ns or 0)

    def iterdir(self) -> Iterator["Remote"]:  # noqa: D102
        import pyarrow.fs as pafs

        if self.path not in self.disk.listed:
            with reading(self):
                infos = self.disk.filesystem.get_file_info(pafs.FileSelector(self.path))
            self.disk.found.update({info.path: info for info in infos})
            self.disk.listed[self.path] = [Remote(info.path, self.disk) for info in infos]
        yield from self.disk.listed[self.path]

    def glob(self, pattern: str) -> Iterator["Remote"]:
        """Without `**`."""
        first, _, rest = pattern.partition("/")
        for child in self.iterdir() if self.is_dir() else ():
            if fnmatchcase(child.name, first):
                yield from child.glob(rest) if rest else (child,)

    def read_bytes(self) -> bytes:  # noqa: D102
        with reading(self), self.disk.filesystem.open_input_stream(self.path) as stream:
            return stream.read()

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: D102
        return self.read_bytes().decode(encoding, errors)

    def open_file(self) -> "pa.NativeFile":
        """The file, to be read at any place."""
        with reading(self):
            return self.disk.filesystem.open_input_file(self.path)

    def read_at(self, start: int, size: int) -> bytes:
        """Some of the file's bytes, from several threads at once; it stays open."""
        if self.path not in self.disk.opened:
            self.disk.opened[self.path] = self.open_file()
        with reading(self):
            return self.disk.opened[self.path].read_at(size, start)

    def _info(self) -> "pafs.FileInfo | None":
        if self.path not in self.disk.found:
            if self.parent.path in self.disk.listed:
                return None
            with reading(self):
                self.disk.found[self.path] = self.disk.filesystem.get_file_info(self.path)
        return self.disk.found[self.path]


Place = Path | Remote
"""What readers of sources take."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Some bytes of a file, read when they are wanted."""

    file: Place
    start: int
    size: int

    def read_bytes(self) -> bytes:
        """The bytes.

        Raises:
            DataError: the file cannot be read, or has become shorter.
        """
        if isinstance(self.file, Remote):
            content = self.file.read_at(self.start, self.size)
        else:
            with reading(self.file), self.file.open("rb") as opened:
                opened.seek(self.start)
                content = opened.read(self.size)
        if len(content) != self.size:
            raise DataError(f"{self.file}: became shorter while it was read; run the same command again.")
        return content


def place_of(text: str, *, spec: str) -> Place:
    """The place that a spec names: a path, also of file://, or a URI of what PyArrow opens.

    Raises:
        StoreError: the URI's scheme is unknown, or its file system cannot be reached.
    """
    if not is_uri(text):
        return Path(text).expanduser()
    import pyarrow.fs as pafs

    if text.lower().startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in text:
        text += f"{'&' if '?' in text else '?'}retry_limit_seconds={_RETRY_S}"
    filesystem, root = open_uri(text, flag=f"--dataset {spec.partition(':')[0]}:")
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(root)
    return Remote(root.rstrip("/"), _Disk(filesystem, text.partition("://")[0].lower()))


def split_pattern(text: str) -> tuple[str, str]:
    """A place without what begins with a pattern in it, and that: "" where the place has none, or is there as it is.

    >>> split_pattern("s3://images/pets/{train,val}-*.tar?region=eu"), split_pattern("pets")
    (('s3://images/pets?region=eu', '{train,val}-*.tar'), ('pets', ''))
    >>> split_pattern("train-*.tar"), split_pattern("/*.tar")
    (('.', 'train-*.tar'), ('/', '*.tar'))
    """
    if not is_uri(text) and Path(text).expanduser().exists():
        return text, ""
    # In a URI a question mark begins what is said to the client.
    path, mark, query = text.partition("?") if is_uri(text) else (text, "", "")
    names = path.split("/")
    first = next((i for i, name in enumerate(names) if any(sign in name for sign in "*?[{")), len(names))
    if first == len(names):
        return text, ""
    # Where nothing stands before it, a pattern is of the working directory, or of the root.
    place = "/".join(names[:first]) or ("/" if text.startswith("/") else ".")
    return place + mark + query, "/".join(names[first:])


def lasting(text: str) -> str:
    """A place as another working directory has to name it."""
    return text if is_uri(text) else str(Path(text).expanduser().absolute())


def may_exist(text: str) -> bool:
    """Whether a place is there, as far as can be known without a network."""
    return HIDDEN not in text if is_uri(text) else Path(split_pattern(text)[0]).expanduser().exists()


def list_ahead(directories: Iterable[Place]) -> None:
    """List what of these is remote, several at once: one after another, each would wait for its answer."""
    remote = [directory for directory in directories if isinstance(directory, Remote)]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(lambda directory: list(directory.iterdir()), remote))


@contextmanager
def reading(place: Place) -> Iterator[None]:
    """Say in one sentence what could not be read: file systems' own messages run over lines."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{place}: does not exist; check the address.") from error
    except (OSError, ValueError) as error:
        # Also of an address that is none: "s3://bucket//pets" has an empty name.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{place}: cannot be read ({lines[0][:_MESSAGE_CHARS]}); check the address, the credentials and the"
            " network, and run the same command again."
        ) from error


_MESSAGE_CHARS = 240
_REQUESTS = 8
"""To a server at once. Chosen: as many as fetch images."""
_RETRY_S = 60
"""How long Google's client tries to read a source, which else are 15 minutes. Chosen."""

__all__ = [
    "Place",
    "Remote",
    "Slice",
    "lasting",
    "list_ahead",
    "may_exist",
    "place_of",
    "reading",
    "split_pattern",
]
