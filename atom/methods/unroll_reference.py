"""Gradients through a training by the full unroll: every step's graph is kept, and one backward pass goes through all.

Plain autograd on lists of weights, with `torch.optim`'s formulas written out; the oracle of the tests of
`atom.methods.unroll`, with which it shares nothing. Its memory grows with every step.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def unrolled(
    loss: Callable[[Sequence[Tensor], Mapping[str, Tensor], int], Tensor],
    judge: Callable[[Sequence[Tensor]], Tensor],
    weights: Sequence[Tensor],
    leaves: Mapping[str, Tensor],
    *,
    rate: Callable[[Mapping[str, Tensor], int], Tensor | float],
    steps: range,
    optimizer: str,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> tuple[float, dict[str, Tensor]]:
    """What `judge` says of the trained weights, and its gradients by the leaves.

    Args:
        loss: of a step, by the weights of every layer, the leaves and the step's number.
        judge: of the weights after the last step.
        weights: before the first.
        leaves: tensors that require gradients.
        rate: step size of a step.
        steps: their numbers.
        optimizer: "sgd" or "adam" (betas 0.9 and 0.999, 1e-8 inside and outside of the root).
        momentum, weight_decay: of "sgd".
    """
    weights = [weight.detach().clone().requires_grad_() for weight in weights]
    first = [torch.zeros_like(weight) for weight in weights]
    second = [torch.zeros_like(weight) for weight in weights]
    for number in steps:
        gradients = torch.autograd.grad(loss(weights, leaves, number), weights, create_graph=True)
        size = rate(leaves, number)
        for place, gradient in enumerate(gradients):
            if optimizer == "sgd":
                first[place] = momentum * first[place] + gradient + weight_decay * weights[place]
                weights[place] = weights[place] - size * first[place]
                continue
            first[place] = 0.9 * first[place] + 0.1 * gradient
            second[place] = 0.999 * second[place] + 0.001 * gradient**2
            mean = first[place] / (1 - 0.9 ** (number + 1))
            root = torch.sqrt(second[place] / (1 - 0.999 ** (number + 1)) + 1e-16) + 1e-8
            weights[place] = weights[place] - size * mean / root
    judged = judge(weights)
    found = torch.autograd.grad(judged, list(leaves.values()))
    return judged.item(), dict(zip(leaves, found, strict=True))
