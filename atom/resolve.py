"""Every default that depends on the data or the device, decided once, before anything is computed.

Whatever can change a bit of the result (precision, compiled or eager, iterations, step size) is decided here by
the driver, written into the artifact, and sent to every worker, which decides nothing.
"""

import logging
import os
import shlex
import shutil
import sysconfig
from pathlib import Path
from typing import TypeVar

import torch

from atom import nets
from atom.device import resolve_precision
from atom.errors import ConfigError
from atom.matching import class_statistics, default_task_balance
from atom.settings import (
    FROM_SET,
    INITS,
    DeviceKind,
    DistillSettings,
    EvaluateSettings,
    Precision,
    settle_dsa_strategy,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

COMPILE_WORTH_FLOP = 4e12
"""Arithmetic of one group from which torch.compile pays on a CPU: it costs 30 to 60 s there, and eager float32
computes at about 50 GFLOP/s a core. Chosen, measured."""

COMPILE_CLASSES = 5
"""Classes that one compilation is to pay for, at least: a worker takes several small groups. Chosen."""

GROUP_BYTES = 8 * 2**30
"""Memory of a step on a GPU that the default grouping keeps within: a card of 12 GB holds it beside the real images.
A constant, since the grouping decides bits, and must not follow the card that happens to be there. Chosen."""

REAL_BYTES, SYNTHETIC_BYTES = 15, 27
"""Bytes of a step's peak for each number of the largest activation, per real and per synthetic image. Measured: 2.5 GiB
for ten classes of CIFAR-10 at IPC 1 with 128 real images each, on an H100; the synthetic ones on a CPU."""


def resolve_settings(
    settings: DistillSettings,
    *,
    device_kind: DeviceKind,
    channels: int,
    height: int,
    width: int,
    num_classes: int,
    symbols: bool | None,
    whitenable: bool = True,
) -> DistillSettings:
    """The settings with no None and no "auto" left.

    Args:
        settings: as the user gave them.
        device_kind: "cpu" or "cuda", of the workers.
        channels, height, width, num_classes: of the real images.
        symbols: whether they show written symbols, which are not mirrored; see `settle_dsa_strategy`.
        whitenable: whether their covariance can have full rank; see `atom.whitening.rank_flaw`.

    Raises:
        ConfigError: an unknown augmentation or network, a network without the blocks that the mode matches,
            images too small for the factor, or a start that is not known here.
    """
    if settings.init not in INITS and not settings.init.startswith(FROM_SET):
        raise ConfigError(
            f"--init {settings.init}: expected one of {', '.join(INITS)}; only atom-distill starts from a distilled set"
            " as well, and reads that itself."
        )
    if settings.factor > 1 and min(height, width) // settings.factor < 2:
        # A tile of one pixel decodes to an image of one colour.
        raise ConfigError(
            f"--factor {settings.factor}: images of {height}x{width} pixels cannot hold that many tiles of two"
            f" pixels a side; pass at most {max(1, min(height, width) // 2)}."
        )
    on_gpu = device_kind == "cuda"
    filled = settings.model_copy(
        update={
            "iterations": _or(settings.iterations, 8000 if on_gpu else 300),
            "lr_img": _or(settings.lr_img, 1.0 if settings.ipc <= 50 else 10.0),
            "task_balance": _or(settings.task_balance, default_task_balance(height, width)),
            "dsa_strategy": settle_dsa_strategy(settings.dsa_strategy, symbols=symbols),
            "zca": settings.zca
            if settings.zca != "auto"
            else _on(whitens_by_itself(channels, height, width) and whitenable),
        }
    )
    _check_network(filled, (channels, height, width), num_classes)
    grouping = _or(settings.classes_per_group, 1)
    if settings.classes_per_group is None and on_gpu:
        grouping = _group_size(filled, (channels, height, width), num_classes)
    filled = filled.model_copy(update={"classes_per_group": grouping})
    compiled = _compile(filled, device_kind, (channels, height, width), num_classes)
    precision = settings.precision
    if precision == "auto" and not on_gpu and compiled == "off":
        # Eager bfloat16 on a CPU converts more than it saves: 133 ms a step against 108 on digits. Measured.
        precision = "float32"
    return filled.model_copy(
        update={
            "compile": compiled,
            "precision": _precision(precision, device_kind),
        }
    )


def whitens_by_itself(channels: int, height: int, width: int) -> bool:
    """Whether `zca="auto"` whitens images of this shape. Source: ATOM, supplement 1.2."""
    return channels == 3 and max(height, width) <= 32


def resolve_evaluation(
    settings: EvaluateSettings, *, device_kind: DeviceKind, symbols: bool | None
) -> EvaluateSettings:
    """The evaluation settings with no None and no "auto" left; arguments and errors as for `resolve_settings`."""
    return settings.model_copy(
        update={
            "epochs": _or(settings.epochs, 1000 if device_kind == "cuda" else 300),
            "eval_dsa_strategy": settle_dsa_strategy(
                settings.eval_dsa_strategy, symbols=symbols, flag="--eval-dsa-strategy"
            ),
            "eval_precision": _precision(settings.eval_precision, device_kind),
        }
    )


def group_flop(
    settings: DistillSettings, *, channels: int, height: int, width: int, num_classes: int
) -> float:
    """Floating-point operations of one group's whole distillation: real forward, synthetic forward and backward."""
    net = nets.build(settings.network, channels=channels, image_size=(height, width), num_classes=num_classes)
    forward = 2.0 * nets.count_multiply_adds(net, channels=channels, image_size=(height, width))
    images = settings.batch_real + 3 * settings.ipc * settings.factor**2
    classes = min(max(settings.classes_per_group or 1, COMPILE_CLASSES), num_classes)
    return forward * images * classes * (settings.iterations or 0)


def has_compiler(device_kind: DeviceKind = "cpu") -> bool:
    """Whether torch.compile can build code here: Python's headers, and on the path what it calls.

    That is $CXX or g++ for CPUs (Inductor), and $CC, gcc or clang for CUDA (Triton).
    """
    if device_kind == "cuda":
        names = [*shlex.split(os.environ.get("CC", ""))[:1], "gcc", "clang"]
    else:
        names = shlex.split(os.environ.get("CXX", "g++"))[:1]
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    return headers and any(shutil.which(name) for name in names)


def _compile(
    settings: DistillSettings, device_kind: DeviceKind, shape: tuple[int, int, int], num_classes: int
) -> str:
    if settings.compile == "off":
        return "off"
    channels, height, width = shape
    if settings.compile == "auto":
        flop = group_flop(settings, channels=channels, height=height, width=width, num_classes=num_classes)
        worth = (settings.iterations or 0) >= 500 if device_kind == "cuda" else flop >= COMPILE_WORTH_FLOP
        if not worth:
            return "off"
    if not has_compiler(device_kind):
        log.warning(
            "no compiler with Python's headers found (g++ or $CXX for CPUs, gcc, clang or $CC for CUDA): the step"
            " runs eagerly, several times slower."
        )
        return "off"
    return "on"


def _group_size(settings: DistillSettings, shape: tuple[int, int, int], num_classes: int) -> int:
    """Classes of a group on a GPU: as many as `GROUP_BYTES` hold, in groups of about equal size."""
    channels, height, width = shape
    net = nets.build(settings.network, channels=channels, image_size=(height, width), num_classes=num_classes)
    synthetic = settings.ipc * settings.factor**2
    images = REAL_BYTES * settings.batch_real + SYNTHETIC_BYTES * synthetic
    fitting = max(1, GROUP_BYTES // (images * nets.largest_map(net, channels, (height, width))))
    num_groups = -(-num_classes // fitting)
    return -(-num_classes // num_groups)


def _check_network(settings: DistillSettings, shape: tuple[int, int, int], num_classes: int) -> None:
    """Refuse a network that cannot distil in this mode before any worker starts."""
    channels, height, width = shape
    net = nets.build(settings.network, channels=channels, image_size=(height, width), num_classes=num_classes)
    nets.WeightDraw(net)
    net = nets.require_blocks(net, settings.network).eval()
    with torch.no_grad():
        class_statistics(net, torch.zeros(1, *shape), num_classes=1, settings=settings)


def _precision(setting: Precision, device_kind: DeviceKind) -> str:
    if setting != "auto":
        return setting
    if device_kind == "cuda" and not torch.cuda.is_available():
        # The driver runs on a head node without a GPU; every GPU since 2020 computes in bfloat16.
        return "bfloat16"
    return "bfloat16" if resolve_precision("auto", torch.device(device_kind)) is torch.bfloat16 else "float32"


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _on(condition: bool) -> str:
    return "on" if condition else "off"
