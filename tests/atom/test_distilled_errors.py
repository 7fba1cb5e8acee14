import json
import pickle

import pytest
import torch
from distilled_samples import make_set
from safetensors.torch import load_file, save_file

from atom.distilled import DistilledSet
from atom.errors import ArtifactError
from atom.preprocess import Preprocess


@pytest.fixture
def saved(tmp_path):
    return make_set().save(tmp_path / "set")


def edit_manifest(directory, **changes):
    path = directory / "set.json"
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def edit_tensors(directory, name="distilled.safetensors", **changes):
    tensors = {key: value.clone() for key, value in load_file(directory / name).items()} | changes
    save_file({key: value for key, value in tensors.items() if value is not None}, directory / name)


def refused(path):
    with pytest.raises(ArtifactError) as caught:
        DistilledSet.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("name", ["distilled.safetensors", "set.json", "preprocess.safetensors"])
def test_missing_file_is_named(saved, name):
    (saved / name).unlink()
    assert f"{saved}: {name} is missing, expected" in refused(saved)


@pytest.mark.parametrize("name", ["README.md", "sheet.png", "data/train-00000-of-00001.parquet"])
def test_views_are_not_needed_to_load(saved, name):
    (saved / name).unlink()
    assert DistilledSet.load(saved).ipc == 2


def test_missing_directory_and_file_in_its_place_are_told_apart(saved):
    assert "nowhere does not exist, expected the directory of a distilled set; check the path" in refused(
        saved / "nowhere"
    )
    assert "set.json is a file, expected the directory" in refused(saved / "set.json")


@pytest.mark.parametrize(
    "uri", ["runs:/0123/set", "mlflow-artifacts:/x", "https://example.org/set", "s3://bucket/set"]
)
def test_uri_is_answered_with_what_opens_it(uri):
    message = refused(uri)
    assert message.startswith(uri)
    assert "atom-evaluate" in message
    assert "pipelines.tracking.fetch_artifact" in message


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_not_json_is_refused(saved, content):
    (saved / "set.json").write_bytes(content)
    assert "set.json is not JSON" in refused(saved)


@pytest.mark.parametrize("version", [2, "1", None, ...])
def test_unknown_format_version_is_refused(saved, version):
    edit_manifest(saved, format_version=version)
    shown = None if version is ... else version
    assert f"format version {shown!r}, expected 1; install a newer version" in refused(saved)


def test_manifest_that_is_no_object_is_refused(saved):
    (saved / "set.json").write_text("[1, 2]")
    assert "format version None" in refused(saved)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ipc": ...}, "ipc: Field required"),
        ({"ipc": "2"}, "ipc: Input should be a valid integer, received '2'"),
        ({"ipc": 0}, "ipc: Input should be greater than or equal to 1"),
        ({"class_names": [1, 2]}, "class_names.0: Input should be a valid string"),
        ({"class_names": []}, "class_names: List should have at least 1 item"),
        ({"settings": [1]}, "settings: Input should be a valid dictionary"),
    ],
)
def test_manifest_entry_of_the_wrong_kind_is_named(saved, changes, words):
    edit_manifest(saved, **changes)
    message = refused(saved)
    assert f"{saved / 'set.json'}: {words}" in message


def test_unknown_manifest_entries_are_ignored(saved):
    edit_manifest(saved, comment="mine")
    assert DistilledSet.load(saved).ipc == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ipc": 3}, "images have shape [8, 3, 8, 6], expected 12 images (4 classes, ipc 3)"),
        ({"class_names": ["a", "b", "b", "c"]}, "class name 'b' occurs 2 times, expected distinct names"),
        ({"class_names": ["a", "", "b", "c"]}, "class name '', expected text that is not empty"),
        ({"class_names": ["a", "b"]}, "images have shape [8, 3, 8, 6], expected 4 images (2 classes, ipc 2)"),
        ({"factor": 7}, "factor 7 with images of 8x6 pixels, expected a factor of at most 6"),
        (
            {"images_shape": [8, 3, 6, 8]},
            "images of shape [8, 3, 8, 6], expected [8, 3, 6, 8] as set.json says",
        ),
        ({"soft_labels": True}, "tensors ['images', 'labels'], expected ['images', 'labels', 'soft_labels']"),
    ],
)
def test_manifest_that_contradicts_the_tensors_is_refused(saved, changes, words):
    edit_manifest(saved, **changes)
    assert words in refused(saved)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"labels": torch.arange(4).repeat(2)},
            "label 1 of image 1, expected 0, since the images lie class by class",
        ),
        ({"labels": torch.arange(8)}, "label 1 of image 1, expected 0"),
        ({"labels": torch.zeros(8)}, "labels are torch.float32 [8], expected torch.int64 [8]"),
        (
            {"labels": torch.zeros(7, dtype=torch.int64)},
            "labels are torch.int64 [7], expected torch.int64 [8]",
        ),
        (
            {"images": torch.zeros(8, 3, 8, 6, dtype=torch.float16)},
            "images are torch.float16 [8, 3, 8, 6], expected",
        ),
        ({"images": torch.zeros(8, 3, 9, 6)}, "images of shape [8, 3, 9, 6], expected [8, 3, 8, 6]"),
        ({"labels": None}, "tensors ['images'], expected ['images', 'labels']"),
        ({"extra": torch.zeros(1)}, "tensors ['extra', 'images', 'labels'], expected ['images', 'labels']"),
    ],
)
def test_tensors_of_the_wrong_kind_are_refused(saved, changes, words):
    edit_tensors(saved, **changes)
    assert words in refused(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_counted_and_located(saved, value):
    images = load_file(saved / "distilled.safetensors")["images"].clone()
    images[3, 1, 0, 5] = images[7, 2, 7, 0] = value
    edit_tensors(saved, images=images)
    assert (
        f"{saved}: 2 of 1152 values of images are NaN or infinite, first at (3, 1, 0, 5), expected"
        in refused(saved)
    )


@pytest.mark.parametrize("name", ["distilled.safetensors", "preprocess.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "pickle", "noise"])
def test_damaged_tensor_file_is_no_safetensors_file(saved, name, damage):
    whole = (saved / name).read_bytes()
    content = {
        "cut": whole[:-5],
        "empty": b"",
        "pickle": pickle.dumps({"images": [1]}),
        "noise": b"\x93" * 500,
    }
    (saved / name).write_bytes(content[damage])
    message = refused(saved)
    assert f"{saved / name} is not a safetensors file" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"mean": None},
            "received ['std', 'zca_mean', 'zca_unwhiten', 'zca_whiten'], expected ['mean', 'std'",
        ),
        (
            {"std": torch.tensor([1.0, float("nan"), 1.0])},
            "1 of 3 values of std are NaN or infinite, first at (1,)",
        ),
        ({"std": torch.ones(3, dtype=torch.float64)}, "std is torch.float64 [3], expected torch.float32"),
        (
            {"zca_mean": torch.tensor(0.0)},
            "zca_mean is torch.float32 [], expected torch.float32 of 1 dimension",
        ),
        ({"zca_whiten": torch.zeros(3, 3)}, "whitening matrix (3, 3), expected (144, 144)"),
        ({"mean": torch.zeros(2), "std": torch.ones(2)}, "preprocessing of 2 channels for images of 3"),
    ],
)
def test_broken_preprocessing_is_refused(saved, changes, words):
    edit_tensors(saved, "preprocess.safetensors", **changes)
    assert words in refused(saved)


def test_whitening_of_another_image_size_is_refused():
    other = make_set(height=5).preprocess
    with pytest.raises(ArtifactError, match="whitening of 90 values for images of 144"):
        make_set(preprocess=other).validate()


def test_preprocessing_of_other_channels_is_refused_before_saving(tmp_path):
    distilled = make_set(preprocess=Preprocess(torch.zeros(2), torch.ones(2)))
    with pytest.raises(ArtifactError, match="the distilled set: preprocessing of 2 channels"):
        distilled.save(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"soft_labels": torch.zeros(8, 3)},
            r"soft labels are torch.float32 \[8, 3\], expected torch.float32 \[8, 4\]",
        ),
        ({"soft_labels": torch.ones(8, 4)}, "negative or do not sum to 1, expected a distribution"),
        ({"soft_labels": torch.full((8, 4), float("nan"))}, "32 of 32 values of soft labels are NaN"),
        ({"class_names": ()}, "there are no class names"),
        ({"class_names": ("a", "b", "c", "\ud800")}, "can be written as UTF-8"),
        ({"method": ""}, "the method is empty"),
        ({"factor": 0}, "ipc 2 and factor 0, expected both at least 1"),
        ({"images_NCHW": torch.zeros(8, 8, 6)}, r"images are torch.float32 \[8, 8, 6\], expected"),
        ({"images_NCHW": torch.zeros(8, 3, 0, 6)}, "none of size 0"),
    ],
)
def test_unsound_sets_are_refused_by_validate(changes, words):
    with pytest.raises(ArtifactError, match=words):
        make_set(**changes).validate()


def test_names_of_many_classes_are_not_compared_each_with_each():
    """21,841 of ImageNet would take a quarter of a minute."""
    compared = []

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            compared.append(other)
            return str.__eq__(self, other)

    names = tuple(Name(f"class {index}") for index in range(1000))
    make_set(num_classes=1000, ipc=1, class_names=names).validate()
    assert len(compared) < 5 * 1000
