import math

import numpy as np
import pytest
from scipy import stats

from apps.nas import bootstrap
from apps.nas.ranking import COEFFICIENTS, best_rank_at_k, precision_at_k, regret_at_k
from apps.nas.resampling import blocks, draw, weighted
from atom.errors import ConfigError

SCIPY = {
    "kendall": lambda x, y: stats.kendalltau(x, y).statistic,
    "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
}


def noisy_pair(n, seed, digits=9):
    rng = np.random.default_rng(seed)
    truth_n = rng.normal(size=n)
    return (truth_n + rng.normal(size=n)).round(digits), truth_n.round(digits)


@pytest.mark.parametrize("coefficient", SCIPY)
@pytest.mark.parametrize("digits", [9, 0])
def test_counts_give_the_coefficient_of_the_resampled_arrays(coefficient, digits):
    proxy_n, truth_n = noisy_pair(23, 1, digits)
    proxy_n[:2] = -np.inf
    draws = draw(23, resamples=60, seed=4)
    expected = [SCIPY[coefficient](proxy_n[index], truth_n[index]) for index in draws.index_Rn]
    computed = weighted(coefficient, proxy_n, truth_n, counts_Rn=draws.counts_Rn)
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("coefficient", SCIPY)
def test_blocks_of_resamples_change_no_bit(coefficient, monkeypatch):
    proxy_n, truth_n = noisy_pair(31, 2, 1)
    draws = draw(31, resamples=57, seed=0)
    whole = weighted(coefficient, proxy_n, truth_n, counts_Rn=draws.counts_Rn)
    monkeypatch.setattr("apps.nas.resampling._BLOCK", 31 * 10)
    assert len(blocks(57, 31)) == 6
    assert (weighted(coefficient, proxy_n, truth_n, counts_Rn=draws.counts_Rn) == whole).all()
    assert (draw(31, resamples=57, seed=0).counts_Rn == draws.counts_Rn).all()


def test_draws_depend_on_the_seed_and_count_what_was_drawn():
    draws = draw(7, resamples=50, seed=3)
    expected = [[(row == network).sum() for network in range(7)] for row in draws.index_Rn]
    assert draws.counts_Rn.tolist() == expected
    assert (draw(7, resamples=50, seed=4).index_Rn != draws.index_Rn).any()
    with pytest.raises(ConfigError, match="0 resamples of 7 networks"):
        draw(7, resamples=0, seed=3)


@pytest.mark.parametrize("coefficient", SCIPY)
def test_the_jackknife_leaves_out_one_network_at_a_time(coefficient):
    proxy_n, truth_n = noisy_pair(13, 5, 1)
    replicates = bootstrap.replicate(coefficient, proxy_n, truth_n, draws=draw(13, resamples=5, seed=0))
    expected = [COEFFICIENTS[coefficient](np.delete(proxy_n, i), np.delete(truth_n, i)) for i in range(13)]
    np.testing.assert_allclose(replicates.jackknife_n, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("coefficient", SCIPY)
@pytest.mark.parametrize("digits", [9, 0])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_is_that_of_scipy_on_the_same_resamples(coefficient, digits, level):
    proxy_n, truth_n = noisy_pair(29, 6, digits)
    replicates = bootstrap.replicate(coefficient, proxy_n, truth_n, draws=draw(29, resamples=999, seed=1))
    estimate = bootstrap.interval(replicates, level=level)
    earlier = stats.bootstrap(
        (proxy_n, truth_n),
        SCIPY[coefficient],
        paired=True,
        vectorized=False,
        n_resamples=2,
        method="percentile",
    )
    earlier.bootstrap_distribution = replicates.samples_R
    theirs = stats.bootstrap(
        (proxy_n, truth_n),
        SCIPY[coefficient],
        paired=True,
        vectorized=False,
        n_resamples=0,
        method="BCa",
        confidence_level=level,
        bootstrap_result=earlier,
    ).confidence_interval
    assert (estimate.low, estimate.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_interval_is_near_that_of_scipy_on_its_own_resamples():
    proxy_n, truth_n = noisy_pair(40, 7)
    replicates = bootstrap.replicate("spearman", proxy_n, truth_n, draws=draw(40, resamples=9999, seed=1))
    estimate = bootstrap.interval(replicates)

    def rank_pearson(x, y, axis=-1):
        x, y = stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis)
        return stats.pearsonr(x, y, axis=axis).statistic

    theirs = stats.bootstrap(
        (proxy_n, truth_n), rank_pearson, paired=True, vectorized=True, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (estimate.low, estimate.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


@pytest.mark.parametrize("coefficient", SCIPY)
def test_a_perfect_proxy_has_an_interval_without_width(coefficient):
    truth_n = np.arange(12.0)
    replicates = bootstrap.replicate(coefficient, truth_n**3, truth_n, draws=draw(12, resamples=200, seed=0))
    estimate = bootstrap.interval(replicates)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("coefficient", SCIPY)
def test_undefined_statistics_have_no_interval(coefficient):
    draws = draw(9, resamples=200, seed=0)
    constant = bootstrap.replicate(coefficient, np.ones(9), np.arange(9.0), draws=draws)
    assert bootstrap.interval(constant) == bootstrap.Estimate(None, None, None)
    defined = bootstrap.replicate(coefficient, np.arange(9.0), np.arange(9.0), draws=draws)
    assert bootstrap.compare(defined, constant) == (bootstrap.Estimate(None, None, None), None)
    without_draws = bootstrap.replicate(coefficient, np.arange(9.0), np.arange(9.0), draws=None)
    estimate = bootstrap.interval(without_draws)
    assert estimate.value == pytest.approx(1)
    assert (estimate.low, estimate.high) == (None, None)


def test_resamples_without_a_coefficient_are_left_out():
    # One network differs; a resample lacks it with chance (8/9)**9 = 0.35.
    proxy_n = np.eye(9)[4]
    replicates = bootstrap.replicate("kendall", proxy_n, np.arange(9.0), draws=draw(9, resamples=999, seed=0))
    lacks = np.isnan(replicates.samples_R)
    assert lacks.mean() == pytest.approx((8 / 9) ** 9, abs=0.05)
    estimate = bootstrap.interval(replicates)
    assert estimate.low is not None
    assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_a_proxy_against_itself_differs_by_nothing():
    proxy_n, truth_n = noisy_pair(20, 8)
    same = bootstrap.replicate("kendall", proxy_n, truth_n, draws=draw(20, resamples=200, seed=0))
    assert bootstrap.compare(same, same) == (bootstrap.Estimate(0, 0, 0), 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_p_is_the_level_at_which_the_interval_touches_zero(seed):
    rng = np.random.default_rng(seed)
    truth_n = rng.normal(size=40)
    draws = draw(40, resamples=4999, seed=0)
    first, second = (
        bootstrap.replicate("kendall", truth_n + noise * rng.normal(size=40), truth_n, draws=draws)
        for noise in (0.8, 1.2)
    )
    _, p = bootstrap.compare(first, second)
    estimate, _ = bootstrap.compare(first, second, level=1 - p)
    assert min(abs(estimate.low), abs(estimate.high)) < 2e-3
    backward, backward_p = bootstrap.compare(second, first, level=1 - p)
    assert backward_p == pytest.approx(p)
    assert (backward.low, backward.high) == pytest.approx((-estimate.high, -estimate.low), abs=1e-12)


def test_p_never_falls_below_what_the_resamples_can_show():
    truth_n = np.arange(60.0)
    draws = draw(60, resamples=199, seed=0)
    good, bad = (bootstrap.replicate("kendall", sign * truth_n, truth_n, draws=draws) for sign in (1, -1))
    assert bootstrap.compare(good, bad)[1] == pytest.approx(2 / 200)


def test_intervals_cover_known_correlations_of_normal_scores():
    # 400 data sets: a true coverage of 0.95 gives 0.92 to 0.98 with chance 0.99 (binomial). Measured over 800
    # data sets: 0.94 to 0.97 for all six.
    rhos, n, num = (0.7, 0.4), 50, 400
    tau = [2 / math.pi * math.asin(rho) for rho in rhos]
    rank_rho = [6 / math.pi * math.asin(rho / 2) for rho in rhos]
    known = {"kendall": [*tau, tau[0] - tau[1]], "spearman": [*rank_rho, rank_rho[0] - rank_rho[1]]}
    mix = np.array(
        [[1, 0, 0], [rhos[0], math.sqrt(1 - rhos[0] ** 2), 0], [rhos[1], 0, math.sqrt(1 - rhos[1] ** 2)]]
    )
    rng, draws = np.random.default_rng(11), draw(n, resamples=999, seed=0)
    hits = {coefficient: np.zeros(3) for coefficient in known}
    for _ in range(num):
        truth_n, *proxies = mix @ rng.normal(size=(3, n))
        for coefficient, values in known.items():
            replicates = [
                bootstrap.replicate(coefficient, proxy_n, truth_n, draws=draws) for proxy_n in proxies
            ]
            estimates = [bootstrap.interval(one) for one in replicates]
            estimates.append(bootstrap.compare(*replicates)[0])
            hits[coefficient] += [
                e.low <= value <= e.high for e, value in zip(estimates, values, strict=True)
            ]
    for coefficient, counts in hits.items():
        assert ((counts / num >= 0.92) & (counts / num <= 0.98)).all(), (coefficient, counts / num)


def test_top_k_replicates_are_those_of_the_resampled_networks():
    rng = np.random.default_rng(2)
    # The proxy has no ties, hence nothing is random; its copies in a resample are equal in truth too.
    proxy_n, truth_n = rng.permutation(17).astype(float), rng.integers(60, 70, size=17).astype(float)
    draws, ks = draw(17, resamples=40, seed=5), (1, 3, 17)
    samples_3RK = bootstrap._top_samples(proxy_n, truth_n, ks, draws)
    for place, k in enumerate(ks):
        for resample, index in enumerate(draws.index_Rn):
            expected = [
                f(proxy_n[index], truth_n[index], k=k) for f in (precision_at_k, best_rank_at_k, regret_at_k)
            ]
            assert samples_3RK[:, resample, place] == pytest.approx(expected)


def test_ties_of_the_proxy_are_broken_at_random_in_each_resample():
    rng = np.random.default_rng(3)
    proxy_n, truth_n = rng.integers(0, 3, size=12).astype(float), rng.normal(size=12)
    draws = draw(12, resamples=4000, seed=6)
    samples_3RK = bootstrap._top_samples(proxy_n, truth_n, (2,), draws)
    expected = np.mean(
        [
            [f(proxy_n[index], truth_n[index], k=2) for f in (precision_at_k, best_rank_at_k, regret_at_k)]
            for index in draws.index_Rn[:1000]
        ],
        axis=0,
    )
    errors = samples_3RK[:, :, 0].std(axis=1) / math.sqrt(1000)
    assert (np.abs(samples_3RK[:, :1000, 0].mean(axis=1) - expected) < 4 * errors).all()


def test_top_k_values_are_exact_and_their_intervals_are_percentiles():
    proxy_n, truth_n = noisy_pair(25, 9, 0)
    draws = draw(25, resamples=300, seed=0)
    (row,) = bootstrap.top_k(proxy_n, truth_n, ks=(5,), draws=draws, level=0.8)
    samples_R = bootstrap._top_samples(proxy_n, truth_n, (5,), draws)[:, :, 0]
    for estimate, function, samples in zip(
        (row.precision, row.best_rank, row.regret),
        (precision_at_k, best_rank_at_k, regret_at_k),
        samples_R,
        strict=True,
    ):
        assert estimate.value == function(proxy_n, truth_n, k=5)
        assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(samples, [0.1, 0.9])))
