"""The metrics of continual learning, against numbers worked out by hand and against slow loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.continual.metrics import (
    AccuracyMatrix,
    backward_transfer,
    final_average_accuracy,
    forgetting,
    forgetting_first,
    forgetting_max,
    predictions_to_row,
)
from atom.errors import DataError, ShapeError

# Step 0 is best after step 1, step 1 gets better at the end: the definitions of forgetting must differ.
ROWS = [[80.0], [90.0, 70.0], [60.0, 72.0, 50.0]]


@st.composite
def matrices(draw):
    num_steps = draw(st.integers(2, 6))
    percent = st.floats(0, 100)
    rows = [draw(st.lists(percent, min_size=i + 1, max_size=i + 1)) for i in range(num_steps)]
    return AccuracyMatrix.from_rows(rows)


def test_metrics_have_the_values_worked_out_by_hand():
    matrix = AccuracyMatrix.from_rows(ROWS)
    assert final_average_accuracy(matrix) == pytest.approx((60 + 72 + 50) / 3, abs=1e-12)
    assert forgetting(matrix) == pytest.approx(((90 - 60) + (70 - 72)) / 2, abs=1e-12)
    assert forgetting_max(matrix) == pytest.approx(((90 - 60) + (72 - 72)) / 2, abs=1e-12)
    assert forgetting_first(matrix) == pytest.approx(((80 - 60) + (70 - 72)) / 2, abs=1e-12)
    assert backward_transfer(matrix) == pytest.approx(-9.0, abs=1e-12)


@given(matrices())
def test_metrics_equal_slow_loops(matrix):
    a, last = matrix.percent_SS, matrix.num_steps - 1
    before = [max(a[i][j] for i in range(j, last)) - a[last][j] for j in range(last)]
    worst = [max(a[i][j] for i in range(j, last + 1)) - a[last][j] for j in range(last)]
    first = [a[j][j] - a[last][j] for j in range(last)]
    assert forgetting(matrix) == pytest.approx(sum(before) / last, abs=1e-9)
    assert forgetting_max(matrix) == pytest.approx(sum(worst) / last, abs=1e-9)
    assert forgetting_first(matrix) == pytest.approx(sum(first) / last, abs=1e-9)


@given(matrices())
def test_the_kinds_of_forgetting_are_ordered(matrix):
    assert forgetting_max(matrix) >= 0
    assert forgetting_max(matrix) >= forgetting(matrix) - 1e-9
    assert forgetting(matrix) >= forgetting_first(matrix) - 1e-9
    assert backward_transfer(matrix) == -forgetting_first(matrix)


def test_single_step_has_nothing_to_forget():
    matrix = AccuracyMatrix.from_rows([[75.0]])
    assert final_average_accuracy(matrix) == 75.0
    kinds = (forgetting, forgetting_max, forgetting_first, backward_transfer)
    assert all(math.isnan(metric(matrix)) for metric in kinds)


def test_run_that_is_not_over_gives_the_matrix_of_its_steps():
    matrix = AccuracyMatrix.from_rows(ROWS[:2])
    np.testing.assert_array_equal(matrix.percent_SS, [[80.0, np.nan], [90.0, 70.0]])
    assert matrix.num_steps == 2


@pytest.mark.parametrize("rows", [[], [[1.0, 2.0]], [[1.0], [1.0]]])
def test_rows_that_make_no_triangle_are_refused(rows):
    with pytest.raises(ShapeError, match="accuracy matrix"):
        AccuracyMatrix.from_rows(rows)


@pytest.mark.parametrize("value", [float("nan"), -1.0, 100.5])
def test_accuracy_outside_percent_is_refused(value):
    with pytest.raises(DataError, match="expected 0 to 100"):
        AccuracyMatrix.from_rows([[50.0], [value, 50.0]])


@pytest.mark.parametrize("masked", [False, True])
def test_rows_equal_a_slow_count_over_the_images(masked):
    rng = np.random.default_rng(0)
    steps = ((4, 1), (0, 5, 2))
    labels_T = rng.integers(0, 7, size=200)
    logits_TK = rng.normal(size=(200, 7)) + 1.5 * np.eye(7)[labels_T]
    expected = []
    for classes in steps:
        right = []
        for logits_K, label in zip(logits_TK, labels_T, strict=True):
            if label in classes:
                allowed = classes if masked else range(7)
                right.append(max(allowed, key=lambda k: logits_K[k]) == label)
        expected.append(100 * sum(right) / len(right))
    row = predictions_to_row(torch.from_numpy(logits_TK), torch.from_numpy(labels_T), steps, masked=masked)
    np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12)


def test_masked_accuracy_is_never_below_the_class_incremental_one():
    rng = np.random.default_rng(1)
    labels_T, logits_TK, steps = rng.integers(0, 6, 90), rng.normal(size=(90, 6)), ((0, 3), (5, 1), (2, 4))
    open_row, masked_row = (predictions_to_row(logits_TK, labels_T, steps, masked=m) for m in (False, True))
    assert (masked_row >= open_row).all()


def test_network_that_diverged_is_right_on_nothing():
    logits_TK = np.full((4, 2), np.nan)
    for masked in (False, True):
        assert predictions_to_row(logits_TK, np.zeros(4, int), [(0, 1)], masked=masked).tolist() == [0.0]


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"logits \(3, 2\) for labels \(2,\)"):
        predictions_to_row(np.zeros((3, 2)), np.zeros(2), [(0,)], masked=False)
    with pytest.raises(DataError, match=r"step 1 has no test images of its classes \[1\]"):
        predictions_to_row(np.zeros((3, 2)), np.zeros(3), [(0,), (1,)], masked=False)
