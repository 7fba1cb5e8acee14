"""What continual learning is judged by: the matrix of accuracies, and the numbers made of it.

a[i][j] is the accuracy in percent on the test images of step j, measured after step i. Steps are counted from
0, and the last one is L. The definitions of forgetting in use differ, so each has its own name here.
"""

# T test images, K classes, S steps

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from atom.errors import ConfigError, DataError, ShapeError


@dataclass(frozen=True, eq=False)
class AccuracyMatrix:
    """Accuracies of one run in one way of asking, class-incremental or masked; `from_rows` makes one.

    A run that is not over gives the matrix of the steps it has done.
    """

    percent_SS: np.ndarray
    """float64 [S, S]; row i after step i, column j for the images of step j; NaN for j > i."""
    num_images_S: np.ndarray
    """int64 [S], test images of each step."""

    def __post_init__(self) -> None:
        percent_SS, num_steps = self.percent_SS, len(self.num_images_S)
        if num_steps < 1 or percent_SS.shape != (num_steps, num_steps) or not (self.num_images_S > 0).all():
            raise ShapeError(
                f"accuracy matrix of shape {percent_SS.shape} for test images {self.num_images_S.tolist()}; expected"
                " a square one, with one positive number of images a step."
            )
        known_SS = np.tri(num_steps, dtype=bool)
        inside_SS = (percent_SS >= 0) & (percent_SS <= 100)
        if not inside_SS[known_SS].all() or not np.isnan(percent_SS[~known_SS]).all():
            raise DataError(
                "accuracy matrix: expected 0 to 100 on and below the diagonal and NaN above it, received"
                f" {percent_SS.tolist()}."
            )

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]], num_images: Sequence[int]) -> "AccuracyMatrix":
        """The matrix of rows of 1, 2, 3, ... accuracies, one a step done.

        Args:
            rows: see `predictions_to_row`.
            num_images: test images of each step; those of steps not done yet may be there.

        Raises:
            ShapeError: row i does not have i + 1 values, or there are more rows than numbers of images.
            DataError: a value is not in 0..100.
        """
        lengths = [len(row) for row in rows]
        if lengths != list(range(1, len(rows) + 1)) or len(rows) > len(num_images):
            raise ShapeError(
                f"accuracy matrix: rows have {lengths} values for {len(num_images)} steps; expected 1, 2, 3, ..."
                " values, one row a step done."
            )
        percent_SS = np.full((len(rows), len(rows)), np.nan)
        for step, row in enumerate(rows):
            percent_SS[step, : step + 1] = row
        return cls(percent_SS, np.array(num_images[: len(rows)], dtype=np.int64))

    @property
    def num_steps(self) -> int:
        """S, the steps done."""
        return len(self.num_images_S)


def predictions_to_row(
    logits_TK: np.ndarray | Tensor,
    labels_T: np.ndarray | Tensor,
    steps: Sequence[Sequence[int]],
    *,
    masked: bool,
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

    Raises:
        ShapeError: logits are not [T, K] for T labels.
        DataError: a step has no test images.
    """
    logits_TK, labels_T = np.asarray(logits_TK), np.asarray(labels_T)
    if logits_TK.ndim != 2 or labels_T.shape != logits_TK.shape[:1]:
        raise ShapeError(f"logits {logits_TK.shape} for labels {labels_T.shape}; expected [T, K] and [T].")
    row = np.empty(len(steps))
    for step, classes in enumerate(steps):
        allowed = np.array(sorted(classes)) if masked else np.arange(logits_TK.shape[1])
        of_step_T = np.isin(labels_T, list(classes))
        if not of_step_T.any():
            raise DataError(f"step {step} has no test images of its classes {sorted(classes)}.")
        scores_tk = logits_TK[of_step_T][:, allowed]
        right_t = allowed[scores_tk.argmax(axis=1)] == labels_T[of_step_T]
        # NumPy calls NaN the largest: a network that diverged would always be right on the first class.
        row[step] = 100.0 * (right_t & ~np.isnan(scores_tk).any(axis=1)).mean()
    return row


def accuracy_on_seen(matrix: AccuracyMatrix, step: int) -> float:
    """Accuracy after `step` on the test images of all classes seen by then: sum_j n_j a[i][j] / sum_j n_j.

    Raises:
        ConfigError: there is no such step.
    """
    if not 0 <= step < matrix.num_steps:
        raise ConfigError(f"accuracy after step {step}: the matrix has steps 0 to {matrix.num_steps - 1}.")
    seen = slice(0, step + 1)
    return float(np.average(matrix.percent_SS[step, seen], weights=matrix.num_images_S[seen]))


def final_average_accuracy(matrix: AccuracyMatrix) -> float:
    """Mean over the steps j of a[L][j], each step the same weight.

    Source: GEM (Lopez-Paz and Ranzato, 2017), there "ACC".
    """
    return float(matrix.percent_SS[-1].mean())


def average_incremental_accuracy(matrix: AccuracyMatrix) -> float:
    """Mean over the steps i of `accuracy_on_seen(i)`, the first step included.

    Source: iCaRL (Rebuffi et al., 2017). Not to be compared with a final accuracy: early steps have fewer
    classes to confuse.
    """
    return float(np.mean([accuracy_on_seen(matrix, step) for step in range(matrix.num_steps)]))


def forgetting_max(matrix: AccuracyMatrix) -> float:
    """Mean over j < L of (max over i of a[i][j]) - a[L][j], in points; NaN for a single step.

    The maximum runs over all rows from j on, the last one included, so it is never negative.
    Source: Chaudhry et al., 2018, in the form of Mammoth's code, looked up.
    """
    percent_SS = matrix.percent_SS
    if matrix.num_steps == 1:
        return float("nan")
    return float((np.nanmax(percent_SS, axis=0) - percent_SS[-1])[:-1].mean())


def forgetting_first(matrix: AccuracyMatrix) -> float:
    """Mean over j < L of a[j][j] - a[L][j], in points; NaN for a single step.

    From the first measurement, not the best one; negative if later steps helped. Source: Avalanche's code.
    """
    if matrix.num_steps == 1:
        return float("nan")
    return float((np.diag(matrix.percent_SS) - matrix.percent_SS[-1])[:-1].mean())


def backward_transfer(matrix: AccuracyMatrix) -> float:
    """Mean over j < L of a[L][j] - a[j][j], in points: `forgetting_first` with the other sign.

    Source: GEM (Lopez-Paz and Ranzato, 2017), there "BWT"; Mammoth's code, looked up.
    """
    return -forgetting_first(matrix)


__all__ = [
    "AccuracyMatrix",
    "accuracy_on_seen",
    "average_incremental_accuracy",
    "backward_transfer",
    "final_average_accuracy",
    "forgetting_first",
    "forgetting_max",
    "predictions_to_row",
]
