"""What may be matched of the embeddings of a class beside their mean: characteristic function and covariance.

The characteristic function (Wang et al., *Dataset Distillation with Neural Characteristic Function*, CVPR 2025) of
embeddings e of norm 1 is φ(t) = mean of exp(i <t, e>). With amplitude and phase of the difference weighed by 1/2 each,
as published,

    mean over t of sqrt( 1/2 (|φ_r| - |φ_s|)^2 + 1/2 * 2 (|φ_r| |φ_s| - Re φ_r Re φ_s - Im φ_r Im φ_s) )

is mean over t of |φ_r - φ_s| / sqrt(2), which is computed so: two nearly equal products need not be subtracted.
DEVIATION(NCFM): frequencies t are standard normal; there is no network that learns to choose them.

The covariance term (Li et al., *Diversified Semantic Distribution Matching*, ACM MM 2024) is |cov_r - cov_s|^2 / D.
DEVIATION(DSDM): without the running mean of a class's own past embeddings.

What is matched are means over images, so that a batch may be cut into equal parts.
"""

# N images, D features of an embedding, G classes, F frequencies

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atom.device import autocast


@dataclass(frozen=True)
class FeatureTerms:
    """Which of these terms the loss has.

    Attributes:
        cf_weight: of the characteristic function, 0 for none.
        covariance_weight: of the covariance, 0 for none.
    """

    cf_weight: float = 0.0
    covariance_weight: float = 0.0

    @property
    def count(self) -> int:
        """Tensors that `feature_statistics` returns."""
        return 2 * (self.cf_weight > 0) + (self.covariance_weight > 0)


def feature_statistics(
    embedding_ND: Tensor, *, num_classes: int, terms: FeatureTerms, frequencies_FD: Tensor | None
) -> list[Tensor]:
    """Means over each class's images.

    Args:
        embedding_ND: the same number of images of each class, class after class; float32 or float64.
        num_classes: G.
        terms: decides what is computed.
        frequencies_FD: where the characteristic function is asked.

    Returns:
        For the characteristic function its real and imaginary part, [G, F] each; for the covariance the products of
        features, [G, D * D].
    """
    means = []
    # Products of bfloat16 are too coarse for phases and for differences of covariances.
    with autocast(embedding_ND.device, torch.float32):
        if terms.cf_weight:
            assert frequencies_FD is not None, "drawn where the term is on"
            phases_NF = unit(embedding_ND) @ frequencies_FD.to(embedding_ND.dtype).T
            means += [class_mean(phases_NF.cos(), num_classes), class_mean(phases_NF.sin(), num_classes)]
        if terms.covariance_weight:
            rows_GND = embedding_ND.view(num_classes, -1, embedding_ND.shape[1])
            products_GDD = rows_GND.mT @ rows_GND / rows_GND.shape[1]
            means.append(products_GDD.flatten(1))
    return means


def feature_loss(
    real: Sequence[Tensor],
    synthetic: Sequence[Tensor],
    *,
    means: tuple[Tensor, Tensor],
    counts: tuple[int, int],
    terms: FeatureTerms,
) -> Tensor:
    """Weighed terms of each class, [G].

    Args:
        real, synthetic: of `feature_statistics`.
        means: mean embeddings of both, [G, D].
        counts: images of a class of both; at least 2 for the covariance.
        terms: the weights.
    """
    loss_G = torch.zeros_like(means[1][:, 0])
    rest = zip(real, synthetic, strict=True)
    if terms.cf_weight:
        (real_cos, own_cos), (real_sin, own_sin) = next(rest), next(rest)
        square_GF = (real_cos - own_cos) ** 2 + (real_sin - own_sin) ** 2
        # The floor is the smallest normal number: below it a root has no finite gradient.
        distance_GF = (square_GF / 2).clamp(min=torch.finfo(square_GF.dtype).tiny).sqrt()
        loss_G = loss_G + terms.cf_weight * distance_GF.mean(dim=1)
    if terms.covariance_weight:
        products = next(rest)
        first_GC, second_GC = (_covariance(*of) for of in zip(products, means, counts, strict=True))
        difference_GC = first_GC - second_GC
        distance_G = (difference_GC * difference_GC).sum(dim=1) / means[1].shape[1]
        loss_G = loss_G + terms.covariance_weight * distance_G
    return loss_G


def unit(rows_ND: Tensor) -> Tensor:
    """Each row divided by its L2 norm; a row of zeros stays zero, with zero gradient."""
    square_N1 = (rows_ND * rows_ND).sum(dim=1, keepdim=True)
    # The floor is the smallest normal number: below it rsqrt has no finite gradient.
    return rows_ND * torch.rsqrt(square_N1.clamp(min=torch.finfo(rows_ND.dtype).tiny))


def class_mean(rows_ND: Tensor, num_classes: int) -> Tensor:
    """Mean [G, D] over each class's rows, which come class after class."""
    return rows_ND.view(num_classes, -1, rows_ND.shape[1]).mean(dim=1)


def _covariance(products_GC: Tensor, mean_GD: Tensor, count: int) -> Tensor:
    """Unbiased covariance [G, D * D] of the mean products and the mean of so many images."""
    outer_GC = (mean_GD.unsqueeze(2) * mean_GD.unsqueeze(1)).flatten(1)
    return (products_GC - outer_GC) * (count / (count - 1))


__all__ = ["FeatureTerms", "class_mean", "feature_loss", "feature_statistics", "unit"]
