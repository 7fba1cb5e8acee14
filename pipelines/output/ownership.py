"""Whose output is it: one set of settings for ever, and one driver at a time."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from atom.errors import AtomError, StoreError
from pipelines.output.store import LOCK_NAME, Store, store_error

logger = logging.getLogger(__name__)

_SETTINGS = "settings.json"
_DATABASE = "mlflow.db"  # and its journals
_VERSION = "images_version"
CHECKPOINTS_VERSION = {"checkpoints_version": 2}
"""Part of what an output of distilled images belongs to; raised when older checkpoints are not read any more."""


@contextmanager
def lock(store: Store, *, scratch: Sequence[str] = ()) -> Iterator[None]:
    """Keep other drivers off a local store until the block, or the process, ends.

    The operating system releases the lock when the process dies, however it dies. A remote store has
    no such lock: there, two drivers on one output are the user's to avoid.

    Args:
        store: the output.
        scratch: files and directories that are worth nothing by themselves, and go where the block refuses the
            command before any work.

    Raises:
        StoreError: another process holds it; the message names the process.
    """
    if store.local_path is None:
        begun = store.exists(_SETTINGS)
        try:
            yield
        except AtomError:
            if not begun:
                _forget_remote(store, scratch)
            raise
        return
    path = store.local_path / LOCK_NAME
    before = _names(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise store_error("write", str(path), error) from error
    try:
        if _take_lock(descriptor, path, flag=store.flag):
            store.remove_partial()
        try:
            yield
        except AtomError:
            with suppress(OSError):
                _forget_refused(path.parent, before, scratch)
            raise
    finally:
        os.close(descriptor)


def _names(directory: Path) -> set[str] | None:
    """What a directory holds, or None if it does not exist."""
    return {path.name for path in directory.iterdir()} if directory.is_dir() else None


def _forget_refused(output: Path, before: set[str] | None, scratch: Sequence[str]) -> None:
    """Undo what a command left that was refused before any work: it must bind nobody to its settings.

    With an MLflow run, or anything else of worth in it, the output stays.
    """
    new = (_names(output) or set()) - (before or set())
    if all(name in (LOCK_NAME, _SETTINGS, *scratch) or name.startswith(_DATABASE) for name in new):
        for name in new:
            if (output / name).is_dir():
                shutil.rmtree(output / name)
            else:
                (output / name).unlink(missing_ok=True)
        if before is None:
            output.rmdir()


def _forget_remote(store: Store, scratch: Sequence[str]) -> None:
    """The same where there are objects only."""
    with suppress(StoreError):
        new = store.list()
        if all(name.partition("/")[0] in (_SETTINGS, *scratch) for name in new):
            for name in new:
                store.delete(name)


def _take_lock(descriptor: int, path: Path, *, flag: str) -> bool:
    """Whether the file system knows locks, and this one is ours."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        raise StoreError(
            f"The output {path.parent} is being written by {holder}; wait for it to end, "
            f"or pass another {flag}."
        ) from error
    except OSError as error:
        logger.warning("No lock on %s (%s): do not start a second driver on this output.", path.parent, error)
        return False
    if not path.exists() or os.stat(path).st_ino != os.fstat(descriptor).st_ino:
        raise StoreError(
            f"The output {path.parent} was given up by another command just now; run this again."
        )
    with suppress(OSError):  # a full disk; the name only serves a message
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return True


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Short digest of JSON-compatible settings, independent of the order of their keys."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def claim(store: Store, settings: Mapping[str, Any], *, beside: Mapping[str, Any] | None = None) -> str:
    """Write settings.json on first use of a store, compare with it on every later use.

    Args:
        store: the output.
        settings: JSON-compatible; whatever decides the result's bits.
        beside: further ones that outputs of earlier versions do not know, and may then be anything; not in the digest.

    Returns:
        `settings_hash(settings)`.

    Raises:
        StoreError: the store belongs to other settings, each difference named, or its file is unreadable.
    """
    received, late = json.loads(json.dumps(settings)), dict(beside or {})
    digest = settings_hash(received)
    if not store.exists(_SETTINGS):
        store.write_json(_SETTINGS, received | late)
        return digest
    try:
        stored = json.loads(store.read_bytes(_SETTINGS))
        if not isinstance(stored, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise StoreError(
            f"{store.where(_SETTINGS)} is not readable JSON ({error}); pass another --output, "
            "or delete that file if this output is yours to overwrite."
        ) from error
    missing = object()
    received |= {name: value for name, value in late.items() if name in stored}
    names = [n for n in {**stored, **received} if stored.get(n, missing) != received.get(n, missing)]
    if CHECKPOINTS_VERSION.keys() & set(names) and CHECKPOINTS_VERSION.items() <= received.items():
        raise StoreError(
            f"The output {store} was begun by an earlier version of this project, whose checkpoints this one does not"
            " read; a set that it finished can be used as before, but to distil pass another --output, or go on there"
            " with the version that began it."
        )
    if names == [_VERSION] and _VERSION in received:
        raise StoreError(
            f"The output {store} was made by another version of this project, which gives other images for the same"
            f" settings ({_VERSION}: received {received[_VERSION]}, stored {stored.get(_VERSION, 'none')}); pass"
            " another --output, or go on there with the version that began it."
        )
    if names:
        shown = ", ".join(
            f"{n} (received {json.dumps(received.get(n))}, stored {json.dumps(stored.get(n))})" for n in names
        )
        raise StoreError(
            f"The output {store} belongs to other settings: {shown}; "
            "pass another --output or the same settings."
        )
    return digest
