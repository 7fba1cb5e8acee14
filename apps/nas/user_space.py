"""A user's own list of networks, checked entry by entry."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path

from torch import nn

from atom import nets
from atom.errors import ConfigError

Builder = Callable[..., nn.Module]
"""Called as builder(channels=..., image_size=(height, width), num_classes=...)."""


_SIZES = {"channels", "image_size", "num_classes"}


@dataclass(frozen=True)
class Family:
    """A builder that takes more than the sizes; named as text, it is imported when its network is built."""

    function: Builder | str
    arguments: Mapping[str, object]

    def builder(self) -> Builder:
        """The function with its arguments.

        Raises:
            ConfigError: it cannot be imported, or is none.
        """
        made = nets.import_function(self.function) if isinstance(self.function, str) else self.function
        return partial(made, **self.arguments)  # pyrefly: ignore


@dataclass(frozen=True)
class Entry:
    """A network of the user's list: its builder, or a known name, and its multiply-adds, None to be counted."""

    given: Builder | str | Family
    multiply_adds: int | None = None

    def builder(self) -> Builder | str:
        """The function that builds it, or its known name; see `Family.builder`."""
        return self.given.builder() if isinstance(self.given, Family) else self.given


def user_entries(spec: str) -> dict[str, Entry]:
    """The user's networks by name; the user's function is asked once a process.

    Raises:
        ConfigError: the object is not a list of (name, builder, multiply-adds), is empty, or repeats a name.
    """
    return _entries(spec, Path.cwd())


@functools.cache
def _entries(spec: str, _here: Path) -> dict[str, Entry]:
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
    entries: dict[str, Entry] = {}
    for place, entry in enumerate(listed):
        found = _entry(entry)
        if found is None:
            raise ConfigError(
                f"--space {spec}: entry {place} is {entry!r}; expected (name, builder, multiply-adds), such as"
                " ('tiny', build_tiny, 1_000_000), with None for a cost that is to be counted, or with arguments"
                " beside the sizes ('tiny', ('models.py:build', {'width': 8}), None)."
            )
        if entry[0] in entries:
            raise ConfigError(
                f"--space {spec}: the name {entry[0]!r} comes twice; give every network its own."
            )
        entries[entry[0]] = found
    if not entries:
        raise ConfigError(f"--space {spec}: is empty; list at least one (name, builder, multiply-adds).")
    return entries


def _entry(listed: object) -> Entry | None:
    if not isinstance(listed, tuple | list) or len(listed) != 3:
        return None
    name, given, cost = listed
    number = isinstance(cost, Real) and not isinstance(cost, bool) and 1 <= float(cost) < math.inf
    builder = as_builder(given)
    if not isinstance(name, str) or name == "" or builder is None or not (cost is None or number):
        return None
    return Entry(builder, None if cost is None else int(cost))  # pyrefly: ignore


def as_builder(given: object) -> Builder | str | Family | None:
    """What a user gave to build a network by: a function, a known name, or (function, arguments); None for all else."""
    if isinstance(given, str) or (callable(given) and not isinstance(given, nn.Module)):
        return given
    if not isinstance(given, tuple | list) or len(given) != 2:
        return None
    function, arguments = given
    named = isinstance(function, str) and nets.is_own(function)
    # The sizes are the command's: a user's own would be overruled without a word.
    fits = isinstance(arguments, Mapping) and all(isinstance(key, str) for key in arguments)
    if not (named or callable(function)) or not fits or _SIZES & arguments.keys():
        return None
    return Family(function, arguments)
