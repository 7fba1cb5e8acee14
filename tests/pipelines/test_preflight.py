"""What a distillation will hold is reckoned before it begins, and refused in one sentence."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_runs import run_here
from tiny_digits import NETWORK

from atom.data import ImageSet, RealData, SourceInfo
from atom.errors import ClusterError
from atom.resolve import resolve_settings
from pipelines import preflight
from pipelines.console.commands import DistillCommand
from pipelines.distill_case import load_of
from pipelines.preflight import Load, check_memory, images_in_work, terms
from pipelines.workers.resources import ActorSize

GROUP = 5 * 1300
IMAGENET = Load(
    num_train=1281167,
    num_test=0,
    image_bytes=3 * 64 * 64,
    num_classes=1000,
    largest_class=1300,
    in_work=8 * GROUP,
    ipc=10,
    workers=8,
)
P, GB = 12288, 10**9
SPILL = Path("/scratch/ray")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Bytes that are free in memory, and what the store and the disk behind it hold."""
    has = SimpleNamespace(memory=16 * GB, store=5 * GB, disk=100 * GB, spill=SPILL, client=False, asked=[])

    def disk_usage(folder: Path) -> SimpleNamespace:
        has.asked.append(folder)
        return SimpleNamespace(free=has.disk)

    monkeypatch.setattr(preflight, "free_memory", lambda: has.memory)
    monkeypatch.setattr(preflight, "store_bytes", lambda: has.store)
    monkeypatch.setattr(preflight, "spill_folder", lambda: has.spill)
    monkeypatch.setattr(preflight, "is_client", lambda: has.client)
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    return has


def held(load: Load, phase: str = "to distil") -> dict[str, int]:
    return {f"{term.place} {term.formula}": term.num_bytes for term in terms(load)[phase]}


def test_groups_of_classes_are_held_as_pixels_and_by_their_workers_preprocessed() -> None:
    assert held(IMAGENET) == {
        "driver 8·K·I·P": 8 * 1000 * 10 * P,
        "store S·P": 8 * GROUP * P,
        "workers 4·S·P": 4 * 8 * GROUP * P,
    }


def test_workers_with_a_gpu_hold_one_class_each_in_memory() -> None:
    assert held(replace(IMAGENET, on_cuda=True))["workers 4·A·n·P"] == 4 * 8 * 1300 * P


def test_workers_on_other_machines_take_none_of_this_one_s_memory_but_its_store() -> None:
    found = held(replace(IMAGENET, here=False))
    assert found["store S·P"] == 8 * GROUP * P
    assert not [name for name in found if name.startswith("workers")]


def test_whitened_images_are_held_by_the_driver_and_four_times_as_large_in_the_store() -> None:
    found = held(replace(IMAGENET, whitened=True))
    assert found["driver 4·N·P"] == 4 * 1281167 * P
    assert found["store 4·S·P"] == 4 * 8 * GROUP * P
    assert not [name for name in found if name.startswith("workers")]


def test_a_joint_method_has_all_images_in_the_store_and_no_groups() -> None:
    joint = replace(IMAGENET, whole="distilling", in_work=0)
    assert held(joint) == {"driver 8·K·I·P": 8 * 1000 * 10 * P, "store 4·N·P": 4 * 1281167 * P}


def test_a_method_of_groups_that_trains_networks_has_all_images_in_the_store_beside_them() -> None:
    found = held(replace(IMAGENET, whole="distilling"))
    assert found["store 4·N·P"] == 4 * 1281167 * P
    assert found["store S·P"] == 8 * GROUP * P


def test_teachers_come_after_the_groups() -> None:
    taught = replace(IMAGENET, whole="judging")
    assert "store 4·N·P" not in held(taught)
    assert held(taught, "to judge") == {"driver 4·K·I·P": 4 * 1000 * 10 * P, "store 4·N·P": 4 * 1281167 * P}


def test_groups_of_unequal_sizes_count_as_what_they_are() -> None:
    """The largest class times all workers is more than there is where one class is large."""
    assert images_in_work([10000, 10, 10, 10], 3) == 10020
    assert images_in_work([500, 500, 100], 8) == 1100


def test_the_command_counts_the_images_of_its_largest_groups() -> None:
    """Two workers, of whom only one can be at the large class."""
    labels = np.repeat([0, 1, 2], [60, 20, 30])
    train = ImageSet.create(np.zeros((110, 1, 8, 8), np.uint8), labels, ("cat", "dog", "fox"))
    real = RealData("pets", "folder:pets", train, train, SourceInfo("Pets", "", "", ""))
    command = DistillCommand.of(dataset="folder:pets", ipc=1, eval_seeds=0)
    settings = resolve_settings(
        command.distill, channels=1, height=8, width=8, num_classes=3, symbols=False, device_kind="cpu"
    )
    size = ActorSize(num_actors=2, cpus=1, gpus=0)
    units = [(0,), (1,), (2,)]
    load = load_of(command, settings, real, units, size, "cpu", taught=False)
    assert (load.in_work, load.whole, load.num_test) == (90, "", 0)
    joint = load_of(command, settings, real, [(0, 1, 2)], size, "cpu", taught=False)
    assert (joint.in_work, joint.whole) == (0, "distilling")


def test_a_large_set_fits_a_small_machine(machine: SimpleNamespace) -> None:
    check_memory(IMAGENET)
    machine.memory = None
    check_memory(replace(IMAGENET, whitened=True))


def test_what_does_not_fit_is_refused_with_the_terms_of_the_formula(machine: SimpleNamespace) -> None:
    machine.memory = 4 * GB
    with pytest.raises(
        ClusterError,
        match=re.escape(
            "At least 4.18 GB of memory are needed to distil and 4 GB are free: driver 8·K·I·P = 983 MB + store S·P ="
            " 639 MB + workers 4·S·P = 2.56 GB, where P = 12288 bytes of one, K = 1000 classes, S = 52000 images of the"
            " groups that 8 workers are at, the largest, I = 10 images per class; pass a smaller --num-actors or"
            " --classes-per-group, or take a machine with more."
        ),
    ):
        check_memory(IMAGENET)


def test_phases_that_follow_each_other_are_not_added_and_the_larger_is_told(machine: SimpleNamespace) -> None:
    """What Ray's store lacks room for lies in files: of 6 GB 5, of whitened images all of the store's 24.6 but 5."""
    judged = replace(IMAGENET, num_test=500_000)
    machine.memory = 6 * GB
    check_memory(judged)
    machine.memory = 5 * GB
    with pytest.raises(
        ClusterError,
        match=re.escape(
            "At least 6.64 GB of memory are needed to judge and 5 GB are free: driver 4·K·I·P = 492 MB + store M·P ="
            " 6.14 GB, where M"
        ),
    ):
        check_memory(judged)
    judged = replace(judged, whitened=True)
    machine.memory = 94 * GB
    check_memory(judged)
    machine.memory = 93 * GB
    with pytest.raises(
        ClusterError,
        match=re.escape(
            "At least 113 GB of memory are needed to judge and 93 GB are free: driver 4·K·I·P = 492 MB + driver 4·N·P"
            " = 63 GB + driver 4·M·P = 24.6 GB + store 4·M·P = 24.6 GB, where"
        ),
    ):
        check_memory(judged)


JOINT = replace(IMAGENET, whole="distilling", in_work=0)


def test_what_the_store_spills_needs_the_disk_that_ray_spills_to(machine: SimpleNamespace) -> None:
    check_memory(JOINT)
    assert machine.asked == [SPILL]
    machine.disk = 10 * GB
    with pytest.raises(
        ClusterError,
        match=r"63 GB of memory for Ray's object store and disk at /scratch/ray, where it spills, are needed to distil"
        r" and 15 GB are free: store 4·N·P = 63 GB, where N",
    ):
        check_memory(JOINT)


def test_a_disk_that_nobody_knows_refuses_nothing(machine: SimpleNamespace) -> None:
    machine.disk, machine.spill = 0, None
    check_memory(JOINT)


def test_a_client_answers_for_its_own_memory_alone(machine: SimpleNamespace) -> None:
    machine.client, machine.disk, machine.memory = True, 0, 2 * GB
    check_memory(IMAGENET)
    check_memory(JOINT)
    with pytest.raises(
        ClusterError, match=r"are free: driver 8·K·I·P = 983 MB \+ driver 4·N·P = 63 GB, where"
    ):
        check_memory(replace(IMAGENET, whitened=True))


@pytest.mark.ray
def test_the_command_refuses_before_it_takes_the_output(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "free_memory", lambda: 10**5)
    output = tmp_path / "out"
    code, _, errors = run_here("--dataset", "digits", "--network", NETWORK, "--output", output)
    assert code == 2
    assert "driver 4·M·P = " in errors
    assert "where M = 355 to test on, P = 64 bytes of one, K = 10 classes" in errors
    assert not (output / "settings.json").exists()


@pytest.mark.ray
def test_the_node_says_where_it_spills(ray_cluster: None) -> None:
    from pipelines.workers.cluster import spill_folder

    folder = spill_folder()
    assert folder is not None
    assert folder.is_dir()


@pytest.mark.ray
def test_a_run_that_goes_on_is_not_refused_for_what_is_done(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        "--dataset",
        "digits",
        "--network",
        NETWORK,
        "--iterations",
        "1",
        "--ipc",
        "1",
        "--eval-seeds",
        "0",
    )
    words = (*words, "--output", str(tmp_path / "out"))
    code, _, errors = run_here(*words)
    assert code == 0, errors
    monkeypatch.setattr(preflight, "free_memory", lambda: 10)
    code, _, errors = run_here(*words)
    assert code == 0, errors
