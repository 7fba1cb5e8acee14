"""BatchNorm statistics of real images for models that rehearse made ones."""

import warnings
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import avalanche_forward
from avalanche.training.plugins import GDumbPlugin
from torch import Tensor, nn

from apps.avalanche.datasets import read_experience
from apps.continual.learner import STATISTICS_IMAGES
from atom.errors import ConfigError
from atom.nets.layers import mixes_batch
from atom.train import reestimate_statistics


class RealStatisticsPlugin(SupervisedPlugin, supports_distributed=False):
    """After every experience, BatchNorm statistics of the experience's real images, through its eval transforms.

    A model that is trained on distilled images, alone or beside real ones, keeps statistics that are theirs, and is
    then asked about real ones: 8 points under `er` on digits. The weights are left alone, and no image of an earlier
    experience is read. Models without BatchNorm stay as they are.

    Args:
        num_classes: of the whole benchmark.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Re-estimate, before anything is evaluated.

        Raises:
            ConfigError: several task labels in one experience, or see `datasets.read_experience`.
        """
        if not mixes_batch(strategy.model):
            return
        limit = max(1, STATISTICS_IMAGES // len(set(strategy.experience.classes_in_this_experience)))
        arrived = read_experience(
            strategy.experience, name="the experience", num_classes=self.num_classes, limit=limit
        )
        tasks = set((arrived.tasks or {}).values())
        if len(tasks) > 1:
            raise ConfigError(
                f"RealStatisticsPlugin: the experience has the task labels {sorted(tasks)}, expected one; give each"
                " task an experience of its own."
            )

        def forward(model: nn.Module, images_BCHW: Tensor) -> Tensor:
            labels_B = torch.full((len(images_BCHW),), min(tasks, default=0), device=images_BCHW.device)
            return avalanche_forward(model, images_BCHW, labels_B)

        images_NCHW = torch.cat(list(arrived.images.values())).to(strategy.device)
        reestimate_statistics(strategy.model, images_NCHW, forward=forward)


def warn_without_statistics(agent: Any) -> None:
    """Warn where a strategy goes on with a model with BatchNorm, but has no `RealStatisticsPlugin`.

    GDumb's model starts afresh on a buffer of all classes in equal shares, and is better judged as trained: the images
    of an experience know its own classes alone.
    """
    model, plugins = getattr(agent, "model", None), getattr(agent, "plugins", ())
    if not isinstance(model, nn.Module) or not mixes_batch(model):
        return
    if not any(isinstance(plugin, RealStatisticsPlugin | GDumbPlugin) for plugin in plugins):
        warnings.warn(
            "The model has BatchNorm, whose statistics would be those of distilled images when it is asked about real"
            " ones; add RealStatisticsPlugin(num_classes) of apps.avalanche to the plugins of the strategy.",
            stacklevel=3,
        )


__all__ = ["RealStatisticsPlugin", "warn_without_statistics"]
