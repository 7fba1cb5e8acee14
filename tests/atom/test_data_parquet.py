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


def put(folder, *, train="train-00000-of-00001.parquet", test="test-00000-of-00001.parquet"):
    write(folder / train, [0, 1, 1], described=features())
    write(folder / test, [1, 0], described=features())


@pytest.mark.parametrize(
    ("inside", "files"),
    [
        ("plain_text", {}),
        ("default", {"train": "train/0000.parquet", "test": "test/0000.parquet"}),
        ("pets-small", {"train": "train/0000.parquet", "test": "test/0000.parquet"}),
    ],
)
def test_the_only_configuration_below_is_found_and_the_set_keeps_its_name(tmp_path, inside, files):
    put(tmp_path / "pets" / inside, **files)
    assert load_parquet(tmp_path / "pets").name == "pets"
    assert load_parquet(tmp_path / "pets" / inside).name == (
        "pets-small" if inside == "pets-small" else "pets"
    )


def test_several_configurations_are_listed(tmp_path):
    put(tmp_path / "pets" / "large")
    put(tmp_path / "pets" / "small")
    with pytest.raises(
        DataError, match=r"several configurations \(large, small\); pass one, such as parquet:.*large"
    ):
        load_parquet(tmp_path / "pets")


@pytest.mark.parametrize("place", ["", "snapshots/{commit}", "snapshots/{commit}/data"])
def test_a_snapshot_in_the_hubs_cache_has_the_name_of_its_set(tmp_path, place):
    commit = "0b2714987fa478483af9968de7c934580d0bb9a2"
    entry = tmp_path / "datasets--some-org--Pets"
    put(entry / "snapshots" / commit / "data")
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(commit)
    assert load_parquet(entry / place.format(commit=commit)).source.title == "pets (parquet)"


def test_of_several_snapshots_the_current_one_is_read(tmp_path):
    entry = tmp_path / "datasets--some-org--pets"
    for commit, labels in (("a" * 40, [0, 1]), ("b" * 40, [0, 1, 1])):
        put(entry / "snapshots" / commit)
        write(entry / "snapshots" / commit / "train-00000-of-00001.parquet", labels, described=features())
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("a" * 40)
    assert len(load_parquet(entry).train) == 2


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pa.array(["dog", "cat"]).dictionary_encode(), ("cat", "dog")),
        (pa.array([True, False]), ("False", "True")),
        (pa.array([2.0, 1.0]), ("1", "2")),
    ],
    ids=["category", "bool", "whole fractions"],
)
def test_labels_of_any_type_that_names_one_class_are_read(tmp_path, labels, names):
    for part in ("train", "test"):
        write(tmp_path / "pets" / f"{part}.parquet", labels, extra={"__index_level_0__": [5, 6]})
    data = load_parquet(tmp_path / "pets")
    assert data.train.class_names == names
    assert data.train.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1], [1]], r"column 'label' holds list<.*multi-label sets are not supported"),
        ([0.5, 1.0], r"row 0: column 'label' holds 0\.5; expected whole numbers"),
        ([b"x", b"y"], r"column 'label' holds binary, expected integers or names; --label-column"),
    ],
)
def test_labels_of_a_type_that_names_no_class_are_refused_as_such(tmp_path, labels, message):
    for part in ("train", "test"):
        write(tmp_path / "pets" / f"{part}.parquet", labels, extra={"id": [7, 8]})
    with pytest.raises(DataError, match=message):
        load_parquet(tmp_path / "pets")


@pytest.mark.parametrize(
    "extra",
    [{"score": [0.5, 1.0]}, {"note": pa.nulls(2)}, {"score": [0.5, 1.0], "note": pa.nulls(2)}],
    ids=["score", "empty", "both"],
)
def test_scores_and_empty_columns_do_not_compete_with_labels_of_an_unusual_name(tmp_path, extra):
    for part in ("train", "test"):
        write(tmp_path / "pets" / f"{part}.parquet", ["dog", "cat"], label="species", extra=extra)
    assert load_parquet(tmp_path / "pets").train.class_names == ("cat", "dog")


@pytest.mark.parametrize("name", ["id", "image_id"])
def test_row_numbers_beside_scores_are_no_labels(tmp_path, name):
    for part in ("train", "test"):
        write(tmp_path / "pets" / f"{part}.parquet", [1, 2], label=name, extra={"score": [0.5, 1.0]})
    with pytest.raises(DataError, match="no column could be told to hold the labels"):
        load_parquet(tmp_path / "pets")


def test_a_test_part_may_call_its_labels_by_another_usual_name(tmp_path):
    write(tmp_path / "pets" / "train.parquet", ["dog", "cat"], label="label")
    write(tmp_path / "pets" / "test.parquet", ["cat", "dog"], label="labels", extra={"id": [7, 8]})
    assert load_parquet(tmp_path / "pets").test.labels.tolist() == [0, 1]


def test_whole_fractions_of_an_unusual_name_are_labels_where_nothing_else_is(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / "pets" / f"{part}.parquet", [2.0, 1.0], label="species")
    assert load_parquet(tmp_path / "pets").train.class_names == ("1", "2")


def test_images_beside_the_file_are_refused_as_such(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "pets").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), tmp_path / "pets" / f"{part}.parquet")
    with pytest.raises(DataError, match="column 'image' holds string, expected the bytes of encoded images"):
        load_parquet(tmp_path / "pets")


def test_flags_name_the_columns_and_the_cache_keeps_them_apart(tmp_path):
    described = {**features("fine_label"), "coarse_label": {"_type": "ClassLabel", "names": ["pet", "wild"]}}
    for part in ("train", "test"):
        file = tmp_path / "pets" / f"{part}.parquet"
        write(file, [0, 1], label="fine_label", described=described, extra={"coarse_label": [1, 0]})
    assert load_parquet(tmp_path / "pets").train.class_names == ("cat", "dog")
    coarse = load_parquet(tmp_path / "pets", label_column="coarse_label", image_column="image")
    assert coarse.train.class_names == ("pet", "wild")
    assert coarse.train.labels.tolist() == [1, 0]
    with pytest.raises(
        DataError, match=r"--label-column x: .* has the columns image, fine_label, coarse_label"
    ):
        load_parquet(tmp_path / "pets", label_column="x")


def test_classes_without_rows_are_left_out_with_a_line(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / "pets" / f"{part}.parquet", [1, 3], described=features(names="abcd"))
    data = load_parquet(tmp_path / "pets")
    assert data.train.class_names == ("b", "d")
    assert data.train.labels.tolist() == [0, 1]
    assert data.remarks == ("2 of 4 class names have no images and are left out: a, c",)
    assert load_parquet(tmp_path / "pets").remarks == data.remarks  # from the cache


def test_a_class_of_one_part_only_is_still_an_error(tmp_path):
    write(tmp_path / "pets" / "train.parquet", [0, 1], described=features(names="abc"))
    write(tmp_path / "pets" / "test.parquet", [0, 0], described=features(names="abc"))
    with pytest.raises(DataError, match="class 'b' has no test images"):
        load_parquet(tmp_path / "pets")


@pytest.mark.parametrize("labels", [[-1, -1], [None, None], None], ids=["-1", "null", "no column"])
def test_an_unlabelled_test_part_is_passed_over_with_a_line(root, labels):
    file = root / "test-00000-of-00001.parquet"
    file.rename(root / "validation-00000-of-00001.parquet")
    write(file, [0, 0] if labels is None else labels, described=features())
    if labels is None:
        pq.write_table(pq.read_table(file, columns=["image"]), file)
    data = load_parquet(root)
    assert data.test.labels.tolist() == [1, 0]
    assert data.remarks == ("the test part has no labels, so the validation part is the test part",)


@pytest.mark.parametrize("asked", [{}, {"label_column": "species"}], ids=["found", "chosen"])
def test_row_numbers_of_a_test_part_without_the_label_column_are_no_labels(tmp_path, asked):
    pets = tmp_path / "pets"
    write(pets / "train.parquet", ["dog", "cat"], label="species")
    write(pets / "test.parquet", [7, 8], label="id")
    with pytest.raises(DataError, match=r"the test part has no labels .* no column 'species'.*--test-part"):
        load_parquet(pets, **asked)
    write(pets / "validation.parquet", ["cat", "dog"], label="species")
    data = load_parquet(pets, **asked)
    assert data.test.labels.tolist() == [0, 1]
    assert data.remarks == ("the test part has no labels, so the validation part is the test part",)


def test_an_unlabelled_test_part_with_nothing_beside_it_is_named(root):
    write(root / "test-00000-of-00001.parquet", [-1, -1], described=features())
    with pytest.raises(DataError, match=r"test-00000.*: the test part has no labels .*--test-part"):
        load_parquet(root, skip_broken=True)


def test_a_flag_chooses_the_split(root):
    write(root / "holdout-00000-of-00001.parquet", [1, 0, 1], described=features())
    assert len(load_parquet(root, test_part="holdout").test) == 3
    with pytest.raises(DataError, match=r"no other-\*\.parquet in"):
        load_parquet(root, test_part="other")
    with pytest.raises(DataError, match=r"--test-part train: .* is the training part"):
        load_parquet(root, test_part="train")
