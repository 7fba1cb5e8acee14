"""A step of GSAM as slow loops over single numbers in float64, to test `atom.methods.flat` against."""

from collections.abc import Callable, Sequence

Weights = list[float]
Gradient = Callable[[Weights], Weights]


def step(
    weights: Weights,
    velocity: Weights,
    gradient: Gradient,
    *,
    rate: float,
    rho: float,
    alpha: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> tuple[Weights, Weights]:
    """Weights and velocity after a step; `gradient` of the loss at any weights."""
    plain = gradient(weights)
    length = _norm([abs(w) * g for w, g in zip(weights, plain, strict=True)])
    disturbed = gradient([w + rho * w * w * g / length for w, g in zip(weights, plain, strict=True)])
    size = _norm(disturbed)
    direction = [d / size for d in disturbed]
    along = sum(g * u for g, u in zip(plain, direction, strict=True))
    orthogonal = [g - along * u for g, u in zip(plain, direction, strict=True)]
    taken = [d - alpha * o + weight_decay * w for d, o, w in zip(disturbed, orthogonal, weights, strict=True)]
    velocity = [momentum * v + t for v, t in zip(velocity, taken, strict=True)]
    return [w - rate * v for w, v in zip(weights, velocity, strict=True)], velocity


def _norm(values: Sequence[float]) -> float:
    return sum(value * value for value in values) ** 0.5


__all__ = ["step"]
