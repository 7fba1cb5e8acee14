"""A class taken out of a learner: its output, its memory and test images, and the versions that know it."""

from collections.abc import Sequence
from pathlib import Path

from apps.continual.state import LearnerState
from apps.learner.directory import read_current, read_state, state_files
from apps.learner.growth import with_outputs
from apps.learner.record import Learner, Version
from atom.errors import ConfigError
from pipelines.console.command import EXIT_FAILED, say
from pipelines.learning.versions import delete_unused, digests, move_current, write_learner, write_version
from pipelines.output.ownership import settings_hash
from pipelines.output.store import Store


def forget_class(store: Store, learner: Learner, name: str) -> int:
    """Make a version without the class the current one, then delete what is left of it; returns the exit code.

    The other outputs keep their weights bit for bit, in the same order; labels above the class's move down by one. A
    killed command is begun again: until the new version is current, nothing that a version names is deleted.

    Raises:
        ConfigError: the class is not known, or the only one.
    """
    directory = store.local_path
    assert directory is not None
    # What a killed command left may show a class whose name no version has any more.
    left = delete_unused(directory, learner)
    current = read_current(directory, learner)
    knowing = [one for one in learner.versions if name in one.classes and not one.removed]
    if not knowing and any(name in one.classes for one in learner.versions):
        return _said(left, f"Class {name!r} is forgotten already: nothing is left of its images.")
    if not name or not knowing:
        known = ", ".join(current.classes)
        raise ConfigError(f"--class {name!r}: no class of this learner; it knows {known[:500]}.")
    if name in current.classes:
        if len(current.classes) == 1:
            raise ConfigError(
                f"--class {name!r}: the only class of this learner; delete {store} to forget all of it."
            )
        learner, current = _without(store, learner, current, name)
        move_current(store, current.number)
    versions = [_cleared(one, name) for one in learner.versions]
    learner = learner.model_copy(update={"versions": versions})
    write_learner(store, learner)
    return _said(
        delete_unused(directory, learner),
        f"Class {name!r} is forgotten: version {current.number} is current, with {len(current.classes)} classes; its"
        " memory and test images and the versions that knew it are deleted. Its name and accuracies stay in the"
        " history and in MLflow, and the other outputs were learned beside it.",
    )


def _said(left: Sequence[Path], done: str) -> int:
    if left:
        shown = ", ".join(str(path) for path in left[:5]) + (", …" if len(left) > 5 else "")
        say(
            f"Not all is forgotten: {len(left)} files or directories of images or versions could not be deleted,"
            f" {shown}; make them writable and run the same command again."
        )
        return EXIT_FAILED
    say(done)
    return 0


def _without(store: Store, learner: Learner, current: Version, name: str) -> tuple[Learner, Version]:
    assert store.local_path is not None
    state, gone = read_state(store.local_path, current), current.classes.index(name)
    rows: list[int | None] = [label for label in range(len(current.classes)) if label != gone]
    logits = {
        label - (label > gone): said_nK[:, [row for row in range(said_nK.shape[1]) if row != gone]].copy()
        for label, said_nK in state.logits.items()
        if label != gone
    }
    after = LearnerState(state.step, with_outputs(state.weights, {}, frozenset(learner.head), rows), logits)
    states = state_files(after)
    number = 1 + max(one.number for one in learner.versions)
    version = Version(
        number=number,
        parent=current.number,
        step="forget",
        classes=[one for one in current.classes if one != name],
        key=settings_hash({"parent": current.key, "forget": name}),
        memory={one: kept for one, kept in current.memory.items() if one != name},
        tests={one: kept for one, kept in current.tests.items() if one != name},
        sha256=digests(states),
    )
    return write_version(store, learner, version, files={}, states=states), version


def _cleared(version: Version, name: str) -> Version:
    if name not in version.classes:
        return version
    return version.model_copy(
        update={"memory": {}, "tests": {}, "sha256": {}, "removed": f"deleted when {name!r} was forgotten"}
    )


__all__ = ["forget_class"]
