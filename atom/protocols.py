"""Protocols by which the field trains networks on a small set, by name: numbers of one are not numbers of another.

All are SGD with momentum 0.9 and weight decay 5e-4 from a step size of 0.01, in this project's even batches, with DSA
of one operation a batch, and the last epoch counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Protocol:
    """What one protocol says.

    Attributes:
        epochs: passes over the set; None, 1000 on a GPU and 300 on a CPU.
        batch_train: images of a step.
        drops: after which share of the training, as a numerator and a denominator, the step size is multiplied by what.
        cutmix: share of the steps in which each image gets a box of another one, and a share of its label (Yun et al.,
            *CutMix*, ICCV 2019).
        left_out: an operation of DSA that it does not have; empty: it has all.
        norm: of the network that judges where none is named: "own", that of the one that distilled, "batch", BatchNorm,
            or "both".
        source: where the numbers are from.
    """

    epochs: int | None
    batch_train: int
    drops: tuple[tuple[int, int, float], ...] = ((1, 2, 0.1),)
    cutmix: float = 0.0
    left_out: str = ""
    norm: str = "own"
    source: str = ""

    def rate_share(self, done: float, total: float) -> float:
        """The step size as a share of the first one, after `done` steps (or seconds) of `total`."""
        share = 1.0
        for numerator, denominator, factor in self.drops:
            if done * denominator >= total * numerator:
                share *= factor
        return share


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "common": Protocol(None, 256, norm="both", source="DM's, at fewer epochs on a CPU"),
        "dm": Protocol(1000, 256, source="Zhao and Bilen, DM, published code"),
        "datadam": Protocol(1800, 64, norm="batch", source="Sajedi et al., DataDAM, published code"),
        "idc": Protocol(
            1000,
            64,
            drops=((2, 3, 0.2), (5, 6, 0.2)),
            cutmix=0.5,
            left_out="cutout",
            source="Kim et al., IDC, published code, which also prints the best epoch",
        ),
        "ddranking": Protocol(1000, 256, source="DD-Ranking's configuration for DC, DSA, DM and DataDAM"),
    }
)
"""By the name of --protocol."""

__all__ = ["PROTOCOLS", "Protocol"]
