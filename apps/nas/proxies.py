"""What a network is scored by: training on a tiny set, on the whole set or a part of its time, or no training."""

from dataclasses import dataclass
from typing import Literal

from apps.nas.zero_cost import METHODS as ZERO_COST
from atom.coreset import METHODS as CORESETS
from atom.errors import ConfigError

Kind = Literal["set", "whole", "steps", "seconds", "zero-cost"]

DISTILLED, EARLY_STEPS, EARLY_SECONDS, WHOLE = "distilled", "early-steps", "early-seconds", "whole"
KNOWN = (DISTILLED, *CORESETS, EARLY_STEPS, EARLY_SECONDS, *ZERO_COST, WHOLE)
"""What --proxies takes."""

# They do not depend on weights or images: one seed says all.
WITHOUT_SEEDS = ("parameters", "multiply-adds")


@dataclass(frozen=True)
class Proxy:
    """A way to score networks; for every one a larger score is better.

    Attributes:
        name: such as "atom", "random", "early-steps" or "synflow".
        kind: "set": trained on a tiny set; "steps", "seconds": on the whole training set, stopped early;
            "whole": on the whole training set to the end, tested once; "zero-cost": not trained.
        real: which preprocessing of the real images goes with it.
        images: training images that have to be kept for it.
        prepare_seconds: spent before the first network, such as distillation; None where unknown.
    """

    name: str
    kind: Kind
    real: str
    images: int
    prepare_seconds: float | None = 0.0

    def seeds(self, number: int) -> range:
        """The training seeds, of as many as were asked for."""
        return range(min(number, 1) if self.name in WITHOUT_SEEDS else number)


def check_names(names: tuple[str, ...]) -> None:
    """Refuse an unknown proxy, one named twice, none, or one that needs another which is missing.

    Raises:
        ConfigError: saying what to pass.
    """
    if not names:
        raise ConfigError(f"--proxies: names none; known are {', '.join(KNOWN)}.")
    for place, name in enumerate(names):
        if name not in KNOWN:
            raise ConfigError(f"--proxies {name}: unknown proxy; known are {', '.join(KNOWN)}.")
        if name in names[:place]:
            raise ConfigError(f"--proxies {name}: is named twice; name every proxy once.")
    if EARLY_SECONDS in names and not {DISTILLED, *CORESETS} & set(names):
        raise ConfigError(
            f"--proxies {EARLY_SECONDS}: takes the time of a tiny set, and there is none; add {DISTILLED} or random."
        )
