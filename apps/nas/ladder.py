"""A ladder of fidelities: what networks of a search are scored by, cheap rungs first, and who climbs on.

Successive halving (Jamieson and Talwalkar, AISTATS 2016) over different data: a rung on a tiny set is followed by one
on real images, so that a network which a proxy likes is trained on them before it is believed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from apps.nas.proxies import DISTILLED, WHOLE, is_own, timed
from apps.nas.zero_cost import METHODS as ZERO_COST
from atom.errors import ConfigError

_EXPECTED = (
    "first, if at all, scores without training, such as parameters or synflow+naswot, then trainings such as"
    " random:50, distilled:50, part-20:5 or whole:10"
)


@dataclass(frozen=True)
class Stage:
    """Rungs on the same images: one training, looked at after some of its epochs.

    Attributes:
        source: what is trained on: "distilled", "distilled-2" for the second set, a coreset, "part-20", "whole".
        epochs: the rungs, rising; the training ends after the last.
    """

    source: str
    epochs: tuple[int, ...]

    @property
    def proxy(self) -> str:
        """Its proxy as `apps.nas.proxies.timed` reads it."""
        return f"{DISTILLED if self.set_number is not None else self.source}:{self.epochs[-1]}"

    @property
    def set_number(self) -> int | None:
        """Which of the distilled sets it trains on, from 0; None where it trains on real images."""
        name, _, number = self.source.partition("-")
        if name != DISTILLED:
            return None
        return int(number) - 1 if number else 0


@dataclass(frozen=True)
class Ladder:
    """What networks are scored by, from the ground up.

    Attributes:
        order: scores without training, a user's own among them, whose mean rank says which networks are trained at all;
            often empty.
        stages: trainings, at least one.
    """

    order: tuple[str, ...]
    stages: tuple[Stage, ...]

    @property
    def proxies(self) -> tuple[str, ...]:
        """All proxies that it takes, once each."""
        return tuple(dict.fromkeys((*self.order, *(stage.proxy for stage in self.stages))))

    @property
    def told(self) -> str:
        """As the flag takes it."""
        rungs = [f"{stage.source}:{epochs}" for stage in self.stages for epochs in stage.epochs]
        return " ".join(["+".join(self.order)] * bool(self.order) + rungs)

    @property
    def num_sets(self) -> int:
        """How many distilled sets it takes."""
        return max((number + 1 for s in self.stages if (number := s.set_number) is not None), default=0)


def parse_ladder(rungs: Sequence[str]) -> Ladder:
    """The ladder of these rungs.

    Args:
        rungs: in order, such as ("synflow+naswot", "distilled:50", "whole:2", "whole:10").

    Raises:
        ConfigError: a rung is unknown, stands in a wrong place, or no rung trains.
    """
    order: tuple[str, ...] = ()
    looks: dict[str, list[int]] = {}
    last = ""
    for place, rung in enumerate(rungs):
        members = tuple(rung.split("+"))
        if all(member in ZERO_COST or is_own(member) for member in members):
            if place or len(set(members)) < len(members):
                raise ConfigError(
                    f"--ladder {rung}: stands in the wrong place or is named twice, expected {_EXPECTED}."
                )
            order = members
            continue
        source, epochs = _trained(rung)
        if source in looks and source != last:
            raise ConfigError(
                f"--ladder {rung}: other images stand between two rungs on {source}; put them together."
            )
        looks.setdefault(source, []).append(epochs)
        last = source
    for source, epochs in looks.items():
        if any(a >= b for a, b in pairwise(epochs)):
            raise ConfigError(
                f"--ladder: the rungs on {source} have {', '.join(map(str, epochs))} epochs, expected rising numbers."
            )
    if not looks:
        raise ConfigError(f"--ladder {' '.join(rungs)}: no rung trains a network, expected {_EXPECTED}.")
    return Ladder(order, tuple(Stage(source, tuple(epochs)) for source, epochs in looks.items()))


def default_ladder(*, epochs: int, whole_epochs: int) -> tuple[str, ...]:
    """What networks climb where nobody says: of what benchmarks/search_cost.py compared, the way that found the best.

    Args:
        epochs: on as many random images as a distilled set would have; a distilled set did not pay for itself there.
        whole_epochs: on the whole training set.
    """
    early = (f"{WHOLE}:{whole_epochs // 5}",) if whole_epochs >= 5 else ()
    return (f"random:{epochs}", *early, f"{WHOLE}:{whole_epochs}")


def next_rung(number: int, factor: int) -> int:
    """How many of so many networks climb on: one in `factor`, at least one of any."""
    return math.ceil(number / factor)


def _trained(rung: str) -> tuple[str, int]:
    name, _, epochs = rung.rpartition(":")
    base, _, number = name.partition("-")
    # A second set is one of the command's, not a proxy of its own name.
    known = f"{base}:{epochs}" if base == DISTILLED and number.isdecimal() and int(number) > 0 else rung
    source, found = timed(known)
    if found is None:
        raise ConfigError(f"--ladder {rung}: unknown rung, expected {_EXPECTED}.")
    return (name if source == DISTILLED else source), found
