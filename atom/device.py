"""What the machine can compute with: devices, arithmetic, and how fast it multiplies matrices."""

import os
import platform
import random
import shlex
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch

from atom.errors import ConfigError
from atom.settings import DeviceKind, Precision

P = ParamSpec("P")
T = TypeVar("T")

# x86 features with which oneDNN multiplies in bfloat16; without one of them it converts, slower than float32.
_BFLOAT16_FEATURES = ("avx512_bf16", "amx_bf16")


def resolve_device(kind: DeviceKind | None = None) -> torch.device:
    """The device of that kind; None takes CUDA where there is one, else the CPU.

    Raises:
        ConfigError: CUDA is asked for and PyTorch finds none, or the kind is unknown.
    """
    if kind not in (None, "cpu", "cuda"):
        raise ConfigError(f"device {kind!r}: unknown kind of device; expected cpu or cuda.")
    if kind == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if kind == "cuda":
        raise ConfigError("device cuda: PyTorch finds no CUDA device on this machine; pass cpu.")
    return torch.device("cpu")


def resolve_precision(setting: Precision, device: torch.device) -> torch.dtype:
    """Arithmetic of the networks: the one asked for, or with "auto" bfloat16 where the device computes in it.

    Returns:
        torch.bfloat16 or torch.float32.
    """
    if setting != "auto":
        return torch.bfloat16 if setting == "bfloat16" else torch.float32
    return torch.bfloat16 if _computes_in_bfloat16(device) else torch.float32


def precision_name(setting: Precision, device_kind: DeviceKind) -> str:
    """As `resolve_precision`, for the device of workers elsewhere: "float32" or "bfloat16"."""
    if setting != "auto":
        return setting
    if device_kind == "cuda" and not torch.cuda.is_available():
        # The driver runs on a head node without a GPU; every GPU since 2020 computes in bfloat16.
        return "bfloat16"
    return "bfloat16" if resolve_precision("auto", torch.device(device_kind)) is torch.bfloat16 else "float32"


def kind_of(device: torch.device) -> DeviceKind:
    """The kind settings are resolved for."""
    return "cuda" if device.type == "cuda" else "cpu"


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Context in which the networks compute in `dtype`; for float32 it does nothing."""
    if dtype == torch.float32:
        # Not a null context: a caller's own autocast must not reach in here and change bits.
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=False)
    return torch.autocast(device.type, dtype=dtype)


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """The values in float32, or as they are in float32 and float64.

    bfloat16 keeps 8 bits: losses, sums of powers and small differences need more.
    """
    return values.float() if values.dtype.itemsize < 4 else values


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Within, PyTorch computes on that many CPU threads; the number decides bits, so state it.

    Raises:
        ConfigError: fewer than 1.
    """
    if threads < 1:
        raise ConfigError(f"threads {threads}: expected at least 1.")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_SETTINGS: tuple[tuple[Callable[[], object], Callable[..., object]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    *(
        pair
        for kind in ("cpu", "cuda")
        for pair in (
            (partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind)),
            (partial(torch.get_autocast_dtype, kind), partial(torch.set_autocast_dtype, kind)),
        )
    ),
    *(
        (partial(getattr, torch.backends.cudnn, name), partial(setattr, torch.backends.cudnn, name))
        for name in ("enabled", "benchmark", "deterministic")
    ),
)
"""PyTorch's settings of a process or a thread that a network's own code may change: how to ask, how to set."""


@contextmanager
def settings_kept() -> Iterator[None]:
    """Whatever PyTorch's settings are made within, they are put back after: the next network must not inherit them."""
    before = [ask() for ask, _ in _SETTINGS]
    try:
        yield
    finally:
        for (ask, change), value in zip(_SETTINGS, before, strict=True):
            if ask() != value:
                change(value)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators of torch, NumPy and Python at a seed, and as they were afterwards."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Within, CUDA computes the same bits on every run, or raises where it cannot; see `settings_kept` too."""
    with settings_kept(), _deterministic(device):
        yield


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    # cuBLAS reads it when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The compiler times variants of its kernels and keeps the fastest: another run may keep another.
    from torch._inductor import config as inductor

    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.use_deterministic_algorithms(True)
    # float32 means float32: TF32 keeps ten bits of the mantissa, and is on by default in convolutions.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with inductor.patch(deterministic=True):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32


@contextmanager
def own_generators(device: torch.device, seed: int) -> Iterator[None]:
    """torch's generators seeded within, and put back after: a user's network may hold dropout."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # torch.manual_seed takes the generators of this process alone, and the fork restores them.
        torch.manual_seed(seed)
        yield


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


def compile_apart(function: Callable[P, T], **options: Any) -> Callable[P, T]:
    """`torch.compile` of a copy of a function or method, however many copies a process compiles.

    Dynamo counts recompilations by code object and gives up after eight: a copy has a count of its own.

    Args:
        function: plain, or a method.
        options: of `torch.compile`.
    """
    plain = cast(FunctionType, getattr(function, "__func__", function))
    own = FunctionType(
        plain.__code__.replace(), plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__
    )
    own.__kwdefaults__ = plain.__kwdefaults__
    instance = getattr(function, "__self__", None)
    return torch.compile(own if instance is None else MethodType(own, instance), **options)


def matmul_rate(
    device: torch.device, dtype: torch.dtype, *, size: int | None = None, repeats: int = 8
) -> float:
    """Best measured rate of square matrix products, in FLOP/s, at PyTorch's present number of threads.

    Args:
        device: where to measure.
        dtype: of the matrices.
        size: rows and columns; default 2048 on a CPU, 8192 on CUDA.
        repeats: products timed one by one, after two untimed; the fastest counts.
    """
    side = size if size is not None else (8192 if device.type == "cuda" else 2048)
    left, right = (torch.full((side, side), 0.5, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 2):
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(left, right)
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2.0 * side**3 / min(seconds[2:])


def describe_hardware() -> str:
    """One line for reports: processor, its cores, memory, and the GPUs with theirs."""
    parts = [f"{_cpu_model()}, {_usable_cores()} cores, {_memory_gib():.0f} GiB"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            parts.append(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    return "; ".join(parts)


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return any(bool(features.get(name)) for name in _BFLOAT16_FEATURES)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        # Not Linux: the platform module is all there is.
        pass
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
