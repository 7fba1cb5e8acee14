import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atom.data import load
from atom.data.npz import MAX_BYTES
from atom.errors import ConfigError, DataError

COUNTS = {"train": 12, "val": 4, "test": 6}


def arrays(shape: tuple[int, ...] = (6, 6), *, num_classes: int = 2) -> dict[str, Any]:
    """MedMNIST's six arrays."""
    content: dict[str, Any] = {}
    for seed, (part, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(seed)
        content[f"{part}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        content[f"{part}_labels"] = (np.arange(count) % num_classes).astype(np.uint8)[:, None]
    return content


def write(file: Path, content: dict[str, Any]) -> Path:
    np.savez_compressed(file, **content)
    return file


def load_npz(path: Path, **choices: Any):
    return load(f"npz:{path}", data_dir=path.parent / "data", **choices)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "Chest X.npz", arrays())


def refused(tmp_path: Path, message: str, **changed: Any) -> None:
    content = {**arrays(), **changed}
    file = write(tmp_path / "x.npz", {name: array for name, array in content.items() if array is not None})
    with pytest.raises(DataError, match=message) as raised:
        load_npz(file)
    assert str(file) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_train_and_test_are_read_and_classes_called_by_their_numbers(file):
    data, content = load_npz(file), arrays()
    np.testing.assert_array_equal(data.train.images, content["train_images"][:, None])
    np.testing.assert_array_equal(data.test.images, content["test_images"][:, None])
    assert data.train.labels.tolist() == [0, 1] * 6
    assert (data.name, data.train.class_names, data.remarks) == ("chest-x", ("0", "1"), ())
    assert data.source.title == "chest-x (npz)"
    assert not (file.parent / "data").exists()


def test_a_directory_with_one_file_stands_for_it(file):
    assert load_npz(file.parent).train.fingerprint == load_npz(file).train.fingerprint


def test_a_directory_with_another_number_of_files_is_refused(file):
    write(file.parent / "b.npz", arrays())
    with pytest.raises(
        DataError, match=r"holds 2 \.npz files \(Chest X\.npz, b\.npz\); expected exactly one"
    ):
        load_npz(file.parent)
    (file.parent / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds 0 \.npz files \(none\)"):
        load_npz(file.parent / "empty")
    with pytest.raises(DataError, match="does not exist"):
        load_npz(file.parent / "missing.npz")


def test_colour_images_have_their_channels_moved_first(tmp_path):
    content = arrays((6, 6, 3))
    data = load_npz(write(tmp_path / "rgb.npz", content))
    np.testing.assert_array_equal(data.train.images, content["train_images"].transpose(0, 3, 1, 2))


def test_a_grey_part_beside_a_coloured_one_is_widened(tmp_path):
    content = arrays((6, 6, 3)) | {"test_images": arrays()["test_images"]}
    assert load_npz(write(tmp_path / "x.npz", content)).test.images.shape == (6, 3, 6, 6)


def test_labels_may_come_without_a_second_dimension_and_in_any_integers(tmp_path):
    flat = {
        f"{part}_labels": arrays()[f"{part}_labels"].reshape(-1).astype(np.int32)
        for part in ("train", "test")
    }
    assert load_npz(write(tmp_path / "x.npz", arrays() | flat)).test.labels.tolist() == [0, 1] * 3


def test_the_validation_part_judges_on_request_and_says_so(file):
    data = load_npz(file, test_part="val")
    np.testing.assert_array_equal(data.test.images, arrays()["val_images"][:, None])
    assert data.remarks == ("judged by val_images, not by test_images",)
    assert load_npz(file, test_part="test").test.fingerprint == load_npz(file).test.fingerprint
    for part in ("train", "validation"):
        with pytest.raises(DataError, match=f"--test-part {part}: this layout has the parts test and val"):
            load_npz(file, test_part=part)


def test_arrays_of_the_part_that_is_not_asked_for_may_lack(tmp_path):
    content = {name: array for name, array in arrays().items() if not name.startswith("val")}
    file = write(tmp_path / "x.npz", content)
    assert len(load_npz(file).test) == 6
    with pytest.raises(DataError, match="has no array val_images"):
        load_npz(file, test_part="val")


def test_classes_are_named_in_the_order_of_their_labels(file):
    data = load_npz(file, class_names=("normal", "pneumonia"))
    assert data.train.class_names == data.test.class_names == ("normal", "pneumonia")
    assert not data.symbols
    assert data.train.fingerprint != load_npz(file).train.fingerprint


@pytest.mark.parametrize("names", [(), ("normal",), ("normal", "ill", "worse")])
def test_another_number_of_names_than_of_classes_is_refused(file, names):
    with pytest.raises(
        DataError, match=rf"--class-names names {len(names)} classes .*, but train_labels holds 2"
    ):
        load_npz(file, class_names=names)


def test_equal_names_are_refused(file):
    with pytest.raises(DataError, match="'ill' and 'ill' are the same"):
        load_npz(file, class_names=("ill", "ill"))


def test_choices_are_refused_where_a_source_does_not_have_them(tmp_path, file):
    with pytest.raises(
        ConfigError, match=r"--class-names a b: digits has no such choice, since .* names of its own"
    ):
        load("digits", data_dir=tmp_path, class_names=("a", "b"))
    with pytest.raises(
        ConfigError,
        match="--test-part val: digits has no such choice; it is for folder, parquet, webdataset and npz",
    ):
        load("digits", data_dir=tmp_path, test_part="val")
    with pytest.raises(ConfigError, match="--label-column x: npz has no such choice"):
        load_npz(file, label_column="x")


def test_a_bare_file_gets_a_hint(tmp_path, file):
    with pytest.raises(ConfigError, match=r"For MedMNIST's layout, pass npz:.*Chest X\.npz"):
        load(str(file), data_dir=tmp_path)
    with pytest.raises(ConfigError, match="names no place; expected npz:PATH"):
        load("npz", data_dir=tmp_path)


def test_images_are_resized_part_by_part(tmp_path):
    content = arrays() | {"test_images": arrays((8, 10))["test_images"]}
    file = write(tmp_path / "x.npz", content)
    data = load_npz(file, image_size=4)
    assert data.train.images.shape[1:] == data.test.images.shape[1:] == (1, 4, 4)
    with pytest.raises(DataError, match=r"test_images are 10x8 .* pass --image-size"):
        load_npz(file)


def test_parts_of_two_sizes_are_refused_without_a_size(tmp_path):
    content = arrays() | {"test_images": arrays((8, 8))["test_images"]}
    with pytest.raises(DataError, match=r"training images are 1x6x6, test images 1x8x8 .* pass --image-size"):
        load_npz(write(tmp_path / "x.npz", content))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": None}, "has no array train_images \\(test_images, test_labels, train_labels, "),
        ({"test_labels": None}, "has no array test_labels"),
        ({"train_images": np.zeros((12, 6, 6), np.float32)}, r"is float32; .*np\.round\(255 \* values\)"),
        ({"train_images": np.zeros((12, 6, 6), np.uint16)}, "is uint16; expected uint8, 0 to 255"),
        ({"train_images": np.zeros((12, 3, 6, 6), np.uint8)}, "channels last"),
        ({"train_images": np.zeros((12, 6, 6, 6), np.uint8)}, r"has shape \(12, 6, 6, 6\)"),
        ({"train_images": np.zeros((12, 36), np.uint8)}, r"has shape \(12, 36\); expected \[N, H, W\]"),
        ({"train_labels": np.zeros((12, 14), np.uint8)}, "has 14 columns, several labels an image"),
        ({"train_labels": np.zeros((12, 1), np.float32)}, "is float32 .*; expected integers"),
        ({"train_labels": np.array(["a", "b"] * 6)}, "is <U1 .*; expected integers"),
        ({"train_labels": np.arange(12)[:, None] % 2 - 1}, "holds -1; expected classes from 0"),
        ({"train_labels": np.arange(12)[:, None] % 2 + 1}, "holds the classes 1, 2, but no image of class 0"),
        ({"train_labels": np.arange(12) % 2 * 2}, "classes 0, 2, but no image of class 1; number .* 0 to 1"),
        ({"test_labels": np.arange(6) % 3}, "test_labels holds class 2, but train_labels only 0 to 1"),
        ({"train_labels": np.arange(11) % 2}, "train_images holds 12 images, but train_labels 11 labels"),
        ({"train_labels": np.array([None] * 12)}, "holds Python objects, which could run commands"),
    ],
)
def test_what_is_not_the_layout_is_named(tmp_path, changed, message):
    refused(tmp_path, message, **changed)


def test_a_class_without_test_images_is_named(tmp_path):
    content = arrays() | {"test_labels": np.zeros(6, np.uint8)}
    with pytest.raises(DataError, match="class '1' has no test images"):
        load_npz(write(tmp_path / "x.npz", content))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x93NUMPY\x01\x00"])
def test_what_is_no_archive_is_named(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npz: train_images cannot be read"):
        load_npz(tmp_path / "x.npz")


def test_damaged_bytes_are_noticed(file):
    content = bytearray(file.read_bytes())
    place = content.index(b"train_images.npy") + 120
    content[place : place + 40] = bytes(40)
    file.write_bytes(content)
    with pytest.raises(DataError, match="train_images cannot be read"):
        load_npz(file)


def stored(file: Path, name: str, content: bytes) -> Path:
    """The layout with the bytes of one array replaced."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, array in arrays().items():
            with archive.open(f"{other}.npy", "w") as stream:
                if other == name:
                    stream.write(content)
                else:
                    np.lib.format.write_array(stream, array)
    return file


def header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("shape", [(1 << 40, 28, 28), (12, 6, 7), (12, 6, 5)])
def test_a_header_that_promises_other_than_there_is_is_refused_before_room_is_made(tmp_path, shape):
    file = stored(tmp_path / "x.npz", "train_images", header(shape) + bytes(12 * 6 * 6))
    with pytest.raises(DataError, match="but its header promises"):
        load_npz(file)


def test_an_array_that_unpacks_to_too_much_is_refused_unread(tmp_path, monkeypatch):
    assert MAX_BYTES == 4 << 30
    monkeypatch.setattr("atom.data.npz.MAX_BYTES", 1 << 20)
    bomb = bytes(1 << 21)
    file = stored(tmp_path / "x.npz", "train_images", bomb)
    assert file.stat().st_size < 10_000
    with pytest.raises(DataError, match=re.escape("train_images unpacks to 2097152 bytes; at most 1048576")):
        load_npz(file)


def test_an_archive_that_states_less_than_it_unpacks_to_is_refused(tmp_path):
    file = stored(tmp_path / "x.npz", "train_images", header((12, 6, 6)) + bytes(12 * 6 * 6 + 1000))
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        true = archive.getinfo("train_images.npy").file_size
    told = (true - 1000).to_bytes(4, "little")
    file.write_bytes(content.replace(true.to_bytes(4, "little"), told))
    with pytest.raises(DataError, match="train_images cannot be read"):
        load_npz(file)


@pytest.mark.parametrize("added", ["train_images", "train_images.npy"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(file, added):
    """Numpy prefers the bare name, so that a sound array beside it would vouch for one that nobody looked at."""
    other = io.BytesIO()
    np.save(other, arrays()["train_images"][::-1])
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(added, other.getvalue())
    with pytest.raises(DataError, match="holds 2 arrays called train_images") as raised:
        load_npz(file)
    assert str(file) in str(raised.value)


def test_an_array_under_its_bare_name_is_read(tmp_path):
    file = tmp_path / "x.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays().items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(name, content.getvalue())
    assert load_npz(file).train.fingerprint == load_npz(write(tmp_path / "y.npz", arrays())).train.fingerprint
