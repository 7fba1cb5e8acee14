"""What a user may set, each with unit, range and source; frozen, checked, and free of heavy imports.

The models live apart from the code that reads them only because `--help` must answer at once: importing
this module imports neither torch nor Ray.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from atom.errors import ConfigError
from atom.protocols import PROTOCOLS

DSA_OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
DEFAULT_DSA = "_".join(DSA_OPERATIONS)
DSA_FOR_SYMBOLS = "_".join(operation for operation in DSA_OPERATIONS if operation != "flip")
"""A mirrored digit is no digit. Source: DSA's published settings for MNIST and SVHN."""

INITS = ("real", "noise", "herding", "kcenter")
"""Starts that need no more than the real images."""
FROM_SET = "set:"
"""Before the digest of the set that the images start from, in resolved settings."""
Switch = Literal["auto", "on", "off"]
DeviceKind = Literal["cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
InitialWeights = Literal["kept", "drawn"]
ProtocolName = Literal["common", "dm", "datadam", "idc", "ddranking"]
"""See `atom.protocols`."""


class Settings(BaseModel):
    """Base of all settings: frozen, unknown names refused, docstrings under the fields are the help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def changed(self, **values: Any) -> Self:
        """The settings with other values, checked anew."""
        return self.model_validate({**dict(self), **values})

    def shrunk(self) -> Self:
        """The same for a smoke run: as little work as runs every part. Here nothing is work."""
        return self


def first_problem(error: ValidationError) -> str:
    """The first of what pydantic found wrong, as one sentence that names the flag."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "settings"
    return f"--{place.replace('_', '-')}: received {first['input']!r}: {first['msg'].lower()}."


class NoOptions(Settings):
    """Of a method that reads none of its own."""


class EvaluateSettings(Settings):
    """How a network is trained on a small set, by SGD; see `atom.protocols`."""

    protocol: ProtocolName = "common"
    """How the field trains on a set: common, DM's at fewer epochs on a CPU; dm, datadam (BatchNorm, small batches), idc
    (CutMix), ddranking, as published. Decides what is not given."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the small set; default by protocol; common: 1000 on a GPU (DM), 300 on a CPU (chosen, measured)."""
    lr_net: Annotated[float, Field(gt=0)] = 0.01
    """SGD step size on the network, x0.1 after half of the epochs; idc: x0.2 after two thirds and five sixths."""
    momentum_net: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum on the network."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty on the network."""
    batch_train: Annotated[int, Field(ge=1)] | None = None
    """Images per training step; default by protocol; common: 256. Source: DM."""
    eval_dsa_strategy: str = "auto"
    """Augmentation while training on the small set, as --dsa-strategy; auto: as there, under idc without cutout."""
    eval_precision: Precision = "auto"
    """Arithmetic of training and testing; auto: bfloat16 where the device computes in it, else float32."""
    initial_weights: InitialWeights = "kept"
    """Where trainings of a network of your own begin: kept, as your function returns it; drawn, at fresh random
    weights."""

    @property
    def batch(self) -> int:
        """Images per training step, resolved or not."""
        return self.batch_train or PROTOCOLS[self.protocol].batch_train

    @property
    def told(self) -> str:
        """The resolved settings, for people."""
        named = "" if self.protocol == "common" else f", protocol {self.protocol}"
        return (
            f"{self.epochs} epochs, batch {self.batch}, SGD {self.lr_net:g}, momentum {self.momentum_net:g}, weight"
            f" decay {self.weight_decay:g}, DSA {self.eval_dsa_strategy}, {self.eval_precision}{named}"
        )

    @field_validator("eval_dsa_strategy")
    @classmethod
    def _known_eval_operations(cls, strategy: str) -> str:
        if strategy != "auto":
            parse_dsa_strategy(strategy, flag="--eval-dsa-strategy")
        return strategy


def images_of_classes(num_images: int, num_classes: int) -> list[int]:
    """How many of so many images are of each class where image i is of class i mod K: the first have one more.

    Example:
        >>> images_of_classes(5, 3)
        [2, 2, 1]
    """
    each, more = divmod(num_images, num_classes)
    return [each + (class_id < more) for class_id in range(num_classes)]


def rows_of(counts: Sequence[int], per_class: int) -> list[int]:
    """Of rows that lie class by class, `per_class` each, the first ones of each class, by its count.

    Example:
        >>> rows_of([2, 1], 2)
        [0, 1, 2]
    """
    return [class_id * per_class + row for class_id, count in enumerate(counts) for row in range(count)]


def check_useless(settings: Settings, name: str, because: str) -> None:
    """Refuse a setting that nothing would read.

    By its value and not by whether it was given: settings that were written and are read back have all fields set.

    Args:
        settings: which have it.
        name: of the setting.
        because: why nothing reads it, and what to do instead.

    Raises:
        ConfigError: it has another value than its default.
    """
    value = getattr(settings, name)
    if value != type(settings).model_fields[name].default:
        raise ConfigError(f"--{name.replace('_', '-')} {value}: {because}, or leave this out.")


class OwnTraining(EvaluateSettings):
    """How a network is trained on a set, as the set itself may say: perhaps by steps of its own, in their order.

    No flags: such numbers are learned with the images. Steps of its own are those of Wang et al., *Dataset
    Distillation*, 2018.

    Example:
        >>> OwnTraining(epochs=3, step_sizes=(0.1, 0.2, 0.1, 0.2, 0.05, 0.1)).steps_per_epoch
        2
    """

    step_sizes: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Of SGD, one for each step of all epochs. Of S steps in an epoch, step s takes the decoded images s, s + S, ...,
    in every epoch; empty: lr_net, and batches in random order."""
    start_seed: Annotated[int, Field(ge=0)] | None = None
    """Every training begins with the random weights that this seed has; None: each with those of its own seed."""

    @model_validator(mode="after")
    def _whole_epochs(self) -> Self:
        if self.step_sizes and (self.epochs is None or len(self.step_sizes) % self.epochs):
            raise ConfigError(
                f"step_sizes has {len(self.step_sizes)} numbers for {self.epochs} epochs, expected equally many for"
                " each; give epochs, and a number for each step of all of them."
            )
        return self

    @property
    def steps_per_epoch(self) -> int:
        """S; 0 where there are no steps of its own."""
        return len(self.step_sizes) // self.epochs if self.epochs else 0


def settle_dsa_strategy(strategy: str, *, symbols: bool | None, flag: str = "--dsa-strategy") -> str:
    """The strategy, "auto" replaced by what suits the images.

    Args:
        strategy: operations joined by "_", "none" or "auto".
        symbols: whether the images show written symbols, which are not mirrored, as `RealData.symbols` and
            `DistilledSet.symbols` know; None: nobody said, which will not do for "auto".
        flag: how messages call the setting.

    Raises:
        ConfigError: an operation is unknown, or "auto" without a word on symbols.
    """
    if strategy != "auto":
        parse_dsa_strategy(strategy, flag=flag)
        return strategy
    if symbols is None:
        raise ConfigError(
            f"{flag} 'auto' mirrors images unless they show written symbols, and nobody said whether these do; pass"
            " symbols=True for digits, letters and the like, else symbols=False (image sets and distilled sets know:"
            " .symbols), or name the operations."
        )
    return DSA_FOR_SYMBOLS if symbols else DEFAULT_DSA


def parse_dsa_strategy(strategy: str, *, flag: str = "--dsa-strategy") -> tuple[str, ...]:
    """Operations of a DSA strategy string, in the order given; "none" and "" give none.

    Args:
        strategy: operations joined by "_".
        flag: how the message calls the setting.

    Raises:
        ConfigError: an operation is unknown.
    """
    if strategy.lower() in ("", "none"):
        return ()
    operations = tuple(strategy.split("_"))
    for operation in operations:
        if operation not in DSA_OPERATIONS:
            raise ConfigError(
                f"{flag} {strategy!r}: unknown operation {operation!r}; known are {', '.join(DSA_OPERATIONS)},"
                " joined by '_', or 'none'."
            )
    return operations


__all__ = [
    "DEFAULT_DSA",
    "DSA_FOR_SYMBOLS",
    "DSA_OPERATIONS",
    "FROM_SET",
    "INITS",
    "DeviceKind",
    "EvaluateSettings",
    "InitialWeights",
    "NoOptions",
    "OwnTraining",
    "Precision",
    "Settings",
    "Switch",
    "first_problem",
    "images_of_classes",
    "parse_dsa_strategy",
    "rows_of",
    "settle_dsa_strategy",
]
