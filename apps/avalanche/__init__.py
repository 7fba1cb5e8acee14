"""Distilled images as the replay memory of Avalanche: the optional extra `avalanche`, for avalanche-lib 0.6.

`DistilledBuffer` is a storage policy for `ReplayPlugin`, `DistilledGDumbPlugin` trains on such a buffer alone,
`RealStatisticsPlugin` puts the BatchNorm statistics of a model right, and `distilled_memory_metrics` logs the
buffer's size and time. docs/avalanche.md has an example that runs.

Example:
    >>> from apps.avalanche import DistilledBuffer
    >>> buffer = DistilledBuffer(200, num_classes=10, symbols=False)
    >>> buffer.max_size, len(buffer.buffer), buffer.memory.num_bytes
    (200, 0, 0)
"""

try:
    import avalanche  # noqa: F401
except ModuleNotFoundError as error:
    # A broken installation of Avalanche has something else to say.
    if error.name != "avalanche":
        raise
    raise ImportError(
        "apps.avalanche needs avalanche-lib 0.6, which is not installed here; run pip install"
        " 'atom-distill[avalanche]'."
    ) from error

from apps.avalanche.buffer import DistilledBuffer
from apps.avalanche.datasets import DsaTransform
from apps.avalanche.plugins import DistilledGDumbPlugin, DistilledMemoryMetric, distilled_memory_metrics
from apps.avalanche.statistics import RealStatisticsPlugin

__all__ = [
    "DistilledBuffer",
    "DistilledGDumbPlugin",
    "DistilledMemoryMetric",
    "DsaTransform",
    "RealStatisticsPlugin",
    "distilled_memory_metrics",
]
