"""A user's own networks, from a list or from a function of Optuna's trial, checked one by one."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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
    """One of the user's networks.

    Attributes:
        given: its builder, or a known name.
        multiply_adds: None: to be counted.
        axes: its parameters, where all networks of the space have the same ones.
    """

    given: Builder | str | Family
    multiply_adds: int | None = None
    axes: Mapping[str, bool | int | float | str | None] = field(default_factory=dict)

    def builder(self) -> Builder | str:
        """The function that builds it, or its known name; see `Family.builder`."""
        return self.given.builder() if isinstance(self.given, Family) else self.given


def user_entries(spec: str) -> dict[str, Entry]:
    """The user's networks by name; the user's function is asked once a process.

    Raises:
        ConfigError: the object is not a list of (name, builder, multiply-adds), is empty, or repeats a name; or it is a
            function of a trial and its combinations are not finite and few, or make no builders.
    """
    return _entries(spec, Path.cwd())


@functools.cache
def _entries(spec: str, _here: Path) -> dict[str, Entry]:
    value = nets.import_object(spec, what=f"--space {spec}")
    if callable(value) and _asks_trial(value):
        return _defined(spec, value)
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
            " (name, builder, multiply-adds), or a function without arguments that returns one, or one"
            " of an argument trial."
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


def _asks_trial(value: Callable[..., object]) -> bool:
    try:
        return list(inspect.signature(value).parameters) == ["trial"]
    except (TypeError, ValueError):  # a builtin
        return False


def _defined(spec: str, function: Callable[..., object]) -> dict[str, Entry]:
    # Optuna takes a while to import, and lists need none of it.
    from apps.nas.define_by_run import combinations_of, names_of

    try:
        found = nets.call(functools.wraps(function)(lambda: list(combinations_of(function))))
    except (ConfigError, RuntimeError) as error:
        raise ConfigError(f"--space {spec}: {error}") from error
    if not found:
        raise ConfigError(f"--space {spec}: is empty; the function prunes every combination.")
    alike = len({tuple(parameters) for parameters, _ in found}) == 1
    entries: dict[str, Entry] = {}
    for name, (parameters, given) in zip(names_of([each for each, _ in found]), found, strict=True):
        builder = as_builder(given)
        if builder is None:
            raise ConfigError(
                f"--space {spec}: returned {given!r} for {parameters}; expected a function (channels, image_size,"
                " num_classes) -> torch.nn.Module, a known name, or (function, arguments)."
            )
        entries[name] = Entry(builder, axes=parameters if alike else {})
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
