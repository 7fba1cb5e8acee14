"""A user's own list of networks, checked entry by entry."""

import functools
import math
from collections.abc import Callable, Iterator
from numbers import Real
from pathlib import Path

from torch import nn

from atom import nets
from atom.errors import ConfigError

Builder = Callable[..., nn.Module]
"""Called as builder(channels=..., image_size=(height, width), num_classes=...)."""


def user_entries(spec: str) -> dict[str, tuple[Builder | str, int | None]]:
    """Builder and cost by name; the user's function is asked once a process.

    Raises:
        ConfigError: the object is not a list of (name, builder, multiply-adds), is empty, or repeats a name.
    """
    return _entries(spec, Path.cwd())


@functools.cache
def _entries(spec: str, _here: Path) -> dict[str, tuple[Builder | str, int | None]]:
    value = nets.import_object(spec, what=f"--space {spec}")
    try:
        if isinstance(value, Iterator):
            raise TypeError("an iterator can be read only once")
        if callable(value):
            # In one go: the body of a generator runs when it is read.
            value = nets.call(functools.wraps(value)(lambda: list(value())))
        listed = list(value)  # pyrefly: ignore
    except Exception as error:
        raise ConfigError(
            f"--space {spec}: gave no list of networks ({type(error).__name__}: {error}); expected a list of"
            " (name, builder, multiply-adds), or a function without arguments that returns one."
        ) from error
    entries: dict[str, tuple[Builder | str, int | None]] = {}
    for place, entry in enumerate(listed):
        if not _is_entry(entry):
            raise ConfigError(
                f"--space {spec}: entry {place} is {entry!r}; expected (name, builder, multiply-adds), such as"
                " ('tiny', build_tiny, 1_000_000), with None for a cost that is to be counted."
            )
        if entry[0] in entries:
            raise ConfigError(
                f"--space {spec}: the name {entry[0]!r} comes twice; give every network its own."
            )
        entries[entry[0]] = (entry[1], None if entry[2] is None else int(entry[2]))
    if not entries:
        raise ConfigError(f"--space {spec}: is empty; list at least one (name, builder, multiply-adds).")
    return entries


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, tuple | list) or len(entry) != 3:
        return False
    name, builder, cost = entry
    number = isinstance(cost, Real) and not isinstance(cost, bool) and 1 <= float(cost) < math.inf
    return (
        isinstance(name, str)
        and name != ""
        and (callable(builder) or isinstance(builder, str))
        and (cost is None or number)
    )
