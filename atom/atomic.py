"""Files and directories that appear whole or not at all: write under a temporary name, then rename."""

import glob
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from atom.errors import StoreError

# Longer than any save takes: what is older was left by a process that was killed.
_LEFTOVER_AGE_S = 3600.0

TEMPORARY = ".partial-"
"""How the names begin of what is being written, or about to be replaced."""


def write_file(path: Path, content: bytes) -> None:
    """Write or replace one file; a reader sees the old bytes or the new ones.

    Raises:
        StoreError: the file cannot be written; the old one is still there.
    """
    try:
        put_file(path, content)
    except OSError as error:
        raise StoreError(_explain(path, error)) from error


def put_file(path: Path, content: bytes, *, place: Callable[[Path, Path], None] = os.replace) -> None:
    """`write_file` for who has words of their own for what went wrong.

    Args:
        path: what to write; its parents are made.
        content: of the file.
        place: gives the written file, its first argument, the name that is its second.

    Raises:
        OSError: the file cannot be written; the old one is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path, "new")
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def put_files(files: Iterable[tuple[Path, bytes]]) -> None:
    """`put_file` for several files, one after the other, whose flushes to the device go together.

    Args:
        files: what to write, each path once; a content is let go of before the next one is asked for.

    Raises:
        OSError: one cannot be written, the error's filename; each of the files is the old or the new one.
    """
    path, written = Path(), dict[Path, Path]()
    try:
        for path, content in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            written[path] = _sibling(path, "new")
            written[path].write_bytes(content)
        # All are written before the first is flushed: a journal then takes most of them to the device at once.
        for path in written:
            _sync(written[path])
        for path in written:
            os.replace(written[path], path)
        for path in {one.parent: one for one in written}.values():
            _sync(path.parent)
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def write_directory(directory: Path, files: Mapping[str, bytes], *, owns: Callable[[str], bool]) -> None:
    """Write or replace a directory; a reader sees the old files or the new ones, never a mixture.

    One that holds these very files already is left as it is.

    A directory cannot be renamed over another, so for an instant between two renames neither is there; the
    old one then lies beside it as `.partial-old-*-NAME`.

    Args:
        directory: what to write; its parents are made.
        files: content by relative POSIX path.
        owns: whether a file found in the old directory, by relative path, may be deleted with it.

    Raises:
        StoreError: the disk is full or read-only, or the old directory holds files of somebody else; the old
            directory is untouched.
    """
    directory = directory.resolve()
    _refuse_foreign(directory, owns)
    if _holds(directory, files):
        return
    temporary = _sibling(directory, "new")
    try:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        put_directory(temporary, directory)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(_explain(directory, error)) from error
    for kind in ("new", "old"):
        for path in _siblings(directory, kind):
            if is_left(path):
                shutil.rmtree(path, ignore_errors=True)


def put_directory(staging: Path, directory: Path) -> None:
    """Give a filled directory the name of another beside it, which it replaces.

    Raises:
        OSError: it cannot be done; the old directory is still there.
    """
    for path in staging.rglob("*"):
        if path.is_file():
            _sync(path)
    old = _sibling(directory, "old")
    replaces = directory.exists()
    if replaces:
        os.rename(directory, old)
    try:
        os.rename(staging, directory)
    except OSError:
        if replaces:
            os.rename(old, directory)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync(directory.parent)


def is_left(path: Path) -> bool:
    """Whether what has a temporary name is so old that whoever wrote it was killed."""
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > _LEFTOVER_AGE_S
    return False


def interrupted(directory: Path) -> Path | None:
    """The old version of a directory whose replacement was killed between its two renames, or None."""
    return None if directory.exists() else next(iter(_siblings(directory, "old")), None)


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f"{TEMPORARY}{kind}-{uuid.uuid4().hex[:12]}-{path.name}")


def _siblings(path: Path, kind: str) -> list[Path]:
    return sorted(path.parent.glob(f"{TEMPORARY}{kind}-{'?' * 12}-{glob.escape(path.name)}"))


def _sync(path: Path) -> None:
    """Without it a crash of the machine can leave a new name with none of the bytes, or take the name back."""
    if os.name == "nt":
        return  # where a directory cannot be opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _holds(directory: Path, files: Mapping[str, bytes]) -> bool:
    found = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}
    return found == files.keys() and all((directory / n).read_bytes() == c for n, c in files.items())


def _refuse_foreign(directory: Path, owns: Callable[[str], bool]) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise StoreError(f"{directory} is a file, expected a directory to write; pass another path.")
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if not path.is_dir() and not owns(name):
            raise StoreError(
                f"{directory} holds {name!r}, which would be lost if the directory were replaced;"
                " pass another directory, or move that file."
            )


def _explain(path: Path, error: OSError) -> str:
    reason = error.strerror or error
    return f"{path} cannot be written ({reason}); free space or pass another path, then try again."
