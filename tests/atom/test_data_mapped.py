"""Large arrays lie in files: the same images, in no memory, and a sentence where there is no room."""

import errno
import mmap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atom import free_memory
from atom.data import RealData, load, mapped
from atom.data.labelled import load_labelled
from atom.errors import DataError


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1)


def pictures(root: Path, *, grey_first: bool = False) -> Path:
    """Three images a class and part of another colour each, one file that is none."""
    for part in ("train", "test"):
        for k, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for number in range(3):
                image = np.full((5, 5, 3), 40 * k + 10 * number + (part == "test"), np.uint8)
                image[number] = 0 if grey_first and not number else (200, 100, 50)
                mode = "L" if grey_first and not number else "RGB"
                Image.fromarray(image).convert(mode).save(root / part / name / f"{number}.png")
    return root


def read(root: Path, data_dir: Path, **options: object) -> RealData:
    return load(f"folder:{root}", data_dir=data_dir, **options)


def is_mapped(images: np.ndarray) -> bool:
    base: object = images
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return isinstance(base, mmap.mmap)


@pytest.mark.parametrize("grey_first", [False, True])
def test_a_set_in_files_is_the_same_as_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, grey_first: bool
) -> None:
    root = pictures(tmp_path / "pets", grey_first=grey_first)
    in_memory = read(root, tmp_path / "one")
    assert not is_mapped(in_memory.train.images)
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1)
    # Decoded, and found again.
    for _ in range(2):
        found = read(root, tmp_path / "two")
        assert is_mapped(found.train.images)
        assert is_mapped(found.test.images)
        assert found.train.fingerprint == in_memory.train.fingerprint
        assert found.test.fingerprint == in_memory.test.fingerprint
    # Of the folder where it was decoded nothing is left but the entry.
    assert len(list((tmp_path / "two" / "cache").iterdir())) == 1


def test_an_entry_that_was_written_in_memory_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pictures(tmp_path / "pets")
    first = read(root, tmp_path / "data")
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1)
    monkeypatch.setattr("atom.data.parts.decode_all", None)
    found = read(root, tmp_path / "data")
    assert is_mapped(found.train.images)
    assert found.train.fingerprint == first.train.fingerprint


@pytest.mark.usefixtures("all_large")
def test_broken_images_are_left_out_of_a_set_in_files(tmp_path: Path) -> None:
    root = pictures(tmp_path / "pets")
    (root / "train" / "cat" / "1.png").write_text("no image")
    found = read(root, tmp_path / "data", skip_broken=True)
    assert found.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert is_mapped(found.train.images)
    assert found.train.images[2].max() == 200


@pytest.mark.usefixtures("all_large")
def test_images_put_aside_leave_the_others_in_a_file(tmp_path: Path) -> None:
    found = read(pictures(tmp_path / "pets"), tmp_path / "data")
    in_memory, in_files = found.hold_out(0.4), found.hold_out(0.4, folder=tmp_path / "data" / "cache")
    assert not is_mapped(in_memory.train.images)
    assert is_mapped(in_files.train.images)
    assert in_files.train.fingerprint == in_memory.train.fingerprint


@pytest.mark.usefixtures("all_large")
def test_a_class_whose_bytes_changed_on_disk_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    found = read(pictures(tmp_path / "pets"), tmp_path / "data")
    whole = found.train.images.copy()
    file = one_file(tmp_path / "data")
    with file.open("r+b") as content:
        content.seek(-1, 2)
        content.write(b"\x07")
    assert np.array_equal(found.train.of_class(0), whole[:3])
    said = rf"^{file}: the images of class 'dog' are no longer what was decoded.*; run the same command again"
    with pytest.raises(DataError, match=said):
        found.train.of_class(1)
    with pytest.raises(DataError, match=said):
        found.train.checked()
    # As the sentence has it.
    assert np.array_equal(read(tmp_path / "pets", tmp_path / "data").train.checked(), whole)


@pytest.mark.usefixtures("all_large")
def test_a_file_that_was_cut_off_is_refused_instead_of_ending_the_process(tmp_path: Path) -> None:
    found = read(pictures(tmp_path / "pets"), tmp_path / "data")
    file = one_file(tmp_path / "data")
    with file.open("r+b") as content:
        content.truncate(200)
    for read_it in (lambda: found.train.of_class(0), found.train.checked):
        with pytest.raises(DataError, match=rf"^{file}: its images are no longer what was decoded"):
            read_it()


@pytest.mark.usefixtures("all_large")
def test_what_no_other_process_can_change_costs_no_digests(tmp_path: Path) -> None:
    found = read(pictures(tmp_path / "pets"), tmp_path / "data")
    assert len(found.train.class_digests) == 2
    kept = found.hold_out(0.4, folder=tmp_path / "data" / "cache").train
    assert is_mapped(kept.images)
    assert kept.class_digests == ()
    assert kept.checked() is kept.images
    assert np.array_equal(kept.of_class(1), kept.images[kept.labels == 1])


def one_file(data_dir: Path) -> Path:
    """The training images of the only entry of a cache."""
    return next((data_dir / "cache").glob("*/train_images.npy"))


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("rows", [[0, 2, 5], [1, 2, 3], [4], []])
def test_rows_of_a_mapped_array_are_those_rows(tmp_path: Path, rows: list[int]) -> None:
    images = mapped.empty((6, 1, 2, 3), tmp_path)
    images[:] = np.arange(36, dtype=np.uint8).reshape(images.shape)
    assert np.array_equal(mapped.taken(images, np.array(rows, dtype=np.int64)), images[rows])


@pytest.mark.usefixtures("all_large")
def test_rows_that_are_copied_in_steps_are_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_STEP_BYTES", 12)
    images = np.arange(60, dtype=np.uint8).reshape(10, 1, 2, 3)
    assert np.array_equal(mapped.taken(images, np.arange(9), tmp_path), images[:9])


def full(*_asked: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.usefixtures("all_large")
def test_a_full_disk_leaves_the_images_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    assert not is_mapped(mapped.empty((2, 1, 2, 3), tmp_path))
    assert "decoded images are kept in memory" in caplog.text
    assert "(No space left on device)" in caplog.text


@pytest.mark.usefixtures("all_large")
def test_a_folder_that_cannot_be_written_is_not_called_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert not is_mapped(mapped.empty((2, 1, 2, 3), tmp_path / "file" / "cache"))
    assert "failed (Not a directory)" in caplog.text
    assert "room" not in caplog.text


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("lacking", [("posix_fallocate",), ("posix_fallocate", "fstatvfs")])
def test_systems_without_these_calls_have_files_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: tuple[str, ...]
) -> None:
    for name in lacking:
        monkeypatch.delattr(f"os.{name}", raising=False)
    assert is_mapped(mapped.empty((2, 1, 2, 3), tmp_path))


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize(("step", "far"), [(1, False), (8, False), (9, True), (100, True)])
def test_only_rows_that_lie_far_apart_are_read_without_what_is_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, *, far: bool
) -> None:
    """Reading ahead is of use where every second row is wanted."""
    advised: list[bool] = []
    find = mapped._mapping

    def noted(array: np.ndarray) -> mmap.mmap | None:
        advised.append(True)
        return find(array)

    monkeypatch.setattr(mapped, "_mapping", noted)
    images = mapped.empty((10000, 1, 2, 3), tmp_path)
    mapped.taken(images, np.arange(0, 10000, step))
    assert bool(advised) == far


@pytest.mark.usefixtures("all_large")
def test_own_images_of_a_learner_leave_nothing_in_the_data_directory(tmp_path: Path) -> None:
    found = load_labelled(f"folder:{pictures(tmp_path / 'pets') / 'train'}", data_dir=tmp_path / "data")
    assert not is_mapped(found.images.images)
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("all_large")
def test_a_full_disk_and_a_full_memory_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    monkeypatch.setattr(mapped, "free_memory", lambda: 10**9)
    with pytest.raises(
        DataError,
        match=r"1281167 images x 12288 bytes take 16 GB, for which there is neither a file in .* \(No space left on"
        r" device\) nor memory \(1 GB free\); pass --data-dir on another disk",
    ):
        mapped.empty((1281167, 3, 64, 64), tmp_path)


GIB = 2**30


def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str) -> Path:
    (tmp_path / "meminfo").write_text("MemTotal: 33554432 kB\nMemAvailable: 8388608 kB\n")
    (tmp_path / "own").write_text(own)
    for name, place in (("_MEMINFO", "meminfo"), ("_OWN_GROUPS", "own"), ("_GROUPS", "groups")):
        monkeypatch.setattr(free_memory, name, tmp_path / place)
    return tmp_path / "groups"


def test_free_memory_is_the_machine_s_where_nothing_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, monkeypatch, "0::/\n")
    assert free_memory.free_memory() == 8 * GIB


@pytest.mark.parametrize(
    ("own", "group", "names"),
    [
        ("0::/job\n", "job", ("memory.max", "memory.current", "inactive_file")),
        ("0::/elsewhere\n", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "9:memory:/job\n4:cpu:/\n",
            "memory/job",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_free_memory_is_what_a_container_has_left_and_could_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, group: str, names: tuple[str, str, str]
) -> None:
    limits(machine(tmp_path, monkeypatch, own) / group, names, limit=2 * GIB, usage=GIB, cache=GIB // 2)
    assert free_memory.free_memory() == 2 * GIB - GIB // 2


def limits(folder: Path, names: tuple[str, str, str], *, limit: int, usage: int, cache: int) -> None:
    """Write what a group tells."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, (f"{limit}\n", f"{usage}\n", f"anon 5\n{names[2]} {cache}\n"), strict=True):
        (folder / (name if name.startswith("memory.") else "memory.stat")).write_text(text)


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file")
V2 = ("memory.max", "memory.current", "active_file")


@pytest.mark.parametrize(
    ("own", "root", "names"), [("0::/pod/box/job\n", "", V2), ("9:memory:/pod/box/job\n", "memory", V1)]
)
def test_a_limit_of_a_group_above_holds_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, root: str, names: tuple[str, str, str]
) -> None:
    folder = machine(tmp_path, monkeypatch, own) / root / "pod"
    limits(folder / "box" / "job", names, limit=4 * GIB, usage=GIB, cache=0)
    limits(folder / "box", names, limit=2 * GIB, usage=GIB, cache=0)
    limits(folder, names, limit=6 * GIB, usage=GIB, cache=0)
    assert free_memory.free_memory() == GIB


@pytest.mark.parametrize(("own", "root", "names"), [("0::/job\n", "", V2), ("9:memory:/job\n", "memory", V1)])
def test_a_set_that_was_mapped_and_read_twice_is_given_up_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, root: str, names: tuple[str, str, str]
) -> None:
    """Its pages are active ones then, and a second start in the container was refused for them."""
    folder = machine(tmp_path, monkeypatch, own) / root / "job"
    limits(folder, names, limit=2 * GIB, usage=2 * GIB, cache=GIB)
    assert free_memory.free_memory() == GIB


def test_a_group_outside_what_a_container_sees_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = machine(tmp_path, monkeypatch, "0::/../other\n")
    limits(folder.parent / "other", V2, limit=1, usage=1, cache=0)
    folder.mkdir()
    assert free_memory.free_memory() == 8 * GIB


def test_a_group_without_a_limit_limits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = machine(tmp_path, monkeypatch, "0::/\n")
    folder.mkdir()
    (folder / "memory.max").write_text("max\n")
    assert free_memory.free_memory() == 8 * GIB


def test_a_system_that_tells_nothing_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, "")
    (tmp_path / "meminfo").unlink()
    assert free_memory.free_memory() is None
