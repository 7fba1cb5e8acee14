"""Proxies joined by their ranks: what a member's unit, ties and gaps do to the mean."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from apps.nas.combined import rank_mean, ranks

NAMES = [f"net-{place}" for place in range(9)]
# Whole numbers, so that ties are common and a cube is exact.
SCORES = st.lists(st.integers(-5, 5), min_size=len(NAMES), max_size=len(NAMES)).map(
    lambda values: dict(zip(NAMES, map(float, values), strict=True))
)


def order(scores):
    """The networks as they are ranked, ties included."""
    return dict(zip(scores, rankdata(list(scores.values())).tolist(), strict=True))


@given(st.lists(SCORES, min_size=1, max_size=4))
def test_it_is_the_mean_of_scipys_mid_ranks(members):
    found = rank_mean({f"proxy-{place}": scores for place, scores in enumerate(members)})
    columns = [rankdata([scores[name] for name in NAMES]) for scores in members]
    expected = [statistics.fmean(float(column[place]) for column in columns) for place in range(len(NAMES))]
    assert list(found) == NAMES
    assert list(found.values()) == pytest.approx(expected)


@given(SCORES, SCORES)
def test_no_rising_function_of_a_member_changes_anything(one, other):
    cubed = {name: 1e6 + score**3 for name, score in one.items()}
    assert rank_mean({"a": one, "b": other}) == rank_mean({"a": cubed, "b": other})


@given(SCORES)
def test_a_member_joined_with_itself_keeps_its_order_and_one_with_its_opposite_has_none(scores):
    assert order(rank_mean({"a": scores, "b": scores})) == order(scores)
    opposite = {name: -score for name, score in scores.items()}
    assert set(rank_mean({"a": scores, "b": opposite}).values()) == {(len(NAMES) + 1) / 2}


@given(SCORES, SCORES, st.permutations(NAMES))
def test_neither_the_order_of_members_nor_that_of_networks_counts(one, other, names):
    shuffled = {name: other[name] for name in names}
    assert rank_mean({"a": one, "b": other}) == rank_mean({"b": shuffled, "a": one})


def test_larger_is_better_and_tied_networks_share_their_mid_rank():
    assert rank_mean({"a": {"x": 1.0, "y": 9.0, "z": 1.0}}) == {"x": 1.5, "y": 3.0, "z": 1.5}


def test_networks_that_a_member_lacks_have_no_rank_and_count_in_no_other():
    found = rank_mean({"a": {"w": 4.0, "x": 3.0, "y": 2.0, "z": 1.0}, "b": {"z": 7.0, "x": 8.0, "w": 1.0}})
    assert found == {"w": 2.0, "x": 2.5, "z": 1.5}
    assert rank_mean({"a": {"w": 4.0}, "b": {}}) == {}


def test_minus_infinity_ranks_last():
    networks, ranks_nP = ranks({"a": {"x": -math.inf, "y": -1e300, "z": -math.inf}})
    assert networks == ["x", "y", "z"]
    assert ranks_nP.tolist() == [[1.5], [3.0], [1.5]]
