"""The reference predicted from ranks: equal to slow loops, honest about networks it was not fitted on."""

import math

import numpy as np
import pytest
from scipy.stats import kendalltau, rankdata

from apps.nas.fitted import ONE_BY_ONE, PENALTIES, fit_reference
from apps.nas.proxies import MIN_TO_FIT
from atom.streams import stream


def made(num_networks, num_proxies, *, noise):
    """Scores of proxies that see the truth through noise, on scales of their own, and the truth."""
    rng = stream(0, f"test/fitted/{num_networks}/{num_proxies}/{noise}")
    truth_n = 70 + 10 * rng.random(num_networks)
    names = [f"net-{place}" for place in range(num_networks)]
    scores = {}
    for proxy in range(num_proxies):
        seen = truth_n + noise * 10 * rng.standard_normal(num_networks)
        seen = np.round(seen) if proxy == 0 else np.exp(seen)  # the first has ties
        scores[f"proxy-{proxy}"] = dict(zip(names, seen.tolist(), strict=True))
    return scores, dict(zip(names, truth_n.tolist(), strict=True))


def ridge(ranks_nP, truth_n, penalty):
    """Weights and intercept that minimise |truth - ranks w - b|**2 + penalty |w|**2, by the normal equations."""
    centre_P, mean = ranks_nP.mean(0), truth_n.mean()
    x_nP = ranks_nP - centre_P
    weights_P = np.linalg.solve(x_nP.T @ x_nP + penalty * np.eye(x_nP.shape[1]), x_nP.T @ (truth_n - mean))
    return weights_P, mean - centre_P @ weights_P


def slow_fit(ranks_nP, truth_n):
    """Prediction of any ranks, with the penalty that has the least error on each network left out."""
    centre_P, scale_P = ranks_nP.mean(0), ranks_nP.std(0)
    x_nP = (ranks_nP - centre_P) / scale_P
    errors = []
    for penalty in len(truth_n) * PENALTIES:
        squares = []
        for place in range(len(truth_n)):
            others = np.arange(len(truth_n)) != place
            weights_P, intercept = ridge(x_nP[others], truth_n[others], penalty)
            squares.append((x_nP[place] @ weights_P + intercept - truth_n[place]) ** 2)
        errors.append(math.fsum(squares))
    weights_P, intercept = ridge(x_nP, truth_n, len(truth_n) * PENALTIES[int(np.argmin(errors))])
    return lambda ranks_P: (ranks_P - centre_P) / scale_P @ weights_P + intercept


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_it_equals_leaving_out_one_network_at_a_time_in_slow_loops(noise):
    scores, truth = made(14, 3, noise=noise)
    known = dict(list(truth.items())[:12])
    found, fit = fit_reference(scores, known)
    ranks_nP = np.column_stack([rankdata(list(own.values())) for own in scores.values()])
    truth_n = np.array(list(known.values()))
    errors, errors_of_mean = [], []
    for place, name in enumerate(known):
        others = np.arange(12) != place
        predicted = slow_fit(ranks_nP[:12][others], truth_n[others])(ranks_nP[place])
        mean = truth_n[others].mean()
        assert found[name] == pytest.approx(predicted - mean + truth_n.mean(), rel=1e-9)
        errors.append(predicted - truth_n[place])
        errors_of_mean.append(mean - truth_n[place])
    whole = slow_fit(ranks_nP[:12], truth_n)
    for place in (12, 13):
        assert found[f"net-{place}"] == pytest.approx(whole(ranks_nP[place]), rel=1e-9)
    assert (fit.n, fit.folds) == (12, 12)
    assert fit.rmse == pytest.approx(math.sqrt(np.mean(np.square(errors))), rel=1e-9)
    assert fit.rmse_of_mean == pytest.approx(math.sqrt(np.mean(np.square(errors_of_mean))), rel=1e-9)
    assert list(fit.weights) == list(scores)


def test_no_prediction_of_a_network_depends_on_its_own_reference_but_for_a_shift_of_all():
    scores, truth = made(20, 2, noise=0.5)
    found, _ = fit_reference(scores, truth)
    moved, _ = fit_reference(scores, truth | {"net-3": truth["net-3"] + 20.0})
    assert moved["net-3"] - found["net-3"] == pytest.approx(20.0 / len(truth))
    assert abs(moved["net-4"] - found["net-4"] - 1.0) > 0.01


def test_rising_functions_of_a_proxy_change_nothing():
    scores, truth = made(15, 2, noise=0.5)
    bent = scores | {"proxy-1": {name: math.log(score) for name, score in scores["proxy-1"].items()}}
    assert fit_reference(bent, truth) == fit_reference(scores, truth)


def test_good_proxies_beat_the_mean_and_each_of_them():
    scores, truth = made(60, 4, noise=0.4)
    found, fit = fit_reference(scores, truth)
    assert fit.rmse < 0.7 * fit.rmse_of_mean
    taus = [kendalltau(list(own.values()), list(truth.values())).statistic for own in scores.values()]
    assert kendalltau(list(found.values()), list(truth.values())).statistic > max(taus)
    assert all(weight > 0 for weight in fit.weights.values())


def test_a_proxy_that_ranks_backwards_gets_a_weight_below_zero():
    scores, truth = made(30, 1, noise=0.1)
    backwards = {"proxy-0": {name: -score for name, score in scores["proxy-0"].items()}}
    found, fit = fit_reference(backwards, truth)
    assert fit.weights["proxy-0"] < 0
    assert kendalltau(list(found.values()), list(truth.values())).statistic > 0.7


def test_useless_proxies_are_no_better_than_the_mean_and_do_not_rank_backwards_for_it():
    taus, better = [], 0
    for seed in range(20):
        rng = stream(seed, "test/fitted/useless")
        names = [f"net-{place}" for place in range(30)]
        scores = {"noise": dict(zip(names, rng.random(30).tolist(), strict=True))}
        truth = dict(zip(names, (70 + rng.random(30)).tolist(), strict=True))
        found, fit = fit_reference(scores, truth)
        better += fit.rmse < fit.rmse_of_mean
        taus.append(kendalltau(list(found.values()), list(truth.values())).statistic)
    # -0.21; with the means of the fits in the predictions it was -0.78.
    assert np.mean(taus) > -0.4
    assert better < 10


def test_many_networks_are_left_out_in_ten_parts_always_the_same():
    scores, truth = made(ONE_BY_ONE + 10, 2, noise=0.3)
    found, fit = fit_reference(scores, truth)
    assert (fit.n, fit.folds) == (ONE_BY_ONE + 10, 10)
    assert fit.rmse < fit.rmse_of_mean
    assert fit_reference(scores, truth) == (found, fit)


def test_networks_that_a_proxy_lacks_are_neither_fitted_on_nor_predicted_and_few_are_refused():
    scores, truth = made(MIN_TO_FIT, 2, noise=0.3)
    assert fit_reference(scores, truth) is not None
    assert fit_reference(scores, {name: truth[name] for name in list(truth)[1:]}) is None
    lacking = {name: score for name, score in scores["proxy-1"].items() if name != "net-0"}
    assert fit_reference(scores | {"proxy-1": lacking}, truth) is None
    more, known = made(MIN_TO_FIT + 1, 2, noise=0.3)
    del more["proxy-1"]["net-0"]
    found, fit = fit_reference(more, known)
    assert fit.n == MIN_TO_FIT
    assert "net-0" not in found


def test_a_constant_proxy_and_minus_infinity_do_no_harm():
    scores, truth = made(15, 1, noise=0.2)
    lowest = dict.fromkeys(truth, -math.inf)
    alone, with_it = fit_reference(scores, truth), fit_reference(scores | {"none": lowest}, truth)
    assert with_it[0] == pytest.approx(alone[0])
    assert with_it[1].weights["none"] == 0.0
