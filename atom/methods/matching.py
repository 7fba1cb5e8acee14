"""The loss of atom, spatial, channel and dm: what is matched between real and synthetic images of a class.

They are one objective, for the means over the images of a class (Khaki et al., 2024; Sajedi et al., 2023; Zhao and
Bilen, 2023), the first two terms being those that the method names:

    loss = 100 * ( sum over blocks but the last of |mean S(real) - mean S(syn)|^2 + |mean C(real) - mean C(syn)|^2
                   + λ |mean E(real) - mean E(syn)|^2 )

with S and C the unit-norm spatial and channel attention and E the embedding after the last block. Two maps that are
normalised separately and then concatenated give the same loss as the two added. What else may be matched of the
embeddings is in `atom.methods.feature_terms`.
"""

# N images, C channels, H height, W width, G classes of a group, B images a class, D features

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from atom.device import at_least_float32
from atom.errors import ConfigError, ShapeError
from atom.methods.feature_terms import FeatureTerms, class_mean, feature_loss, feature_statistics, unit


class ShowsBlocks(Protocol):
    """What the objective needs of a network: the features of its blocks."""

    mixes_batch: bool
    """Whether images of a batch influence each other, as with BatchNorm."""

    def blocks(self, images_NCHW: Tensor, /) -> tuple[list[Tensor], Tensor]:
        """Activations of each block before pooling, and the embedding [N, D]."""
        ...


LOSS_SCALE = 100.0
"""Factor on every term; with λ = 0.01 the embedding term weighs 1, as in DM. Source: DataDAM's published code."""


@dataclass(frozen=True)
class Objective:
    """Which terms the loss has.

    Attributes:
        spatial, channel: whether these attention maps are matched.
        power: their exponent p >= 1.
        task_balance: weight λ >= 0 of the embedding term.
        features: what else of the embeddings.
    """

    spatial: bool
    channel: bool
    power: int = 4
    task_balance: float = 0.01
    features: FeatureTerms = field(default_factory=FeatureTerms)


def power(values: Tensor, exponent: int) -> Tensor:
    """|values|**exponent for a whole exponent >= 1, by multiplication.

    Squaring and multiplying costs a few products where `pow` costs a logarithm and an exponential; and an even
    power needs no absolute value.
    """
    base = values if exponent % 2 == 0 else values.abs()
    result: Tensor | None = None
    while exponent:
        if exponent & 1:
            result = base if result is None else result * base
        exponent >>= 1
        if exponent:
            base = base * base
    assert result is not None, "exponent >= 1 is checked by AttentionOptions"
    return result


def spatial_attention(features_NCHW: Tensor, *, exponent: int = 4) -> Tensor:
    """Unit-norm spatial attention: where in the image the layer is active.

    Sums |feature|**exponent over channels, flattens, divides by the L2 norm of each image.

    Args:
        features_NCHW: activations after the nonlinearity, float32 or float64.
        exponent: p >= 1. Source of the default: DataDAM, hyper-parameter table.

    Returns:
        [N, H*W], each row of norm 1. The row of an image without any activation is zero.

    Raises:
        ShapeError: features are not 4-D.

    Source: DataDAM (Sajedi et al., 2023), spatial attention matching; the spatial half of ATOM.
    """
    return unit(power(_checked(features_NCHW), exponent).sum(dim=1).flatten(1))


def channel_attention(features_NCHW: Tensor, *, exponent: int = 4) -> Tensor:
    """Unit-norm channel attention: which channels of the layer are active.

    Sums |feature|**exponent over positions, divides by the L2 norm of each image. Arguments and errors as in
    `spatial_attention`.

    Returns:
        [N, C], each row of norm 1. The row of an image without any activation is zero.

    Source: ATOM (Khaki et al., 2024), project page, figure of the attention mixer, panel (b).
    """
    return unit(power(_checked(features_NCHW), exponent).sum(dim=(2, 3)))


def _checked(features_NCHW: Tensor) -> Tensor:
    if features_NCHW.ndim != 4:
        raise ShapeError(
            f"attention: features have shape {tuple(features_NCHW.shape)}, expected [N, C, H, W]."
        )
    return features_NCHW


def class_statistics(
    net: ShowsBlocks,
    images_NCHW: Tensor,
    *,
    num_classes: int,
    objective: Objective,
    frequencies_FD: Tensor | None = None,
) -> list[Tensor]:
    """The statistics to match: for each term of the objective, the mean over each class's images.

    Args:
        net: gives `blocks(images)`.
        images_NCHW: the same number of images of each class, class after class.
        num_classes: G, the classes in the batch.
        objective: decides the terms.
        frequencies_FD: of the characteristic function, where the objective has it.

    Returns:
        Tensors [G, D_i], float32 or float64: attention maps block by block (spatial before channel), then the
        embedding, then what `feature_statistics` gives. `matching_loss` weighs them in this order.

    Raises:
        ConfigError: attention maps are to be matched, but the network has a single block.
    """
    if net.mixes_batch:
        # Batch statistics are those of one class: classes go through the network one by one.
        parts = [
            _batch_statistics(net, part, num_classes=1, objective=objective, frequencies_FD=frequencies_FD)
            for part in images_NCHW.chunk(num_classes)
        ]
        return [torch.cat(column) for column in zip(*parts, strict=True)]
    return _batch_statistics(
        net, images_NCHW, num_classes=num_classes, objective=objective, frequencies_FD=frequencies_FD
    )


def matching_loss(
    real: Sequence[Tensor], synthetic: Sequence[Tensor], *, objective: Objective, counts: tuple[int, int]
) -> Tensor:
    """Loss of each class, [G], from the statistics of `class_statistics`.

    Args:
        real, synthetic: of the two sets.
        objective: the weights.
        counts: images of a class of both.
    """
    cut = len(real) - objective.features.count
    *real_maps, real_embedding = real[:cut]
    *synthetic_maps, synthetic_embedding = synthetic[:cut]
    loss_G = objective.task_balance * _squared_distance(real_embedding, synthetic_embedding)
    for real_map, synthetic_map in zip(real_maps, synthetic_maps, strict=True):
        loss_G = loss_G + _squared_distance(real_map, synthetic_map)
    loss_G = LOSS_SCALE * loss_G
    if not objective.features.count:
        return loss_G
    return loss_G + feature_loss(
        real[cut:],
        synthetic[cut:],
        means=(real_embedding, synthetic_embedding),
        counts=counts,
        terms=objective.features,
    )


def _batch_statistics(
    net: ShowsBlocks,
    images_NCHW: Tensor,
    *,
    num_classes: int,
    objective: Objective,
    frequencies_FD: Tensor | None,
) -> list[Tensor]:
    blocks, embedding_ND = net.blocks(images_NCHW)
    if (objective.spatial or objective.channel) and len(blocks) < 2:
        raise ConfigError(
            "attention maps are matched of every block but the last, but the network has"
            f" {len(blocks)} block; pass a deeper network or --method dm."
        )
    means: list[Tensor] = []
    for features_NCHW in blocks[:-1]:
        exact = at_least_float32(features_NCHW)
        if objective.spatial:
            means.append(class_mean(spatial_attention(exact, exponent=objective.power), num_classes))
        if objective.channel:
            means.append(class_mean(channel_attention(exact, exponent=objective.power), num_classes))
    exact_ND = at_least_float32(embedding_ND)
    means.append(class_mean(exact_ND, num_classes))
    more = feature_statistics(
        exact_ND, num_classes=num_classes, terms=objective.features, frequencies_FD=frequencies_FD
    )
    return means + more


def _squared_distance(first_GD: Tensor, second_GD: Tensor) -> Tensor:
    difference_GD = first_GD - second_GD
    return (difference_GD * difference_GD).sum(dim=1)
