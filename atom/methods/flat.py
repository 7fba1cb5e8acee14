"""SGD that looks for flat minima: GSAM, as FTD and DATM train their experts."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector


class FlatSGD(torch.optim.SGD):
    """Steps along a gradient of disturbed weights, less a part of what is peculiar to the undisturbed ones.

    With the gradient g at the weights w, all products by elements and norms over all weights together:

        g' = gradient at w + rho w² g / |abs(w) g|,    step along g' - alpha (g - (g·g' / g'·g') g')

    So a weight is disturbed in proportion to its size. A step costs two gradients.

    Args:
        weights: of the network.
        rho: radius of the disturbance, above 0.
        alpha: weight of the other gradient's orthogonal part.
        sgd: rate, momentum and weight decay, see `torch.optim.SGD`.

    Source: Zhuang et al., *Surrogate Gap Minimization Improves Sharpness-Aware Training* (GSAM), ICLR 2022, adaptive;
    as in Du et al., *Minimizing the Accumulated Trajectory Error* (FTD), CVPR 2023, and its code.
    """

    def __init__(self, weights: Iterable[Tensor], *, rho: float, alpha: float, **sgd: Any) -> None:
        super().__init__(weights, **sgd)
        self._rho, self._alpha = rho, alpha

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # pyrefly: ignore[bad-override]
        """One step; `closure` fills the gradients and returns the loss, and is called twice."""
        with torch.enable_grad():
            loss = closure()
        weights = [w for group in self.param_groups for w in group["params"] if w.grad is not None]
        plain, kept = [w.grad for w in weights], [w.clone() for w in weights]
        length = parameters_to_vector([w.abs() * g for w, g in zip(weights, plain, strict=True)]).norm()
        for w, g in zip(weights, plain, strict=True):
            w.addcmul_(w.square(), g * (self._rho / (length + _LEAST)))
        with torch.enable_grad():
            closure()
        disturbed = [w.grad for w in weights]
        for w, before in zip(weights, kept, strict=True):
            w.copy_(before)
        flat, flat_disturbed = parameters_to_vector(plain), parameters_to_vector(disturbed)
        along = flat @ flat_disturbed / (flat_disturbed @ flat_disturbed + _LEAST**2)
        for g, other in zip(plain, disturbed, strict=True):
            other.sub_(g - along * other, alpha=self._alpha)
        super().step()
        return loss


_LEAST = 1e-12
"""Keeps a vanishing gradient from dividing by zero. Source: FTD's code."""

__all__ = ["FlatSGD"]
