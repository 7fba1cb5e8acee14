"""A learner that takes new classes in, month after month, from their images alone; little stands for the old ones.

python pipelines/learner.py init shop --data folder:october
python pipelines/learner.py add shop --data folder:november
python pipelines/learner.py predict shop photos
"""

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atom.errors import ArtifactError, ConfigError
from pipelines.console.command import EXIT_BAD_INPUT, run_command, say, while_read
from pipelines.console.learner_commands import (
    SUB_COMMANDS,
    AddCommand,
    ExportCommand,
    ForgetCommand,
    InitCommand,
    OnLearner,
    PredictCommand,
    RollbackCommand,
    ShowCommand,
)

if TYPE_CHECKING:
    from apps.learner.record import Learner
    from pipelines.output.store import Store


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns its exit code, see `run_command`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        return while_read(_say_usage)
    if name not in SUB_COMMANDS:
        close = difflib.get_close_matches(name, SUB_COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        print(
            f"ConfigError: atom-learner {name}: unknown; known are {', '.join(SUB_COMMANDS)}{hint}",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    return run_command(SUB_COMMANDS[name], _WORK[name], arguments[1:])


def _say_usage() -> int:
    rows = [f"  {name:<10}{kind.__doc__}" for name, kind in SUB_COMMANDS.items()]
    head = "usage: atom-learner COMMAND DIRECTORY [flags]; atom-learner COMMAND --help lists the flags"
    say("\n".join([head, "", *rows]))
    return 0


def init(command: InitCommand) -> int:
    """The first version of a learner."""
    from apps.learner.directory import CURRENT, LEARNER, check_free, read_current, read_learner
    from pipelines.learning.beginning import begin
    from pipelines.learning.dry_run import say_needs
    from pipelines.learning.run import make_version
    from pipelines.learning.tracking import keep_served
    from pipelines.learning.versions import delete_unused
    from pipelines.output.ownership import lock

    store = _store(command)
    if not store.exists(LEARNER):
        check_free(_local(store))
    if command.dry_run:
        step, _ = begin(command, store, known=None)
        return say_needs(step)
    with lock(store):
        known = read_learner(_local(store)) if store.exists(LEARNER) else None
        step, files = begin(command, store, known=known)
        if known is not None and known.versions and store.exists(CURRENT):
            number = read_current(_local(store), known).number
            delete_unused(_local(store), known)
            keep_served(command, _local(store), known)
            say(f"This learner is begun already, and version {number} is current; there is nothing to do.")
            return 0
        return make_version(step, files)


def add(command: AddCommand) -> int:
    """A further version, from new images."""
    from apps.learner.directory import unused_files
    from pipelines.learning.adding import go_on, known_already
    from pipelines.learning.dry_run import say_needs
    from pipelines.learning.run import make_version
    from pipelines.learning.tracking import keep_served
    from pipelines.learning.versions import delete, delete_unused
    from pipelines.output.ownership import lock

    store, learner = _learner(command)
    if command.dry_run:
        return say_needs(go_on(command, store, learner))
    with lock(store):
        # Another command may have ended just now.
        store, learner = _learner(command)
        delete(unused_files(_local(store), learner))
        step = go_on(command, store, learner)
        if (version := known_already(step)) is not None:
            delete_unused(_local(store), learner)
            keep_served(command, _local(store), learner)
            say(f"Version {version} was made from these images already; there is nothing to do.")
            return 0
        return make_version(step, {})


def show(command: ShowCommand) -> int:
    """Classes, memory, versions, and what of whose data is where."""
    from apps.learner.card import (
        HISTORY_COLUMNS,
        MEMORY_COLUMNS,
        PRIVACY_COLUMNS,
        history_rows,
        memory_rows,
        privacy_rows,
    )
    from apps.learner.directory import read_current
    from apps.learner.gate import COLUMNS, accuracy_rows
    from pipelines.console.progress import print_table

    store, learner = _learner(command)
    version = read_current(_local(store), learner)
    choices = learner.settings["choices"]
    say(
        f"Version {version.number} of {store}: {len(version.classes)} classes, network {learner.network}, learner"
        f" {choices['learner']}, images {learner.channels}x{learner.image_size[0]}x{learner.image_size[1]}, memory"
        f" {choices['memory']}, {choices['budget']}"
    )
    tables: list[tuple[str, Sequence[str], list[list[str]]]] = [
        ("Accuracy by class", COLUMNS, accuracy_rows(version.classes, version.accuracies)),
        ("Memory", MEMORY_COLUMNS, memory_rows(version)),
        ("What of whose data is where", PRIVACY_COLUMNS, privacy_rows(learner, version)),
        ("Versions", HISTORY_COLUMNS, history_rows(learner, version.number)),
    ]
    for title, columns, rows in tables:
        print_table(title, list(columns), [tuple(row) for row in rows])
    for one in learner.versions:
        if one.note or one.removed:
            say(f"Version {one.number}: {one.note or one.removed}.")
    return 0


def predict(command: PredictCommand) -> int:
    """A line for each photo: its name, the class, the probability, with tabs between."""
    from apps.learner.serving import load_version, probabilities, read_photos
    from atom.device import use_threads

    store, learner = _learner(command)
    if not command.photos:
        raise ConfigError("atom-learner predict: name an image, or a folder of images, after the directory.")
    net, preprocess, classes = load_version(_local(store), network=_checked(command.network, learner))
    with use_threads(1):
        for name, pixels_CHW in read_photos(Path(command.photos).expanduser(), learner):
            (shares_K,) = probabilities(net, preprocess, pixels_CHW[None])
            best = int(shares_K.argmax())
            say(f"{name}\t{classes[best]}\t{shares_K[best]:.4f}")
    return 0


def rollback(command: RollbackCommand) -> int:
    """Another version made current."""
    from apps.learner.directory import folder_of, read_state
    from pipelines.learning.tracking import use_model
    from pipelines.learning.versions import delete_unused, move_current, set_note
    from pipelines.output.ownership import lock

    store, _ = _learner(command)
    with lock(store):
        store, learner = _learner(command)
        delete_unused(_local(store), learner)
        known = [one.number for one in learner.versions if not one.removed]
        found = None if command.to is None else learner.version(command.to)
        if found is None or found.removed:
            why = (
                "is missing"
                if command.to is None
                else f"{command.to}: {found.removed if found else 'no such version'}"
            )
            raise ConfigError(f"--to {why}; this learner has {', '.join(map(str, known))}.")
        read_state(_local(store), found)
        move_current(store, found.number)
        set_note(store, learner, found.number, "")
        use_model(command, _local(store), learner, found)
    if found.note:
        say(f"Note: the gate refused this version: {found.note.removeprefix('refused: ')}.")
    say(f"Version {found.number} is current: {len(found.classes)} classes.")
    say(store.where(f"{folder_of(found.number)}/report.html"))
    return 0


def forget(command: ForgetCommand) -> int:
    """A version without a class, and nothing left of its images."""
    from pipelines.learning.forgetting import forget_class
    from pipelines.learning.tracking import replace_versions
    from pipelines.output.ownership import lock

    store, _ = _learner(command)
    with lock(store):
        store, learner = _learner(command)
        code = forget_class(store, learner, command.name)
        replace_versions(command, _local(store))
        return code


def export(command: ExportCommand) -> int:
    """The current version as one file."""
    from apps.learner import serving
    from apps.learner.directory import read_current

    store, learner = _learner(command)
    directory = _local(store)
    version = read_current(directory, learner)
    ending = "onnx" if command.format == "onnx" else "pt"
    file = command.file or directory / "exports" / f"{version.number:04d}.{ending}"
    loaded = serving.load_version(directory, network=_checked(command.network, learner))
    try:
        serving.export(*loaded, form=command.format, file=file, learner=learner)
    except OSError as error:
        from pipelines.output.store import store_error

        raise store_error("write", str(file), error, flag="--file") from error
    say(str(file))
    return 0


def _checked(network: str, learner: "Learner") -> str:
    """The network's name, once the code of a user's own is known to be that of before."""
    from pipelines.learning.adding import check_identity

    return check_identity(learner, network)


def _store(command: OnLearner) -> "Store":
    """The directory of the line."""
    from pipelines.output.store import Store

    if not command.directory:
        raise ConfigError(f"{command.prog}: the learner's directory is missing; name it first.")
    store = Store.open(command.directory, flag="directory")
    if store.local_path is None:
        raise ConfigError(
            f"{command.prog} {command.directory}: a learner lies on a local disk; pass a path that is one."
        )
    store.check_writable()
    return store


def _learner(command: OnLearner) -> "tuple[Store, Learner]":
    """The directory and what it says of itself."""
    from apps.learner.directory import read_learner

    if not command.directory:
        raise ConfigError(f"{command.prog}: the learner's directory is missing; name it first.")
    from pipelines.output.store import Store

    store = Store.open(command.directory, flag="directory")
    if store.local_path is None:
        raise ArtifactError(f"{command.directory} is no learner on a local disk; pass a path.")
    return store, read_learner(store.local_path)


def _local(store: "Store") -> Path:
    assert store.local_path is not None
    return store.local_path


_WORK: Mapping[str, Callable[[Any], int]] = {
    "init": init,
    "add": add,
    "show": show,
    "predict": predict,
    "rollback": rollback,
    "forget": forget,
    "export": export,
}

if __name__ == "__main__":
    sys.exit(main())
