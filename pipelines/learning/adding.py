"""A further step of a learner: what its images are, and whether they were learned already."""

from apps.learner.directory import check_network, read_current, read_initial, read_preprocess
from apps.learner.record import Learner
from apps.learner.settings import LearnerChoices
from atom import nets
from atom.errors import ConfigError
from pipelines.console.learner_commands import AddCommand
from pipelines.learning.beginning import as_real, identity
from pipelines.learning.images import cut, load_step, load_tests
from pipelines.learning.step import Step
from pipelines.output.store import Store
from pipelines.own_networks import try_networks


def go_on(command: AddCommand, store: Store, learner: Learner) -> Step:
    """The step that makes a further version.

    Raises:
        ConfigError, DataError, ArtifactError: see `begin`, or the directory is damaged.
    """
    assert store.local_path is not None
    directory, asked = store.local_path, command.images
    parent = read_current(directory, learner)
    choices = LearnerChoices.model_validate(learner.settings["choices"])
    loaded = load_step(asked, image_size=learner.resize)
    tests = load_tests(asked, image_size=learner.resize)
    real = cut(
        learner,
        loaded,
        tests,
        asked=asked,
        known=parent.classes,
        keep_tests=choices.keep_tests,
        seed=int(learner.settings["distill"]["seed"]),
        number=1 + max(one.number for one in learner.versions),
    )
    if nets.is_own(command.network):
        try_networks(
            (command.network,), as_real(loaded.images, asked.data), timeout_s=command.cluster.timeout_s
        )
    initial = read_initial(directory, learner)
    return Step(
        command=command,
        store=store,
        learner=learner,
        parent=parent,
        network=check_identity(learner, command.network),
        images=asked,
        real=real,
        preprocess=read_preprocess(directory, learner),
        initial=None if initial is None else {name: value.numpy() for name, value in initial.items()},
        kind=command.memory or choices.memory,
        max_drop=command.gate.max_drop,
    )


def check_identity(learner: Learner, given: str) -> str:
    """The name to build the network by, once the code of a user's own is known to be that of before.

    Raises:
        ConfigError: it is not named, or has changed.
    """
    name = check_network(learner, given)
    height, width = learner.image_size
    if nets.is_own(name) and identity(name, learner.channels, (height, width)) != learner.identity:
        raise ConfigError(
            f"--network {name}: it is not the network, {learner.network}, that this learner was begun with, or its code"
            " has changed since; bring it back to what it was."
        )
    return name


def known_already(step: Step) -> int | None:
    """The version, the current one or one that it goes on from, that learned these very images; or None."""
    version = step.parent
    while version is not None:
        if version.images == step.real.fingerprint and not version.removed:
            return version.number
        version = None if version.parent is None else step.learner.version(version.parent)
    return None


__all__ = ["check_identity", "go_on", "known_already"]
