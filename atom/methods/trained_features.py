"""Features of networks that were trained on the real images, for the methods that match statistics of features.

Some networks are trained beforehand. Each iteration takes one of them at random, with weights between its start θ_0
and its end θ_T, and may ask the end for its cross-entropy on the synthetic images, the calibration:

    θ = l θ_0 + (1 - l) θ_T,   l uniform in 0 … 1,          loss + calibration * mean of CE(θ_T; synthetic images)

Source: Zhang et al., *DANCE: Dual-View Distribution Alignment for Dataset Condensation*, IJCAI 2024, and its code.
DEVIATION(DANCE): the cross-entropy is part of the loss of each step, under the same augmentation; there it has a step
of its own, one after that on the features, and an augmentation of its own.
DEVIATION(DANCE): networks are trained as those of idc, on at most 2000 images a pass, with DSA.
"""

# N images, C channels, H height, W width, G classes of a group, P weights

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from atom.device import at_least_float32
from atom.methods.experts import Expert, experts
from atom.methods.matching_settings import EmbeddingOptions
from atom.methods.method import Prepared
from atom.methods.settings import DistillSettings
from atom.methods.trained_gradients import recipe_of
from atom.streams import stream


def networks_of(settings: DistillSettings) -> Sequence[Expert]:
    """The networks to be trained."""
    options = cast(EmbeddingOptions, settings.options)
    return experts(options.trained_networks, options.training_passes, recipe_of(settings))


class TrainedNetworks:
    """The networks, as an iteration meets them.

    Args:
        settings: of a matching method, resolved.
        prepared: their weights, from the start to the end.
        device: of the weights.
    """

    def __init__(self, settings: DistillSettings, prepared: Prepared, device: torch.device) -> None:
        self._seed = settings.seed
        # Taken by a list of rows, these are copies: what workers share is read-only.
        ends = [prepared[expert.name]["epochs"][[0, -1]] for expert in networks_of(settings)]
        self._ends = [torch.from_numpy(pair_2P).to(device) for pair_2P in ends]

    def weights_at(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Flat weights [P] of the iteration's network, and of the end that it goes towards."""
        rng = stream(self._seed, "distill/trained", iteration)
        start_P, end_P = self._ends[rng.integers(len(self._ends))]
        share = float(rng.random())
        return end_P + share * (start_P - end_P), end_P


def calibration_loss(net: nn.Module, images_NCHW: Tensor, labels_G: Tensor) -> Tensor:
    """Mean cross-entropy of each class's images, [G]; images come class after class, equally many of each."""
    logits_NK = at_least_float32(net(images_NCHW))
    labels_N = labels_G.repeat_interleave(len(images_NCHW) // len(labels_G))
    return cross_entropy(logits_NK, labels_N, reduction="none").view(len(labels_G), -1).mean(dim=1)


__all__ = ["TrainedNetworks", "calibration_loss", "networks_of"]
