"""A network whose head has an output a class: from a file of weights, with more outputs, with one less."""

# K outputs, N images, n images of a class in memory

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.continual.state import LearnerState, weights_of
from atom import nets
from atom.errors import ArtifactError, ConfigError
from atom.nets.shapes import Size
from atom.settings import InitialWeights
from atom.streams import stream
from atom.tensor_files import read_tensors

Weights = Mapping[str, np.ndarray]
"""Parameters and buffers of a network by name."""


@dataclass(frozen=True)
class Body:
    """A network without the number of its outputs.

    Attributes:
        network: a name `atom.nets.build` knows.
        channels, image_size: of the images.
        initial_weights: where a user's own begins, see `atom.nets.begin`.
    """

    network: str
    channels: int
    image_size: Size
    initial_weights: InitialWeights = "kept"

    def build(self, num_classes: int, *, seed: int = 0) -> nn.Module:
        """The network with so many outputs.

        Raises:
            ConfigError: see `atom.nets.build`.
        """
        shape: dict[str, Any] = {"channels": self.channels, "image_size": self.image_size}
        return nets.build(self.network, **shape, num_classes=num_classes, seed=seed)

    def begin(self, num_classes: int, *, seed: int, step: int) -> Weights:
        """Weights that it begins with: random ones, or those of a user's function; stream "learner/weights".

        Raises:
            ConfigError: see `atom.nets.begin`.
        """
        net = nets.begin(
            partial(self.build, num_classes),
            stream(seed, "learner/weights", step),
            own=nets.is_own(self.network),
            initial_weights=self.initial_weights,
        )
        return weights_of(net)

    def head(self) -> frozenset[str]:
        """Names of the tensors that have a row for each output.

        Raises:
            ConfigError: one depends on the number of classes in another way, or none does.
        """
        two, three = (
            {name: tuple(value.shape) for name, value in self.build(k).state_dict().items()} for k in (2, 3)
        )
        head = {name for name in {*two, *three} if two.get(name) != three.get(name)}
        for name in sorted(head):
            shapes = two.get(name, ()), three.get(name, ())
            if (shapes[0][:1], shapes[1][:1]) != ((2,), (3,)) or shapes[0][1:] != shapes[1][1:]:
                raise ConfigError(
                    f"network {self.network!r}: {name} is {shapes[0]} for 2 classes and {shapes[1]} for 3, so no row of"
                    " it is a class's own; let only the first dimension of the head depend on num_classes."
                )
        if not head:
            raise ConfigError(
                f"network {self.network!r}: nothing in it depends on num_classes, so its head cannot grow; use"
                " num_classes for the size of the last layer."
            )
        return frozenset(head)


def with_outputs(weights: Weights, fresh: Weights, head: frozenset[str], rows: list[int | None]) -> Weights:
    """Weights whose head has, for each output, an old row, bit for bit, or where that is None the fresh one.

    Args:
        weights: of the network so far.
        fresh: of one that begins, with as many outputs as there are rows; asked only where a row is None.
        head: see `Body.head`.
        rows: old output of each new one.

    Example:
        >>> old, new = {"w": np.float32([1, 2])}, {"w": np.float32([7, 8, 9])}
        >>> with_outputs(old, new, frozenset({"w"}), [0, 1, None])["w"].tolist()
        [1.0, 2.0, 9.0]
    """
    grown = dict(weights)
    for name in head:
        parts = [weights[name][old] if old is not None else fresh[name][new] for new, old in enumerate(rows)]
        grown[name] = np.stack(parts)
    return grown


def read_weights(path: Path, body: Body, fresh: Weights, head: frozenset[str]) -> Weights:
    """The weights of a file, for the network all but its head; {**fresh, **these} is the network that begins with them.

    Args:
        path: safetensors, or a PyTorch file of tensors by name (perhaps under "state_dict" or "model"), which is read
            with weights_only=True: nothing in it is run.
        body: the network.
        fresh: as it begins.
        head: see `Body.head`.

    Raises:
        ArtifactError: the file is neither, or holds NaN or infinity.
        ConfigError: its weights are those of another network.
    """
    named = _tensors(path)
    loaded: dict[str, np.ndarray] = {}
    for name, value in fresh.items():
        if name in head or (name not in named and name.endswith("num_batches_tracked")):
            continue
        found = None if name not in named else tuple(named[name].shape)
        if found != value.shape:
            raise ConfigError(
                f"--weights {path}: {name} is {found or 'missing'}, but network {body.network!r} has {value.shape};"
                " pass the weights of that network."
            )
        loaded[name] = named[name].detach().to(torch.from_numpy(value).dtype).numpy()
        if not np.isfinite(loaded[name]).all():
            raise ArtifactError(f"--weights {path}: {name} holds NaN or infinity; pass sound weights.")
    strangers = sorted(named.keys() - fresh.keys())
    if strangers:
        raise ConfigError(
            f"--weights {path}: {strangers[0]} is no weight of network {body.network!r}; pass the weights of that"
            " network."
        )
    return loaded


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"--weights {path}: no such file; pass a safetensors file or a PyTorch one.")
    if path.suffix == ".safetensors":
        return read_tensors(path, again="pass the file as it was saved")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes torch say
        reason = " ".join(str(error).split())[:120]
        raise ArtifactError(
            f"--weights {path}: cannot be read as a PyTorch file of plain tensors ({type(error).__name__}: {reason});"
            " it was not opened any other way, since pickles run code: save net.state_dict() again."
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ArtifactError(f"--weights {path}: holds no tensors by name; save net.state_dict().")
    return {str(name): value for name, value in found.items()}


def answers_grown(state: LearnerState, said: Mapping[int, np.ndarray]) -> LearnerState:
    """The recorded answers of der++ with those of outputs that were not there when they were recorded.

    What an output says of an old image before it has learned anything is what it would have been recorded to say, had
    it been there from the start, as in DER's own experiments. To leave new outputs out of the distance would let
    them rise on old images.

    Args:
        state: whose logits are [n, K] a class.
        said: of the grown network, before it learns: [n, K + new] a class.
    """
    logits = {
        class_id: np.concatenate([old_nK, said[class_id][: len(old_nK), old_nK.shape[1] :]], axis=1)
        for class_id, old_nK in state.logits.items()
        if class_id in said
    }
    return replace(state, logits=logits)


__all__ = ["Body", "Weights", "answers_grown", "read_weights", "with_outputs"]
