"""Scores beside accuracy: equal to scikit-learn's, their error to DeLong's sums written out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from atom.scores import _ranks, auc_interval, is_uneven, score
from atom.streams import stream


def answers(
    counts: list[int], *, seed: int = 0, digits: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [T, K] that lean to the right class, and labels; rounded ones have ties."""
    rng = stream(seed, "test/scores")
    labels_T = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    logits_TK = rng.standard_normal((len(labels_T), len(counts)))
    logits_TK[np.arange(len(labels_T)), labels_T] += 0.7
    logits_TK = logits_TK if digits is None else logits_TK.round(digits)
    return torch.from_numpy(logits_TK).float(), torch.from_numpy(labels_T)


@pytest.mark.parametrize("counts", [[9, 21], [2, 30], [1, 5], [7, 12, 4], [3, 3, 3, 40, 2]])
@pytest.mark.parametrize("digits", [None, 0])
def test_scores_are_those_of_scikit_learn(counts, digits):
    for seed in range(5):
        logits_TK, labels_T = answers(counts, seed=seed, digits=digits)
        found = score(logits_TK, labels_T)
        probability_TK = logits_TK.double().softmax(dim=1).numpy()
        given = probability_TK[:, 1] if len(counts) == 2 else probability_TK
        area = roc_auc_score(labels_T.numpy(), given, multi_class="ovr")
        assert found.auc == pytest.approx(area, abs=1e-12)
        balanced = balanced_accuracy_score(labels_T.numpy(), logits_TK.argmax(dim=1).numpy())
        assert found.balanced_accuracy == pytest.approx(100 * balanced, abs=1e-12)


@pytest.mark.parametrize("counts", [[9, 21], [2, 30], [7, 12, 4]])
def test_the_error_is_delongs_written_out_pair_by_pair(counts):
    logits_TK, labels_T = answers(counts, digits=0)
    probability_TK = logits_TK.double().softmax(dim=1).numpy()
    classes_T = labels_T.numpy()
    told_T = np.zeros(len(classes_T))
    ranked = [1] if len(counts) == 2 else range(len(counts))
    for c in ranked:
        own, others = np.flatnonzero(classes_T == c), np.flatnonzero(classes_T != c)
        above = np.array(
            [[np.sign(probability_TK[i, c] - probability_TK[j, c]) / 2 + 0.5 for j in others] for i in own]
        )
        m, n = above.shape
        told_T[own] += (above.mean(axis=1) - above.mean()) / np.sqrt(m * (m - 1)) / len(ranked)
        told_T[others] += (above.mean(axis=0) - above.mean()) / np.sqrt(n * (n - 1)) / len(ranked)
        if len(ranked) == 1:
            # DeLong's own form, the variances of the two kinds of placements over their numbers.
            delong = above.mean(axis=1).var(ddof=1) / m + above.mean(axis=0).var(ddof=1) / n
            assert (told_T**2).sum() == pytest.approx(delong, rel=1e-12)
    assert score(logits_TK, labels_T).auc_error == pytest.approx(np.sqrt((told_T**2).sum()), rel=1e-9)


@pytest.mark.parametrize("counts", [[80, 160], [60, 90, 30]])
def test_the_error_is_the_spread_over_other_test_images(counts):
    areas, errors = zip(
        *((one.auc, one.auc_error) for seed in range(300) for one in [score(*answers(counts, seed=seed))]),
        strict=True,
    )
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(areas, ddof=1), rel=0.15)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_ranks_are_those_of_scipy(values):
    np.testing.assert_array_equal(_ranks(np.array(values, dtype=np.float64)), rankdata(values))


def test_naming_the_largest_class_is_worth_nothing():
    labels_T = torch.tensor([0] * 3 + [1] * 9)
    found = score(torch.tensor([[0.0, 1.0]]).repeat(12, 1), labels_T)
    assert (found.balanced_accuracy, found.auc) == (50.0, 0.5)


def test_a_class_without_test_images_leaves_no_area():
    logits_TK, labels_T = answers([5, 0, 6])
    found = score(logits_TK, labels_T)
    right_T = logits_TK.argmax(dim=1) == labels_T
    shares = [right_T[labels_T == c].double().mean().item() for c in (0, 2)]
    assert found.balanced_accuracy == pytest.approx(50 * sum(shares))
    assert found.auc is None
    assert found.auc_error is None
    assert score(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)).auc is None


def test_a_class_of_one_image_leaves_no_error():
    assert score(*answers([1, 5])).auc is not None
    assert score(*answers([1, 5])).auc_error is None


def test_confident_answers_are_still_ranked():
    """In float32 both would be 0, and a tie."""
    logits_TK = torch.tensor([[150.0, 0.0], [140.0, 0.0], [139.0, 0.0], [160.0, 0.0]])
    assert score(logits_TK, torch.tensor([0, 1, 1, 0])).auc == 1.0


def test_uneven_is_one_and_a_half_times_as_large():
    assert not is_uneven(np.repeat([0, 1], [100, 149]), 2)
    assert is_uneven(np.repeat([0, 1], [100, 150]), 2)
    assert is_uneven(np.zeros(5, dtype=np.int64), 2)


def test_an_interval_ends_at_one():
    assert auc_interval(0.99, [0.02]) == (pytest.approx(0.9508, abs=1e-4), 1.0)
    assert auc_interval(1.0, [0.0, 0.0]) == (1.0, 1.0)
