"""A learner in MLflow: an experiment, a run a version with the curves of its classes, and models in the registry."""

from collections.abc import Sequence
from pathlib import Path

from apps.learner.directory import read_current, read_learner
from apps.learner.record import Learner, Version
from apps.learner.serving import load_version
from apps.served import Served, torchscript
from pipelines.console.learner_commands import OnLearner
from pipelines.learning.step import Step
from pipelines.output.records import start_tracker
from pipelines.output.store import Store
from pipelines.tracking import Model, Registered, Tracker, default_tracking_uri, point_current, replace_models
from pipelines.workers.remote import network_slug


def registered(directory: Path, learner: Learner, version: Version) -> Registered:
    """Where MLflow's registry has a version."""
    name = network_slug(experiment_of(directory))
    return Registered(name, owner=learner.versions[0].key, version=f"{version.number}-{version.key}")


def use_model(command: OnLearner, directory: Path, learner: Learner, version: Version) -> None:
    """Let the registry's alias `current` name a version that is registered already, as far as MLflow is there."""
    uri = command.tracking.tracking_uri or default_tracking_uri(directory)
    point_current(uri, registered(directory, learner, version))


def replace_versions(command: OnLearner, directory: Path) -> None:
    """Delete the models of versions that are gone, and let MLflow serve the current one."""
    learner = read_learner(directory)
    version = read_current(directory, learner)
    gone = [one for one in learner.versions if one.removed]
    model = None
    # Code is never run because a directory names it.
    if ":" not in learner.network:
        net, preprocess, classes = load_version(directory, number=version.number)
        height, width = learner.image_size
        shape = (learner.channels, height, width)
        script = torchscript(Served(net, preprocess).eval(), shape)
        model = Model(script, tuple(classes), shape, learner.resize)
    replace_models(
        command.tracking.tracking_uri or default_tracking_uri(directory),
        [registered(directory, learner, one) for one in gone],
        experiment=command.tracking.experiment or experiment_of(directory),
        run_name=f"version {version.number}",
        model=model,
        at=registered(directory, learner, version),
    )


def keep_served(command: OnLearner, directory: Path, learner: Learner) -> None:
    """Let MLflow serve the current version, whose command may have been killed or met no server."""
    if ":" in learner.network:
        use_model(command, directory, learner, read_current(directory, learner))
    else:
        replace_versions(command, directory)


def experiment_of(directory: Path) -> str:
    """Name of the learner's experiment in MLflow, where none was asked for."""
    return f"learner-{directory.resolve().name}"


def version_tracker(step: Step, work: Store, key: str, number: int) -> Tracker:
    """The run of a version, begun or gone on with."""
    uri = step.command.tracking.tracking_uri or default_tracking_uri(step.directory)
    params: dict[str, object] = {
        "version": number,
        "key": key,
        "network": step.learner.network,
        "learner": step.learner.settings["choices"]["learner"],
        "memory": step.kind,
        "classes": len(step.real.classes),
    }
    command = step.command.changed(tracking_uri=uri)
    return start_tracker(
        command, work, experiment=experiment_of(step.directory), name=f"version {number}", params=params
    )


def log_curves(tracker: Tracker, learner: Learner, version: Version) -> None:
    """The curves of the version and of those it goes on from, by their numbers: each run shows the whole history."""
    history = [version]
    while (parent := learner.version(history[-1].parent or 0)) is not None:
        history.append(parent)
    names = curve_names(history)
    tracker.log_dict({curve: name for name, curve in names.items()}, "classes.json")
    for one in reversed(history):
        found = {
            f"accuracy/{names[name]}": accuracy.after
            for name, accuracy in one.accuracies.items()
            if accuracy.after is not None
        }
        if not one.removed:
            found["memory_bytes"] = sum(kept.num_bytes for kept in one.memory.values())
        tracker.log_metrics(found, step=one.number)


def curve_names(history: Sequence[Version]) -> dict[str, str]:
    """What the curve of each class is called: its label in the first version, and what MLflow takes of its name.

    Names that differ only in what it does not take have curves of their own. Classes of older versions alone have the
    numbers after the labels.
    """
    names = dict.fromkeys(name for one in history for name in (*one.classes, *one.accuracies))
    return {
        name: f"{number:02d}-" + network_slug(name).encode("ascii", "replace").decode().replace("?", "_")
        for number, name in enumerate(names)
    }


__all__ = [
    "curve_names",
    "experiment_of",
    "keep_served",
    "log_curves",
    "registered",
    "replace_versions",
    "use_model",
    "version_tracker",
]
