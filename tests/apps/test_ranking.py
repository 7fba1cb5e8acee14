import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.nas.ranking import (
    best_rank_at_k,
    dense_codes,
    kendall_tau_b,
    precision_at_k,
    regret_at_k,
    seed_ceiling,
    spearman_rho,
    top_networks,
    true_ranks,
)
from atom.errors import ConfigError, DataError, ShapeError

TIED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=7)


def slow_tau_b(x_n, y_n):
    concordant = discordant = untied_x = untied_y = 0
    for i, j in itertools.combinations(range(len(x_n)), 2):
        untied_x += x_n[i] != x_n[j]
        untied_y += y_n[i] != y_n[j]
        product = (x_n[i] - x_n[j]) * (y_n[i] - y_n[j])
        concordant += product > 0
        discordant += product < 0
    return (concordant - discordant) / math.sqrt(untied_x * untied_y)


def slow_ranks(values_n):
    """Mid-ranks by definition: the mean place over all orders that respect the values."""
    below = [sum(other < value for other in values_n) for value in values_n]
    same = [sum(other == value for other in values_n) for value in values_n]
    return np.array([b + (s + 1) / 2 for b, s in zip(below, same, strict=True)])


def top_k_over_all_orders(proxy_n, truth_n, k):
    """Means over every order of the networks that respects the proxy, ties in each of their orders."""
    worths = []
    kth_truth = sorted(truth_n, reverse=True)[k - 1]
    for order in itertools.permutations(range(len(proxy_n))):
        if all(proxy_n[a] >= proxy_n[b] for a, b in itertools.pairwise(order)):
            chosen = order[:k]
            best = max(truth_n[i] for i in chosen)
            rank = 1 + sum(truth > best for truth in truth_n)
            worths.append((sum(truth_n[i] >= kth_truth for i in chosen) / k, rank, max(truth_n) - best))
    return np.mean(worths, axis=0)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=3, max_size=12))
def test_correlations_equal_their_definitions_also_with_ties(pairs):
    proxy_n, truth_n = np.array(pairs, dtype=float).T
    if len(set(proxy_n)) == 1 or len(set(truth_n)) == 1:
        assert kendall_tau_b(proxy_n, truth_n) is None
        assert spearman_rho(proxy_n, truth_n) is None
        return
    assert kendall_tau_b(proxy_n, truth_n) == pytest.approx(slow_tau_b(proxy_n, truth_n), abs=1e-12)
    pearson = np.corrcoef(slow_ranks(proxy_n), slow_ranks(truth_n))[0, 1]
    assert spearman_rho(proxy_n, truth_n) == pytest.approx(pearson, abs=1e-12)


@pytest.mark.parametrize("coefficient", [kendall_tau_b, spearman_rho])
def test_a_backward_proxy_keeps_its_sign(coefficient):
    truth_n = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
    assert coefficient(-truth_n, truth_n) == pytest.approx(-1)


@pytest.mark.parametrize("coefficient", [kendall_tau_b, spearman_rho])
def test_minus_infinity_ranks_as_any_lowest_score(coefficient):
    truth_n = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
    scores_n = np.array([2.0, -np.inf, 1.0, -np.inf, 3.0])
    assert coefficient(scores_n, truth_n) == coefficient(np.maximum(scores_n, -100), truth_n)


@pytest.mark.parametrize("coefficient", [kendall_tau_b, spearman_rho])
def test_fewer_than_three_networks_have_no_correlation(coefficient):
    assert coefficient(np.array([1.0, 2.0]), np.array([1.0, 2.0])) is None
    assert coefficient(np.empty(0), np.empty(0)) is None


def test_nan_and_unequal_lengths_are_refused_with_the_place():
    with pytest.raises(DataError, match="scores: network 1 is NaN"):
        kendall_tau_b(np.array([1.0, np.nan, 2.0]), np.array([1.0, 2.0, 3.0]))
    with pytest.raises(ShapeError, match=r"\(2,\) and truth \(3,\)"):
        precision_at_k(np.zeros(2), np.zeros(3), k=1)
    with pytest.raises(ConfigError, match="k is 4, but there are 3 networks"):
        regret_at_k(np.zeros(3), np.zeros(3), k=4)


@settings(deadline=None, max_examples=60)
@given(TIED, st.data())
def test_top_k_statistics_are_means_over_every_order_of_the_ties(pairs, data):
    proxy_n, truth_n = np.array(pairs, dtype=float).T
    k = data.draw(st.integers(1, len(pairs)))
    computed = [function(proxy_n, truth_n, k=k) for function in (precision_at_k, best_rank_at_k, regret_at_k)]
    np.testing.assert_allclose(computed, top_k_over_all_orders(proxy_n, truth_n, k), rtol=1e-12, atol=1e-12)


def test_a_proxy_that_says_nothing_is_worth_a_random_choice():
    truth_n = np.arange(720.0)
    assert precision_at_k(np.zeros(720), truth_n, k=20) == pytest.approx(20 / 720)
    # The mean smallest of k ranks drawn from 1..n is (n + 1) / (k + 1).
    assert best_rank_at_k(np.zeros(720), truth_n, k=20) == pytest.approx(721 / 21)
    assert regret_at_k(np.zeros(720), truth_n, k=20) == pytest.approx(721 / 21 - 1)


def test_the_truth_as_proxy_is_perfect():
    truth_n = np.array([5.0, 3.0, 3.0, 8.0, 1.0])
    for k in range(1, 6):
        assert precision_at_k(truth_n, truth_n, k=k) == 1
        assert best_rank_at_k(truth_n, truth_n, k=k) == 1
        assert regret_at_k(truth_n, truth_n, k=k) == 0


def test_a_score_of_minus_infinity_is_chosen_last():
    assert regret_at_k(np.array([-np.inf, 0.0, -5.0]), np.array([90.0, 70.0, 80.0]), k=2) == 10


def test_top_networks_round_the_share_and_take_all_tied_with_the_last():
    truth_n = np.array([1.0, 9.0, 7.0, 7.0, 3.0, 2.0, 8.0, 0.0, -1.0, 4.0])
    assert top_networks(truth_n, 0.2).tolist() == [1, 6]
    assert top_networks(truth_n, 0.3).tolist() == [1, 2, 3, 6]
    assert top_networks(truth_n, 0.05).tolist() == [1]
    assert top_networks(truth_n, 1.0).tolist() == list(range(10))
    assert [len(top_networks(np.arange(720), share)) for share in (0.2, 0.05)] == [144, 36]
    with pytest.raises(ConfigError, match="share"):
        top_networks(truth_n, 20)


def test_tied_true_ranks_share_the_smallest():
    assert true_ranks(np.array([5.0, 9.0, 5.0, 1.0])).tolist() == [2, 1, 2, 4]


def test_dense_codes_keep_order_and_ties():
    assert dense_codes(np.array([2.5, -np.inf, 7.0, 2.5])).tolist() == [1, 0, 2, 1]


def test_the_seed_ceiling_is_the_mean_over_pairs_of_seeds():
    rng = np.random.default_rng(3)
    truth_nS = rng.normal(size=(11, 1)) + rng.normal(size=(11, 3))
    kendall, spearman = seed_ceiling(truth_nS)
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert kendall == pytest.approx(np.mean([slow_tau_b(truth_nS[:, a], truth_nS[:, b]) for a, b in pairs]))
    ranks = [slow_ranks(column) for column in truth_nS.T]
    assert spearman == pytest.approx(np.mean([np.corrcoef(ranks[a], ranks[b])[0, 1] for a, b in pairs]))


def test_one_seed_or_a_constant_seed_has_no_ceiling():
    assert seed_ceiling(np.arange(5.0)[:, None]) == (None, None)
    assert seed_ceiling(np.array([[1.0, 2.0], [2.0, 2.0], [3.0, 2.0]])) == (None, None)
