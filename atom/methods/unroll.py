"""Gradients through a training, exact, at a memory that does not grow with its steps.

A network is trained by steps on leaves (synthetic images, their step size, ...), then judged; wanted is the gradient of
the judgement by the leaves. Back-propagating through all steps at once keeps every step's graph. Here only the states
between the steps are kept, and the way is walked back: each step is computed once more, with its graph, and takes the
gradient by its outcome to the gradients by its inputs. The numbers are those of the full unroll, up to rounding.

    state_{t+1} = step(state_t, leaves, t),   wanted: dJ(state_T)/dleaves
    cotangent_T = dJ/dstate_T,   cotangent_t = (dstate_{t+1}/dstate_t)' cotangent_{t+1}
    dJ/dleaves  = sum over t of (dstate_{t+1}/dleaves)' cotangent_{t+1}

A step must be the same computation both times: what is random in it is asked from `atom.streams` by its number.
"""

# P weights of a network, all in one vector

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from atom.errors import ConfigError
from atom.nets.layers import mixes_batch

State = tuple[Tensor, ...]
"""Of a training: the weights [P], then what the optimiser keeps, [P] each."""

Leaves = Mapping[str, Tensor]
"""What a training is differentiated by."""


class Optimizer(Protocol):
    """How a gradient moves the weights; differentiable in all of its inputs."""

    def start(self, weights: Tensor) -> State:
        """Before the first step."""
        ...

    def step(self, state: State, gradient: Tensor, rate: Tensor | float, number: int) -> State:
        """After a step of size `rate`; `number` counts from 0."""
        ...


@dataclass(frozen=True)
class SGD:
    """v <- m v + g + w θ, θ <- θ - rate v, as `torch.optim.SGD`."""

    momentum: float = 0.0
    weight_decay: float = 0.0

    def start(self, weights: Tensor) -> State:
        """See `Optimizer.start`."""
        return (weights, torch.zeros_like(weights)) if self.momentum else (weights,)

    def step(self, state: State, gradient: Tensor, rate: Tensor | float, number: int) -> State:
        """See `Optimizer.step`."""
        del number
        weights = state[0]
        if self.weight_decay:
            gradient = gradient + self.weight_decay * weights
        if not self.momentum:
            return (weights - rate * gradient,)
        velocity = self.momentum * state[1] + gradient
        return weights - rate * velocity, velocity


@dataclass(frozen=True)
class Adam:
    """Kingma and Ba, 2015, as `torch.optim.Adam`, but that the root is taken of a sum with a tiny number.

    The root alone has no finite derivative at a gradient of zero, as of a dead unit.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def start(self, weights: Tensor) -> State:
        """See `Optimizer.start`."""
        return weights, torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, state: State, gradient: Tensor, rate: Tensor | float, number: int) -> State:
        """See `Optimizer.step`."""
        weights, first, second = state
        first = self.beta1 * first + (1 - self.beta1) * gradient
        second = self.beta2 * second + (1 - self.beta2) * gradient.square()
        unbiased = second / (1 - self.beta2 ** (number + 1))
        deviation = (unbiased + self.eps**2).sqrt() + self.eps
        return weights - rate * (first / (1 - self.beta1 ** (number + 1))) / deviation, first, second


class FlatNetwork:
    """A network as a function of its weights, which are one vector.

    Args:
        net: in evaluation mode; its own weights are left alone.

    Raises:
        ConfigError: statistics of a batch enter its answers: they are no function of the weights alone.
    """

    def __init__(self, net: nn.Module) -> None:
        if mixes_batch(net):
            raise ConfigError(
                "a training is differentiated, which networks with BatchNorm do not allow: their running statistics are"
                " no weights; pass a network with instance, group or layer norm, or none."
            )
        self.net = net
        self._shapes = {name: parameter.shape for name, parameter in net.named_parameters()}
        self._sizes = [parameter.numel() for parameter in net.parameters()]

    def weights(self) -> Tensor:
        """The weights that the network holds, [P], a copy."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.net.parameters()])

    def __call__(self, weights: Tensor, images_NCHW: Tensor) -> Tensor:
        """Logits [N, K]."""
        parts = weights.split(self._sizes)
        named = {
            name: part.view(shape) for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)
        }
        return functional_call(self.net, named, (images_NCHW,))


@dataclass(frozen=True)
class Training:
    """A training that can be walked back.

    Attributes:
        loss: of a step, by the weights [P], the leaves and the step's number; twice differentiable in the weights.
        rate: step size of a step, by the leaves and its number.
        optimizer: see `SGD`, `Adam`.
    """

    loss: Callable[[Tensor, Leaves, int], Tensor]
    rate: Callable[[Leaves, int], Tensor | float]
    optimizer: Optimizer

    def step(self, state: State, leaves: Leaves, number: int) -> State:
        """The state after one step, with its graph if gradients are recorded."""
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            weights = state[0] if recorded else state[0].detach().requires_grad_()
            loss = self.loss(weights, leaves, number)
            (gradient,) = torch.autograd.grad(loss, weights, create_graph=recorded)
        return self.optimizer.step(state, gradient, self.rate(leaves, number), number)

    @torch.no_grad()
    def run(self, state: State, leaves: Leaves, steps: range) -> list[State]:
        """The states before each of the steps, and that after the last."""
        fixed = {name: leaf.detach() for name, leaf in leaves.items()}
        states = [state]
        for number in steps:
            states.append(self.step(states[-1], fixed, number))
        return states

    def gradients(
        self, states: Sequence[State], leaves: Leaves, steps: range, cotangent: Tensor
    ) -> dict[str, Tensor]:
        """The gradients of what was made of the last weights, by the leaves.

        Args:
            states: of `run` by the same leaves and steps.
            leaves, steps: as for `run`.
            cotangent: gradient by the last weights, [P].

        Returns:
            One for each leaf, of its shape; zeros where nothing depends on it.
        """
        inputs = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        sums = {name: torch.zeros_like(leaf) for name, leaf in inputs.items()}
        cotangents = [cotangent, *(torch.zeros_like(slot) for slot in states[-1][1:])]
        for state, number in zip(reversed(states[:-1]), reversed(steps), strict=True):
            before = tuple(part.detach().requires_grad_() for part in state)
            with torch.enable_grad():
                after = self.step(before, inputs, number)
            found = torch.autograd.grad(
                after, [*before, *inputs.values()], cotangents, allow_unused=True, materialize_grads=True
            )
            cotangents = list(found[: len(before)])
            for name, gradient in zip(inputs, found[len(before) :], strict=True):
                sums[name] += gradient
        return sums


__all__ = ["SGD", "Adam", "FlatNetwork", "Leaves", "Optimizer", "State", "Training"]
