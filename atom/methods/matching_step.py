"""What atom, spatial, channel and dm compute in one call, which may be compiled: statistics, and the loss of a class.

The networks stay, their weights are replaced before each iteration.
"""

# N images, C channels, H height, W width, G classes of a call, P numbers of an augmentation row, F frequencies,
# D features

from typing import cast

import torch
from torch import Tensor, nn

from atom import nets
from atom.augment import augment
from atom.device import autocast
from atom.formation import decode
from atom.methods.matching import Objective, class_statistics, matching_loss
from atom.methods.matching_settings import EmbeddingOptions
from atom.methods.settings import DistillSettings
from atom.methods.trained_features import calibration_loss
from atom.settings import parse_dsa_strategy


class MatchingStep:
    """The networks of a matching method and what is computed with them.

    Attributes:
        net: whose features are matched.
        judge: whose cross-entropy calibrates, with weights of its own; None without calibration.
        frequencies: F and D of the characteristic function; None where it is not matched.

    Args:
        settings: resolved.
        objective: what is matched.
        shape: channels, height and width of the images.
        num_classes: of the whole source.
        device: where to compute.
    """

    def __init__(
        self,
        settings: DistillSettings,
        objective: Objective,
        *,
        shape: tuple[int, int, int],
        num_classes: int,
        device: torch.device,
    ) -> None:
        options = cast(EmbeddingOptions, settings.options)
        self.objective = objective
        self._settings, self._device = settings, device
        self._calibration = options.calibration
        self._operations = parse_dsa_strategy(settings.dsa_strategy)
        self._dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        # Eager instance norm on a CPU is slow in channels_last (8x8 digits: 179 ms a step against 108); compiled
        # or on CUDA, channels_last is the convolutions' own order.
        eager_on_cpu = device.type == "cpu" and settings.compile != "on"
        self._layout = torch.contiguous_format if eager_on_cpu else torch.channels_last
        self.net = self._frozen_network(shape, num_classes)
        self.judge = self._frozen_network(shape, num_classes) if options.calibration else None
        self.frequencies = (options.cf_frequencies, self._features(shape)) if options.cf_weight else None

    def real(self, real_NCHW: Tensor, params_GP: Tensor, frequencies_FD: Tensor | None) -> list[Tensor]:
        """Statistics of real images, [G, D_i] each: what the synthetic ones are to have."""
        batch = real_NCHW.shape[0] // params_GP.shape[0]
        augmented = (
            augment(real_NCHW, params_GP.repeat_interleave(batch, dim=0)) if self._operations else real_NCHW
        )
        return self._statistics(self._laid_out(augmented), len(params_GP), frequencies_FD)

    def synthetic(
        self,
        stored_NCHW: Tensor,
        params_GP: Tensor,
        targets: list[Tensor],
        frequencies_FD: Tensor | None,
        labels_G: Tensor | None,
    ) -> Tensor:
        """Loss of each class, [G]; the labels are read by the calibration alone."""
        images_NCHW = decode(stored_NCHW, self._settings.factor)
        batch = images_NCHW.shape[0] // params_GP.shape[0]
        if self._operations:
            images_NCHW = augment(images_NCHW, params_GP.repeat_interleave(batch, dim=0))
        images_NCHW = self._laid_out(images_NCHW)
        statistics = self._statistics(images_NCHW, len(params_GP), frequencies_FD)
        counts = (self._settings.batch_real, batch)
        loss_G = matching_loss(targets, statistics, objective=self.objective, counts=counts)
        if self.judge is None or labels_G is None:
            return loss_G
        with autocast(self._device, self._dtype):
            return loss_G + self._calibration * calibration_loss(self.judge, images_NCHW, labels_G)

    def _statistics(
        self, images_NCHW: Tensor, num_classes: int, frequencies_FD: Tensor | None
    ) -> list[Tensor]:
        with autocast(self._device, self._dtype):
            return class_statistics(
                self.net,
                images_NCHW,
                num_classes=num_classes,
                objective=self.objective,
                frequencies_FD=frequencies_FD,
            )

    def _laid_out(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.contiguous(memory_format=self._layout)

    @torch.no_grad()
    def _features(self, shape: tuple[int, int, int]) -> int:
        """Of an embedding. Of two images, since BatchNorm may refuse one."""
        return self.net.blocks(torch.zeros(2, *shape, device=self._device))[1].shape[1]

    def _frozen_network(self, shape: tuple[int, int, int], num_classes: int) -> nets.BlockNet:
        channels, height, width = shape
        name = self._settings.network
        net = nets.build(name, channels=channels, image_size=(height, width), num_classes=num_classes)
        net = nets.require_blocks(net, name)
        # Dropout would draw from a global generator; only batch statistics need training mode.
        # DEVIATION(DM's code): the published loops leave dropout active.
        net.eval()
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        net.requires_grad_(False)
        return net.to(self._device).to(memory_format=self._layout)


__all__ = ["MatchingStep"]
