"""The first step of a learner: what it is for good follows from its first images and the command."""

from typing import Any

import torch

from apps.learner.directory import INITIAL, PREPROCESS
from apps.learner.growth import Body, Weights, read_weights
from apps.learner.record import FORMAT_VERSION, Learner
from atom import nets
from atom.data import ImageSet, RealData, SourceInfo
from atom.device import use_threads
from atom.embedding import THREADS
from atom.errors import ConfigError
from atom.methods.registry import is_own as is_own_method
from atom.preprocess import Preprocess
from atom.resolve import whitens_by_itself
from atom.tensor_files import tensor_bytes
from atom.whitening import rank_flaw
from pipelines.console.learner_commands import InitCommand
from pipelines.learning.images import cut, load_step, load_tests
from pipelines.learning.step import Step
from pipelines.learning.versions import digests
from pipelines.output.store import Store
from pipelines.own_networks import try_networks

EVERY_DROP = 100.0


def begin(command: InitCommand, store: Store, *, known: Learner | None) -> tuple[Step, dict[str, bytes]]:
    """The step that makes the first version, and the files that come with it.

    Args:
        command: as given.
        store: of the directory.
        known: what lies there already: of a killed command this very learner, else it is refused.

    Raises:
        ConfigError: there is another learner, or a setting does not fit.
        DataError: the images.
        ArtifactError: the file of weights.
    """
    for flag, name, own in (
        ("--distil-network", command.distil_network, nets.is_own(command.distil_network)),
        ("--method", command.distill.method, is_own_method(command.distill.method)),
    ):
        if own:
            raise ConfigError(
                f"{flag} {name}: code of yours, which every later step would run because the directory names it; pass"
                " one of this project's."
            )
    asked, seed = command.images, command.distill.seed
    loaded = load_step(asked, image_size=asked.image_size)
    tests = load_tests(asked, image_size=asked.image_size)
    images = loaded.images
    try_networks((command.network,), as_real(images, asked.data), timeout_s=command.cluster.timeout_s)
    channels, height, width = images.images.shape[1:]
    body = Body(command.network, channels, (height, width), command.evaluate.initial_weights)
    initial: Weights | None = None
    files: dict[str, bytes] = {}
    if command.weights is not None:
        fresh = body.begin(images.num_classes, seed=seed, step=1)
        initial = read_weights(command.weights.expanduser(), body, fresh, body.head())
        named = {name: torch.tensor(array) for name, array in initial.items()}
        files[INITIAL] = tensor_bytes(named, {"format_version": FORMAT_VERSION})
    whitens = command.distill.zca == "on" or (
        command.distill.zca == "auto"
        and whitens_by_itself(channels, height, width)
        and rank_flaw(images.images) is None
    )
    settings: dict[str, dict[str, Any]] = {
        "choices": command.choices.model_dump(mode="json"),
        "training": command.training.model_dump(mode="json"),
        "distill": command.distill.changed(
            zca="on" if whitens else "off", network=command.distil_network
        ).model_dump(mode="json"),
        "evaluate": command.evaluate.model_dump(mode="json"),
    }
    learner = Learner(
        format_version=FORMAT_VERSION,
        network=told_name(command.network),
        identity=identity(command.network, channels, (height, width)),
        head=sorted(body.head()),
        given_weights=initial is not None,
        channels=channels,
        image_size=[height, width],
        resize=asked.image_size,
        symbols=images.symbols if asked.symbols == "auto" else asked.symbols == "on",
        settings=settings,
        sha256={},
    )
    real = cut(
        learner,
        loaded,
        tests,
        asked=asked,
        known=(),
        keep_tests=command.choices.keep_tests,
        seed=seed,
        number=1,
    )
    with use_threads(THREADS):
        preprocess = Preprocess.fit(real.current.images_NCHW, zca=whitens, zca_eps=command.distill.zca_eps)
    files[PREPROCESS] = tensor_bytes(preprocess.tensors(), {"format_version": FORMAT_VERSION})
    learner = learner.model_copy(update={"sha256": digests(files)})
    if known is not None:
        if learner.model_dump(exclude={"versions"}) != known.model_dump(exclude={"versions"}) or (
            known.versions and known.versions[0].images != real.fingerprint
        ):
            raise ConfigError(
                f"{store} is a learner already; pass new images to `atom-learner add`, or begin another in another"
                " directory."
            )
        learner = known
    step = Step(
        command=command,
        store=store,
        learner=learner,
        parent=None,
        network=command.network,
        images=asked,
        real=real,
        preprocess=preprocess,
        initial=initial,
        kind=command.choices.memory,
        max_drop=EVERY_DROP,
    )
    return step, files


def told_name(network: str) -> str:
    """A network's name without the place of a user's file."""
    return network.replace("\\", "/").rpartition("/")[2]


def identity(network: str, channels: int, image_size: tuple[int, int]) -> str:
    """Of a network whatever its number of outputs: that with two."""
    return nets.identity(network, channels=channels, image_size=image_size, num_classes=2)


def as_real(images: ImageSet, spec: str) -> RealData:
    """Images as a source, for what asks for their shape."""
    return RealData("images", spec, images, images, SourceInfo("images", "", "", ""))


__all__ = ["as_real", "begin", "identity"]
