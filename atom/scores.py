"""What a network's answers are worth where classes differ in size: balanced accuracy, and area under the ROC curve.

Accuracy alone can be had by naming the largest class. Balanced accuracy counts all classes alike; the area under the
curve (AUC) asks whether images of a class are ranked above the others, wherever the threshold would lie.

Shapes: T test images, K classes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np
import numpy.typing as npt
from torch import Tensor

Floats = npt.NDArray[np.float64]

UNEVEN = 1.5
"""Largest class over smallest from which the scores say more than accuracy. Chosen: MNIST's and digits' test parts (1.3
and 1.1) count as even, SVHN's and PneumoniaMNIST's (3.2 and 1.7) do not."""
LEVEL = 0.95


@dataclass(frozen=True)
class Scores:
    """One network on the test images.

    Attributes:
        balanced_accuracy: mean over the classes of the share of their images that are recognised, percent.
        auc: area under the ROC curve, 0 to 1: with two classes, of the second one's probability; with more, the mean
            over the classes of each against all others. None where a class has no test images.
        auc_error: its standard error, were other test images drawn (DeLong); None with fewer than 2 images of a class.
    """

    balanced_accuracy: float
    auc: float | None
    auc_error: float | None


def is_uneven(labels_T: npt.NDArray[np.integer], num_classes: int) -> bool:
    """Whether classes differ so much in size that accuracy does not say it all.

    Example:
        >>> is_uneven(np.repeat([0, 1], [234, 390]), 2), is_uneven(np.repeat([0, 1], [390, 400]), 2)
        (True, False)
    """
    counts_K = np.bincount(labels_T, minlength=num_classes)
    return bool(counts_K.max() >= UNEVEN * counts_K.min())


def score(logits_TK: Tensor, labels_T: Tensor) -> Scores:
    """Scores of logits for images of known classes, 0 to K - 1; both on any device.

    Balanced accuracy and AUC are those of scikit-learn (`balanced_accuracy_score`, and `roc_auc_score` with
    `multi_class="ovr"`). Ranks are taken of probabilities in float64.
    """
    probability_TK = logits_TK.double().softmax(dim=1).cpu().numpy()
    classes_T = labels_T.cpu().numpy()
    num_classes = probability_TK.shape[1]
    right_T = logits_TK.argmax(dim=1).cpu().numpy() == classes_T
    balanced = 100.0 * fmean(float(right_T[classes_T == c].mean()) for c in np.unique(classes_T))
    counts_K = np.bincount(classes_T, minlength=num_classes)
    if num_classes < 2 or not counts_K.all():
        return Scores(balanced, None, None)
    ranked = [1] if num_classes == 2 else range(num_classes)
    areas, errors_T = zip(*(_area(probability_TK[:, c], classes_T == c) for c in ranked), strict=True)
    # One image counts in the curves of all classes at once: its errors are averaged before they are squared.
    error = math.sqrt(float((np.mean(errors_T, axis=0) ** 2).sum())) if counts_K.min() > 1 else None
    return Scores(balanced, fmean(areas), error)


def _area(probability_T: Floats, is_own_T: npt.NDArray[np.bool_]) -> tuple[float, Floats]:
    """Area under one curve, and what each image adds to its error; the sum of their squares is its variance.

    An image of the class is placed by the share of the others that lie below it, one of the others by the share of the
    class above it; ties count half. The area is the mean of either. Source: DeLong et al., Biometrics 44, 1988; by
    ranks: Sun and Xu, IEEE Signal Processing Letters 21, 2014.
    """
    ranks_T = _ranks(probability_T)
    placed_T = np.empty_like(probability_T)
    for side_T in (is_own_T, ~is_own_T):
        below_T = ranks_T[side_T] - _ranks(probability_T[side_T])
        placed_T[side_T] = below_T / np.count_nonzero(~side_T)
    placed_T[~is_own_T] = 1.0 - placed_T[~is_own_T]
    area = float(placed_T[is_own_T].mean())
    count_T = np.where(is_own_T, np.count_nonzero(is_own_T), np.count_nonzero(~is_own_T))
    return area, (placed_T - area) / np.sqrt(np.maximum(count_T * (count_T - 1), 1))


def _ranks(values_T: Floats) -> Floats:
    """Ranks from 1, ties at their mean, as `scipy.stats.rankdata`, whose import takes longer than small trainings."""
    _, place_T, counts = np.unique(values_T, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place_T]


def auc_interval(mean: float, errors: Iterable[float]) -> tuple[float, float]:
    """95 % interval of the AUC of a network, were other test images drawn.

    Args:
        mean: AUC, the mean over trainings.
        errors: of each training. Their mean square is taken, not that of a mean over networks, since a user has one.

    Example:
        >>> low, high = auc_interval(0.9, [0.01, 0.01])
        >>> round(low, 4), round(high, 4)
        (0.8804, 0.9196)
    """
    half = NormalDist().inv_cdf(0.5 + LEVEL / 2) * math.sqrt(fmean(error**2 for error in errors))
    return max(0.0, mean - half), min(1.0, mean + half)


__all__ = ["LEVEL", "UNEVEN", "Scores", "auc_interval", "is_uneven", "score"]
