"""Which ConvNet is meant: its five choices, its name, and the 720 of the search space.

The family and the space are those of DC, DSA, DM and DataDAM: blocks of 3x3 convolution, normalisation,
activation and 2x2 pooling, then one linear classifier.
"""

import difflib
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

from atom.errors import ConfigError

Norm = Literal["none", "batch", "layer", "instance", "group"]
Activation = Literal["sigmoid", "relu", "leakyrelu"]
Pooling = Literal["none", "max", "avg"]

NORMS: tuple[Norm, ...] = get_args(Norm)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
NUM_GROUPS = 4  # of the norm "group"
MAX_DEPTH = 8

# Two choices may be "none"; in a name each says which.
WORD_NORM: dict[str, Norm] = {"nonorm" if norm == "none" else norm: norm for norm in NORMS}
_WORD_ACTIVATION: dict[str, Activation] = {activation: activation for activation in ACTIVATIONS}
_WORD_POOLING: dict[str, Pooling] = {"nopool" if pool == "none" else pool: pool for pool in POOLINGS}


@dataclass(frozen=True)
class ConvNetSpec:
    """One network of the family; the defaults are the network the field distils with.

    Raises:
        ConfigError: a choice is unknown or out of range.

    Example:
        >>> ConvNetSpec(width=64, depth=2, norm="batch").name
        'convnet-w64-d2-batch-relu-avg'
        >>> parse_convnet("convnet-batch-d2-w64") == ConvNetSpec(width=64, depth=2, norm="batch")
        True
    """

    width: int = 128
    """Channels of every block, at least 1; a multiple of 4 with norm "group"."""
    depth: int | None = None
    """Blocks, 1 to 8; None: by the size of the images, see `default_depth`."""
    norm: Norm = "instance"
    """batch; layer: over C, H, W; instance: each channel of each image; group: 4 groups of channels; none."""
    activation: Activation = "relu"
    """leakyrelu has slope 0.01."""
    pooling: Pooling = "avg"
    """2x2 with stride 2 after every block, or none."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"ConvNet width {self.width}: expected a positive number of channels.")
        if self.depth is not None and not 1 <= self.depth <= MAX_DEPTH:
            raise ConfigError(f"ConvNet depth {self.depth}: expected 1 to {MAX_DEPTH} blocks.")
        for field, known in (("norm", NORMS), ("activation", ACTIVATIONS), ("pooling", POOLINGS)):
            if getattr(self, field) not in known:
                raise ConfigError(
                    f"ConvNet {field} {getattr(self, field)!r}: unknown; known are {', '.join(known)}."
                )
        if self.norm == "group" and self.width % NUM_GROUPS:
            raise ConfigError(
                f"ConvNet width {self.width} with norm group: expected a multiple of {NUM_GROUPS}."
            )

    @property
    def name(self) -> str:
        """The canonical name: every part, in fixed order; the depth is left out while it is open."""
        depth = () if self.depth is None else (f"d{self.depth}",)
        norm = "nonorm" if self.norm == "none" else self.norm
        pooling = "nopool" if self.pooling == "none" else self.pooling
        return "-".join(("convnet", f"w{self.width}", *depth, norm, self.activation, pooling))

    def for_size(self, image_size: tuple[int, int]) -> "ConvNetSpec":
        """The same network with its depth settled for images of this (height, width)."""
        return self if self.depth is not None else replace(self, depth=default_depth(image_size))


def default_depth(image_size: tuple[int, int]) -> int:
    """Blocks for images of this (height, width): 3 up to 32 pixels, 4 up to 64, 5 up to 128, 6 above.

    The longer side counts. Source: practice of DM, MTT and their successors.
    """
    longest = max(image_size)
    return 3 if longest <= 32 else 4 if longest <= 64 else 5 if longest <= 128 else 6


def parse_convnet(name: str) -> ConvNetSpec:
    """The network a name means: `convnet`, then any of its parts in any order, joined by "-".

    Parts are w<width>, d<depth>, a norm (nonorm, batch, layer, instance, group), an activation (sigmoid,
    relu, leakyrelu) and a pooling (nopool, max, avg); what is left out takes its default.

    Raises:
        ConfigError: a part is unknown, out of range, or given twice.
    """
    head, *parts = name.split("-")
    if head != "convnet":
        raise ConfigError(f"network {name!r}: a ConvNet's name starts with 'convnet'.")
    chosen: dict[str, object] = {}
    for part in parts:
        field, value = _parse_part(part, name)
        if field in chosen:
            raise ConfigError(
                f"network {name!r}: part {part!r} gives the {field} a second time; give it once."
            )
        chosen[field] = value
    return ConvNetSpec(**chosen)  # pyrefly: ignore[bad-argument-type]


def _parse_part(part: str, name: str) -> tuple[str, object]:
    if part[:1] in ("w", "d") and part[1:].isdecimal():
        return ("width" if part[0] == "w" else "depth"), int(part[1:])
    for field, words in (
        ("norm", WORD_NORM),
        ("activation", _WORD_ACTIVATION),
        ("pooling", _WORD_POOLING),
    ):
        if part in words:
            return field, words[part]
    known = (*WORD_NORM, *_WORD_ACTIVATION, *_WORD_POOLING)
    if part == "none":
        hint = " 'none' could be the norm or the pooling: write nonorm or nopool."
    else:
        close = difflib.get_close_matches(part, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"network {name!r}: unknown part {part!r}; known are w<width>, d<depth>, {', '.join(known)}.{hint}"
    )


def convnet_space() -> tuple[ConvNetSpec, ...]:
    """The 720 networks of the search space, each once, always in the same order.

    Width 32, 64, 128, 256; depth 1 to 4; five norms; three activations; three poolings; the last varies
    fastest. Source: DC (Zhao et al., 2021), and the papers after it.
    """
    return tuple(
        ConvNetSpec(width, depth, norm, activation, pooling)
        for width, depth, norm, activation, pooling in product(
            (32, 64, 128, 256), (1, 2, 3, 4), NORMS, ACTIVATIONS, POOLINGS
        )
    )


__all__ = [
    "ACTIVATIONS",
    "MAX_DEPTH",
    "NORMS",
    "NUM_GROUPS",
    "POOLINGS",
    "WORD_NORM",
    "Activation",
    "ConvNetSpec",
    "Norm",
    "Pooling",
    "convnet_space",
    "default_depth",
    "parse_convnet",
]
