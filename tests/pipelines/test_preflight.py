"""What a distillation will hold is reckoned before it begins, and refused in one sentence."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_runs import run_here
from tiny_digits import NETWORK

from atom.errors import ClusterError
from pipelines import preflight
from pipelines.preflight import Load, check_memory, terms

IMAGENET = Load(
    num_train=1281167,
    num_test=0,
    image_bytes=3 * 64 * 64,
    num_classes=1000,
    largest_class=1300,
    group=5,
    ipc=10,
    workers=8,
)
GB = 10**9


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Bytes that are free in memory, and what the store and the disk behind it hold."""
    has = SimpleNamespace(memory=16 * GB, store=5 * GB, disk=100 * GB)
    monkeypatch.setattr(preflight, "free_memory", lambda: has.memory)
    monkeypatch.setattr(preflight, "store_bytes", lambda: has.store)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=has.disk))
    return has


def held(load: Load) -> dict[str, int]:
    return {f"{term.place} {term.formula}": term.num_bytes for term in terms(load)}


def test_groups_of_classes_are_held_as_pixels_and_by_their_workers_preprocessed() -> None:
    group = 5 * 1300 * 12288
    assert held(IMAGENET) == {
        "driver 8·K·I·P": 8 * 1000 * 10 * 12288,
        "store A·G·n·P": 8 * group,
        "workers 4·A·G·n·P": 4 * 8 * group,
    }


def test_whitened_images_are_held_by_the_driver_and_four_times_as_large_in_the_store() -> None:
    found = held(replace(IMAGENET, whitened=True, copied="--baselines"))
    assert found["driver 4·N·P"] == 4 * 1281167 * 12288
    assert found["store 4·A·G·n·P"] == 4 * 8 * 5 * 1300 * 12288
    assert not [name for name in found if name.startswith("workers")]


def test_a_joint_method_has_all_images_in_the_store() -> None:
    assert held(replace(IMAGENET, whole=True))["store 4·N·P"] == 4 * 1281167 * 12288


def test_a_large_set_fits_a_small_machine(machine: SimpleNamespace) -> None:
    check_memory(IMAGENET)
    machine.memory = None
    check_memory(replace(IMAGENET, copied="--baselines"))


def test_what_does_not_fit_is_refused_with_the_terms_of_the_formula(machine: SimpleNamespace) -> None:
    machine.memory = 8 * GB
    with pytest.raises(
        ClusterError,
        match=re.escape(
            "At least 67.1 GB of memory are needed and 8 GB are free: driver 8·K·I·P = 983 MB + driver 4·N·P = 63 GB +"
            " store A·G·n·P = 639 MB + workers 4·A·G·n·P = 2.56 GB, where N = 1281167 training images, M = 0 to test"
            " on, P = 12288 bytes of one, K = 1000 classes of n = 1300 at most, G = 5 of a group, I = 10 images per"
            " class, A = 8 workers here; leave out what --baselines asks for, or take a machine with more."
        ),
    ):
        check_memory(replace(IMAGENET, copied="--baselines"))


def test_what_the_store_spills_needs_disk_instead_of_memory(machine: SimpleNamespace) -> None:
    joint = replace(IMAGENET, whole=True)
    check_memory(joint)
    machine.disk = 10 * GB
    with pytest.raises(
        ClusterError, match=r"63 GB of memory and disk for Ray's object store are needed and 15 GB are"
    ):
        check_memory(joint)


@pytest.mark.ray
def test_the_command_refuses_before_it_takes_the_output(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "free_memory", lambda: 10**5)
    output = tmp_path / "out"
    code, _, errors = run_here("--dataset", "digits", "--network", NETWORK, "--output", output)
    assert code == 2
    assert "driver 4·N·P = " in errors
    assert "where N = 1442 training images, M = 355 to test on, P = 64 bytes of one, K = 10 classes" in errors
    assert not (output / "settings.json").exists()
