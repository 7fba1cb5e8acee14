"""Devices and arithmetic."""

from contextlib import suppress

import pytest
import torch

from atom.device import (
    autocast,
    describe_hardware,
    deterministic,
    matmul_rate,
    resolve_device,
    resolve_precision,
    settings_kept,
    use_threads,
)
from atom.errors import ConfigError

CPU = torch.device("cpu")


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(None) == resolve_device("cpu") == CPU
    with pytest.raises(ConfigError, match="PyTorch finds no CUDA device"):
        resolve_device("cuda")
    with pytest.raises(ConfigError, match="device 'tpu': unknown kind"):
        resolve_device("tpu")


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16"])
def test_auto_takes_bfloat16_only_where_the_processor_computes_in_it(monkeypatch, feature):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, feature: True})
    assert resolve_precision("auto", CPU) is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, feature: False})
    assert resolve_precision("auto", CPU) is torch.float32
    assert resolve_precision("bfloat16", CPU) is torch.bfloat16


def test_autocast_computes_products_in_the_asked_precision():
    left = torch.ones(2, 2)
    for dtype in (torch.float32, torch.bfloat16):
        with autocast(CPU, dtype):
            assert (left @ left).dtype is dtype


def test_threads_are_set_within_and_put_back_after():
    before = torch.get_num_threads()
    with use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ConfigError, match="threads 0"), use_threads(0):
        pass


def test_deterministic_leaves_a_cpu_as_it_is():
    with deterministic(CPU):
        assert not torch.are_deterministic_algorithms_enabled()


def test_rate_and_hardware_are_reported():
    assert matmul_rate(CPU, torch.float32, size=64, repeats=2) > 0
    assert "cores" in describe_hardware()
    assert "GiB" in describe_hardware()


@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.set_grad_enabled(False),
        lambda: torch.set_anomaly_enabled(True),
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_device("meta"),
        lambda: torch.set_num_threads(torch.get_num_threads() + 1),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.set_autocast_enabled("cpu", True),
        lambda: torch.set_autocast_dtype("cpu", torch.float16),
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
    ],
)
def test_settings_made_by_code_within_are_put_back(change):
    def settings():
        cudnn = torch.backends.cudnn
        return (
            torch.is_grad_enabled(),
            torch.is_anomaly_enabled(),
            torch.ones(1).dtype,
            torch.ones(1).device,
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            cudnn.benchmark,
        )

    before = settings()
    with settings_kept():
        change()
        assert settings() != before
    assert settings() == before
    with suppress(KeyError), deterministic(CPU):
        change()
        raise KeyError
    assert settings() == before
