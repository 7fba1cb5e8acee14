"""What is matched between real and synthetic images of a class, and how the differences are weighed.

All modes are weights of one objective, for the means over the images of a class (Khaki et al., 2024; Sajedi
et al., 2023; Zhao and Bilen, 2023):

    loss = scale * ( sum over blocks but the last of
                       w_spatial |mean S(real) - mean S(syn)|^2 + w_channel |mean C(real) - mean C(syn)|^2
                     + λ |mean E(real) - mean E(syn)|^2 )

with S and C the unit-norm attention maps of `atom.attention` and E the embedding after the last block.
Two maps that are normalised separately and then concatenated give the same loss as the two added.
"""

# N images, C channels, H height, W width, G classes of a group, B images a class, D features

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from atom.attention import channel_attention, spatial_attention
from atom.errors import ConfigError
from atom.settings import MatchingSettings


class ShowsBlocks(Protocol):
    """What the objective needs of a network: the features of its blocks."""

    mixes_batch: bool
    """Whether images of a batch influence each other, as with BatchNorm."""

    def blocks(self, images_NCHW: Tensor, /) -> tuple[list[Tensor], Tensor]:
        """Activations of each block before pooling, and the embedding [N, D]."""
        ...


_WEIGHTS: dict[str, tuple[float, float]] = {
    # mode: (spatial, channel)
    "atom": (1.0, 1.0),
    "spatial": (1.0, 0.0),
    "channel": (0.0, 1.0),
    "dm": (0.0, 0.0),
}


def default_task_balance(height: int, width: int) -> float:
    """λ where none was set: 0.01 below 64 pixels, 0.02 from there on. Source: DataDAM, hyper-parameter table."""
    return 0.02 if max(height, width) >= 64 else 0.01


def class_statistics(
    net: ShowsBlocks, images_NCHW: Tensor, *, num_classes: int, settings: MatchingSettings
) -> list[Tensor]:
    """The statistics to match: for each term of the objective, the mean over each class's images.

    Args:
        net: gives `blocks(images)`.
        images_NCHW: the same number of images of each class, class after class.
        num_classes: G, the classes in the batch.
        settings: mode and power decide the terms.

    Returns:
        Tensors [G, D_i], float32 or float64: attention maps block by block (spatial before channel), then the
        embedding. `matching_loss` weighs them in this order.

    Raises:
        ConfigError: the mode needs attention maps, but the network has a single block.
    """
    if net.mixes_batch:
        # Batch statistics are those of one class: classes go through the network one by one.
        parts = [
            _batch_statistics(net, part, num_classes=1, settings=settings)
            for part in images_NCHW.chunk(num_classes)
        ]
        return [torch.cat(column) for column in zip(*parts, strict=True)]
    return _batch_statistics(net, images_NCHW, num_classes=num_classes, settings=settings)


def matching_loss(real: Sequence[Tensor], synthetic: Sequence[Tensor], settings: MatchingSettings) -> Tensor:
    """Loss of each class, [G], from the statistics of `class_statistics`.

    Raises:
        ConfigError: `task_balance` was not resolved to a number.
    """
    if settings.task_balance is None:
        raise ConfigError(
            "matching_loss: task_balance is not set; use default_task_balance for the image size."
        )
    *real_maps, real_embedding = real
    *synthetic_maps, synthetic_embedding = synthetic
    loss_G = settings.task_balance * _squared_distance(real_embedding, synthetic_embedding)
    for real_map, synthetic_map in zip(real_maps, synthetic_maps, strict=True):
        loss_G = loss_G + _squared_distance(real_map, synthetic_map)
    return settings.loss_scale * loss_G


def _batch_statistics(
    net: ShowsBlocks, images_NCHW: Tensor, *, num_classes: int, settings: MatchingSettings
) -> list[Tensor]:
    blocks, embedding_ND = net.blocks(images_NCHW)
    spatial, channel = _WEIGHTS[settings.mode]
    if (spatial or channel) and len(blocks) < 2:
        raise ConfigError(
            f"--mode {settings.mode} matches attention maps of every block but the last, but the network has"
            f" {len(blocks)} block; pass a deeper network or --mode dm."
        )
    means: list[Tensor] = []
    for features_NCHW in blocks[:-1]:
        exact = _exact(features_NCHW)
        if spatial:
            means.append(_class_mean(spatial_attention(exact, exponent=settings.power), num_classes))
        if channel:
            means.append(_class_mean(channel_attention(exact, exponent=settings.power), num_classes))
    means.append(_class_mean(_exact(embedding_ND), num_classes))
    return means


def _exact(values: Tensor) -> Tensor:
    # bfloat16 keeps 8 bits: sums of fourth powers and small differences of means need more.
    return values.float() if values.dtype.itemsize < 4 else values


def _class_mean(rows_ND: Tensor, num_classes: int) -> Tensor:
    return rows_ND.view(num_classes, -1, rows_ND.shape[1]).mean(dim=1)


def _squared_distance(first_GD: Tensor, second_GD: Tensor) -> Tensor:
    difference_GD = first_GD - second_GD
    return (difference_GD * difference_GD).sum(dim=1)
