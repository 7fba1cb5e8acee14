import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.coreset import METHODS, select, select_per_class
from atom.errors import ConfigError, DataError, ShapeError
from atom.streams import stream


def slow_herding(features_ND, count):
    mean_D, chosen = features_ND.mean(0), []
    for _ in range(count):
        best, best_distance = -1, np.inf
        for row in range(len(features_ND)):
            if row not in chosen:
                distance = np.sum((mean_D - features_ND[[*chosen, row]].mean(0)) ** 2)
                if distance < best_distance:
                    best, best_distance = row, distance
        chosen.append(best)
    return chosen


def slow_kcenter(features_ND, count):
    mean_D = features_ND.mean(0)
    chosen = [min(range(len(features_ND)), key=lambda row: np.sum((features_ND[row] - mean_D) ** 2))]
    while len(chosen) < count:
        free = [row for row in range(len(features_ND)) if row not in chosen]
        chosen.append(
            max(free, key=lambda row: min(np.sum((features_ND[row] - features_ND[c]) ** 2) for c in chosen))
        )
    return chosen


@pytest.mark.parametrize(("method", "slow"), [("herding", slow_herding), ("kcenter", slow_kcenter)])
@pytest.mark.parametrize("seed", range(4))
def test_fast_selection_equals_the_slow_loops(method, slow, seed):
    # Far from the origin, where distances lose digits unless features are centred first.
    features_ND = np.random.default_rng(seed).normal(size=(23, 7)) + 100
    assert select(method, features_ND, count=11).tolist() == slow(features_ND, 11)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 99), st.booleans(), st.data())
def test_every_method_picks_distinct_rows_even_among_duplicates(num_rows, dims, seed, doubled, data):
    features_ND = np.random.default_rng(seed).normal(size=(num_rows, dims)).round(0 if doubled else 6)
    count = data.draw(st.integers(1, num_rows))
    for method in METHODS:
        chosen = select(method, features_ND, count=count, rng=stream(seed, "test"))
        assert chosen.dtype == np.int64
        assert len(set(chosen.tolist())) == count
        assert set(chosen.tolist()) <= set(range(num_rows))


@pytest.mark.parametrize("method", ["herding", "kcenter"])
def test_selection_does_not_depend_on_where_the_origin_lies(method):
    features_ND = np.random.default_rng(5).normal(size=(31, 3))
    assert (select(method, features_ND, count=9) == select(method, features_ND + 1000.0, count=9)).all()


def test_herding_matches_the_mean_better_than_random():
    features_ND = np.random.default_rng(3).normal(size=(200, 16))
    error = {
        method: np.linalg.norm(
            features_ND[select(method, features_ND, count=10, rng=stream(0, "test"))].mean(0)
            - features_ND.mean(0)
        )
        for method in METHODS
    }
    assert error["herding"] < 0.3 * error["random"]


def test_class_selection_keeps_to_the_class_and_its_own_stream():
    rng = np.random.default_rng(1)
    features_ND, labels_N = rng.normal(size=(60, 5)), rng.permutation(np.arange(60) % 3)
    for method in METHODS:
        chosen = select_per_class(method, features_ND, labels_N, ipc=4, num_classes=3, seed=7)
        assert chosen.shape == (12,)
        assert (labels_N[chosen] == np.arange(3).repeat(4)).all()
        # Another class's features change nothing for this one.
        changed_ND = features_ND + 100 * (labels_N == 0)[:, None] * rng.normal(size=(60, 5))
        again = select_per_class(method, changed_ND, labels_N, ipc=4, num_classes=3, seed=7)
        assert (again[4:] == chosen[4:]).all()


def test_random_selection_follows_the_seed():
    features_ND, labels_N = np.zeros((60, 1)), np.arange(60) % 3

    def draw(seed):
        return select_per_class("random", features_ND, labels_N, ipc=5, num_classes=3, seed=seed).tolist()

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_a_class_smaller_than_ipc_is_named():
    labels_N = np.array([0, 0, 0, 1])
    with pytest.raises(ConfigError, match=r"--ipc 2: class 1 \('cat'\) has only 1 .*pass --ipc 1 or less"):
        select_per_class(
            "random", np.zeros((4, 2)), labels_N, ipc=2, num_classes=2, seed=0, class_names=("dog", "cat")
        )


@pytest.mark.parametrize(
    ("method", "features_ND", "count", "error", "words"),
    [
        ("best", np.zeros((4, 2)), 1, ConfigError, "'best' is unknown; known are random, herding, kcenter"),
        ("random", np.zeros((4, 2)), 1, ConfigError, "received no generator"),
        ("kcenter", np.zeros((4, 2)), 5, ConfigError, "count is 5, but there are 4 images"),
        ("kcenter", np.zeros((4, 2)), 0, ConfigError, "count is 0"),
        ("herding", np.zeros((4, 2, 1)), 1, ShapeError, r"shape \(4, 2, 1\), expected \[N, D\]"),
        ("herding", np.array([[0.0], [np.nan]]), 1, DataError, "row 1 holds NaN"),
    ],
)
def test_bad_requests_are_refused_with_a_sentence(method, features_ND, count, error, words):
    with pytest.raises(error, match=words):
        select(method, features_ND, count=count)


def test_labels_must_match_the_features_in_number():
    with pytest.raises(ShapeError, match="expected one label a row"):
        select_per_class(
            "random", np.zeros((4, 2)), np.zeros(3, dtype=np.int64), ipc=1, num_classes=1, seed=0
        )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["herding", "kcenter"])
def test_a_class_of_cifar_size_takes_seconds(method):
    features_ND = np.random.default_rng(0).normal(size=(5000, 2048)).astype(np.float32)
    start = time.perf_counter()
    select(method, features_ND, count=50)
    assert time.perf_counter() - start < 20
