"""Scores that are found from those of other proxies, here in the driver; the table of results does not hold them."""

from collections.abc import Mapping, Sequence

from apps.nas.combined import rank_mean
from apps.nas.proxies import FITTED, MIN_TO_FIT, WHOLE, Proxy
from apps.nas.table import Row
from apps.nas.trial import Score, Unit
from apps.nas.verdict import complete_means, reference_means
from pipelines.architecture.case import NasCase
from pipelines.architecture.scores import Scores
from pipelines.console.command import say


def add_derived(case: NasCase, scored: Scores) -> None:
    """Add the rows of the proxies that are made of others: one for each network that all of these scored."""
    for proxy in case.material.proxies:
        means = _means(case, scored, proxy.members)
        if proxy.kind == "combined":
            _add(scored, proxy, rank_mean(means))
        elif proxy.kind == "fitted":
            # Of a reference trained here, validation accuracies: test images choose no network.
            known = case.plan.reference or scored.complete(WHOLE, case.space.names)
            _add(scored, proxy, _fitted(scored, means, reference_means(known)))


def _fitted(
    scored: Scores, means: Mapping[str, Mapping[str, float]], truth: Mapping[str, float]
) -> dict[str, float]:
    """Predictions by network, and the fit in `scored`; none, and a note, where too few networks are known."""
    # scikit-learn: a second of import time, needed by this proxy only.
    from apps.nas.fitted import fit_reference

    # One that failed on every network would leave nothing to fit.
    means = {name: scores for name, scores in means.items() if scores}
    found = fit_reference(means, truth) if means else None
    if found is None:
        say(
            f"Note: --proxies {FITTED}: left out; fewer than {MIN_TO_FIT} networks have a reference and every other"
            " proxy's score."
        )
        return {}
    predictions, scored.fit = found
    return predictions


def truth_of(case: NasCase, scored: Scores) -> Mapping[str, tuple[float, ...]]:
    """Accuracies of the reference in percent by network, one a seed; empty without a reference."""
    if case.plan.reference:
        return case.plan.reference
    found: dict[str, list[float]] = {}
    for row in sorted(scored.of(WHOLE), key=lambda row: row.seed):
        found.setdefault(row.network, []).append(row.test_accuracy or 0.0)
    return {network: tuple(found[network]) for network in case.space.names if network in found}


def _means(case: NasCase, scored: Scores, members: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean scores by proxy and network, as the verdict takes them."""
    return {name: complete_means(scored.complete(name, case.space.names)) for name in members}


def _add(scored: Scores, proxy: Proxy, scores: Mapping[str, float]) -> None:
    """Rows whose times are those of their members."""
    train = dict.fromkeys(scores, 0.0)
    asked = dict.fromkeys(scores, 0.0)
    for row in [row for member in proxy.members for row in scored.of(member) if row.network in scores]:
        train[row.network] += row.train_seconds
        asked[row.network] += row.score_seconds
    for network, value in scores.items():
        unit = Unit(network, proxy.name, 0)
        score = Score(value, train_seconds=train[network], score_seconds=asked[network])
        scored.rows[unit] = Row.of(unit, score, key="")
