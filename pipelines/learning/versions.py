"""A learner's directory as a step writes it: a version's files, learner.json that names them, and `current`."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from apps.learner.card import readme, report
from apps.learner.directory import (
    CURRENT,
    INITIAL,
    LEARNER,
    PREPROCESS,
    WORK,
    folder_of,
    learner_json,
    unused_files,
    work_folders,
)
from apps.learner.record import Learner, Version
from pipelines.output.store import Store


def write_version(
    store: Store,
    learner: Learner,
    version: Version,
    *,
    files: Mapping[str, bytes],
    states: Mapping[str, bytes],
) -> Learner:
    """A version on disk, and learner.json that names it last; `current` stays.

    Args:
        store: of the learner's directory.
        learner: before.
        version: that is new.
        files: content by name, in the directory; those that are there are left alone, as their names hold digests.
        states: content of the tensor files of the version.

    Raises:
        StoreError: the disk is full or the like.
    """
    after = learner.model_copy(update={"versions": [*learner.versions, version]})
    for name, content in files.items():
        if name in (PREPROCESS, INITIAL) or not store.exists(name):
            store.write_bytes(name, content)
    with store.publish_directory(folder_of(version.number)) as staging:
        for name, content in states.items():
            (staging / name).write_bytes(content)
        accuracies = {name: one.model_dump() for name, one in version.accuracies.items()}
        (staging / "accuracies.json").write_text(
            json.dumps(accuracies, indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
        (staging / "README.md").write_text(readme(after, version), encoding="utf-8")
        (staging / "report.html").write_text(report(after, version), encoding="utf-8")
    write_learner(store, after)
    return after


def write_learner(store: Store, learner: Learner) -> None:
    """learner.json, replaced as a whole."""
    store.write_bytes(LEARNER, learner_json(learner))


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each file, as learner.json has it."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def set_note(store: Store, learner: Learner, number: int, note: str) -> None:
    """Say in learner.json why a version did not become current, or that it did."""
    found = learner.version(number)
    if found is not None and found.note != note:
        versions = [
            one.model_copy(update={"note": note}) if one.number == number else one for one in learner.versions
        ]
        write_learner(store, learner.model_copy(update={"versions": versions}))


def move_current(store: Store, number: int) -> None:
    """Make a version the current one: the one write that decides."""
    store.write_bytes(CURRENT, f"{number:04d}\n".encode())


def delete(paths: Iterable[Path]) -> list[Path]:
    """Files and directories, whether they are there or not; returns those that could not be deleted."""
    paths = list(paths)
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return [path for path in paths if os.path.lexists(path)]


def delete_unused(directory: Path, learner: Learner) -> list[Path]:
    """Delete what no version names, and the work of killed steps; returns what could not be deleted."""
    return [*delete(unused_files(directory, learner)), *drop_work(directory)]


def drop_work(directory: Path, *, but: str = "") -> list[Path]:
    """Delete what steps left on their way, but for one; returns what could not be deleted."""
    left = delete(work_folders(directory, but=but))
    drop_empty(directory / WORK)
    return left


def drop_empty(folder: Path) -> None:
    """Delete a directory that has nothing in it."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


__all__ = [
    "delete",
    "delete_unused",
    "digests",
    "drop_empty",
    "drop_work",
    "move_current",
    "set_note",
    "write_learner",
    "write_version",
]
