"""The loss of dc, dsa and idc: how far apart the gradients of a network are on real and on synthetic images of a class.

    dc, dsa:  sum over weights with two axes or more, over their rows r, of  1 - <a_r, b_r> / (|a_r| |b_r| + 1e-6)
    idc:      sum over the weights of convolutions, over their numbers, of  (a - b)^2  or  |a - b|

with a and b the gradients of the mean cross-entropy over the real and over the synthetic images of the class. A row is
what belongs to one output: a filter of a convolution, the weights of a class in the linear layer. Sums, never means.
"""

# N images, C channels, H height, W width, K classes, R rows of a weight, D numbers of a row

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

Distance = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Of the gradients of a class on real and on synthetic images, weight by weight; a number, differentiable in both."""

EPSILON = 1e-6
"""Added to the product of the norms of two rows. Source: DC (Zhao et al., 2021), published code."""


def row_weights(net: nn.Module) -> list[Tensor]:
    """The weights that dc and dsa match: all with two axes or more, the classifier's among them."""
    return [parameter for parameter in net.parameters() if parameter.ndim >= 2]


def convolution_weights(net: nn.Module) -> list[Tensor]:
    """The weights that idc matches: those of convolutions. Source: IDC (Kim et al., 2022), published code."""
    return [module.weight for module in net.modules() if isinstance(module, _ConvNd)]


def class_gradients(
    logits_NK: Tensor, class_id: int, weights: Sequence[Tensor], *, differentiable: bool
) -> list[Tensor]:
    """Gradients of the mean cross-entropy of images of one class, each of the shape of its weight.

    Args:
        logits_NK: of the images, float32 or float64.
        class_id: their class, below K.
        weights: to differentiate by; one that the logits do not depend on has a gradient of zeros.
        differentiable: whether the gradients can be differentiated by the images.
    """
    labels_N = torch.full((len(logits_NK),), class_id, device=logits_NK.device)
    loss = functional.cross_entropy(logits_NK, labels_N)
    gradients = torch.autograd.grad(
        loss, list(weights), create_graph=differentiable, allow_unused=True, materialize_grads=True
    )
    return list(gradients)


def cosine_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum over weights and their rows of one minus the cosine; weights of one axis, such as biases, do not count.

    Between 0 and twice the number of rows. A row of zeros adds 1: its gradient by the images is finite, but badly
    conditioned where only one of the two is zero.

    Source: DC (Zhao et al., 2021), the published code's default.
    """
    total = real[0].new_zeros(())
    for one, other in zip(real, synthetic, strict=True):
        if one.ndim < 2:
            continue
        one_RD, other_RD = one.flatten(1), other.flatten(1)
        product_R = (one_RD * other_RD).sum(dim=1)
        # Not `cosine_similarity`, which holds each norm above its epsilon instead of adding it to their product.
        norms_R = torch.linalg.vector_norm(one_RD, dim=1) * torch.linalg.vector_norm(other_RD, dim=1)
        total = total + (1 - product_R / (norms_R + EPSILON)).sum()
    return total


def squared_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum over weights of the squared differences of all their numbers. Source: IDC (Kim et al., 2022)."""
    # A sum: a mean would tie the step size on the images to the width of the network's layers.
    differences = [one - other for one, other in zip(real, synthetic, strict=True)]
    return torch.stack([(difference * difference).sum() for difference in differences]).sum()


def absolute_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum over weights of the absolute differences of all their numbers. Source: IDC (Kim et al., 2022)."""
    differences = [one - other for one, other in zip(real, synthetic, strict=True)]
    return torch.stack([difference.abs().sum() for difference in differences]).sum()


__all__ = [
    "Distance",
    "absolute_distance",
    "class_gradients",
    "convolution_weights",
    "cosine_distance",
    "row_weights",
    "squared_distance",
]
