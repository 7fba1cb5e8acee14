import gzip

import numpy as np
import pytest
import scipy.io

from atom.data import load
from atom.errors import DataError

STEMS = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 20),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10),
)


def idx_bytes(array):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def write_idx(folder, *, zipped=False, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = []
    for images_stem, labels_stem, count in STEMS:
        images = np.random.default_rng(seed + count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for stem, array in ((images_stem, images), (labels_stem, labels)):
            content = idx_bytes(array)
            file = folder / (f"{stem}.gz" if zipped else stem)
            file.write_bytes(gzip.compress(content) if zipped else content)
        arrays.append(images)
    return arrays


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw", "fashion-mnist", "sets/Fashion_MNIST/raw"])
def test_idx_files_are_read_as_they_lie(tmp_path, folder, zipped):
    train, test = write_idx(tmp_path / folder, zipped=zipped)
    data = load("fashionmnist", data_dir=tmp_path, allow_download=False)
    np.testing.assert_array_equal(data.train.images[:, 0], train)
    np.testing.assert_array_equal(data.test.images[:, 0], test)
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2
    assert data.train.class_names[9] == "Ankle boot"


def test_a_path_in_the_spec_is_read_in_place_of_the_data_directory(tmp_path):
    write_idx(tmp_path / "there")
    data = load(f"mnist:{tmp_path / 'there'}", data_dir=tmp_path / "data")
    assert data.name == "mnist"
    assert not (tmp_path / "data").exists()


def test_fixed_size_images_are_resized_on_request(tmp_path):
    write_idx(tmp_path)
    assert load("mnist", data_dir=tmp_path, image_size=32).train.images.shape == (20, 1, 32, 32)


def test_mnist_does_not_take_a_folder_called_fashion(tmp_path):
    write_idx(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(DataError, match="no folder under"):
        load("mnist", data_dir=tmp_path, allow_download=False)


def test_fashion_files_are_told_from_mnist_by_their_labels(tmp_path):
    write_idx(tmp_path)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 1000)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((10_000, 28, 28), np.uint8)))
    with pytest.raises(
        DataError, match="belongs to Fashion-MNIST, not to MNIST; pass --dataset fashionmnist"
    ):
        load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-5], "but its header promises"),
        (lambda content: content + b"x", "but its header promises"),
        (lambda content: b"\0\0\x0d" + content[3:], "starts with 00000d03, expected 00000803"),
        (lambda content: b"", "starts with nothing"),
    ],
)
def test_damaged_idx_file_is_named(tmp_path, damage, message):
    write_idx(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte: .*{message}"):
        load("mnist", data_dir=tmp_path)


def test_truncated_gzip_is_named(tmp_path):
    write_idx(tmp_path, zipped=True)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: cannot be read"):
        load("mnist", data_dir=tmp_path)


def test_images_and_labels_of_different_length_are_named(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(19, np.uint8)))
    with pytest.raises(DataError, match=r"holds 20 images, but .* 19 labels"):
        load("mnist", data_dir=tmp_path)


def test_idx_label_out_of_range_is_named(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(20, 10, np.uint8)))
    with pytest.raises(DataError, match="train-labels-idx1-ubyte: label 10 is out of range"):
        load("mnist", data_dir=tmp_path)


def write_svhn(folder, labels=tuple(range(1, 11))):
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
    for part in ("train", "test"):
        content = {"X": images, "y": np.array(labels, np.uint8)[:, None]}
        scipy.io.savemat(folder / f"{part}_32x32.mat", content, do_compression=True)
    return images


def test_svhn_calls_class_ten_zero(tmp_path):
    images = write_svhn(tmp_path)
    data = load("svhn", data_dir=tmp_path)
    assert data.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    np.testing.assert_array_equal(data.train.images[4], images[..., 4].transpose(2, 0, 1))


def test_damaged_svhn_file_is_named(tmp_path):
    write_svhn(tmp_path)
    file = tmp_path / "test_32x32.mat"
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(DataError, match=r"test_32x32\.mat: not a readable MATLAB file"):
        load("svhn", data_dir=tmp_path)


def test_svhn_file_of_another_layout_is_named(tmp_path):
    write_svhn(tmp_path)
    scipy.io.savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 3), np.uint8)})
    with pytest.raises(DataError, match=r"train_32x32\.mat: expected X as uint8 \[32, 32, 3, N\]"):
        load("svhn", data_dir=tmp_path)
