"""A user's own list of networks, checked entry by entry."""

import math
from collections.abc import Callable, Iterator
from numbers import Real

from torch import nn

from atom import nets
from atom.errors import ConfigError

Builder = Callable[..., nn.Module]
"""Called as builder(channels=..., image_size=(height, width), num_classes=...)."""


def user_entries(spec: str) -> dict[str, tuple[Builder | str, int | None]]:
    """Builder and cost by name.

    Raises:
        ConfigError: the object is not a list of (name, builder, multiply-adds), is empty, or repeats a name.
    """
    value = nets.import_object(spec, what=f"--space {spec}")
    try:
        if isinstance(value, Iterator):
            raise TypeError("an iterator can be read only once")
        listed = list(value() if callable(value) else value)  # pyrefly: ignore
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


def builder_identity(spec: str, builder: Builder | str) -> str:
    """What results of a user's network depend on beside its name: digests of the files that define it."""
    if not isinstance(builder, str):
        # A partial or a closure takes numbers from the space's own file, whatever file its code is in.
        return f"{nets.module_digest(spec, what=f'--space {spec}')}-{nets.source_digest(builder)}"
    try:
        return nets.identity(builder)
    except ConfigError:  # cannot be imported, hence not built either
        return builder
