"""The reference predicted from the ranks that proxies give, and how far such a prediction is off."""

# n networks with a reference, P proxies

from collections.abc import Mapping

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from apps.nas.combined import ranks
from apps.nas.findings import Fit
from apps.nas.proxies import MIN_TO_FIT

ONE_BY_ONE = 100
"""Up to so many networks are left out one at a time, more in tenths. Chosen."""
NUM_FOLDS = 10
PENALTIES = np.logspace(-3, 2, 11)
"""Penalties of the squared weights to choose from, for each network fitted on: with one proxy, 1 halves its weight."""


def fit_reference(
    scores: Mapping[str, Mapping[str, float]], truth: Mapping[str, float]
) -> tuple[dict[str, float], Fit] | None:
    """Accuracy of each network that every proxy scored, predicted by a ridge regression on its ranks.

    A network with a reference is predicted by a fit of the others, one without by the fit of all; so the
    predictions can be judged by the reference. Ranks are among all networks. Their scale, and the penalty by its
    error on each network left out, are found anew in every fit, from the networks fitted on alone.

    The mean of the reference stands for the mean of each fit, which the network left out moves the wrong way:
    without it the predictions of useless proxies would rank backwards. The errors are those with the fits' own.

    Args:
        scores: by proxy, at least one, then by network; larger is better, no NaN.
        truth: accuracy in percent by network.

    Returns:
        Predictions in percent, and what is known of the fit; None with fewer than `MIN_TO_FIT` to fit on.
    """
    networks, ranks_all = ranks(scores)
    known = np.array([network in truth for network in networks], dtype=bool)
    if known.sum() < MIN_TO_FIT:
        return None
    ranks_nP = ranks_all[known]
    truth_n = np.array([truth[network] for network in networks if network in truth])
    num_folds = len(truth_n) if len(truth_n) <= ONE_BY_ONE else NUM_FOLDS
    predicted_n, means_n = np.empty_like(truth_n), np.empty_like(truth_n)
    for fitted_on, left_out in KFold(num_folds, shuffle=True, random_state=0).split(ranks_nP):
        model = _fit(ranks_nP[fitted_on], truth_n[fitted_on])
        predicted_n[left_out] = model.predict(ranks_nP[left_out])
        means_n[left_out] = truth_n[fitted_on].mean()
    model = _fit(ranks_nP, truth_n)
    predictions = np.asarray(model.predict(ranks_all))
    predictions[known] = predicted_n - means_n + truth_n.mean()
    told = Fit(
        n=len(truth_n),
        folds=num_folds,
        rmse=_rms(predicted_n - truth_n),
        rmse_of_mean=_rms(means_n - truth_n),
        weights=dict(zip(scores, model[-1].coef_.tolist(), strict=True)),
    )
    return dict(zip(networks, predictions.tolist(), strict=True)), told


def _fit(ranks_nP: np.ndarray, truth_n: np.ndarray) -> Pipeline:
    return make_pipeline(StandardScaler(), RidgeCV(len(truth_n) * PENALTIES)).fit(ranks_nP, truth_n)


def _rms(errors_n: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors_n**2)))
