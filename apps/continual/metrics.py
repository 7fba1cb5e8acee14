"""What continual learning is judged by: the matrix of accuracies, and the numbers made of it.

a[i][j] is the accuracy in percent on the test images of step j, measured after step i. Steps are counted from
0, and the last one is L. The definitions of forgetting in use differ, so each has its own name here. Which images are
those of a step, the protocol says: `ClassStream.columns`.
"""

# T test images, K classes, S steps

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from atom.errors import DataError, ShapeError


@dataclass(frozen=True, eq=False)
class AccuracyMatrix:
    """Accuracies of one run in one way of asking, class-incremental or masked; `from_rows` makes one.

    A run that is not over gives the matrix of the steps it has done.
    """

    percent_SS: np.ndarray
    """float64 [S, S]; row i after step i, column j for the images of step j; NaN for j > i."""

    def __post_init__(self) -> None:
        percent_SS = self.percent_SS
        if percent_SS.ndim != 2 or percent_SS.shape != percent_SS.shape[::-1] or not len(percent_SS):
            raise ShapeError(f"accuracy matrix of shape {percent_SS.shape}; expected a square one.")
        known_SS = np.tri(len(percent_SS), dtype=bool)
        inside_SS = (percent_SS >= 0) & (percent_SS <= 100)
        if not inside_SS[known_SS].all() or not np.isnan(percent_SS[~known_SS]).all():
            raise DataError(
                "accuracy matrix: expected 0 to 100 on and below the diagonal and NaN above it, received"
                f" {percent_SS.tolist()}."
            )

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]]) -> "AccuracyMatrix":
        """The matrix of rows of 1, 2, 3, ... accuracies, one a step done; see `predictions_to_row`.

        Raises:
            ShapeError: row i does not have i + 1 values, or there is none.
            DataError: a value is not in 0..100.
        """
        lengths = [len(row) for row in rows]
        if lengths != list(range(1, len(rows) + 1)):
            raise ShapeError(
                f"accuracy matrix: rows have {lengths} values; expected 1, 2, 3, ..., one row a step done."
            )
        percent_SS = np.full((len(rows), len(rows)), np.nan)
        for step, row in enumerate(rows):
            percent_SS[step, : step + 1] = row
        return cls(percent_SS)

    @property
    def num_steps(self) -> int:
        """S, the steps done."""
        return len(self.percent_SS)


def predictions_to_row(
    logits_TK: np.ndarray | Tensor,
    labels_T: np.ndarray | Tensor,
    steps: Sequence[Sequence[int]],
    *,
    masked: bool,
    lots_T: np.ndarray | None = None,
) -> np.ndarray:
    """Accuracy on the images of each step in percent, float64 [number of steps]: one row of the matrix.

    Class-incremental: the largest of all K logits decides, those of classes not seen yet among them, as in
    DM's protocol; Mammoth leaves these out. Masked: the largest among the classes of the image's own step,
    which tells the network the step ("task-incremental"). An image with a NaN among its logits is wrong.

    Args:
        logits_TK: one row a test image.
        labels_T: classes of the images; those of classes outside `steps` are left out.
        steps: the classes of each step done so far.
        masked: which of the two.
        lots_T: lots of the images, where `steps` holds lots, see `apps.continual.stream`; None: their classes.

    Raises:
        ShapeError: logits are not [T, K] for T labels.
        DataError: a step has no test images.
    """
    logits_TK, labels_T = np.asarray(logits_TK), np.asarray(labels_T)
    if logits_TK.ndim != 2 or labels_T.shape != logits_TK.shape[:1]:
        raise ShapeError(f"logits {logits_TK.shape} for labels {labels_T.shape}; expected [T, K] and [T].")
    row = np.empty(len(steps))
    for step, lots in enumerate(steps):
        of_step_T = np.isin(labels_T if lots_T is None else lots_T, list(lots))
        if not of_step_T.any():
            raise DataError(f"step {step} has no test images of its classes {sorted(lots)}.")
        classes = sorted(lots) if lots_T is None else np.unique(labels_T[of_step_T])
        allowed = np.array(classes) if masked else np.arange(logits_TK.shape[1])
        scores_tk = logits_TK[of_step_T][:, allowed]
        right_t = allowed[scores_tk.argmax(axis=1)] == labels_T[of_step_T]
        # NumPy calls NaN the largest: a network that diverged would always be right on the first class.
        row[step] = 100.0 * (right_t & ~np.isnan(scores_tk).any(axis=1)).mean()
    return row


def final_average_accuracy(matrix: AccuracyMatrix) -> float:
    """Mean over the steps j of a[L][j], each step the same weight.

    Source: GEM (Lopez-Paz and Ranzato, 2017), there "ACC".
    """
    return float(matrix.percent_SS[-1].mean())


def forgetting(matrix: AccuracyMatrix) -> float:
    """Mean over j < L of (max over i < L of a[i][j]) - a[L][j], in points; NaN for a single step.

    From the best accuracy before the last step; negative where the last step is the best.
    Source: Chaudhry et al., *Riemannian walk for incremental learning*, ECCV 2018.
    """
    return _lost(matrix, lambda percent_SS: np.nanmax(percent_SS[:-1, :-1], axis=0))


def forgetting_max(matrix: AccuracyMatrix) -> float:
    """Mean over j < L of (max over i <= L of a[i][j]) - a[L][j], in points; NaN for a single step.

    `forgetting` with the last row among those that the best is taken of, so that no step counts below 0: a step that
    has become better makes up for none that has become worse. Source: Mammoth's code, looked up.
    """
    return _lost(matrix, lambda percent_SS: np.nanmax(percent_SS, axis=0)[:-1])


def forgetting_first(matrix: AccuracyMatrix) -> float:
    """Mean over j < L of a[j][j] - a[L][j], in points; NaN for a single step.

    From the first measurement, not the best one; negative if later steps helped. Source: Avalanche's code.
    """
    return _lost(matrix, lambda percent_SS: np.diag(percent_SS)[:-1])


def backward_transfer(matrix: AccuracyMatrix) -> float:
    """Mean over j < L of a[L][j] - a[j][j], in points: `forgetting_first` with the other sign.

    Source: GEM (Lopez-Paz and Ranzato, 2017), there "BWT"; Mammoth's code, looked up.
    """
    return -forgetting_first(matrix)


def _lost(matrix: AccuracyMatrix, before: Callable[[np.ndarray], np.ndarray]) -> float:
    if matrix.num_steps == 1:
        return float("nan")
    return float((before(matrix.percent_SS) - matrix.percent_SS[-1, :-1]).mean())


__all__ = [
    "AccuracyMatrix",
    "backward_transfer",
    "final_average_accuracy",
    "forgetting",
    "forgetting_first",
    "forgetting_max",
    "predictions_to_row",
]
