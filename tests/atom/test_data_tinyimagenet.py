import numpy as np
import pytest
from PIL import Image

from atom.data import load, official
from atom.errors import DataError

WNIDS = ("n02", "n01", "n03")


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    rng = np.random.default_rng(0)

    def save(path, *, grey=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (64, 64) if grey else (64, 64, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)

    rows = []
    for k, wnid in enumerate(WNIDS):
        for i in range(2):
            save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", grey=i == 1)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
        save(root / "val" / "images" / f"val_{k}.JPEG")
        rows.append(f"val_{k}.JPEG\t{wnid}\t0\t1\t2\t3")
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text(
        "n01\tgoldfish, Carassius\nn02\tcrane\nn03\tcrane, a machine\nn99\tother\n"
    )
    (root / "val" / "val_annotations.txt").write_text("\n".join(reversed(rows)) + "\n")
    return root


def test_official_layout_is_read_with_its_validation_part_as_test(tiny):
    data = load("tinyimagenet", data_dir=tiny.parent)
    assert data.name == "tinyimagenet"
    assert data.train.images.shape == (6, 3, 64, 64)
    assert data.train.class_names == ("crane (n02)", "goldfish", "crane (n03)")
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.labels.tolist() == [2, 1, 0]


def test_grey_images_are_widened_to_three_equal_channels(tiny):
    grey = load("tinyimagenet", data_dir=tiny.parent).train.images[1]
    np.testing.assert_array_equal(grey[0], grey[1])
    np.testing.assert_array_equal(grey[0], grey[2])


def test_the_path_in_the_spec_names_the_folder_itself(tiny):
    there = load(f"tinyimagenet:{tiny}", data_dir=tiny.parent / "data")
    assert there.train.fingerprint == load("tinyimagenet", data_dir=tiny.parent).train.fingerprint


def test_image_that_the_table_names_and_nobody_has_is_named_or_skipped(tiny):
    (tiny / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"val/images/val_1\.JPEG: there is no image here"):
        load("tinyimagenet", data_dir=tiny.parent)
    with pytest.raises(DataError, match="class 'goldfish' has no test images left"):
        load("tinyimagenet", data_dir=tiny.parent, skip_broken=True)


def test_corrupt_training_image_is_named_or_skipped(tiny):
    file = tiny / "train" / "n02" / "images" / "n02_0.JPEG"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match=r"n02_0\.JPEG: not an image Pillow can read"):
        load("tinyimagenet", data_dir=tiny.parent)
    data = load("tinyimagenet", data_dir=tiny.parent, skip_broken=True)
    assert data.train.per_class_counts().tolist() == [1, 2, 2]
    assert "n02_0.JPEG" in data.skipped[0]


def test_image_of_another_size_is_named_and_image_size_resizes(tiny):
    file = tiny / "train" / "n02" / "images" / "n02_0.JPEG"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(file)
    with pytest.raises(DataError, match=r"n02_0\.JPEG: the image is 32x32 .* this layout has 64x64"):
        load("tinyimagenet", data_dir=tiny.parent)
    assert load("tinyimagenet", data_dir=tiny.parent, image_size=16).train.images.shape == (6, 3, 16, 16)


@pytest.mark.parametrize("missing", ["words.txt", "val/val_annotations.txt"])
def test_missing_table_is_named(tiny, missing):
    (tiny / missing).unlink()
    with pytest.raises(DataError, match=f"{missing}: cannot be read"):
        load("tinyimagenet", data_dir=tiny.parent)


def test_class_without_training_images_is_named(tiny):
    for file in (tiny / "train" / "n01" / "images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="train/n01/images: no images of class n01"):
        load("tinyimagenet", data_dir=tiny.parent)


def test_unknown_class_in_the_validation_table_is_named_with_its_line(tiny):
    table = tiny / "val" / "val_annotations.txt"
    table.write_text(table.read_text() + "val_0.JPEG\tn77\t0\t1\t2\t3\n")
    with pytest.raises(DataError, match=r"val_annotations\.txt, line 4: class 'n77'"):
        load("tinyimagenet", data_dir=tiny.parent)


@pytest.mark.parametrize("inner", ["", "images"])
def test_validation_images_sorted_by_class_are_read(tiny, inner):
    flat = load("tinyimagenet", data_dir=tiny.parent)
    for k, wnid in enumerate(WNIDS):
        (tiny / "val" / wnid / inner).mkdir(parents=True)
        (tiny / "val" / "images" / f"val_{k}.JPEG").rename(tiny / "val" / wnid / inner / f"val_{k}.JPEG")
    (tiny / "val" / "images").rmdir()
    sorted_ = load("tinyimagenet", data_dir=tiny.parent)
    assert sorted_.test.labels.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(sorted_.test.images, flat.test.images[::-1])

    by_folder = load(f"folder:{tiny}", data_dir=tiny.parent)
    assert by_folder.train.class_names == ("n01", "n02", "n03")
    assert by_folder.train.per_class_counts().tolist() == [2, 2, 2]
    assert by_folder.test.labels.tolist() == [0, 1, 2]


def test_folder_points_to_the_source_that_reads_the_official_layout(tiny):
    with pytest.raises(DataError, match=rf"Tiny ImageNet.*; pass tinyimagenet:{tiny}"):
        load(f"folder:{tiny}", data_dir=tiny.parent)


def test_images_that_were_not_compared_are_said_to_be_so(tiny, monkeypatch):
    monkeypatch.setattr(official, "TINYIMAGENET", (official.Part((2,) * 3), official.Part((1,) * 3)))
    data = load("tinyimagenet", data_dir=tiny.parent)
    assert data.source.title == "Tiny ImageNet"
    assert data.remarks == (
        "the images are Tiny ImageNet's by their counts only; their pixels and labels could not be compared",
    )


def test_few_classes_do_not_pass_for_tiny_imagenet(tiny):
    title = load("tinyimagenet", data_dir=tiny.parent).source.title
    assert title == "Tiny ImageNet (not the official files: 6 training images instead of 100,000)"
