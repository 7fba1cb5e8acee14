import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from safetensors.numpy import load, save

from atom.errors import StoreError
from pipelines.output.checkpoints import Checkpoints, ClassState
from pipelines.output.ownership import claim, lock, settings_hash
from pipelines.output.provenance import COMMIT_VARIABLE
from pipelines.output.store import Store


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(params=["path", "file", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same directory reached in three ways; "remote" is a store without a local path."""
    root = tmp_path / "out"
    if request.param == "path":
        return Store.open(root)
    if request.param == "file":
        return Store.open(root.as_uri())
    return Store(pafs.LocalFileSystem(), str(root))


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "out")


def state(seed: int, *, iterations: int = 3) -> ClassState:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    return ClassState(images, images * 2, rng.random(iterations, dtype=np.float32))


def test_written_bytes_are_read_back_and_listed(store: Store) -> None:
    assert store.list() == []
    store.write_bytes("a/b.bin", b"one")
    store.write_bytes("a/b.bin", b"two")
    store.write_bytes("c.bin", b"")
    assert store.read_bytes("a/b.bin") == b"two"
    assert store.list() == ["a/b.bin", "c.bin"]
    assert store.list("a") == ["a/b.bin"]
    assert store.exists("c.bin")


def test_directory_of_a_store_is_a_store(store: Store) -> None:
    inner = store.inside("lots/a")
    inner.write_bytes("x.bin", b"1")
    assert store.read_bytes("lots/a/x.bin") == b"1"
    assert inner.list() == ["x.bin"]
    assert str(inner) == f"{store}/lots/a"


def test_options_of_a_location_serve_its_directories() -> None:
    inner = Store.open("s3://bucket/out?region=us-east-1&scheme=http").inside("lots/a")
    assert str(inner) == "s3://bucket/out/lots/a"


def test_deleting_twice_is_no_error(store: Store) -> None:
    store.write_bytes("c.bin", b"x")
    store.delete("c.bin")
    store.delete("c.bin")
    assert not store.exists("c.bin")


def test_missing_file_is_named(store: Store) -> None:
    with pytest.raises(StoreError, match=r"out/nothing\.bin does not exist"):
        store.read_bytes("nothing.bin")


def test_unknown_scheme_is_refused_with_examples() -> None:
    with pytest.raises(StoreError, match=r"Cannot open the output nonsense://x.*s3://bucket"):
        Store.open("nonsense://x")


def test_full_disk_is_one_sentence_and_leaves_the_old_file(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.write_bytes("a.bin", b"old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError, match=r"Cannot write .*a\.bin: the disk is full; free some space or pass"):
        disk.write_bytes("a.bin", b"new")
    assert disk.local_path is not None
    assert [path.name for path in disk.local_path.iterdir()] == ["a.bin"]
    assert disk.read_bytes("a.bin") == b"old"


def test_really_full_disk(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        disk = Store.open(mount)
        with pytest.raises(StoreError, match="the disk is full"):
            disk.write_bytes("large.bin", bytes(2**20))
        assert list(mount.iterdir()) == []
        with pytest.raises(StoreError, match="the disk is full"), disk.publish_directory("set") as folder:
            (folder / "large.bin").write_bytes(bytes(2**20))
        assert list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_file_in_the_way_of_a_directory_is_explained(disk: Store, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match="a part of the path is a file, not a directory"):
        disk.write_bytes("a.bin", b"x")


def test_published_directory_appears_whole_and_replaces_the_older_one(store: Store) -> None:
    with store.publish_directory("set") as folder:
        (folder / "old.txt").write_text("old")
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert store.list() == []
    assert store.list() == ["set/old.txt", "set/sub/a.txt"]
    with store.publish_directory("set") as folder:
        (folder / "new.txt").write_text("new")
    assert "set/new.txt" in store.list()
    if store.local_path is not None:
        assert store.list() == ["set/new.txt"]


def test_failed_publication_leaves_nothing(disk: Store) -> None:
    def publish() -> None:
        with disk.publish_directory("set") as folder:
            (folder / "half.txt").write_text("half")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        publish()
    assert disk.local_path is not None
    assert list(disk.local_path.iterdir()) == []


def test_checkpoint_round_trip(store: Store) -> None:
    checkpoints = Checkpoints(store, "hash")
    states = {3: state(3), 12: state(12)}
    checkpoints.save(150, states)
    assert "checkpoints/class_0003.it00000150.safetensors" in store.list()
    found = checkpoints.latest([3, 12])
    assert found is not None
    iteration, loaded = found
    assert iteration == 150
    for class_id, expected in states.items():
        np.testing.assert_array_equal(loaded[class_id].images, expected.images)
        np.testing.assert_array_equal(loaded[class_id].momentum, expected.momentum)
        np.testing.assert_array_equal(loaded[class_id].losses, expected.losses)


def test_checkpoints_know_every_program_that_computed_a_part(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commits(checkpoints: Checkpoints) -> list[str | None]:
        return [one["git_commit"] for one in checkpoints.programs([3, 12])]

    monkeypatch.setenv(COMMIT_VARIABLE, "first")
    Checkpoints(disk, "hash").save(10, {3: state(3), 12: state(12)})
    monkeypatch.setenv(COMMIT_VARIABLE, "second")
    looked = Checkpoints(disk, "hash")
    looked.latest([3, 12])
    assert commits(looked) == ["first"]
    looked.save(20, {3: state(3)})
    monkeypatch.setenv(COMMIT_VARIABLE, "third")
    again = Checkpoints(disk, "hash")
    again.latest([3])
    again.latest([12])
    assert commits(again) == ["first", "second"]
    assert again.programs([3])[0]["versions"]["torch"]


def test_a_checkpoint_that_does_not_say_was_computed_by_an_unknown_program(disk: Store) -> None:
    checkpoints = Checkpoints(disk, "hash")
    checkpoints.save(10, {3: state(3)})
    (name,) = disk.list("checkpoints")
    content = disk.read_bytes(name)
    arrays, length = load(content), int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    del metadata["programs"]
    disk.write_bytes(name, save(arrays, metadata))
    older = Checkpoints(disk, "hash")
    assert older.latest([3]) is not None
    assert older.programs([3]) == [{"git_commit": None, "versions": {}}]


def test_older_generations_are_removed_after_the_newer_is_whole(disk: Store) -> None:
    checkpoints = Checkpoints(disk, "hash")
    checkpoints.save(50, {0: state(0), 1: state(1), 2: state(2)})
    checkpoints.save(100, {0: state(3), 1: state(4)})
    names = disk.list("checkpoints")
    assert [name[12:] for name in names] == [
        "class_0000.it00000100.safetensors",
        "class_0001.it00000100.safetensors",
        "class_0002.it00000050.safetensors",
    ]


def test_group_killed_between_two_files_resumes_from_the_common_iteration(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(disk, "hash")
    checkpoints.save(50, {0: state(0), 1: state(1)})
    with monkeypatch.context() as patch:
        write, written = disk.write_bytes, []

        def write_one(name: str, data: bytes) -> None:
            if written:
                raise KeyboardInterrupt
            written.append(name)
            write(name, data)

        patch.setattr(disk, "write_bytes", write_one)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(100, {0: state(2), 1: state(3)})
    found = checkpoints.latest([0, 1])
    assert found is not None
    assert found[0] == 50
    np.testing.assert_array_equal(found[1][0].images, state(0).images)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "flipped", "zeroed header"])
def test_damaged_checkpoint_counts_as_absent(
    disk: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(disk, "hash")
    checkpoints.save(100, {0: state(0), 1: state(1)})
    name = "checkpoints/class_0001.it00000100.safetensors"
    data = disk.read_bytes(name)
    broken = {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "garbage": os.urandom(100),
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "zeroed header": bytes(64) + data[64:],
    }[damage]
    disk.write_bytes(name, broken)
    assert checkpoints.latest([0, 1]) is None
    assert checkpoints.latest([0]) is not None
    assert "class_0001.it00000100" in caplog.text


def test_checkpoint_of_other_settings_counts_as_absent(disk: Store) -> None:
    Checkpoints(disk, "one").save(100, {0: state(0)})
    assert Checkpoints(disk, "other").latest([0]) is None


def test_no_checkpoint_is_none(disk: Store) -> None:
    assert Checkpoints(disk, "hash").latest([0, 1]) is None


def test_output_of_another_version_of_the_images_is_refused_with_the_way_out(disk: Store) -> None:
    claim(disk, {"ipc": 1})
    with pytest.raises(
        StoreError,
        match=r"another version of this project, which gives other images for the same settings "
        r"\(images_version: received 2, stored none\); pass another --output",
    ):
        claim(disk, {"ipc": 1, "images_version": 2})


def test_output_is_claimed_once_and_reused_by_the_same_settings(store: Store) -> None:
    first = claim(store, {"ipc": 1, "networks": ("a", "b")})
    assert (
        claim(store, {"networks": ["a", "b"], "ipc": 1})
        == first
        == settings_hash({"ipc": 1, "networks": ["a", "b"]})
    )


def test_every_differing_setting_is_named(disk: Store) -> None:
    claim(disk, {"ipc": 1, "mode": "atom", "seed": 0, "old": 1})
    with pytest.raises(StoreError) as caught:
        claim(disk, {"ipc": 10, "mode": "dm", "seed": 0, "new": None})
    text = str(caught.value)
    assert "ipc (received 10, stored 1)" in text
    assert 'mode (received "dm", stored "atom")' in text
    assert "old" in text
    assert "new" in text
    assert "seed" not in text
    assert text.endswith("pass another --output or the same settings.")


def test_unreadable_settings_file_is_named(disk: Store) -> None:
    disk.write_bytes("settings.json", b"{half")
    with pytest.raises(StoreError, match=r"settings\.json is not readable JSON"):
        claim(disk, {"ipc": 1})


def test_second_driver_is_refused_until_the_first_dies(disk: Store) -> None:
    program = (
        "import sys, time; from pipelines.output.ownership import lock; from pipelines.output.store import Store\n"
        f"with lock(Store.open({str(disk)!r})): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"is being written by process {holder.pid} on"), lock(disk):
            pass
        holder.kill()
    with lock(disk):
        assert disk.list() == []


def test_file_that_another_process_wrote_first_stays(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_new("mlflow.db", b"first")
    disk.write_new("mlflow.db", b"second")
    assert disk.read_bytes("mlflow.db") == b"first"

    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    disk.write_new("mlflow.db", b"third")
    disk.write_new("other.db", b"fourth")
    assert (disk.read_bytes("mlflow.db"), disk.read_bytes("other.db")) == (b"first", b"fourth")
    assert [path.name for path in Path(str(disk)).iterdir() if "partial" in path.name] == []


def test_stored_texts_hold_no_password(store: Store) -> None:
    store.write_json("mlflow_run.json", {"tracking_uri": "http://alice:s3cret@host"})
    store.write_text("report.html", "<td>atom-nas --set s3://KEY:SECRET@bucket/set</td>")
    assert b'"http://***@host"' in store.read_bytes("mlflow_run.json")
    assert store.read_bytes("report.html") == b"<td>atom-nas --set s3://***@bucket/set</td>"


def test_refusal_before_any_work_leaves_no_claim(store: Store) -> None:
    def refuse() -> None:
        with lock(store, scratch=["preprocess"]):
            claim(store, {"ipc": 1})
            store.write_bytes("preprocess/a.bin", b"x")
            raise StoreError("no MLflow")

    with pytest.raises(StoreError):
        refuse()
    assert store.list() == []
    with lock(store):
        claim(store, {"ipc": 2})
        store.write_bytes("checkpoints/a.bin", b"x")
    with pytest.raises(StoreError):
        refuse()
    assert json.loads(store.read_bytes("settings.json")) == {"ipc": 2}
