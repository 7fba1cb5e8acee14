"""What a user may set, each with unit, range and source; frozen, checked, and free of heavy imports.

The models live apart from the code that reads them only because `--help` must answer at once: importing
this module imports neither torch nor Ray.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from atom.errors import ConfigError

DSA_OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
DEFAULT_DSA = "_".join(DSA_OPERATIONS)
DSA_FOR_SYMBOLS = "_".join(operation for operation in DSA_OPERATIONS if operation != "flip")
"""A mirrored digit is no digit. Source: DSA's published settings for MNIST and SVHN."""

Mode = Literal["atom", "spatial", "channel", "dm"]
INITS = ("real", "noise", "herding", "kcenter")
"""Starts that need no more than the real images."""
FROM_SET = "set:"
"""Before the digest of the set that the images start from, in resolved settings."""
Switch = Literal["auto", "on", "off"]
DeviceKind = Literal["cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
InitialWeights = Literal["kept", "drawn"]


class Settings(BaseModel):
    """Base of all settings: frozen, unknown names refused, docstrings under the fields are the help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class MatchingSettings(Settings):
    """The objective: which statistics of the features are matched, and how they are weighed."""

    mode: Mode = "atom"
    """What is matched. atom: spatial and channel attention; spatial: as DataDAM; channel: channel attention alone; dm:
    mean embeddings alone."""
    power: Annotated[int, Field(ge=1, le=8)] = 4
    """Exponent p of the attention maps, for |activation|**p. Source: DataDAM, hyper-parameter table."""
    task_balance: Annotated[float, Field(ge=0)] | None = None
    """Weight λ of the embedding term, times loss_scale; default 0.01 below 64 pixels, 0.02 from there on. Source:
    DataDAM, hyper-parameter table."""
    loss_scale: Annotated[float, Field(gt=0)] = 100.0
    """Factor on every term; with λ = 0.01 the embedding term weighs 1, as in DM. Source: DataDAM's
    published code."""


class DistillSettings(MatchingSettings):
    """One distillation: everything, besides the real images, that decides its bits."""

    ipc: Annotated[int, Field(ge=1)] = 1
    """Stored images per class."""
    factor: Annotated[int, Field(ge=1, le=8)] = 1
    """Multi-formation: a stored image holds factor x factor smaller ones. Source: IDC (Kim et al., 2022)."""
    iterations: Annotated[int, Field(ge=0)] | None = None
    """Steps on the images, each with a fresh random network; default 8000 on a GPU (DataDAM), 300 on a CPU (chosen,
    measured)."""
    lr_img: Annotated[float, Field(gt=0)] | None = None
    """SGD step size on the preprocessed pixels; default 1 up to ipc 50, 10 above. Source: DataDAM,
    hyper-parameter table."""
    momentum_img: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """SGD momentum on the images. Source: DataDAM, hyper-parameter table."""
    batch_real: Annotated[int, Field(ge=1)] = 128
    """Real images per class and iteration. Chosen, measured: DM takes 256, DataDAM's code 64."""
    init: str = "real"
    """Where images start: real ones (DM, DataDAM), noise, herding, kcenter (coresets); in atom-distill also a set."""
    network: str = "convnet"
    """Network whose random copies give the features; its last block gives the embedding."""
    dsa_strategy: str = "auto"
    """Siamese augmentation: operations joined by "_", or "none"; auto: all six, without flip for symbols (--symbols).
    Source: DSA (Zhao and Bilen, 2021)."""
    zca: Switch = "auto"
    """ZCA whitening of the real images; auto: on for colour images up to 32 pixels. Source: ATOM, supplement 1.2."""
    zca_eps: Annotated[float, Field(gt=0)] = 0.1
    """Added to the eigenvalues of the covariance before whitening. Source: MTT's and DataDAM's code."""
    seed: int = 0
    """Seed of every random stream."""
    classes_per_group: Annotated[int, Field(ge=1)] | None = None
    """Classes distilled together, the unit of work, since they share bits; default 1 on a CPU, on a GPU what 8 GiB
    hold."""
    threads_per_actor: Annotated[int, Field(ge=1)] = 1
    """CPU threads of each actor; part of the recipe, since another count gives other bits."""
    precision: Precision = "auto"
    """Arithmetic of the networks; auto: bfloat16 where the device computes in it, else float32. Images stay float32."""
    compile: Switch = "auto"
    """torch.compile of the step; auto: where the work is worth the compile time."""

    @field_validator("dsa_strategy")
    @classmethod
    def _known_operations(cls, strategy: str) -> str:
        if strategy != "auto":
            parse_dsa_strategy(strategy)
        return strategy


class EvaluateSettings(Settings):
    """How a network is trained on a small set. Source: DM's evaluation, SGD with one drop of the rate."""

    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the small set; default 1000 on a GPU (DM), 300 on a CPU (chosen, measured)."""
    lr_net: Annotated[float, Field(gt=0)] = 0.01
    """SGD step size on the network, x0.1 after half of the epochs."""
    momentum_net: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum on the network."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty on the network."""
    batch_train: Annotated[int, Field(ge=1)] = 256
    """Images per training step. Source: DM."""
    eval_dsa_strategy: str = "auto"
    """Augmentation while training on the small set, as --dsa-strategy."""
    eval_precision: Precision = "auto"
    """Arithmetic of training and testing; auto: bfloat16 where the device computes in it, else float32."""
    initial_weights: InitialWeights = "kept"
    """Where trainings of a network of your own begin: kept, as your function returns it; drawn, at fresh random
    weights."""

    @field_validator("eval_dsa_strategy")
    @classmethod
    def _known_eval_operations(cls, strategy: str) -> str:
        if strategy != "auto":
            parse_dsa_strategy(strategy, flag="--eval-dsa-strategy")
        return strategy


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
    "DistillSettings",
    "EvaluateSettings",
    "InitialWeights",
    "MatchingSettings",
    "Mode",
    "Precision",
    "Settings",
    "Switch",
    "parse_dsa_strategy",
    "settle_dsa_strategy",
]
