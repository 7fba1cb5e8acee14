import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.data import ImageSet, RealData, SourceInfo, split_validation
from atom.errors import ConfigError, DataError, ShapeError

SOURCE = SourceInfo("Made up", "nobody", "none", "")


def image_set(labels, *, num_classes=3, seed=0, channels=2, height=5, width=4):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(labels), channels, height, width), dtype=np.uint8)
    return ImageSet.create(images, np.array(labels), [f"class {k}" for k in range(num_classes)])


def test_counts_indices_and_length_agree():
    images = image_set([2, 0, 2, 2])
    assert len(images) == 4
    assert images.num_classes == 3
    assert images.per_class_counts().tolist() == [1, 0, 3]
    assert images.indices_of(2).tolist() == [0, 2, 3]
    assert images.indices_of(1).tolist() == []


def test_subset_keeps_order_and_class_names():
    images = image_set([2, 0, 1, 2])
    part = images.subset([3, 0])
    np.testing.assert_array_equal(part.images, images.images[[3, 0]])
    assert part.labels.tolist() == [2, 2]
    assert part.class_names == images.class_names


def test_fingerprint_is_equal_for_equal_sets_and_changes_with_every_part():
    base = image_set([0, 1, 2])
    assert base.fingerprint == image_set([0, 1, 2]).fingerprint
    pixel = base.images.copy()
    pixel[1, 1, 4, 3] ^= 1
    others = [
        ImageSet.create(pixel, base.labels, base.class_names),
        ImageSet.create(base.images, [0, 2, 1], base.class_names),
        ImageSet.create(base.images, base.labels, ("class 0", "class 1", "other")),
        ImageSet.create(base.images.reshape(3, 2, 4, 5), base.labels, base.class_names),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 8, 8), np.uint8), [0, 1]),
        (np.zeros((2, 1, 8, 8), np.float32), [0, 1]),
        (np.zeros((2, 1, 8, 8), np.uint8), [0]),
        (np.zeros((2, 1, 8, 8), np.uint8), [0.5, 1.0]),
    ],
)
def test_wrong_shapes_and_types_are_refused(images, labels):
    with pytest.raises(ShapeError, match="expected"):
        ImageSet.create(images, labels, ["a", "b"])


def test_label_out_of_range_is_refused_with_its_place():
    with pytest.raises(DataError, match=r"Image 1 has label 2; expected 0 to 1"):
        ImageSet.create(np.zeros((2, 1, 8, 8), np.uint8), [0, 2], ["a", "b"])


def test_class_without_test_images_is_refused_by_name():
    with pytest.raises(DataError, match="class 'class 1' has no test images"):
        RealData("x", "x", image_set([0, 1, 2]), image_set([0, 2]), SOURCE)


def test_parts_of_different_size_are_refused():
    with pytest.raises(DataError, match="2x5x4, test images 2x6x4"):
        RealData("x", "x", image_set([0, 1, 2]), image_set([0, 1, 2], height=6), SOURCE)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(2, 12), min_size=1, max_size=5),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_validation_split_is_disjoint_covers_and_leaves_every_class_on_both_sides(counts, share, seed):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    images = image_set(np.random.default_rng(seed).permutation(labels), num_classes=len(counts))
    train, val = split_validation(images, fraction_or_count=share, seed=seed)
    assert (train.per_class_counts() + val.per_class_counts()).tolist() == counts
    assert train.per_class_counts().min() >= 1
    assert val.per_class_counts().min() >= 1
    rows = sorted(part.images[i].tobytes() for part in (train, val) for i in range(len(part)))
    assert rows == sorted(images.images[i].tobytes() for i in range(len(images)))


def test_validation_count_is_exact_and_proportional():
    images = image_set([0] * 40 + [1] * 20 + [2] * 10)
    train, val = split_validation(images, fraction_or_count=7, seed=0)
    assert val.per_class_counts().tolist() == [4, 2, 1]
    assert len(train) == 63


def test_validation_split_depends_on_the_seed_only():
    images = image_set([0, 1, 2] * 10)
    first, again, other = (split_validation(images, fraction_or_count=0.5, seed=s)[1] for s in (0, 0, 1))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint


@pytest.mark.parametrize("amount", [0, 2, 1.0, 0.0, 28, -1, True])
def test_validation_part_out_of_range_is_refused(amount):
    with pytest.raises(ConfigError, match="from 3 to 27"):
        split_validation(image_set([0, 1, 2] * 10), fraction_or_count=amount, seed=0)


def test_class_of_one_image_cannot_be_split():
    with pytest.raises(DataError, match="'class 2' has 1 image"):
        split_validation(image_set([0, 0, 1, 1, 2]), fraction_or_count=0.5, seed=0)


@pytest.mark.parametrize("names", [("café", "cafe\u0301"), ("cat", "cat")])
def test_class_names_that_look_the_same_are_told_apart_in_the_error(names):
    with pytest.raises(DataError) as refused:
        ImageSet.create(np.zeros((2, 1, 8, 8), np.uint8), [0, 1], names)
    assert all(ascii(name) in str(refused.value) for name in names)
    assert "rename one" in str(refused.value)
