import logging
import shutil
from pathlib import Path

import pytest
import torch

from atom.device import has_compiler
from atom.errors import ConfigError
from atom.methods import matching_defaults
from atom.methods.matching_defaults import COMPILE_WORTH_FLOP, group_flop
from atom.methods.method import Shape
from atom.methods.settings import DistillSettings
from atom.resolve import resolve_evaluation, resolve_settings
from atom.settings import EvaluateSettings

CIFAR = {"channels": 3, "height": 32, "width": 32, "num_classes": 10}
DIGITS = {"channels": 1, "height": 8, "width": 8, "num_classes": 10}
TINY = {"channels": 3, "height": 64, "width": 64, "num_classes": 200}


@pytest.fixture(autouse=True)
def with_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching_defaults, "has_compiler", lambda kind="cpu": True)


def resolved(kind: str = "cpu", shape: dict[str, int] = CIFAR, **values: object) -> DistillSettings:
    asked = DistillSettings.model_validate(values)
    return resolve_settings(asked, device_kind=kind, symbols=False, **shape)  # type: ignore


def has_bfloat16(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    monkeypatch.setattr("atom.device._computes_in_bfloat16", lambda device: answer)
    # Where the driver has no GPU of its own, that of the workers is taken to compute in bfloat16.
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("shape", [CIFAR, DIGITS, TINY])
def test_nothing_is_left_open(kind: str, shape: dict[str, int]) -> None:
    values = resolved(kind, shape).model_dump()
    assert [name for name, value in values.items() if value in (None, "auto")] == []
    assert resolved(kind, shape, **values).model_dump() == values


@pytest.mark.parametrize(("kind", "iterations"), [("cpu", 300), ("cuda", 8000)])
def test_iterations_follow_the_device(kind: str, iterations: int) -> None:
    assert resolved(kind).iterations == iterations


@pytest.mark.parametrize(("ipc", "rate"), [(1, 1.0), (50, 1.0), (51, 10.0)])
def test_step_size_follows_ipc(ipc: int, rate: float) -> None:
    assert resolved(ipc=ipc).lr_img == rate


@pytest.mark.parametrize(("shape", "balance"), [(CIFAR, 0.01), (TINY, 0.02)])
def test_balance_follows_the_image(shape: dict[str, int], balance: float) -> None:
    assert resolved(shape=shape).options.task_balance == balance


@pytest.mark.parametrize(("shape", "zca"), [(CIFAR, "on"), (TINY, "off"), (DIGITS, "off")])
def test_small_colour_images_are_whitened(shape: dict[str, int], zca: str) -> None:
    assert resolved(shape=shape).zca == zca


def test_a_cpu_compiles_where_the_arithmetic_is_worth_it() -> None:
    assert (resolved(shape=CIFAR).compile, resolved(shape=DIGITS).compile) == ("on", "off")
    flop = group_flop(DistillSettings(iterations=1), Shape(**DIGITS))
    threshold = int(COMPILE_WORTH_FLOP / flop)
    assert resolved(shape=DIGITS, iterations=threshold).compile == "off"
    assert resolved(shape=DIGITS, iterations=threshold + 1).compile == "on"


def test_a_cpu_distils_class_by_class_so_that_any_number_of_workers_has_work() -> None:
    assert resolved().classes_per_group == 1
    assert resolved(classes_per_group=4).classes_per_group == 4


@pytest.mark.parametrize(
    ("shape", "values", "size"),
    [
        (CIFAR, {"ipc": 50}, 10),
        (CIFAR, {"ipc": 50, "factor": 2}, 5),
        (CIFAR, {"ipc": 100}, 10),
        (CIFAR, {"ipc": 100, "trained_networks": 1, "calibration": 1.0}, 5),
        (CIFAR | {"num_classes": 100}, {}, 25),
        (CIFAR | {"num_classes": 100}, {"ipc": 2, "covariance_weight": 50.0}, 20),
        (CIFAR | {"num_classes": 37}, {}, 19),
        (TINY, {}, 8),
        (CIFAR | {"height": 512, "width": 512}, {}, 1),
    ],
)
def test_a_gpu_distils_as_many_classes_together_as_a_fixed_memory_holds(
    shape: dict[str, int], values: dict[str, int], size: int
) -> None:
    assert resolved("cuda", shape, **values).classes_per_group == size
    assert resolved("cuda", shape, **values, classes_per_group=3).classes_per_group == 3


def test_writing_out_the_default_grouping_changes_nothing() -> None:
    for shape in (CIFAR, DIGITS):
        for iterations in (100, 300, 3000):
            default = resolved(shape=shape, iterations=iterations)
            assert resolved(shape=shape, iterations=iterations, classes_per_group=1) == default


@pytest.mark.parametrize(("iterations", "switch"), [(499, "off"), (500, "on")])
def test_a_gpu_compiles_long_runs(iterations: int, switch: str) -> None:
    assert resolved("cuda", DIGITS, iterations=iterations).compile == switch


def test_arithmetic_of_a_group_is_one_forward_and_three_for_the_synthetic_images() -> None:
    # 50,745,344 multiply-adds an image, see atom.nets.count_multiply_adds; 7 real and 2 * 4 synthetic images.
    settings = DistillSettings(batch_real=7, ipc=2, factor=2, classes_per_group=4, iterations=3)
    assert group_flop(settings, Shape(**CIFAR)) == 2 * 50_745_344 * (7 + 3 * 8) * 5 * 3


@pytest.mark.parametrize(
    ("kind", "switch", "bfloat16", "expected"),
    [
        ("cpu", "on", True, "bfloat16"),
        ("cpu", "on", False, "float32"),
        ("cpu", "off", True, "float32"),
        ("cuda", "off", True, "bfloat16"),
        ("cuda", "on", False, "float32"),
    ],
)
def test_precision_follows_device_and_compilation(
    kind: str, switch: str, bfloat16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_bfloat16(monkeypatch, bfloat16)
    assert resolved(kind, compile=switch).precision == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="a driver without a GPU is meant")
def test_a_driver_without_a_gpu_decides_for_workers_with_one() -> None:
    chosen = resolved("cuda", compile="on")
    assert (chosen.compile, chosen.iterations) == ("on", 8000)
    assert chosen.precision == "bfloat16"
    assert resolve_evaluation(EvaluateSettings(), device_kind="cuda", symbols=False).epochs == 1000


def test_explicit_values_are_kept() -> None:
    values = {
        "iterations": 7,
        "lr_img": 0.25,
        "zca": "off",
        "precision": "bfloat16",
        "compile": "off",
    }
    assert resolved(**values).model_dump(include=set(values)) == values
    assert resolved(shape=DIGITS, zca="on", compile="on").model_dump(include={"zca", "compile"}) == {
        "zca": "on",
        "compile": "on",
    }
    assert resolved(iterations=0, task_balance=0.0).options.task_balance == 0.0


@pytest.mark.parametrize("switch", ["auto", "on"])
def test_without_a_compiler_there_is_one_warning_and_the_eager_step(
    switch: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(matching_defaults, "has_compiler", has_compiler)
    monkeypatch.setattr(shutil, "which", lambda command: None)
    with caplog.at_level(logging.WARNING):
        chosen = resolved(compile=switch)
    assert (chosen.compile, chosen.precision) == ("off", "float32")
    assert [
        "no compiler with Python's headers found" in record.getMessage() for record in caplog.records
    ] == [True]


@pytest.mark.parametrize("values", [{"compile": "off"}, {"iterations": 1}])
def test_who_does_not_compile_needs_no_compiler(
    values: dict[str, object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(matching_defaults, "has_compiler", lambda kind="cpu": False)
    assert resolved(**values).compile == "off"
    assert not caplog.records


@pytest.mark.parametrize("present", ["g++", "gcc", "my-c++", "my-cc"])
def test_the_compiler_that_torch_would_call_is_looked_for(
    present: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda command: command if command == present else None)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    assert (has_compiler("cpu"), has_compiler("cuda")) == (present == "g++", present == "gcc")
    monkeypatch.setenv("CXX", "my-c++ -O2")
    monkeypatch.setenv("CC", "my-cc -O2")
    assert (has_compiler("cpu"), has_compiler("cuda")) == (present == "my-c++", present in ("gcc", "my-cc"))


def test_without_pythons_headers_nothing_can_be_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert not has_compiler("cpu")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(shutil, "which", lambda command: command)
    assert has_compiler("cpu")


def test_a_factor_that_the_image_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--factor 8: images of 6x9 pixels cannot hold .* at most 3"):
        resolved(shape={**DIGITS, "height": 6, "width": 9}, factor=8)


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(ConfigError, match="--dsa-strategy 'color_blur': unknown operation 'blur'; known are"):
        resolved(dsa_strategy="color_blur")


@pytest.mark.parametrize("switch", ["off", "auto"])
def test_an_unknown_network_is_refused(switch: str) -> None:
    with pytest.raises(ConfigError, match="network 'lenet': unknown"):
        resolved(network="lenet", compile=switch)


def test_a_network_too_shallow_for_the_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"network has 1 block; pass a deeper network or --method dm"):
        resolved(network="convnet-d1", compile="off")
    assert resolved(network="convnet-d1", method="dm").method == "dm"


def test_written_symbols_are_not_mirrored() -> None:
    assert "flip" in resolved().dsa_strategy
    shape = {"channels": 1, "height": 8, "width": 8, "num_classes": 10}
    chosen = resolve_settings(DistillSettings(), device_kind="cpu", symbols=True, **shape)
    judged = resolve_evaluation(EvaluateSettings(), device_kind="cpu", symbols=True)
    assert chosen.dsa_strategy == judged.eval_dsa_strategy == "color_crop_cutout_scale_rotate"


def test_images_without_full_rank_are_whitened_only_where_asked() -> None:
    for asked, expected in (("auto", "off"), ("on", "on")):
        settings = DistillSettings(zca=asked, compile="off")  # type: ignore
        chosen = resolve_settings(settings, device_kind="cpu", symbols=False, whitenable=False, **CIFAR)
        assert chosen.zca == expected


def test_images_of_which_nobody_said_whether_they_show_symbols_are_not_mirrored_in_silence() -> None:
    with pytest.raises(ConfigError, match=r"--dsa-strategy 'auto' mirrors .* pass symbols=True"):
        resolve_settings(DistillSettings(), device_kind="cpu", symbols=None, **CIFAR)
    with pytest.raises(ConfigError, match=r"--eval-dsa-strategy 'auto' mirrors .* pass symbols=True"):
        resolve_evaluation(EvaluateSettings(), device_kind="cpu", symbols=None)
    named = DistillSettings(dsa_strategy="crop", compile="off")
    assert resolve_settings(named, device_kind="cpu", symbols=None, **CIFAR).dsa_strategy == "crop"


@pytest.mark.parametrize(("kind", "epochs"), [("cpu", 300), ("cuda", 1000)])
def test_evaluation_follows_the_device(kind: str, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    has_bfloat16(monkeypatch, True)
    chosen = resolve_evaluation(EvaluateSettings(), device_kind=kind, symbols=False)  # type: ignore
    assert (chosen.epochs, chosen.eval_precision) == (epochs, "bfloat16")
    kept = EvaluateSettings(epochs=3, batch_train=9, eval_precision="float32", eval_dsa_strategy="crop")
    assert resolve_evaluation(kept, device_kind=kind, symbols=None) == kept  # type: ignore


@pytest.mark.parametrize("name", ["iterations", "lr_img"])
def test_help_says_where_a_default_depends_on_the_method(name: str) -> None:
    defaults = {getattr(resolved("cuda", method=m), name) for m in ("atom", "dsa", "mtt", "rat-bptt")}
    assert len(defaults) > 1
    assert "default by method" in (DistillSettings.model_fields[name].description or "")
