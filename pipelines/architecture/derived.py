"""Scores that are found from those of other proxies, here in the driver; the table of results does not hold them."""

from collections.abc import Mapping, Sequence

from apps.nas.combined import rank_mean
from apps.nas.proxies import Proxy
from apps.nas.table import Row
from apps.nas.trial import Score, Unit
from apps.nas.verdict import complete_means
from pipelines.architecture.case import NasCase
from pipelines.architecture.scores import Scores


def add_derived(case: NasCase, scored: Scores) -> None:
    """Add the rows of the proxies that are made of others: one for each network that all of these scored."""
    for proxy in case.material.proxies:
        if proxy.kind == "combined":
            _add(scored, proxy, rank_mean(_means(case, scored, proxy.members)))


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
