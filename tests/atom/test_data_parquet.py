import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from atom.data import load
from atom.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def png(seed, *, size=6):
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def features(label="label", names=("cat", "dog"), image="image"):
    return {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}


def write(path, labels, *, seed=0, described=None, image="image", label="label", contents=None, extra=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = [png(seed + i) for i in range(len(labels))] if contents is None else contents
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": content, "path": None} for content in contents], kind)
    table = pa.table({image: images, label: labels, **(extra or {})})
    if described is not None:
        text = json.dumps({"info": {"features": described}})
        table = table.replace_schema_metadata({"huggingface": text})
    pq.write_table(table, path, row_group_size=3)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "pets"
    write(root / "train-00000-of-00002.parquet", [0, 1, 1], seed=0, described=features())
    write(root / "train-00001-of-00002.parquet", [0, 0], seed=10, described=features())
    write(root / "test-00000-of-00001.parquet", [1, 0], seed=20, described=features())
    return root


def load_parquet(root, **kwargs):
    return load(f"parquet:{root}", data_dir=root.parent / "data", **kwargs)


def test_shards_are_read_in_order_with_class_names_from_the_metadata(root):
    data = load_parquet(root)
    assert (data.name, data.source.title) == ("pets", "pets (parquet)")
    assert data.train.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 1, 1, 0, 0]
    expected = np.asarray(Image.open(io.BytesIO(png(11)))).transpose(2, 0, 1)
    np.testing.assert_array_equal(data.train.images[4], expected)


def test_files_in_the_data_folder_and_a_validation_part_are_found(root):
    (root / "data").mkdir()
    for file in root.glob("*.parquet"):
        file.rename(root / "data" / file.name.replace("test", "validation"))
    assert len(load_parquet(root).test) == 2


def test_without_metadata_the_sorted_labels_name_the_classes(tmp_path):
    write(tmp_path / "pets" / "train.parquet", [7, 3, 7], image="img", label="labels")
    write(tmp_path / "pets" / "test.parquet", [3, 7], image="img", label="labels")
    data = load_parquet(tmp_path / "pets")
    assert data.train.class_names == ("3", "7")
    assert data.train.labels.tolist() == [1, 0, 1]


def test_text_labels_name_their_classes(tmp_path):
    write(tmp_path / "pets" / "train.parquet", ["dog", "cat", "dog"])
    write(tmp_path / "pets" / "test.parquet", ["cat", "dog"])
    data = load_parquet(tmp_path / "pets")
    assert data.train.class_names == ("cat", "dog")
    assert data.test.labels.tolist() == [0, 1]


def test_fine_labels_are_taken_before_coarse_ones(tmp_path):
    described = {**features("fine_label"), "coarse_label": {"_type": "ClassLabel", "names": ["pet"]}}
    for part in ("train", "test"):
        file = tmp_path / "pets" / f"{part}.parquet"
        write(file, [0, 1], label="fine_label", described=described, extra={"coarse_label": [0, 0]})
    assert load_parquet(tmp_path / "pets").train.class_names == ("cat", "dog")


def test_images_of_different_sizes_need_an_image_size(root):
    write(root / "test-00000-of-00001.parquet", [0, 1], described=features(), contents=[png(0, size=9)] * 2)
    with pytest.raises(DataError, match=r"3x6x6, test images 3x9x9 .*--image-size"):
        load_parquet(root)
    assert load_parquet(root, image_size=6).test.images.shape == (2, 3, 6, 6)


def test_odd_size_within_a_file_is_named_with_its_row(root):
    mixed = [png(0), png(1), png(2, size=7)]
    write(root / "train-00000-of-00002.parquet", [0, 1, 1], described=features(), contents=mixed)
    with pytest.raises(
        DataError, match=r"train-00000-of-00002\.parquet, row 2: the image is 7x7 .* expected 6x6"
    ):
        load_parquet(root)


@pytest.mark.parametrize(
    ("content", "message"), [(b"broken", "not an image"), (None, "there is no image here")]
)
def test_broken_image_is_named_with_file_and_row_or_skipped(root, content, message):
    file = root / "train-00000-of-00002.parquet"
    write(file, [0, 1, 1], described=features(), contents=[png(0), content, png(2)])
    with pytest.raises(DataError, match=rf"train-00000-of-00002\.parquet, row 1: {message}"):
        load_parquet(root)
    data = load_parquet(root, skip_broken=True)
    assert data.train.labels.tolist() == [0, 1, 0, 0]
    assert len(data.skipped) == 1
    assert "row 1" in data.skipped[0]


@pytest.mark.parametrize("share", [0.2, 0.6, 0.98])
def test_truncated_file_is_named(root, share):
    file = root / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet: not a whole parquet file"):
        load_parquet(root)


def test_damage_inside_a_file_is_named(root):
    file = root / "train-00001-of-00002.parquet"
    content = bytearray(file.read_bytes())
    content[4:60] = bytes(56)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet"):
        load_parquet(root)


@pytest.mark.parametrize("label", [2, -1, None])
def test_label_outside_the_class_names_is_named_with_its_row(root, label):
    write(root / "test-00000-of-00001.parquet", [0, label], described=features())
    with pytest.raises(
        DataError, match=rf"test-00000-of-00001\.parquet, row 1: .* holds {label}; expected 0 to 1"
    ):
        load_parquet(root)


def test_test_label_that_training_lacks_is_named(tmp_path):
    write(tmp_path / "pets" / "train.parquet", [3, 7])
    write(tmp_path / "pets" / "test.parquet", [3, 8, 7])
    with pytest.raises(DataError, match=r"test\.parquet, row 1: .*holds 8; expected one of the training"):
        load_parquet(tmp_path / "pets")


def test_missing_shard_is_named(root):
    (root / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="shard 00000 of 00002 is missing"):
        load_parquet(root)


def test_missing_part_is_named(root):
    (root / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"no test-\*\.parquet or validation-\*\.parquet"):
        load_parquet(root)


def test_columns_that_cannot_be_told_are_listed(tmp_path):
    table = pa.table({"x": [1.0], "y": [2.0]})
    for part in ("train", "test"):
        (tmp_path / "pets").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "pets" / f"{part}.parquet")
    with pytest.raises(DataError, match=r"no column could be told to hold the images .* among x, y"):
        load_parquet(tmp_path / "pets")


def test_shards_that_disagree_on_classes_are_refused(root):
    write(root / "train-00001-of-00002.parquet", [0, 0], described=features(names=("dog", "cat")))
    with pytest.raises(DataError, match="class names differ from those of"):
        load_parquet(root)


def test_parts_that_disagree_on_classes_are_refused(root):
    write(root / "test-00000-of-00001.parquet", [0, 1], described=features(names=("dog", "cat")))
    with pytest.raises(DataError, match=r"test-00000.*class names differ from those of .*train-00000"):
        load_parquet(root)


def test_a_test_part_without_metadata_takes_the_class_names_of_training(root):
    write(root / "test-00000-of-00001.parquet", [1, 0])
    data = load_parquet(root)
    assert data.test.class_names == ("cat", "dog")
    assert data.test.labels.tolist() == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_real_cifar_in_the_parquet_layout_has_its_official_split(tmp_path, name, classes):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} in the parquet layout is not beside this checkout (../shared/data/{name})")
    data = load(f"parquet:{SHARED / name}", data_dir=tmp_path)
    assert data.train.images.shape == (50_000, 3, 32, 32)
    assert data.train.per_class_counts().tolist() == [50_000 // classes] * classes
    assert data.test.per_class_counts().tolist() == [10_000 // classes] * classes
