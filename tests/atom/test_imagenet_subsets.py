"""Subsets of ImageNet by name: their classes in MTT's order, out of a folder that holds others too."""

import shutil

import numpy as np
import pytest
from PIL import Image

from atom.data import load
from atom.data.imagenet_subsets import SUBSETS
from atom.errors import ConfigError, DataError
from atom.resolve import whitens_by_itself


def write_jpeg(path, *, grey, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, 200)).save(path)


@pytest.fixture
def root(tmp_path):
    """Imagefruit and another class in ImageNet's layout; an image's grey tells its class."""
    root = tmp_path / "ILSVRC2012"
    for place, wnid in enumerate([*SUBSETS["imagefruit"], "n01440764"]):
        for part, count in (("train", 2), ("val", 1)):
            for number in range(count):
                write_jpeg(root / part / wnid / f"{wnid}_{number}.JPEG", grey=20 * place)
    return root


def fruit(root, **asked):
    return load(f"imagefruit:{root}", data_dir=root.parent / "data", **asked)


@pytest.mark.parametrize("again", [False, True], ids=["decoded", "cached"])
def test_only_the_ten_classes_are_read_in_their_own_order_and_called_as_people_call_them(root, again):
    if again:
        fruit(root, image_size=8)
    data = fruit(root, image_size=8)
    assert data.name == "imagefruit"
    assert data.train.class_names[:3] == ("pineapple", "banana", "strawberry")
    assert data.train.images.shape == (20, 3, 8, 8)
    assert data.train.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert data.test.labels.tolist() == list(range(10))
    greys = data.test.images[:, 0].mean((1, 2))
    assert np.abs(greys - 20 * np.arange(10)).max() < 3
    assert not data.symbols


def test_images_have_128_pixels_a_side_unless_another_size_is_asked_for(root):
    assert fruit(root).train.images.shape == (20, 3, 128, 128)
    assert fruit(root, image_size=32).train.images.shape == (20, 3, 32, 32)
    assert not whitens_by_itself(3, 128, 128)


def test_the_shorter_side_is_resized_and_the_centre_kept(root):
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    Image.fromarray(wide).save(root / "val" / "n07753275" / "n07753275_0.JPEG", quality=100)
    centre = fruit(root, image_size=16).test.images[0]
    assert centre[:, :, 2:-2].min() > 230


def test_another_split_than_imagenets_does_not_pass_for_it(root):
    data = fruit(root, image_size=8)
    title = "ImageFruit (ten classes of ImageNet) (not the official files: 10 test images instead of 500)"
    assert data.source.title == title
    assert data.source.licence.startswith("Unknown")
    for wnid in SUBSETS["imagefruit"]:
        for number in range(1, 50):
            shutil.copy(root / "val" / wnid / f"{wnid}_0.JPEG", root / "val" / wnid / f"{number}.JPEG")
    data = fruit(root, image_size=8)
    assert data.source.title == "ImageFruit (ten classes of ImageNet)"
    assert "research" in data.source.licence


@pytest.mark.parametrize("part", ["train", "val"])
def test_missing_class_directories_are_named(root, part):
    shutil.rmtree(root / part / "n07753592")
    shutil.rmtree(root / part / "n07742313")
    said = (
        rf"{part} has no directory n07753592 \(banana\), n07742313 \(Granny Smith\); expected {part}/<wnid>"
    )
    with pytest.raises(DataError, match=said):
        fruit(root, image_size=8)


def test_validation_images_in_one_directory_need_their_table(root):
    shutil.rmtree(root / "val")
    write_jpeg(root / "val" / "ILSVRC2012_val_00000001.JPEG", grey=1)
    with pytest.raises(DataError, match=r"no table tells their classes; looked for LOC_val_solution\.csv"):
        fruit(root)


@pytest.mark.parametrize("spec", ["imagenette", "imagenette:", "imagenete:/srv"])
def test_a_subset_needs_its_place_and_name(tmp_path, spec):
    with pytest.raises(ConfigError, match=r"expected imagenette:PATH|Did you mean 'imagenette'"):
        load(spec, data_dir=tmp_path)


def test_subsets_have_ten_classes_each_of_their_own_name():
    for chosen in SUBSETS.values():
        assert len(chosen) == len(set(chosen.values())) == 10
    shared = {
        wnid: {chosen[wnid] for chosen in SUBSETS.values() if wnid in chosen}
        for one in SUBSETS.values()
        for wnid in one
    }
    assert all(len(names) == 1 for names in shared.values())
    assert sum(map(len, SUBSETS.values())) - len(shared) == 3
