"""The verdict on an architecture search: how far each proxy's ranking can be trusted, and at what cost.

Reported are rank correlations over all networks and over the true best of them (a proxy may sort good from bad
and still be blind among the good), the worth of the proxy's k best, and differences between proxies on the same
networks: two separate intervals overlap too easily to compare by eye.
"""

import functools
import math
import statistics
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from apps.nas import bootstrap, ranking
from apps.nas.findings import (
    Agreement,
    Ceiling,
    Difference,
    Estimate,
    ProxyScores,
    ProxyVerdict,
    TopK,
    Verdict,
    from_dict,
    to_dict,
)
from apps.nas.resampling import Draws, draw
from apps.nas.verdict_table import difference_table, table
from atom.errors import ConfigError

__all__ = [
    "SUBSETS",
    "Agreement",
    "Ceiling",
    "Difference",
    "Estimate",
    "ProxyScores",
    "ProxyVerdict",
    "TopK",
    "Verdict",
    "complete_means",
    "difference_table",
    "from_dict",
    "judge",
    "reference_means",
    "table",
    "to_dict",
]

SUBSETS = {"all": 1.0, "top 20 %": 0.2, "top 5 %": 0.05}
MIN_FOR_INTERVAL = 5


def judge(
    proxies: Sequence[ProxyScores],
    truth: Mapping[str, tuple[float, ...]],
    *,
    reference_name: str,
    reference_seconds: float,
    baseline: str | None = None,
    seed: int = 0,
    resamples: int = 9999,
    ks: Sequence[int] = (1, 5, 10, 20),
) -> Verdict:
    """Judge each proxy's ranking of the networks against the truth.

    Scores and truth are means over seeds. A network counts where it has every seed: one that lacks some, or has
    a NaN or +inf, is left out of that proxy's statistics, or, if the truth lacks it, of all. The subsets are
    shares of the true ranking of all networks, less those the proxy lacks. With fewer than 5 networks there are
    values but no intervals. Intervals take the subset and the seeds as they are, and redraw networks only.

    Args:
        proxies: distinct names.
        truth: network -> accuracy of each seed of the reference, in percent.
        reference_name: what the truth is, for the report.
        reference_seconds: cost of the truth, summed over networks and seeds.
        baseline: differences are this proxy's coefficient minus each other's; the first by default.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        ks: sizes of the proxy's choice; those above the number of networks are left out.

    Raises:
        ConfigError: no proxies, a name twice, an unknown baseline, or no network with a truth.
    """
    names = [proxy.name for proxy in proxies]
    first = _first_of_differences(names, baseline)
    truth_means = reference_means(truth)
    if not truth_means:
        raise ConfigError(
            f"the reference {reference_name!r} has no network with a finite accuracy on every seed;"
            " train the reference before judging proxies."
        )
    means = {proxy.name: complete_means(proxy.scores) for proxy in proxies}
    scores = {
        proxy: {name: values[name] for name in truth_means if name in values}
        for proxy, values in means.items()
    }
    case = _Case(scores, truth_means, resamples=resamples, seed=seed)
    return Verdict(
        level=bootstrap.LEVEL,
        resamples=resamples,
        truth=truth_means,
        truth_std={name: _std(truth[name]) for name in truth_means},
        reference_seconds=reference_seconds,
        reference_name=reference_name,
        ceiling=_ceiling(np.array([truth[name] for name in truth_means], dtype=np.float64)),
        proxies=tuple(_proxy_verdict(proxy, case, ks) for proxy in proxies),
        differences=tuple(
            row for second in names if second != first for row in case.differences(first, second)
        ),
    )


class _Case:
    """Scores and truth with the bootstrap's replicates, each computed once."""

    def __init__(
        self,
        scores: Mapping[str, Mapping[str, float]],
        truth: Mapping[str, float],
        *,
        resamples: int,
        seed: int,
    ) -> None:
        self.scores, self.truth = scores, truth
        names, truth_n = list(truth), np.array(list(truth.values()))
        self.subsets = {
            subset: [names[place] for place in ranking.top_networks(truth_n, share)]
            for subset, share in SUBSETS.items()
        }
        # Few are kept: 9,999 resamples of 720 networks take 58 MB, and each proxy may lack other networks.
        self._draw = functools.lru_cache(maxsize=4)(functools.partial(draw, resamples=resamples, seed=seed))
        self._replicates: dict[tuple[str, str, tuple[str, ...]], bootstrap.Replicates] = {}

    def agreement(self, proxy: str) -> tuple[Agreement, ...]:
        rows = []
        for subset in self.subsets:
            networks = self._networks(subset, proxy)
            kendall, spearman = (
                bootstrap.interval(self._replicate(proxy, coefficient, networks))
                for coefficient in ranking.COEFFICIENTS
            )
            rows.append(Agreement(subset, len(networks), kendall, spearman))
        return tuple(rows)

    def differences(self, first: str, second: str) -> list[Difference]:
        rows = []
        for subset in self.subsets:
            networks = self._networks(subset, first, second)
            for coefficient in ranking.COEFFICIENTS:
                pair = [self._replicate(proxy, coefficient, networks) for proxy in (first, second)]
                estimate, p = bootstrap.compare(*pair)
                rows.append(Difference(first, second, subset, coefficient, len(networks), estimate, p))
        return rows

    def top(self, proxy: str, ks: Sequence[int]) -> tuple[TopK, ...]:
        networks = self._networks("all", proxy)
        ks = [k for k in ks if k <= len(networks)]
        arrays = self._values(self.scores[proxy], networks), self._values(self.truth, networks)
        return tuple(bootstrap.top_k(*arrays, ks=ks, draws=self._draws(len(networks))))

    def _networks(self, subset: str, *proxies: str) -> tuple[str, ...]:
        wanted = self.subsets[subset]
        return tuple(name for name in wanted if all(name in self.scores[proxy] for proxy in proxies))

    def _replicate(self, proxy: str, coefficient: str, networks: tuple[str, ...]) -> bootstrap.Replicates:
        key = proxy, coefficient, networks
        if key not in self._replicates:
            self._replicates[key] = bootstrap.replicate(
                coefficient,
                self._values(self.scores[proxy], networks),
                self._values(self.truth, networks),
                draws=self._draws(len(networks)),
            )
        return self._replicates[key]

    def _draws(self, n: int) -> Draws | None:
        return self._draw(n) if n >= MIN_FOR_INTERVAL else None

    @staticmethod
    def _values(values: Mapping[str, float], networks: Sequence[str]) -> np.ndarray:
        return np.array([values[name] for name in networks], dtype=np.float64)


def _proxy_verdict(proxy: ProxyScores, case: _Case, ks: Sequence[int]) -> ProxyVerdict:
    scores = case.scores[proxy.name]
    pick = max(scores, key=lambda name: scores[name], default="")
    return ProxyVerdict(
        name=proxy.name,
        n=len(scores),
        num_seeds=_num_seeds(proxy.scores),
        agreement=case.agreement(proxy.name),
        top=case.top(proxy.name, ks),
        images=proxy.images,
        train_seconds=proxy.train_seconds,
        prepare_seconds=proxy.prepare_seconds,
        pick=pick,
        pick_truth=case.truth.get(pick, math.nan),
        mean_scores=scores,
    )


def _first_of_differences(names: Sequence[str], baseline: str | None) -> str:
    if not names:
        raise ConfigError("the verdict received no proxies; pass the scores of at least one.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"two proxies are named {twice!r}; give each its own name.")
    if baseline is not None and baseline not in names:
        raise ConfigError(f"baseline {baseline!r} is not among the proxies; known are {', '.join(names)}.")
    return names[0] if baseline is None else baseline


def _num_seeds(values: Mapping[str, tuple[float, ...]]) -> int:
    return max((len(seeds) for seeds in values.values()), default=0)


def complete_means(values: Mapping[str, tuple[float, ...]], *, lowest: float = -math.inf) -> dict[str, float]:
    """Means over seeds of the networks that have every seed, none of them NaN, +inf or below `lowest`.

    Twelve digits are kept: sums in another order differ in the last, and would break ties.
    """
    num_seeds = _num_seeds(values)
    return {
        name: float(f"{statistics.fmean(seeds):.12g}")
        for name, seeds in values.items()
        if len(seeds) == num_seeds > 0 and all(lowest <= value < math.inf for value in seeds)
    }


def reference_means(truth: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    """Means over seeds of the networks that have every seed, all of them finite."""
    return complete_means(truth, lowest=-sys.float_info.max)


def _std(seeds: Sequence[float]) -> float | None:
    return statistics.stdev(seeds) if len(seeds) > 1 else None


def _ceiling(truth_nS: np.ndarray) -> Ceiling:
    top = ranking.top_networks(truth_nS.mean(axis=1), SUBSETS["top 20 %"])
    return Ceiling(truth_nS.shape[1], *ranking.seed_ceiling(truth_nS), *ranking.seed_ceiling(truth_nS[top]))
