import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atom.errors import ArtifactError, ConfigError, DataError, ShapeError
from atom.preprocess import Preprocess
from atom.whitening import ZCA, rank_flaw


def images(count: int = 60, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(24, 24, generator=generator)
    return (torch.randn(count, 24, generator=generator) @ mixing).view(count, 2, 4, 3)


def test_whitening_equals_kornias() -> None:
    kornia = pytest.importorskip("kornia", reason="kornia is a test-only oracle")
    real = images()
    theirs = kornia.enhance.ZCAWhitening(eps=0.1, compute_inv=True).fit(real)
    ours = ZCA.fit(real, eps=0.1)
    torch.testing.assert_close(ours.apply(real), theirs(real), rtol=1e-3, atol=1e-3)


def test_whitened_images_have_unit_covariance_without_eps() -> None:
    white = ZCA.fit(images(500), eps=1e-9).apply(images(500)).flatten(1).double()
    torch.testing.assert_close(white.T.cov(), torch.eye(24, dtype=torch.float64), rtol=0, atol=2e-2)


@given(seed=st.integers(0, 100), eps=st.sampled_from([1e-2, 0.1, 1.0]))
def test_inverse_undoes_whitening(seed: int, eps: float) -> None:
    real = images(seed=seed)
    zca = ZCA.fit(real, eps=eps)
    torch.testing.assert_close(zca.invert(zca.apply(real)), real, rtol=1e-3, atol=1e-3)


def test_chunks_do_not_change_the_fit() -> None:
    torch.testing.assert_close(
        ZCA.fit(images(), eps=0.1, chunk=7).whiten_DD,
        ZCA.fit(images(), eps=0.1).whiten_DD,
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_single_image_has_no_covariance() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        ZCA.fit(images(1), eps=0.1)


def test_bytes_are_those_of_both_matrices() -> None:
    zca = ZCA.fit(torch.randn(9, 3, 4, 5, generator=torch.Generator().manual_seed(0)), eps=0.1)
    assert zca.num_bytes == 2 * 60 * 60 * 4


def test_flat_images_are_refused() -> None:
    with pytest.raises(ShapeError, match="expected \\[N, C, H, W\\]"):
        ZCA.fit(torch.zeros(4, 5), eps=0.1)


def real_pixels(seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (30, 2, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("zca", [True, False])
def test_preprocessing_and_its_inverse_give_the_pixels_back(zca: bool) -> None:
    real = real_pixels()
    preprocess = Preprocess.fit(real, zca=zca)
    torch.testing.assert_close(preprocess.invert(preprocess.apply(real)), real / 255, rtol=1e-4, atol=1e-4)


def test_normalised_channels_have_mean_zero_and_std_one() -> None:
    white = Preprocess.fit(real_pixels(), zca=False).apply(real_pixels()).double()
    torch.testing.assert_close(white.mean((0, 2, 3)), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-6)
    spread = white.std((0, 2, 3), unbiased=False)
    torch.testing.assert_close(spread, torch.ones(2, dtype=torch.float64), rtol=1e-5, atol=0)


def test_bytes_and_pixels_are_preprocessed_alike() -> None:
    preprocess = Preprocess.fit(real_pixels(), zca=True)
    torch.testing.assert_close(preprocess.apply(real_pixels()), preprocess.apply(real_pixels() / 255))


def test_a_constant_channel_stays_finite() -> None:
    real = real_pixels()
    real[:, 1] = 7
    assert bool(Preprocess.fit(real, zca=True).apply(real).isfinite().all())


@pytest.mark.parametrize("zca", [True, False])
def test_tensors_round_trip(zca: bool) -> None:
    preprocess = Preprocess.fit(real_pixels(), zca=zca)
    again = Preprocess.from_tensors(preprocess.tensors())
    assert bool((again.apply(real_pixels()) == preprocess.apply(real_pixels())).all())


def test_missing_whitening_matrix_is_named() -> None:
    named = Preprocess.fit(real_pixels(), zca=True).tensors()
    del named["zca_whiten"]
    with pytest.raises(ArtifactError, match="zca_whiten"):
        Preprocess.from_tensors(named)


def test_images_of_another_size_are_refused() -> None:
    preprocess = Preprocess.fit(real_pixels(), zca=True)
    with pytest.raises(ShapeError, match="24 values each, but the whitening was fitted on 40"):
        preprocess.apply(torch.zeros(1, 2, 4, 3))
    with pytest.raises(ShapeError, match="fitted on"):
        preprocess.apply(torch.zeros(1, 3, 5, 4))


@pytest.mark.parametrize(
    "wrong", [real_pixels().float(), real_pixels() / 127.5 - 1, torch.full((1, 2, 5, 4), torch.nan)]
)
def test_floating_images_that_are_no_pixels_are_refused(wrong: torch.Tensor) -> None:
    preprocess = Preprocess.fit(real_pixels(), zca=False)
    with pytest.raises(DataError, match=r"floating images run from .* expected pixels in \[0, 1\]"):
        preprocess.apply(wrong)
    overshot = torch.full((1, 2, 5, 4), 1.2)
    assert torch.equal(preprocess.apply(overshot), preprocess.apply_unbounded(overshot))


@pytest.mark.parametrize("zca", [False, True])
def test_no_images_give_no_images(zca: bool) -> None:
    none = real_pixels()[:0]
    assert Preprocess.fit(real_pixels(), zca=zca).apply(none).shape == none.shape
    with pytest.raises(ShapeError, match="at least one"):
        Preprocess.fit(none, zca=zca)


def colours(count: int = 300, side: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def test_images_that_span_their_space_have_no_flaw() -> None:
    assert rank_flaw(colours()) is None
    assert rank_flaw(colours(), chunk=7) is None


@pytest.mark.parametrize("noise", [0, 1])
def test_grey_images_stored_as_colour_have_a_flaw(noise: int) -> None:
    grey = colours()[:, :1].repeat(3, axis=1).clip(1, 254)
    jitter = np.random.default_rng(1).integers(0, noise + 1, grey.shape, dtype=np.uint8)
    assert rank_flaw(grey + jitter) == "all channels hold one grey image"


def test_other_images_of_less_than_full_rank_are_told_apart() -> None:
    tinted, bordered = colours(), colours()
    tinted[:, 2] = tinted[:, 0] // 2 + 7
    bordered[:, :, 0] = 0
    assert rank_flaw(tinted) == "a channel follows from the others"
    assert rank_flaw(bordered) == "12 of the 48 values are the same in all images"
    assert rank_flaw(colours(48)) == "48 images are too few for the 48 values of each"
