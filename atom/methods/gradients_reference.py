"""Gradient matching as the papers describe it, in slow float64 loops: the oracle of the tests.

One weight, one row, one number at a time. Cross-entropy is written out, and its gradient comes from `backward`; where
even that should not be trusted, `numeric_weight_gradients` moves every weight up and down. Nothing here is shared with
the fast path, so that an error would have to be made twice.
"""

# N images, C channels, H height, W width, K classes

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def rows_of(gradient: Tensor) -> list[list[float]]:
    """The numbers that belong to each output of a weight; of one with a single axis, none."""
    if gradient.dim() < 2:
        return []
    return [[float(value) for value in row.double().reshape(-1).tolist()] for row in gradient]


def cosine_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> float:
    """DC's distance: of every row one minus the cosine, 1e-6 added to the product of the norms."""
    total = 0.0
    for one, other in zip(real, synthetic, strict=True):
        for a, b in zip(rows_of(one), rows_of(other), strict=True):
            product = sum(x * y for x, y in zip(a, b, strict=True))
            norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
            total += 1 - product / (norms + 1e-6)
    return total


def squared_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> float:
    """IDC's distance "mse", as a sum."""
    return sum((x - y) ** 2 for x, y in _numbers(real, synthetic))


def absolute_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> float:
    """IDC's distance "l1", as a sum."""
    return sum(abs(x - y) for x, y in _numbers(real, synthetic))


def cross_entropy(logits_NK: Tensor, class_ids: Sequence[int]) -> Tensor:
    """Mean over images of log(sum exp) minus the logit of the class."""
    terms = [
        torch.log(torch.exp(logits_K).sum()) - logits_K[c]
        for logits_K, c in zip(logits_NK, class_ids, strict=True)
    ]
    return sum(terms, torch.zeros((), dtype=logits_NK.dtype)) / len(terms)


def weight_gradients(net: nn.Module, images_NCHW: Tensor, class_id: int) -> dict[str, Tensor]:
    """Of every parameter by name, the gradient of the mean cross-entropy."""
    net.zero_grad(set_to_none=True)
    cross_entropy(net(images_NCHW), [class_id] * len(images_NCHW)).backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in net.named_parameters()
    }


@torch.no_grad()
def numeric_weight_gradients(
    net: nn.Module, images_NCHW: Tensor, class_id: int, *, step: float = 1e-5
) -> dict[str, Tensor]:
    """The same by central differences, weight by weight."""
    found = {}
    for name, parameter in net.named_parameters():
        gradient = torch.zeros_like(parameter)
        for place in range(parameter.numel()):
            kept, losses = float(parameter.view(-1)[place]), []
            for moved in (kept + step, kept - step):
                parameter.view(-1)[place] = moved
                losses.append(float(cross_entropy(net(images_NCHW), [class_id] * len(images_NCHW))))
            parameter.view(-1)[place] = kept
            gradient.view(-1)[place] = (losses[0] - losses[1]) / (2 * step)
        found[name] = gradient
    return found


def class_loss(
    net: nn.Module,
    real_NCHW: Tensor,
    synthetic_NCHW: Tensor,
    class_id: int,
    *,
    method: str,
    metric: str = "mse",
) -> float:
    """The loss of one class, for batches already augmented.

    Args:
        net: in float64.
        real_NCHW, synthetic_NCHW: images of the class, the synthetic ones decoded.
        class_id: the class.
        method: "dc", "dsa" or "idc".
        metric: of idc, "mse" or "l1".
    """
    one, other = (weight_gradients(net, images, class_id) for images in (real_NCHW, synthetic_NCHW))
    if method != "idc":
        return cosine_distance(list(one.values()), list(other.values()))
    # In networks of this project only convolutions have weights of four axes.
    names = [name for name, gradient in one.items() if gradient.dim() == 4]
    distance: Callable[..., float] = squared_distance if metric == "mse" else absolute_distance
    return distance([one[name] for name in names], [other[name] for name in names])


def descent(
    net: nn.Module,
    batches: Sequence[tuple[Tensor, Sequence[int]]],
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> None:
    """Train a network in place, a step a batch: v <- m v + g + d w, w <- w - lr v."""
    velocity = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for images_NCHW, class_ids in batches:
        net.zero_grad(set_to_none=True)
        cross_entropy(net(images_NCHW), class_ids).backward()
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                velocity[name] = momentum * velocity[name] + gradient + weight_decay * parameter
                parameter -= lr * velocity[name]


def _numbers(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> list[tuple[float, float]]:
    return [
        pair
        for one, other in zip(real, synthetic, strict=True)
        for pair in zip(one.double().reshape(-1).tolist(), other.double().reshape(-1).tolist(), strict=True)
    ]
