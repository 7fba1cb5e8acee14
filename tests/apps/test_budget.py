"""Budgets of a memory in their four forms: what each class gets, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.continual.budget import Budget, apportion, parse_budget
from apps.continual.exemplars import Exemplars
from apps.continual.memory import Memory
from atom.errors import ConfigError


def test_images_a_class_stay_the_same_however_many_classes_come():
    budget = Budget(per_class=20)
    assert [budget.quota(seen, 3072) for seen in (1, 10, 100)] == [20, 20, 20]
    assert budget.capacity(100, 3072) == 2000


def test_shared_images_are_divided_and_the_rest_is_left_unused():
    budget = Budget(images=500)
    assert [budget.quota(seen, 3072) for seen in (1, 2, 7, 10)] == [500, 250, 71, 50]
    assert budget.capacity(10, 3072) == 500


def test_bytes_buy_four_times_as_many_uint8_images_as_float32_ones():
    budget = Budget(num_bytes=200 * 3072)
    assert budget.quota(10, 3072) == 20
    assert budget.quota(10, 4 * 3072) == 5
    assert budget.capacity(10, 3072) == 200


def test_bytes_a_class_stay_the_same_and_buy_whole_images_only():
    budget = Budget(bytes_per_class=7840)
    assert [budget.quota(seen, 784) for seen in (1, 10)] == [10, 10]
    assert [budget.quota(10, size) for size in (792, 3136)] == [9, 2]
    assert budget.capacity(10, 784) == 100


@given(st.integers(1, 10**6), st.integers(1, 50), st.integers(1, 5000))
def test_bytes_are_never_exceeded_and_one_more_image_a_class_would(num_bytes, num_seen, bytes_per_image):
    quota = Budget(num_bytes=num_bytes).quota(num_seen, bytes_per_image)
    assert quota * num_seen * bytes_per_image <= num_bytes < (quota + 1) * num_seen * bytes_per_image


def test_memory_kept_to_its_quota_stays_within_the_bytes():
    budget, memory = Budget(num_bytes=1000), Memory()
    for class_id in range(6):
        memory.add(class_id, Exemplars(np.zeros((30, 2, 5, 3), np.uint8)))
        memory.shrink(budget.quota(class_id + 1, 30))
        assert memory.num_bytes <= 1000
        assert memory.num_images == min(30, 33 // (class_id + 1)) * (class_id + 1)


@pytest.mark.parametrize("limits", [{}, {"per_class": 2, "images": 20}, {"images": 0}, {"num_bytes": -5}])
def test_budget_of_no_kind_or_of_two_or_below_one_is_refused(limits):
    with pytest.raises(ConfigError, match="expected exactly one of per_class, bytes_per_class, images and"):
        Budget(**limits)


def test_budget_that_runs_out_at_the_last_step_is_refused_up_front():
    Budget(images=10).check(10, 3072)
    with pytest.raises(ConfigError, match="budget of 9 images: 10 classes need 10 images or more"):
        Budget(images=9).check(10, 3072)
    Budget(num_bytes=30720).check(10, 3072)
    with pytest.raises(
        ConfigError, match="of 30719 bytes: 10 classes need 30720 bytes, 3072 an image, or more"
    ):
        Budget(num_bytes=30719).check(10, 3072)
    Budget(bytes_per_class=3072).check(10, 3072)
    with pytest.raises(ConfigError, match="of 3071 bytes a class: an image takes 3072 bytes"):
        Budget(bytes_per_class=3071).check(10, 3072)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20/class", Budget(per_class=20)),
        ("1 / Class", Budget(per_class=1)),
        ("2000 images", Budget(images=2000)),
        ("1image", Budget(images=1)),
        ("3072B", Budget(num_bytes=3072)),
        ("600kB", Budget(num_bytes=600_000)),
        ("0.29 MB", Budget(num_bytes=290_000)),
        ("6MiB", Budget(num_bytes=6 * 2**20)),
        ("1.5gib", Budget(num_bytes=3 * 2**29)),
        ("7.84kB/class", Budget(bytes_per_class=7840)),
        ("3072 b / class", Budget(bytes_per_class=3072)),
        ("20 images/class", Budget(per_class=20)),
    ],
)
def test_budgets_are_read_as_users_write_them(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "2000",
        "",
        "20.5/class",
        "1.5 images",
        "-3 images",
        "6 MBit",
        "1e6 B",
        "nan MB",
        "/class",
        "1.5 images/class",
    ],
)
def test_text_that_is_no_budget_is_refused_with_the_known_forms(text):
    with pytest.raises(ConfigError, match='is not understood; write "20/class"'):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0 images", "0.5B", "0/class"])
def test_budget_of_nothing_is_refused(text):
    with pytest.raises(ConfigError, match="of 1 or more"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget(per_class=2), "2 images a class"),
        (Budget(images=30), "30 images"),
        (Budget(num_bytes=99), "99 bytes"),
        (Budget(bytes_per_class=99), "99 bytes a class"),
    ],
)
def test_budget_says_what_it_is(budget, text):
    assert str(budget) == text


LOTS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=6)


@given(LOTS, st.integers(0, 30))
def test_lots_share_a_quota_in_proportion_as_far_as_they_have_images(lots, quota):
    sizes = [size for size, _ in lots]
    most = [min(own, size) for size, own in lots]
    shares = apportion(quota, sizes, most)
    assert sum(shares) == min(quota, sum(most))
    assert all(share <= own for share, own in zip(shares, most, strict=True))
    if all(own == size for own, size in zip(most, sizes, strict=True)):
        ideal = [min(quota, sum(sizes)) * size / sum(sizes) for size in sizes]
        assert all(abs(share - part) < len(sizes) for share, part in zip(shares, ideal, strict=True))


@given(LOTS, st.integers(1, 60), st.integers(0, 30), st.integers(0, 10))
def test_no_lot_gets_back_what_it_lost_to_another_or_to_a_smaller_quota(lots, new, quota, less):
    sizes, most = [size for size, _ in lots], [min(own, size) for size, own in lots]
    before = apportion(quota, sizes, most)
    after = apportion(max(0, quota - less), [*sizes, new], [*most, new])
    assert all(now <= then for now, then in zip(after, before, strict=False))
