"""The weights that a training begins with: random ones, or those that a user's function returns."""

from typing import Protocol

import numpy as np
from torch import nn

from atom.errors import ConfigError
from atom.nets.weights import fill_weights
from atom.settings import InitialWeights


class Build(Protocol):
    """Builds a network."""

    def __call__(self, *, seed: int) -> nn.Module:
        """The network, global generators at this seed while a user's function runs."""
        ...


def begin(
    build: Build, rng: np.random.Generator, *, own: bool, initial_weights: InitialWeights = "kept"
) -> nn.Module:
    """A network as a training begins with it.

    One of this project has random weights of `rng`. A user's own has those that its function returns: pretrained ones
    stay, frozen ones (`requires_grad=False`) are not trained, and random ones are those of the function, under
    generators of torch, NumPy and Python that are seeded out of `rng`. With "drawn" all of them are replaced. All else
    that it draws, such as a wiring in no state dict, is that of seed 0, as where its weights are loaded.

    Args:
        build: such as `atom.nets.build` with a name and sizes.
        rng: of this training.
        own: whether it is the user's, see `atom.nets.is_own`.
        initial_weights: of a user's own.

    Raises:
        ConfigError: no parameter is to be trained, frozen ones are to be drawn, or the seed decides on shapes.
    """
    net = build(seed=0)
    if own and initial_weights == "kept":
        if not any(parameter.requires_grad for parameter in net.parameters()):
            raise ConfigError(
                "network of your own: every parameter is frozen (requires_grad=False), so there is nothing to train;"
                " leave at least the classifier free."
            )
        weights = build(seed=int(rng.integers(2**63))).state_dict()
        try:
            net.load_state_dict(weights)
        except RuntimeError as error:
            problem = " ".join(str(error).split())[:300]
            same = {n: w.shape for n, w in weights.items()} == {
                n: w.shape for n, w in net.state_dict().items()
            }
            cause = (
                "state_dict() leaves out what load_state_dict() asks for; let it hold all weights"
                if same
                else "its function draws names or shapes of weights at random; draw these under a fixed seed"
            )
            raise ConfigError(
                f"network of your own: weights of one call do not fit the network of another, as {cause} ({problem})."
            ) from error
        return net
    frozen, total = count_frozen(net)
    if frozen:
        raise ConfigError(
            f"--initial-weights drawn: {frozen:,} of {total:,} parameters of the network are frozen"
            " (requires_grad=False), and would stay as they are drawn; pass --initial-weights kept, or free them."
        )
    fill_weights(net, rng)
    return net


def count_frozen(net: nn.Module) -> tuple[int, int]:
    """Numbers that are not trained, and numbers in all."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in net.parameters()]
    return sum(number for number, free in counts if not free), sum(number for number, _ in counts)


__all__ = ["Build", "begin", "count_frozen"]
