"""Several proxies joined into one by the ranks that they give: no unit is shared, and no weight is to be chosen."""

from collections.abc import Mapping

import numpy as np
from scipy import stats


def ranks(scores: Mapping[str, Mapping[str, float]]) -> tuple[list[str], np.ndarray]:
    """The networks that every proxy scored, and their ranks by each: float64 [networks, proxies].

    The lowest score has rank 1; tied networks share their mid-rank.

    Args:
        scores: by proxy, at least one, then by network; larger is better, -inf the lowest, no NaN.
    """
    first, *others = scores.values()
    networks = [network for network in first if all(network in other for other in others)]
    columns = [stats.rankdata([own[network] for network in networks]) for own in scores.values()]
    return networks, np.column_stack(columns)


def rank_mean(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean rank of each network that every proxy scored; larger is better. Also called Borda's count.

    Args:
        scores: see `ranks`.

    Example:
        >>> rank_mean({"synflow": {"a": 0.1, "b": 7.0, "c": 0.3}, "naswot": {"a": 5.0, "b": 5.0}})
        {'a': 1.25, 'b': 1.75}
    """
    networks, ranks_nP = ranks(scores)
    return dict(zip(networks, ranks_nP.mean(axis=1).tolist(), strict=True))
