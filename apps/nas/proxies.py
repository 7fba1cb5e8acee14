"""What a network is scored by: training on a tiny set, on the whole set or a part of it or of its time, no training, or
the scores of others."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from apps.nas.zero_cost import METHODS as ZERO_COST
from atom.coreset import METHODS as CORESETS
from atom.errors import ConfigError
from atom.streams import stream

Kind = Literal[
    "set", "real", "whole", "steps", "seconds", "zero-cost", "own", "combined", "fitted", "latency"
]

DISTILLED, EARLY_STEPS, EARLY_SECONDS, WHOLE = "distilled", "early-steps", "early-seconds", "whole"
FITTED = "fitted"
KNOWN = (DISTILLED, *CORESETS, EARLY_STEPS, EARLY_SECONDS, *ZERO_COST, WHOLE, FITTED)
"""What --proxies takes, beside names with epochs, see `timed`, and a user's own as module:function; several may be
joined by "+"."""
TRAINED = (DISTILLED, *CORESETS, WHOLE)
"""What a name with epochs may begin with, besides a part of the training images."""

MIN_TO_FIT = 10
"""Networks with a reference that "fitted" needs at least. Chosen."""

# They do not depend on weights or images: one seed says all.
WITHOUT_SEEDS = ("parameters", "multiply-adds")


@dataclass(frozen=True)
class Proxy:
    """A way to score networks; for every one a larger score is better.

    Attributes:
        name: such as "atom", "random", "early-steps" or "synflow".
        kind: "set": trained on a tiny set; "real": on the training images or a part of them, to an end of its own;
            "steps", "seconds": on the whole training set, stopped early; "whole": on the whole training set to the
            end, tested once; "zero-cost": not trained; "own": scored by a user's function, without training;
            "combined": the mean of the ranks that its members give; "fitted": a regression of the reference on these;
            "latency": milliseconds of an answer, no proxy.
        real: which preprocessing of the real images goes with it.
        images: training images that have to be kept for it.
        prepare_seconds: spent before the first network, such as distillation; None where unknown.
        epochs: of its own; None where those of the recipe count.
        percent: of "real", how many percent of the training images, see `part_rows`.
        of_set: whether "set" is a distilled one, and not a coreset.
        members: names of the proxies that it is made of; their costs are its own.
        source: of a user's own, the name of its function.
        digest: of a user's own, that of its sources.
    """

    name: str
    kind: Kind
    real: str
    images: int
    prepare_seconds: float | None = 0.0
    epochs: int | None = None
    percent: int = 100
    of_set: bool = False
    members: tuple[str, ...] = ()
    source: str = ""
    digest: str = ""

    @classmethod
    def made_of(cls, members: Sequence["Proxy"], kind: Kind, *, name: str) -> "Proxy":
        """A proxy whose scores are found from those of others, at their cost."""
        prepared = [member.prepare_seconds for member in members]
        return cls(
            name,
            kind,
            members[0].real,
            max(member.images for member in members),
            None if None in prepared else math.fsum(seconds or 0.0 for seconds in prepared),
            members=tuple(member.name for member in members),
        )

    def seeds(self, number: int) -> range:
        """The training seeds, of as many as were asked for."""
        return range(min(number, 1) if self.name in WITHOUT_SEEDS else number)


def is_own(name: str) -> bool:
    """Whether a name means a user's own function; one that begins as a known proxy does has wrong epochs."""
    source, _, function = name.rpartition(":")
    return bool(source) and function.isidentifier() and "+" not in name and source not in KNOWN


def members_of(name: str) -> tuple[str, ...]:
    """The names that a name joins by "+"; none for one proxy alone.

    Example:
        >>> members_of("synflow+naswot"), members_of("naswot")
        (('synflow', 'naswot'), ())
    """
    return tuple(name.split("+")) if "+" in name else ()


def with_members(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, and after them what these join and is not among them: it is scored too."""
    return tuple(dict.fromkeys([*names, *(member for name in names for member in members_of(name))]))


def timed(name: str) -> tuple[str, int | None]:
    """What a network is trained on and for how many epochs, of a name such as "whole:5", "part-20:5" or "random:50".

    Names without epochs of their own are returned as they are, with None.

    Example:
        >>> timed("part-20:5"), timed("synflow")
        (('part-20', 5), ('synflow', None))
    """
    source, _, epochs = name.rpartition(":")
    if re.fullmatch("[1-9][0-9]{0,5}", epochs) and (source in TRAINED or percent_of(source)):
        return source, int(epochs)
    return name, None


def sources(names: Sequence[str]) -> set[str]:
    """What networks are trained on by proxies of these names, or scored by."""
    return {timed(name)[0] for name in names}


def percent_of(source: str) -> int | None:
    """How many percent of the training images "part-20" or "whole" are; None of any other name."""
    if source == WHOLE:
        return 100
    found = re.fullmatch("part-([1-9][0-9]?)", source)
    return int(found[1]) if found else None


def part_rows(labels_N: np.ndarray, percent: int) -> np.ndarray:
    """Rows of a part of the training images, in order: so many percent of every class, at least one.

    A smaller part lies within a larger one.

    Args:
        labels_N: int64.
        percent: 1 to 100.
    """
    rows = []
    for label in np.unique(labels_N):
        own = np.flatnonzero(labels_N == label)
        order = stream(0, "nas/part", int(label)).permutation(len(own))
        rows.append(own[order[: math.ceil(len(own) * percent / 100)]])
    return np.sort(np.concatenate(rows))


def check_names(names: tuple[str, ...]) -> None:
    """Refuse an unknown proxy, one named twice, none, or one that needs another which is missing.

    Raises:
        ConfigError: saying what to pass.
    """
    if not names:
        raise ConfigError(f"--proxies: names none; known are {', '.join(KNOWN)}.")
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ConfigError(f"--proxies {name}: is named twice; name every proxy once.")
        members = members_of(name)
        for one in members or (name,):
            if one not in KNOWN and not is_own(one) and timed(one)[1] is None:
                inside = f"{one!r} is an " if members else ""
                raise ConfigError(
                    f"--proxies {name}: {inside}unknown proxy; known are {', '.join(KNOWN)}, with epochs of their own"
                    " distilled:50, random:50, part-20:5 (of 20 % of the training images), whole:5 and the like, and"
                    " your own as module:function or path/to/file.py:function."
                )
        _check_members(name, members)
    every = with_members(names)
    if FITTED in names and not any(one not in (FITTED, WHOLE) for one in every):
        raise ConfigError(f"--proxies {FITTED}: has no other proxy to learn from; add some, such as synflow.")
    if EARLY_SECONDS in every and not {DISTILLED, *CORESETS} & sources(every):
        raise ConfigError(
            f"--proxies {EARLY_SECONDS}: takes the time of a tiny set, and there is none; add {DISTILLED} or random."
        )


def _check_members(name: str, members: tuple[str, ...]) -> None:
    if len(set(members)) < len(members):
        raise ConfigError(f"--proxies {name}: joins a proxy with itself; name every member once.")
    if WHOLE in members:
        raise ConfigError(f"--proxies {name}: {WHOLE} is what proxies are judged by; join others.")
    if FITTED in members:
        raise ConfigError(f"--proxies {name}: {FITTED} joins all others already; name it alone.")
