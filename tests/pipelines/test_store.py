import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest

from atom.errors import StoreError
from atom.methods.method import State, Unit
from pipelines.output.checkpoints import Checkpoints, unit_name
from pipelines.output.ownership import CHECKPOINTS_VERSION, claim, lock, settings_hash
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


def state(
    seed: int,
    *,
    iterations: int = 3,
    columns: int = 1,
    failures: Mapping[int, str] | None = None,
    **more: np.ndarray,
) -> State:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(columns, 2, 3, 5, 4)).astype(np.float32)
    losses = rng.random((iterations, columns), dtype=np.float32)
    return State(iterations, {"images": images, "momentum": images * 2, **more}, losses, failures or {})


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
    with pytest.raises(StoreError, match=r"Cannot open --output nonsense://x.*s3://bucket"):
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


@pytest.mark.parametrize("unit", [(3,), (3, 12, 7)])
def test_checkpoint_of_a_unit_is_one_file_of_its_arrays(store: Store, unit: Unit) -> None:
    """Of whatever type and shape: a method names what it needs."""
    logits = np.arange(len(unit) * 4, dtype=np.float64).reshape(-1, 4)
    expected = state(
        3,
        columns=len(unit),
        logits=logits,
        rate=np.array(0.1),
        losses=np.int64([7]),
        failures={unit[-1]: "ä lost"},
    )
    Checkpoints(store, "hash").save(unit, expected)
    assert store.list("checkpoints") == [unit_name(unit)]
    found = Checkpoints(store, "hash").load(unit)
    assert found is not None
    assert (found.iteration, found.failures) == (expected.iteration, expected.failures)
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in {**expected.arrays, "losses": expected.losses}.items():
        kept = found.losses if name == "losses" else found.arrays[name]
        assert kept.dtype == array.dtype
        np.testing.assert_array_equal(kept, array)


def test_units_of_the_same_first_class_and_size_have_files_of_their_own() -> None:
    units = [(3,), (3, 4), (3, 5), (3, 4, 5), (4, 3)]
    assert len({unit_name(unit) for unit in units}) == len(units)


def test_what_a_preparation_gave_is_found_again_for_the_same_classes_alone(disk: Store) -> None:
    checkpoints = Checkpoints(disk, "hash")
    checkpoints.save_prepared("means", (0, 1), {"mean": np.ones(3, np.float32)})
    found = Checkpoints(disk, "hash").load_prepared("means", (0, 1))
    assert found is not None
    np.testing.assert_array_equal(found["mean"], np.ones(3, np.float32))
    assert checkpoints.load_prepared("means", (0, 2)) is None
    assert Checkpoints(disk, "other").load_prepared("means", (0, 1)) is None


def test_checkpoints_know_every_program_that_computed_a_part(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commits(checkpoints: Checkpoints) -> list[str | None]:
        return [one["git_commit"] for one in checkpoints.programs([(3,), (12,)])]

    monkeypatch.setenv(COMMIT_VARIABLE, "first")
    for unit in ((3,), (12,)):
        Checkpoints(disk, "hash").save(unit, state(3))
    monkeypatch.setenv(COMMIT_VARIABLE, "second")
    looked = Checkpoints(disk, "hash")
    looked.load((3,))
    looked.load((12,))
    assert commits(looked) == ["first"]
    looked.save((3,), state(4))
    monkeypatch.setenv(COMMIT_VARIABLE, "third")
    again = Checkpoints(disk, "hash")
    again.load((3,))
    again.load((12,))
    assert commits(again) == ["first", "second"]
    assert again.programs([(3,)])[0]["versions"]["torch"]


def test_units_remember_who_made_the_experts_that_they_were_made_from(disk: Store) -> None:
    trained = {"git_commit": "of the experts", "versions": {}}
    begun = Checkpoints(disk, "hash")
    begun.reads([trained])
    begun.save((3,), state(3))
    again = Checkpoints(disk, "hash")
    again.load((3,))
    assert again.programs([(3,)])[0] == trained
    assert again.programs([(3,)]) == begun.programs([(3,)])


def test_a_newer_state_takes_the_place_of_the_last_one_and_a_failed_write_leaves_it(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(disk, "hash")
    checkpoints.save((0, 1), state(0, iterations=5))
    checkpoints.save((0, 1), state(1, iterations=9))
    assert len(disk.list("checkpoints")) == 1
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError, match="the disk is full"):
        checkpoints.save((0, 1), state(2, iterations=12))
    found = checkpoints.load((0, 1))
    assert found is not None
    assert found.iteration == 9
    np.testing.assert_array_equal(found.images, state(1).images)


def test_files_written_together_share_a_flush_of_their_folder(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.append(descriptor), flush(descriptor)))
    disk.write_all((f"some/{number}.bin", bytes([number])) for number in range(5))
    assert len(flushed) == 5 + 1
    assert [disk.read_bytes(name) for name in disk.list("some")] == [bytes([n]) for n in range(5)]


def test_files_written_together_are_each_the_old_or_the_new_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(number: int) -> list[tuple[str, bytes]]:
        return [(f"some/{place}.bin", bytes([number])) for place in range(20)]

    store.write_all(files(1))
    assert [store.read_bytes(name) for name, _ in files(1)] == [b"\x01"] * 20
    if store.local_path is None:
        return
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError, match=r"Cannot write .*/some/0.bin: the disk is full"):
        store.write_all(files(2))
    assert [store.read_bytes(name) for name, _ in files(1)] == [b"\x01"] * 20
    assert len(list((store.local_path / "some").iterdir())) == 20


def test_nothing_lists_a_folder_to_find_a_checkpoint(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing costs a request for every thousand files of a bucket, in every chunk."""
    monkeypatch.setattr(disk, "list", None)
    checkpoints = Checkpoints(disk, "hash")
    checkpoints.save((0,), state(0))
    assert checkpoints.load((0,)) is not None
    assert checkpoints.load((1,)) is None


def test_states_of_all_units_are_found_by_one_listing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for each one alone takes a request a class, of thousands of classes minutes."""
    units: list[Unit] = [(class_id,) for class_id in range(30)]
    checkpoints = Checkpoints(store, "hash")
    checkpoints.save_all({unit: state(*unit) for unit in units if unit[0] % 3})
    store.write_bytes(unit_name((1,)), b"damaged")
    listed: list[str] = []
    names = store.list
    monkeypatch.setattr(store, "list", lambda prefix: (listed.append(prefix), names(prefix))[1])
    monkeypatch.setattr(store, "exists", None)
    found = Checkpoints(store, "hash").load_all(units)
    assert listed == ["checkpoints"]
    assert list(found) == [unit for unit in units if unit[0] % 3 and unit != (1,)]
    for unit, one in found.items():
        np.testing.assert_array_equal(one.images, state(*unit).images)


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "garbage", "flipped", "zeroed header", "other iteration"]
)
def test_damaged_checkpoint_counts_as_absent(
    disk: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(disk, "hash")
    for unit in ((0,), (1,)):
        checkpoints.save(unit, state(0, iterations=100))
    name = unit_name((1,))
    data = disk.read_bytes(name)
    broken = {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "garbage": os.urandom(100),
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "zeroed header": bytes(64) + data[64:],
        "other iteration": data.replace(b'"iteration":"100"', b'"iteration":"101"'),
    }[damage]
    assert broken != data
    disk.write_bytes(name, broken)
    assert checkpoints.load((1,)) is None
    assert checkpoints.load((0,)) is not None
    assert name in caplog.text


def test_checkpoint_of_other_settings_counts_as_absent(disk: Store) -> None:
    Checkpoints(disk, "one").save((0,), state(0))
    assert Checkpoints(disk, "other").load((0,)) is None


def test_no_checkpoint_is_none(disk: Store) -> None:
    assert Checkpoints(disk, "hash").load((0, 1)) is None


def test_output_of_the_first_version_is_refused_with_the_way_out(disk: Store) -> None:
    claim(disk, {"ipc": 1, "mode": "atom", "loss_scale": 100.0, "images_version": 3})
    now = {"ipc": 1, "method": "atom", "options": {"power": 4}, "images_version": 3, **CHECKPOINTS_VERSION}
    with pytest.raises(
        StoreError, match=r"begun by an earlier version .* pass another --output, or go on there"
    ):
        claim(disk, now)


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
    claim(disk, {"ipc": 1, "method": "atom", "seed": 0, "old": 1})
    with pytest.raises(StoreError) as caught:
        claim(disk, {"ipc": 10, "method": "dm", "seed": 0, "new": None})
    text = str(caught.value)
    assert "ipc (received 10, stored 1)" in text
    assert 'method (received "dm", stored "atom")' in text
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


def test_what_earlier_outputs_do_not_know_is_compared_where_it_is_known(store: Store) -> None:
    settings, h100, a100 = {"ipc": 1}, {"accelerator_type": "H100"}, {"accelerator_type": "A100"}
    digest = claim(store.inside("new"), settings, beside=h100)
    assert claim(store.inside("old"), settings) == digest
    # Begun before the kind of GPU was noted, or on it.
    assert claim(store.inside("old"), settings, beside=a100) == digest
    assert claim(store.inside("new"), settings, beside=h100) == digest
    with pytest.raises(StoreError, match=r'accelerator_type \(received "A100", stored "H100"\)'):
        claim(store.inside("new"), settings, beside=a100)


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


def test_what_another_driver_writes_among_the_experts_stays_until_it_is_old(disk: Store) -> None:
    assert disk.local_path is not None
    folder = disk.local_path / "experts" / "recipe"
    folder.mkdir(parents=True)
    new, old, own = folder / ".partial-new-1-a", folder / ".partial-new-2-b", disk.local_path / ".partial-c"
    for path in (new, old, own):
        path.touch()
    os.utime(old, (0, 0))
    disk.remove_partial()
    assert [path.exists() for path in (new, old, own)] == [True, False, False]
