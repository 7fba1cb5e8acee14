"""Files and directories that appear whole or not at all: write under a temporary name, then rename."""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from atom.errors import StoreError

# Longer than any save takes: what is older was left by a process that was killed.
_LEFTOVER_AGE_S = 3600.0


def write_file(path: Path, content: bytes) -> None:
    """Write or replace one file; a reader sees the old bytes or the new ones.

    Raises:
        StoreError: the file cannot be written; the old one is still there.
    """
    temporary = _sibling(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(_explain(path, error)) from error


def write_directory(directory: Path, files: Mapping[str, bytes], *, owns: Callable[[str], bool]) -> None:
    """Write or replace a directory; a reader sees the old files or the new ones, never a mixture.

    One that holds these very files already is left as it is.

    A directory cannot be renamed over another, so for an instant between two renames neither is there; the
    old one then lies beside it as `.NAME.old-*`.

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
    temporary = _sibling(directory, "tmp")
    try:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            _write(temporary / name, content)
        _swap(temporary, directory)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(_explain(directory, error)) from error
    _remove_leftovers(directory)


def interrupted(directory: Path) -> Path | None:
    """The old version of a directory whose replacement was killed between its two renames, or None."""
    if directory.exists() or not directory.parent.is_dir():
        return None
    return next(
        (p for p in sorted(directory.parent.iterdir()) if p.name.startswith(f".{directory.name}.old-")), None
    )


def _sibling(path: Path, kind: str) -> Path:
    return path.parent / f".{path.name}.{kind}-{uuid.uuid4().hex[:12]}"


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        # Without it a crash of the machine can leave the new name with none of the bytes.
        os.fsync(file.fileno())


def _swap(temporary: Path, directory: Path) -> None:
    if not directory.exists():
        os.rename(temporary, directory)
        return
    old = _sibling(directory, "old")
    os.rename(directory, old)
    try:
        os.rename(temporary, directory)
    except OSError:
        os.rename(old, directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


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


def _remove_leftovers(directory: Path) -> None:
    for path in directory.parent.iterdir():
        ours = path.name.startswith((f".{directory.name}.tmp-", f".{directory.name}.old-"))
        try:
            if ours and time.time() - path.stat().st_mtime > _LEFTOVER_AGE_S:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            continue


def _explain(path: Path, error: OSError) -> str:
    reason = error.strerror or error
    return f"{path} cannot be written ({reason}); free space or pass another path, then try again."
