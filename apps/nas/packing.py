"""Which scores are found in one trial: together they take about as long as those of any other trial.

A trial is a process on a cluster, which starts in seconds; a score can take less. And networks differ a
thousandfold: without pooling they are a third of the 720 and three quarters of the arithmetic. So units are
packed by predicted cost, the longest first.
"""

import heapq
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from apps.nas.proxies import Proxy
from apps.nas.trial import ZERO_COST_BATCH, Recipe

Item = TypeVar("Item", bound=Hashable)

OVERHEAD_MULTIPLY_ADDS = 3e6
"""What an image costs beside convolutions, in multiply-adds of a forward pass. Measured: 0.25 ms an image for a
network of 0.9 M multiply-adds, 1.4 ms for one of 14 M, one core, bfloat16, training."""


def network_cost(multiply_adds: int | None, default: float) -> float:
    """Predicted time of one image's forward pass, in multiply-adds; `default` where they are unknown."""
    return OVERHEAD_MULTIPLY_ADDS + (default if multiply_adds is None else multiply_adds)


def unit_cost(
    proxy: Proxy,
    recipe: Recipe,
    *,
    multiply_adds: float,
    num_train: int,
    num_validation: int,
    num_test: int,
) -> float:
    """Predicted time of one score: images through the network, times what an image costs.

    Args:
        proxy, recipe: what is done.
        multiply_adds: of the network's forward pass on one image.
        num_train, num_validation, num_test: real images.
    """
    settings = recipe.settings
    early = recipe.steps * min(settings.batch_train, num_train)
    trained = {
        "zero-cost": ZERO_COST_BATCH,
        "set": proxy.images * (settings.epochs or 0),
        "steps": early,
        "seconds": early,
        "whole": num_train * recipe.whole_epochs,
    }[proxy.kind]
    asked = {"zero-cost": 0, "whole": num_validation + num_test}.get(proxy.kind, num_validation)
    # A training step is a forward and a backward pass, the latter twice the arithmetic.
    return network_cost(None, multiply_adds) * (3 * trained + asked)


def pack(items: Sequence[Item], cost: Callable[[Item], float], *, num_packs: int) -> list[tuple[Item, ...]]:
    """Items in at most `num_packs` packs of about equal cost, the costliest pack first.

    Longest processing time first: each item, from the costliest down, goes to the pack that is lightest so far
    (Graham, 1969). Ties keep the order of the items, so the same items always give the same packs.

    Args:
        items: what to pack, all different.
        cost: predicted time of one, in any unit, not negative.
        num_packs: at least 1; fewer packs come back when there are fewer items.

    Example:
        >>> pack(["a", "b", "c", "d"], {"a": 1, "b": 5, "c": 3, "d": 1}.__getitem__, num_packs=2)
        [('b',), ('c', 'a', 'd')]
    """
    ordered = sorted(items, key=cost, reverse=True)
    # Total, items, place: with the items in between, costs of zero fill every pack too.
    heap: list[tuple[float, int, int]] = [(0.0, 0, place) for place in range(min(num_packs, len(ordered)))]
    packs: list[list[Item]] = [[] for _ in heap]
    for item in ordered:
        total, held, place = heapq.heappop(heap)
        packs[place].append(item)
        heapq.heappush(heap, (total + cost(item), held + 1, place))
    totals = {place: total for total, _, place in heap}
    order = sorted(range(len(packs)), key=lambda place: -totals[place])
    return [tuple(packs[place]) for place in order]
