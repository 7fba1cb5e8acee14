"""Characteristic function and covariance of embeddings: against slow float64 loops, and what they promise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from atom.methods import feature_terms_reference as reference
from atom.methods.feature_terms import FeatureTerms, class_mean, feature_loss, feature_statistics
from atom.methods.matching_reference import numeric_gradient

CF, COVARIANCE, BOTH = FeatureTerms(3.0, 0.0), FeatureTerms(0.0, 5.0), FeatureTerms(3.0, 5.0)
every_term = pytest.mark.parametrize("terms", [CF, COVARIANCE, BOTH], ids=["cf", "covariance", "both"])
FEATURES, FREQUENCIES = 4, 6


def rows(count: int, seed: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, FEATURES, generator=generator, dtype=torch.float64).to(dtype)


def frequencies() -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(FREQUENCIES, FEATURES, generator=generator, dtype=torch.float64)


def loss(real: Tensor, synthetic: Tensor, terms: FeatureTerms, *, num_classes: int = 1) -> Tensor:
    sets = (real, synthetic)
    statistics = [
        feature_statistics(one, num_classes=num_classes, terms=terms, frequencies_FD=frequencies())
        for one in sets
    ]
    return feature_loss(
        *statistics,
        means=(class_mean(real, num_classes), class_mean(synthetic, num_classes)),
        counts=(len(real) // num_classes, len(synthetic) // num_classes),
        terms=terms,
    )


def slow(real: Tensor, synthetic: Tensor, terms: FeatureTerms) -> float:
    sets = reference.rows_of(real), reference.rows_of(synthetic)
    characteristic = reference.characteristic_distance(*sets, reference.rows_of(frequencies()))
    return terms.cf_weight * characteristic + terms.covariance_weight * reference.covariance_distance(*sets)


@every_term
def test_loss_equals_the_reference(terms: FeatureTerms) -> None:
    real, synthetic = rows(10, 0), rows(6, 1)
    expected = [slow(r, s, terms) for r, s in zip(real.chunk(2), synthetic.chunk(2), strict=True)]
    torch.testing.assert_close(
        loss(real, synthetic, terms, num_classes=2), torch.tensor(expected, dtype=torch.float64)
    )


@every_term
def test_gradient_equals_central_differences_of_the_reference(terms: FeatureTerms) -> None:
    real, synthetic = rows(5, 0), rows(3, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(real, synthetic, terms).sum(), synthetic)
    expected = numeric_gradient(lambda images: slow(real, images, terms), synthetic.detach())
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@every_term
def test_loss_gradient_passes_gradcheck(terms: FeatureTerms) -> None:
    real = rows(5, 0)
    assert torch.autograd.gradcheck(lambda images: loss(real, images, terms), rows(3, 1).requires_grad_())


@every_term
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_set_matches_itself_and_has_a_finite_gradient(terms: FeatureTerms, dtype: torch.dtype) -> None:
    images = rows(4, 0, dtype=dtype).requires_grad_()
    found = loss(images.detach(), images, terms)
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert found.item() < 1e-15
    assert bool(gradient.isfinite().all())


@every_term
def test_order_within_a_class_does_not_matter(terms: FeatureTerms) -> None:
    real, synthetic = rows(5, 0), rows(3, 1)
    torch.testing.assert_close(
        loss(real[[3, 1, 4, 0, 2]], synthetic[[2, 0, 1]], terms), loss(real, synthetic, terms)
    )


@every_term
def test_means_of_equal_parts_are_those_of_the_whole(terms: FeatureTerms) -> None:
    def statistics(part: Tensor) -> list[Tensor]:
        return feature_statistics(part, num_classes=1, terms=terms, frequencies_FD=frequencies())

    whole, parts = statistics(rows(6, 0)), [statistics(part) for part in rows(6, 0).split(2)]
    assert len(whole) == terms.count
    for column, expected in zip(zip(*parts, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.cat(column).mean(0, keepdim=True), expected)


def test_covariance_ignores_the_mean_and_the_characteristic_function_the_length() -> None:
    real, synthetic = rows(5, 0), rows(3, 1)
    torch.testing.assert_close(loss(real + 7, synthetic - 2, COVARIANCE), loss(real, synthetic, COVARIANCE))
    assert loss(real + 7, real, COVARIANCE).item() == pytest.approx(0, abs=1e-20)
    torch.testing.assert_close(loss(3 * real, synthetic / 2, CF), loss(real, synthetic, CF))


def test_characteristic_functions_differ_at_most_by_two() -> None:
    assert 0 < loss(rows(5, 0), rows(3, 1), CF).item() <= 3 * 2**0.5


@pytest.mark.parametrize("silent", ["real", "synthetic"])
def test_an_embedding_of_zeros_has_a_finite_loss_and_gradient(silent: str) -> None:
    real, synthetic = rows(4, 0), rows(2, 1)
    real, synthetic = (real * 0, synthetic) if silent == "real" else (real, synthetic * 0)
    synthetic = synthetic.requires_grad_()
    found = loss(real, synthetic, BOTH).sum()
    (gradient,) = torch.autograd.grad(found, synthetic)
    assert bool(found.isfinite())
    assert bool(gradient.isfinite().all())


def under_autocast(call: Callable[[], Tensor]) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return call()


@every_term
def test_products_stay_float32_under_autocast(terms: FeatureTerms) -> None:
    real, synthetic = rows(5, 0, dtype=torch.float32), rows(3, 1, dtype=torch.float32)
    found = under_autocast(lambda: loss(real, synthetic, terms))
    torch.testing.assert_close(found, loss(real, synthetic, terms), rtol=1e-6, atol=1e-6)
