"""How long a score takes, predicted: networks differ a thousandfold, and the costliest are begun first.

Without pooling they are a third of the 720 and three quarters of the arithmetic.
"""

from apps.nas.proxies import Proxy
from apps.nas.trial import ZERO_COST_BATCH, Recipe

OVERHEAD_MULTIPLY_ADDS = 3e6
"""What an image costs beside convolutions, in multiply-adds of a forward pass. Measured: 0.25 ms an image for a
network of 0.9 M multiply-adds, 1.4 ms for one of 14 M, one core, bfloat16, training."""


def network_cost(multiply_adds: float) -> float:
    """Predicted time of one image's forward pass, in multiply-adds."""
    return OVERHEAD_MULTIPLY_ADDS + multiply_adds


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
    early = recipe.steps * min(settings.batch, num_train)
    trained = {
        "zero-cost": ZERO_COST_BATCH,
        "own": ZERO_COST_BATCH,
        "latency": ZERO_COST_BATCH,
        "set": proxy.images * (proxy.epochs or settings.epochs or 0),
        "real": proxy.images * (proxy.epochs or 0),
        "steps": early,
        "seconds": early,
        "whole": num_train * recipe.whole_epochs,
    }[proxy.kind]
    nothing = {"zero-cost": 0, "own": 0, "latency": 0}
    asked = {**nothing, "whole": num_validation + num_test}.get(proxy.kind, num_validation)
    # A training step is a forward and a backward pass, the latter twice the arithmetic.
    return network_cost(multiply_adds) * (3 * trained + asked)
