"""Validation images put aside, and fewer training images kept: who gets which, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.data import ImageSet, RealData, SourceInfo
from atom.errors import ConfigError, DataError


def image_set(labels, *, num_classes=3, first=0):
    """Images that hold their own number, so that each can be told."""
    images = np.zeros((len(labels), 2, 5, 4), dtype=np.uint8)
    for place, image in enumerate(images, start=first):
        image[0, 0, :2] = divmod(place, 256)
    return ImageSet.create(images, np.array(labels), [f"class {k}" for k in range(num_classes)])


def real(labels, *, num_classes=3):
    test = image_set(list(range(num_classes)), num_classes=num_classes, first=60_000)
    train = image_set(labels, num_classes=num_classes)
    return RealData("x", "made:up", train, test, SourceInfo("Made up", "nobody", "none", ""))


def numbers(images):
    return [int(image[0, 0, 0]) * 256 + int(image[0, 0, 1]) for image in images.images]


MANY = np.random.default_rng(0).permutation([0] * 40 + [1] * 20 + [2] * 10).tolist()


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(4, 15), min_size=1, max_size=4),
    share=st.floats(0.01, 0.99),
    keep=st.none() | st.just(1),
)
def test_parts_are_disjoint_in_order_and_keep_their_labels(counts, share, keep):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    labels = np.random.default_rng(len(labels)).permutation(labels).tolist()
    held = real(labels, num_classes=len(counts)).hold_out(share, train_per_class=keep)
    train, validation = numbers(held.train), numbers(held.validation)
    assert not set(train) & set(validation)
    for part, found in ((held.train, train), (held.validation, validation)):
        assert found == sorted(found)
        assert part.labels.tolist() == [labels[place] for place in found]
        assert part.per_class_counts().min() >= 1
    if keep is None:
        assert sorted(train + validation) == list(range(len(labels)))
    else:
        assert held.train.per_class_counts().tolist() == [1] * len(counts)


def test_validation_is_stratified():
    held = real(MANY).hold_out(0.1)
    assert held.validation.per_class_counts().tolist() == [4, 2, 1]
    assert held.train.per_class_counts().tolist() == [36, 18, 9]


def test_the_same_images_validate_whatever_is_kept_for_training():
    parts = [real(MANY).hold_out(0.2, train_per_class=keep) for keep in (None, 1, 3, 8)]
    assert len({part.validation.fingerprint for part in parts}) == 1
    assert [len(part.train) for part in parts] == [56, 3, 9, 24]


def test_fewer_images_a_class_are_part_of_more():
    kept = [set(numbers(real(MANY).hold_out(0.2, train_per_class=keep).train)) for keep in (1, 3, 8)]
    assert kept[0] < kept[1] < kept[2]


def test_kept_images_are_not_simply_the_first_ones():
    held = real([0, 1, 2] * 30).hold_out(0, train_per_class=5)
    assert numbers(held.train) != list(range(15))


def test_the_draw_is_the_same_every_time():
    first, again = (real(MANY).hold_out(0.3, train_per_class=4) for _ in range(2))
    assert first.train.fingerprint == again.train.fingerprint
    assert first.validation.fingerprint == again.validation.fingerprint


def test_nothing_is_put_aside_with_a_share_of_zero():
    before = real(MANY)
    held = before.hold_out(0)
    assert held.validation is None
    assert held.train is before.train
    assert real(MANY).hold_out(0.0, train_per_class=2).validation is None


def test_test_images_and_the_rest_of_the_source_stay():
    before = real(MANY)
    held = before.hold_out(0.5, train_per_class=2)
    assert held.test is before.test
    assert (held.name, held.spec, held.source) == (before.name, before.spec, before.source)
    assert before.validation is None
    assert len(before.train) == 70


@pytest.mark.parametrize("share", [1, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ConfigError, match=r"expected a share between 0\.0 and 1\.0"):
        real(MANY).hold_out(share)


def test_more_images_than_a_class_has_left_are_refused_with_what_to_pass():
    said = r"--train-per-class 9: class 'class 2' of made:up has only 8 training images; pass .* 8 or less\."
    with pytest.raises(ConfigError, match=said):
        real(MANY).hold_out(0.2, train_per_class=9)
    assert real(MANY).hold_out(0.2, train_per_class=8).train.per_class_counts().tolist() == [8, 8, 8]


@pytest.mark.parametrize("keep", [0, -1])
def test_no_images_or_less_are_refused(keep):
    with pytest.raises(ConfigError, match=f"--train-per-class {keep}: expected at least 1 training image"):
        real(MANY).hold_out(0.1, train_per_class=keep)


def test_a_class_too_small_to_split_is_refused_by_name():
    with pytest.raises(DataError, match="'class 1' has 1 image"):
        real([0, 0, 1, 2, 2]).hold_out(0.5)
