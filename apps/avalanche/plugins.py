"""GDumb with a distilled buffer, and metrics of such a buffer for Avalanche's loggers."""

from collections.abc import Callable
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from avalanche.training.plugins import GDumbPlugin

from apps.avalanche.buffer import DistilledBuffer

QUANTITIES: dict[str, Callable[[DistilledBuffer], float]] = {
    "Images": lambda buffer: buffer.memory.num_images,
    "Bytes": lambda buffer: buffer.memory.num_bytes,
    "Seconds": lambda buffer: buffer.seconds,
}
"""Images as stored, their bytes as stored, and seconds of distillation so far."""


class DistilledGDumbPlugin(GDumbPlugin, supports_distributed=False):
    """Before every experience the model starts afresh, and it is trained on the buffer alone: the protocol of DM.

    The classes of the experience are distilled before it begins, since its real images are not trained on. Use it
    with `Naive`. As in Avalanche's GDumb the weights at the start of every experience are those of the first.

    Args:
        buffer: to train on; with `adaptive_size=False` as in DM.

    Source: Prabhu et al., *GDumb*, ECCV 2020, in the form of DM (Zhao and Bilen, 2023).
    """

    def __init__(self, buffer: DistilledBuffer) -> None:
        super().__init__(mem_size=buffer.max_size)
        # Avalanche declares its own class of buffers there, but asks for no more than this one has.
        self.storage_policy: Any = buffer

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Take in the experience, and put the buffer in its place."""
        self.storage_policy.post_adapt(strategy, strategy.experience)
        strategy.adapted_dataset = self.storage_policy.buffer


class DistilledMemoryMetric(PluginMetric[float]):
    """One quantity of a buffer as it stands at the end of an evaluation, beside the accuracy of the stream.

    Args:
        buffer: to look at.
        quantity: one of QUANTITIES; the name is "DistilledMemory_" and it.
    """

    def __init__(self, buffer: DistilledBuffer, quantity: str) -> None:
        super().__init__()
        self._buffer, self._quantity = buffer, quantity

    def result(self) -> float:
        """The present value."""
        return float(QUANTITIES[self._quantity](self._buffer))

    def reset(self) -> None:
        """Nothing: the buffer is what changes."""

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """The value for the loggers, over the number of training iterations."""
        name = get_metric_name(self, strategy, add_experience=False, add_task=False)
        return [MetricValue(self, name, self.result(), strategy.clock.train_iterations)]

    def __str__(self) -> str:
        return f"DistilledMemory_{self._quantity}"


def distilled_memory_metrics(buffer: DistilledBuffer) -> list[DistilledMemoryMetric]:
    """Images, bytes and seconds of distillation of a buffer, for an `EvaluationPlugin`."""
    return [DistilledMemoryMetric(buffer, quantity) for quantity in QUANTITIES]


__all__ = ["DistilledGDumbPlugin", "DistilledMemoryMetric", "distilled_memory_metrics"]
