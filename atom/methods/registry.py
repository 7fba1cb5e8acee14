"""Methods of distillation by name: those of this project, and a user's own as `path/to/file.py:Class`."""

from typing import Any

from atom.errors import ConfigError
from atom.methods.gradient_settings import LoopOptions, RealTrainingOptions
from atom.methods.matching_settings import AttentionOptions, EmbeddingOptions
from atom.methods.unroll_settings import (
    AlignedOptions,
    BackpropagationOptions,
    OrderedOptions,
    TrajectoryOptions,
)
from atom.settings import NoOptions, Settings

_MATCHING = "atom.methods.matching_loop"
_GRADIENTS = "atom.methods.gradient_loop"
_SELECTION = "atom.methods.selection"
# The classes by name, not imported: they need torch, which --help must not wait for.
_BUILT_IN: dict[str, tuple[str, type[Settings]]] = {
    "atom": (f"{_MATCHING}:Atom", AttentionOptions),
    "spatial": (f"{_MATCHING}:Spatial", AttentionOptions),
    "channel": (f"{_MATCHING}:Channel", AttentionOptions),
    "dm": (f"{_MATCHING}:MeanEmbedding", EmbeddingOptions),
    "dc": (f"{_GRADIENTS}:Plain", LoopOptions),
    "dsa": (f"{_GRADIENTS}:Siamese", LoopOptions),
    "idc": ("atom.methods.trained_gradients:RealTraining", RealTrainingOptions),
    "dd": ("atom.methods.dd:Ordered", OrderedOptions),
    "rat-bptt": ("atom.methods.rat_bptt:RandomTruncated", BackpropagationOptions),
    "mtt": ("atom.methods.trajectory:Trajectories", TrajectoryOptions),
    "datm": ("atom.methods.trajectory:Aligned", AlignedOptions),
    "random": (f"{_SELECTION}:Random", NoOptions),
    "herding": (f"{_SELECTION}:Herding", NoOptions),
    "kcenter": (f"{_SELECTION}:KCenter", NoOptions),
}

NAMES = tuple(_BUILT_IN)
"""The methods of this project."""


def is_own(name: str) -> bool:
    """Whether a name means a user's own method."""
    return ":" in name


def check_name(name: str, *, flag: str = "--method") -> None:
    """Refuse a name that means no method; `flag` is how the message calls the setting.

    Raises:
        ConfigError: it is neither of this project nor of the form of a user's own.
    """
    if name not in NAMES and not is_own(name):
        raise ConfigError(
            f"{flag} {name}: unknown method; expected one of {', '.join(NAMES)}, or path/to/file.py:Class of yours."
        )


def class_of(name: str) -> Any:
    """What a name means, not yet known to be a method; see `atom.methods.lookup.find_method`.

    Raises:
        ConfigError: the name is unknown, or a user's own cannot be imported.
    """
    # torch comes with it.
    from atom.nets.custom import import_object

    check_name(name)
    return import_object(name if is_own(name) else _BUILT_IN[name][0], what=f"method {name!r}")


def options_of(name: str) -> type[Settings]:
    """The settings that a method alone reads.

    Raises:
        ConfigError: as `class_of`; a user's own has `Options` that are no settings.
    """
    check_name(name)
    if not is_own(name):
        return _BUILT_IN[name][1]
    options = getattr(class_of(name), "Options", NoOptions)
    if not (isinstance(options, type) and issubclass(options, Settings)):
        raise ConfigError(f"method {name!r}: its Options are {options!r}, expected atom.Settings.")
    return options


def readers_of(option: str) -> list[str]:
    """Methods of this project that read an option."""
    return [name for name, (_, options) in _BUILT_IN.items() if option in options.model_fields]


def short_name(name: str) -> str:
    """For the names of runs and directories: of a user's own the class alone.

    Example:
        >>> short_name("atom"), short_name("path/to/toy.py:Toy")
        ('atom', 'Toy')
    """
    return name.rpartition(":")[2]
