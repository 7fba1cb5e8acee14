import os
import pickle
import tarfile

import numpy as np
import pytest

from atom.data import load
from atom.data.safe_pickle import read_plain_pickle
from atom.errors import DataError


def cifar_batch(count, *, num_classes, seed, label="labels"):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": pixels, label: [i % num_classes for i in range(count)], "batch_label": "x"}


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Protocol 2 and the old module name are what the official files use.
    path.write_bytes(pickle.dumps(value, protocol=2).replace(b"numpy._core.", b"numpy.core."))


@pytest.fixture
def cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    for number in range(1, 6):
        dump(folder / f"data_batch_{number}", cifar_batch(10, num_classes=10, seed=number))
    dump(folder / "test_batch", cifar_batch(10, num_classes=10, seed=6))
    dump(folder / "batches.meta", {"label_names": [f"name{k}" for k in range(10)], "num_vis": 3072})
    return folder


@pytest.fixture
def archive(cifar10, tmp_path):
    archive = tmp_path / "elsewhere" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as members:
        members.add(cifar10, "cifar-10-batches-py")
    return archive


def test_cifar10_python_batches_are_read_in_order(cifar10):
    data = load("cifar10", data_dir=cifar10.parent)
    expected = cifar_batch(10, num_classes=10, seed=2)["data"].reshape(10, 3, 32, 32)
    assert data.train.images.shape == (50, 3, 32, 32)
    np.testing.assert_array_equal(data.train.images[10:20], expected)
    assert data.train.class_names[3] == "name3"
    assert "Krizhevsky" in data.source.citation


def test_cifar10_is_the_same_from_archive_folder_and_spec_path(cifar10, archive):
    data = load("cifar10", data_dir=cifar10.parent)
    for spec in ("cifar10", f"cifar10:{cifar10}", f"cifar10:{archive}"):
        again = load(spec, data_dir=archive.parent)
        assert again.train.fingerprint == data.train.fingerprint
        assert again.spec == spec


def test_archive_with_members_that_point_outside_writes_nothing(archive, tmp_path):
    with tarfile.open(archive, "w:gz") as members:
        for name in ("../escaped", "cifar-10-batches-py/../../test_batch"):
            members.addfile(tarfile.TarInfo(name))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: .*batches\.meta is missing"):
        load("cifar10", data_dir=archive.parent)
    assert sorted(tmp_path.rglob("*")) == before


def test_cifar10_binary_batches_are_read(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    batch = cifar_batch(10, num_classes=10, seed=0)
    rows = np.concatenate([np.array(batch["labels"], np.uint8)[:, None], batch["data"]], axis=1)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        (folder / name).write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"name{k}" for k in range(10)) + "\n\n")
    data = load("cifar10", data_dir=tmp_path)
    np.testing.assert_array_equal(data.test.images.reshape(10, -1), batch["data"])
    assert data.test.labels.tolist() == batch["labels"]
    (folder / "test_batch.bin").write_bytes(bytes(3000))
    with pytest.raises(DataError, match=r"test_batch\.bin: 3000 bytes are not a whole number of 3073-byte"):
        load("cifar10", data_dir=tmp_path)


def test_cifar100_reads_the_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    for part in ("train", "test"):
        dump(folder / part, cifar_batch(100, num_classes=100, seed=1, label="fine_labels"))
    dump(folder / "meta", {"fine_label_names": [f"name{k}" for k in range(100)], "coarse_label_names": []})
    data = load("cifar100", data_dir=tmp_path)
    assert data.train.num_classes == 100
    assert data.train.per_class_counts().tolist() == [1] * 100


def test_missing_batch_is_named(cifar10):
    (cifar10 / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4: cannot be read"):
        load("cifar10", data_dir=cifar10.parent)


def test_truncated_batch_is_named(cifar10):
    file = cifar10 / "data_batch_4"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="data_batch_4: not a plain pickle of arrays"):
        load("cifar10", data_dir=cifar10.parent)


def test_truncated_archive_is_named(archive):
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: the archive is damaged"):
        load("cifar10", data_dir=archive.parent)


@pytest.mark.parametrize("label", [10, -1, 2**70])
def test_label_out_of_range_is_named(cifar10, label):
    dump(cifar10 / "data_batch_4", {**cifar_batch(10, num_classes=10, seed=0), "labels": [0] * 9 + [label]})
    with pytest.raises(DataError, match=f"data_batch_4: image 9 has label {label}; expected 0 to 9"):
        load("cifar10", data_dir=cifar10.parent)


class Attack:
    """Runs a command when an ordinary unpickler meets it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_pickle_that_runs_code_is_refused_and_runs_nothing(cifar10, tmp_path):
    dump(cifar10 / "test_batch", {"data": Attack(tmp_path / "owned"), "labels": []})
    with pytest.raises(
        DataError, match=r"test_batch: not a plain pickle of arrays \(.*system is not allowed"
    ):
        load("cifar10", data_dir=cifar10.parent)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("array", [np.array([1, "x"], dtype=object), np.zeros(3, np.float32), np.eye(2) > 0])
def test_arrays_of_another_type_are_refused(array):
    with pytest.raises(ValueError, match="not uint8"):
        read_plain_pickle(pickle.dumps({"data": array}, protocol=2))


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_both_orders_are_read(order):
    array = np.asarray(np.arange(6, dtype=np.uint8).reshape(2, 3), order=order)
    np.testing.assert_array_equal(read_plain_pickle(pickle.dumps({"data": array}, protocol=2))["data"], array)


def test_pickle_written_by_python_2_is_read():
    """The opcodes of the official files: byte strings (U), where Python 3 writes text and an encoder."""
    raw = bytes(range(250, 256))
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02K\x03\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x06" + raw + b"tb"
    )
    read = read_plain_pickle(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x03K\x05eu.")
    np.testing.assert_array_equal(read["data"], np.frombuffer(raw, np.uint8).reshape(2, 3))
    assert read["labels"] == [3, 5]


def test_array_that_promises_more_bytes_than_it_has_is_refused():
    content = pickle.dumps({"data": np.zeros(7, np.uint8)}, protocol=2)
    with pytest.raises(ValueError, match="does not have that many bytes"):
        read_plain_pickle(content.replace(b"K\x07\x85", b"K\x09\x85"))


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_that_a_user_saved_again_are_read(protocol, order):
    array = np.asarray(np.arange(6, dtype=np.uint8).reshape(2, 3), order=order)
    read = read_plain_pickle(pickle.dumps({"data": array, "labels": [3]}, protocol=protocol))
    np.testing.assert_array_equal(read["data"], array)


def test_batch_that_a_user_saved_with_other_types_is_told_what_to_write(cifar10):
    (cifar10 / "test_batch").write_bytes(
        pickle.dumps({"data": np.zeros((1, 3072)), "labels": [0]}, protocol=5)
    )
    with pytest.raises(
        DataError, match=r"test_batch: .*not uint8.* or if you wrote the file yourself, write"
    ):
        load("cifar10", data_dir=cifar10.parent)
