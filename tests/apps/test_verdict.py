import dataclasses
import json
import math

import numpy as np
import pytest

from apps.nas.findings import Fit
from apps.nas.ranking import (
    best_rank_at_k,
    kendall_tau_b,
    precision_at_k,
    regret_at_k,
    seed_ceiling,
    spearman_rho,
)
from apps.nas.verdict import (
    Estimate,
    ProxyScores,
    Verdict,
    from_dict,
    judge,
    table,
    to_dict,
)
from atom.errors import ArtifactError, ConfigError


def search(n=30, seed=0):
    """A truth of 3 seeds, a good proxy of 2 and a proxy of few distinct scores."""
    rng = np.random.default_rng(seed)
    names = [f"net{place:02d}" for place in range(n)]
    quality_n = rng.normal(70, 5, size=n)
    truth = {name: tuple(q + rng.normal(size=3)) for name, q in zip(names, quality_n, strict=True)}
    good = {name: tuple(q / 2 + rng.normal(size=2)) for name, q in zip(names, quality_n, strict=True)}
    sizes = {name: (float(rng.integers(4)),) for name in names}
    proxies = [
        ProxyScores("atom", good, images=100, train_seconds=60.0, prepare_seconds=30.0),
        ProxyScores("parameters", sizes, images=0, train_seconds=0.1),
    ]
    return proxies, truth


def judged(proxies, truth, **settings) -> Verdict:
    settings = {"reference_name": "whole set", "reference_seconds": 9000.0, "resamples": 299, **settings}
    return judge(proxies, truth, **settings)


def means(values, names=None):
    return np.array([np.mean(values[name]) for name in names or values])


def test_values_are_those_of_the_means_over_seeds():
    proxies, truth = search()
    verdict = judged(proxies, truth)
    assert [proxy.name for proxy in verdict.proxies] == ["atom", "parameters"]
    top = sorted(sorted(truth, key=lambda name: -np.mean(truth[name]))[:6])
    for proxy, scores in zip(verdict.proxies, proxies, strict=True):
        score_n, truth_n = means(scores.scores), means(truth)
        everything, top_20, top_5 = proxy.agreement
        assert (proxy.n, everything.n, top_20.n, top_5.n) == (30, 30, 6, 2)
        assert everything.kendall.value == pytest.approx(kendall_tau_b(score_n, truth_n))
        assert everything.spearman.value == pytest.approx(spearman_rho(score_n, truth_n))
        assert top_20.spearman.value == pytest.approx(
            spearman_rho(means(scores.scores, top), means(truth, top))
        )
        assert top_5.kendall == Estimate(None, None, None)
        assert [row.k for row in proxy.top] == [1, 5, 10, 20]
        for row in proxy.top:
            assert row.precision.value == pytest.approx(precision_at_k(score_n, truth_n, k=row.k))
            assert row.best_rank.value == pytest.approx(best_rank_at_k(score_n, truth_n, k=row.k))
            assert row.regret.value == pytest.approx(regret_at_k(score_n, truth_n, k=row.k), abs=1e-9)
    assert verdict.truth == pytest.approx({name: np.mean(values) for name, values in truth.items()})
    assert verdict.truth_std == pytest.approx(
        {name: np.std(values, ddof=1) for name, values in truth.items()}
    )


def test_costs_seeds_and_picks_are_carried_over():
    proxies, truth = search()
    atom, parameters = judged(proxies, truth).proxies
    assert (atom.images, atom.train_seconds, atom.prepare_seconds, atom.num_seeds) == (100, 60.0, 30.0, 2)
    assert (parameters.prepare_seconds, parameters.num_seeds) == (0.0, 1)
    assert atom.pick == max(truth, key=lambda name: np.mean(proxies[0].scores[name]))
    assert atom.pick_truth == pytest.approx(np.mean(truth[atom.pick]))
    # Several networks share the largest number of parameters: the first counts as the pick.
    assert parameters.pick == next(name for name in truth if proxies[1].scores[name] == (3.0,))


def test_the_ceiling_is_that_of_the_reference_seeds():
    proxies, truth = search()
    ceiling = judged(proxies, truth).ceiling
    expected = seed_ceiling(np.array(list(truth.values())))
    assert (ceiling.num_seeds, ceiling.kendall, ceiling.spearman) == (3, *expected)
    one = judged(proxies, {name: values[:1] for name, values in truth.items()})
    assert (one.ceiling.num_seeds, one.ceiling.kendall, one.ceiling.spearman) == (1, None, None)
    assert set(one.truth_std.values()) == {None}


def test_a_failed_network_is_left_out_of_its_proxy_only():
    proxies, truth = search()
    scores = dict(proxies[0].scores)
    names = list(truth)
    scores[names[0]] = (1.0, math.nan)
    scores[names[1]] = (1.0,)
    del scores[names[2]]
    scores["unknown"] = (1.0, 2.0)
    atom, parameters = judged([dataclasses.replace(proxies[0], scores=scores), proxies[1]], truth).proxies
    assert (atom.n, parameters.n) == (27, 30)
    assert list(atom.mean_scores) == names[3:]
    expected = kendall_tau_b(means(scores, names[3:]), means(truth, names[3:]))
    assert atom.agreement[0].kendall.value == pytest.approx(expected)


def test_a_network_without_full_truth_is_left_out_of_everything():
    proxies, truth = search()
    names = list(truth)
    broken = {
        **truth,
        names[4]: (70.0, 71.0),
        names[5]: (70.0, math.nan, 71.0),
        names[6]: (70.0, -math.inf, 1.0),
    }
    verdict = judged(proxies, broken)
    assert set(names) - set(verdict.truth) == set(names[4:7])
    assert [proxy.n for proxy in verdict.proxies] == [27, 27]


def test_subsets_are_shares_of_the_whole_truth_whatever_a_proxy_lacks():
    proxies, truth = search()
    best = sorted(truth, key=lambda name: -np.mean(truth[name]))
    scores = {name: values for name, values in proxies[0].scores.items() if name not in best[:2]}
    atom = judged([dataclasses.replace(proxies[0], scores=scores)], truth).proxies[0]
    assert [row.n for row in atom.agreement] == [28, 4, 0]
    assert atom.agreement[1].kendall.value is not None
    assert atom.agreement[1].kendall.low is None


def test_minus_infinity_ranks_last_and_stays():
    proxies, truth = search()
    worst = min(truth, key=lambda name: np.mean(truth[name]))
    scores = {**proxies[0].scores, worst: (-math.inf, 3.0)}
    atom = judged([dataclasses.replace(proxies[0], scores=scores)], truth).proxies[0]
    assert (atom.n, atom.mean_scores[worst]) == (30, -math.inf)
    low = {**proxies[0].scores, worst: (-1e9, -1e9)}
    expected = judged([dataclasses.replace(proxies[0], scores=low)], truth).proxies[0]
    assert atom.agreement == expected.agreement


def test_seeds_that_sum_to_the_same_are_tied_in_any_order():
    proxies, truth = search(6)
    truth = dict(
        zip(
            truth,
            [(0.1, 0.2, 0.3), (0.3, 0.2, 0.1), (0.2, 0.2, 0.2), (1, 1, 1), (2, 2, 2), (3, 3, 3)],
            strict=True,
        )
    )
    assert len(set(judged(proxies, truth).truth.values())) == 4


def test_differences_are_the_baseline_minus_the_others_on_common_networks():
    proxies, truth = search()
    names = list(truth)
    del proxies[1].scores[names[0]]
    verdict = judged(proxies, truth)
    assert len(verdict.differences) == 6
    row = verdict.differences[0]
    assert (row.first, row.second, row.subset, row.coefficient) == ("atom", "parameters", "all", "kendall")
    taus = [kendall_tau_b(means(proxy.scores, names[1:]), means(truth, names[1:])) for proxy in proxies]
    assert row.n == 29
    assert row.estimate.value == pytest.approx(taus[0] - taus[1])
    assert row.estimate.low <= row.estimate.value <= row.estimate.high
    assert 0 < row.p <= 1
    other = judged(proxies, truth, baseline="parameters").differences[0]
    assert (other.first, other.second) == ("parameters", "atom")
    assert other.estimate.low == pytest.approx(-row.estimate.high)


def test_a_verdict_on_a_proxy_does_not_depend_on_its_company():
    proxies, truth = search()
    assert judged(proxies, truth).proxies[1] == judged(proxies[1:], truth).proxies[0]
    assert judged(proxies, truth) == judged(proxies, truth)
    assert judged(proxies, truth).proxies != judged(proxies, truth, seed=1).proxies


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_networks_give_values_without_intervals(n):
    proxies, truth = search(n)
    verdict = judged(proxies, truth)
    for proxy in verdict.proxies:
        assert all(row.kendall.low is None and row.spearman.low is None for row in proxy.agreement)
        assert [row.k for row in proxy.top] == [1]
        assert proxy.top[0].regret.value >= 0
        assert proxy.top[0].regret.low is None
    assert all(row.p is None for row in verdict.differences)
    assert from_dict(to_dict(verdict)) == verdict
    fitted = dataclasses.replace(verdict, fit=Fit(30, 30, 1.5, 4.5, {"a": 0.5}))
    assert from_dict(json.loads(json.dumps(to_dict(fitted)))) == fitted
    assert from_dict({key: value for key, value in to_dict(verdict).items() if key != "fit"}) == verdict
    table(verdict)


def test_a_proxy_that_failed_everywhere_is_still_listed():
    proxies, truth = search()
    verdict = judged([proxies[0], ProxyScores("broken", {}, images=5, train_seconds=1.0)], truth)
    broken = verdict.proxies[1]
    assert (broken.n, broken.pick, broken.top) == (0, "", ())
    assert math.isnan(broken.pick_truth)
    assert {row.p for row in verdict.differences} == {None}
    assert table(verdict)[1][1][5:] == ["–"] * 7
    back = from_dict(json.loads(json.dumps(to_dict(verdict), allow_nan=False)))
    assert repr(back) == repr(verdict)


def test_a_verdict_survives_json():
    proxies, truth = search()
    scores = {**proxies[0].scores, "net03": (-math.inf, -math.inf)}
    proxies = [dataclasses.replace(proxies[0], scores=scores, prepare_seconds=None), proxies[1]]
    verdict = judged(proxies, truth)
    text = json.dumps(to_dict(verdict), allow_nan=False)
    assert json.loads(text) == to_dict(verdict)
    assert from_dict(json.loads(text)) == verdict


def test_a_damaged_stored_verdict_is_refused():
    stored = to_dict(judged(*search(6)))
    with pytest.raises(ArtifactError, match="ceiling"):
        from_dict({key: value for key, value in stored.items() if key != "ceiling"})
    with pytest.raises(ArtifactError, match="surprise"):
        from_dict({**stored, "surprise": 1})


def test_names_must_be_distinct_and_the_baseline_known():
    proxies, truth = search(6)
    with pytest.raises(ConfigError, match="no proxies"):
        judged([], truth)
    with pytest.raises(ConfigError, match="two proxies are named 'atom'"):
        judged([proxies[0], proxies[0]], truth)
    with pytest.raises(ConfigError, match="'herding' is not among the proxies; known are atom, parameters"):
        judged(proxies, truth, baseline="herding")
    with pytest.raises(ConfigError, match="'whole set' has no network"):
        judged(proxies, {"net00": (math.nan,)})
