"""Exemplars of one class: what is stored, what a network gets back, and what it costs in bytes."""

import numpy as np
import pytest
import torch

from apps.continual.exemplars import STORAGES, Exemplars, as_pixels, expected_bytes, image_bytes
from atom import formation
from atom.errors import ConfigError, ShapeError
from atom.preprocess import Preprocess

C, H, W = 2, 6, 4


def noise(number: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, C, H, W)).astype(np.uint8)


def fitted(*, zca: bool) -> Preprocess:
    return Preprocess.fit(noise(100, seed=9), zca=zca)


def white_noise(number: int, *, scale: float = 3.0) -> torch.Tensor:
    rng = np.random.default_rng(1)
    return torch.from_numpy((scale * rng.normal(size=(number, C, H, W))).astype(np.float32))


@pytest.mark.parametrize("zca", [False, True])
def test_pixels_of_preprocessed_real_images_are_those_images(zca):
    pixels_NCHW, preprocess = noise(7), fitted(zca=zca)
    white_NCHW = preprocess.apply(pixels_NCHW)
    np.testing.assert_array_equal(as_pixels(white_NCHW, preprocess), pixels_NCHW)
    assert torch.equal(Exemplars(pixels_NCHW).white(preprocess), white_NCHW)


def test_pixels_are_clipped_and_rounded():
    preprocess = Preprocess(torch.tensor([0.5]), torch.tensor([0.25]))
    values = torch.tensor([-9.0, 9.0, 0.0, 100.4 / 255 * 4 - 2, 100.6 / 255 * 4 - 2]).view(1, 1, 1, 5)
    assert as_pixels(values, preprocess).flatten().tolist() == [0, 255, 128, 100, 101]


def test_float32_comes_back_bit_for_bit():
    white_NCHW = white_noise(3)
    exemplars = Exemplars.from_white(white_NCHW, "float32", preprocess=fitted(zca=True))
    assert torch.equal(exemplars.white(fitted(zca=True)), white_NCHW)


def test_scaled_levels_are_off_by_half_a_level_at_most_even_outside_the_range_of_pixels():
    white_NCHW = white_noise(5, scale=20) + 3
    exemplars = Exemplars.from_white(white_NCHW, "uint8-scaled", preprocess=fitted(zca=True))
    back_NCHW = exemplars.white(fitted(zca=True))
    width_N = (white_NCHW.amax((1, 2, 3)) - white_NCHW.amin((1, 2, 3))) / 255
    assert (back_NCHW - white_NCHW).abs().amax((1, 2, 3)).le(0.501 * width_N).all()
    torch.testing.assert_close(back_NCHW.amax((1, 2, 3)), white_NCHW.amax((1, 2, 3)))
    again = Exemplars.from_white(back_NCHW, "uint8-scaled", preprocess=fitted(zca=True))
    np.testing.assert_array_equal(again.images_NCHW, exemplars.images_NCHW)


def test_constant_image_survives_scaled_levels():
    white_NCHW = torch.full((1, C, H, W), -1.7)
    exemplars = Exemplars.from_white(white_NCHW, "uint8-scaled", preprocess=fitted(zca=False))
    assert torch.equal(exemplars.white(fitted(zca=False)), white_NCHW)


@pytest.mark.parametrize(("storage", "expected"), [("uint8", 48), ("uint8-scaled", 56), ("float32", 192)])
def test_bytes_are_those_of_the_arrays_that_are_kept(storage, expected):
    exemplars = Exemplars.from_white(white_noise(3), storage, preprocess=fitted(zca=True), factor=2)
    ranges = exemplars.ranges_N2
    held = exemplars.images_NCHW.nbytes + (0 if ranges is None else ranges.nbytes)
    assert image_bytes((C, H, W), storage=storage) == expected
    assert exemplars.num_bytes == held == 3 * expected
    assert exemplars.storage == storage


@pytest.mark.parametrize("storage", STORAGES)
def test_multi_formation_counts_stored_images_and_gives_decoded_ones(storage):
    white_NCHW, preprocess = white_noise(3, scale=0.5), fitted(zca=True)
    stored = Exemplars.from_white(white_NCHW, storage, preprocess=preprocess)
    packed = Exemplars.from_white(white_NCHW, storage, preprocess=preprocess, factor=2)
    assert packed.num_images == 3
    assert packed.num_bytes == stored.num_bytes
    assert torch.equal(packed.white(preprocess), formation.decode(stored.white(preprocess), 2))


def ramps(number: int) -> np.ndarray:
    """Images that compress, each to another length: the first rows are noise, more of them from image to image."""
    images = np.zeros((number, C, 16, 16), np.uint8)
    for row in range(number):
        images[row, :, :row] = np.random.default_rng(row).integers(0, 256, (C, row, 16))
    return images


@pytest.mark.parametrize("ranges", [None, np.ones((6, 2), np.float32)])
def test_compressed_images_are_the_same_and_count_their_files(ranges):
    plain = Exemplars(ramps(6), 1, ranges)
    packed = plain.compressed()
    np.testing.assert_array_equal(packed.images_NCHW, plain.images_NCHW)
    assert packed.files is not None
    assert packed.sizes == [len(file) + (0 if ranges is None else 8) for file in packed.files]
    assert packed.num_bytes == sum(packed.sizes) < plain.num_bytes
    assert packed.storage == plain.storage


@pytest.mark.parametrize(("factor", "frac"), [(1, 0.4), (2, 0.6)])
def test_distilled_images_are_expected_between_files_of_real_ones_and_bare_values(factor, frac):
    flat, mixed = np.zeros((30, C, 16, 16), np.uint8), ramps(6)
    for real_NCHW in (flat, mixed, mixed[:1]):
        values, of_real = C * 16 * 16, np.mean(Exemplars(real_NCHW).compressed().sizes)
        found = expected_bytes(real_NCHW, storage="uint8", factor=factor)
        assert found == pytest.approx((1 - frac) * of_real + frac * values, abs=0.51)
        assert expected_bytes(real_NCHW, storage="uint8-scaled", factor=factor) == found + 8


def test_as_many_images_are_kept_as_fit_into_the_bytes_of_their_files():
    packed = Exemplars(ramps(6)).compressed()
    for number in range(6):
        for limit in (sum(packed.sizes[:number]), sum(packed.sizes[: number + 1]) - 1):
            kept = Exemplars(ramps(6)).compressed(limit)
            assert kept.num_images == number
            assert packed.head(6, limit).files == kept.files
    assert packed.head(2, 10**6).files == packed.files[:2]
    assert packed.at(np.array([4, 1])).files == (packed.files[4], packed.files[1])


def test_float32_images_cannot_be_compressed():
    with pytest.raises(ConfigError, match="storage uint8 or uint8-scaled"):
        Exemplars(np.zeros((1, C, H, W), np.float32)).compressed()


@pytest.mark.parametrize("storage", STORAGES)
def test_head_keeps_the_first_and_frees_the_rest(storage):
    exemplars = Exemplars.from_white(white_noise(5), storage, preprocess=fitted(zca=False), factor=2)
    head = exemplars.head(2)
    assert torch.equal(head.white(fitted(zca=False)), exemplars.white(fitted(zca=False))[:8])
    assert head.images_NCHW.base is None
    assert exemplars.head(9).num_images == 5
    assert exemplars.head(0).num_bytes == 0


def test_unknown_storage_is_refused():
    with pytest.raises(ConfigError, match="'int4' is unknown; known are uint8, uint8-scaled, float32"):
        Exemplars.from_white(white_noise(1), "int4", preprocess=fitted(zca=False))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "factor", "ranges"),
    [
        (np.zeros((2, 3, 4)), 1, None),
        (np.zeros((1, 1, 2, 2)), 1, None),
        (np.full((1, 1, 2, 2), np.nan, np.float32), 1, None),
        (np.zeros((1, 1, 2, 2), np.uint8), 0, None),
        (np.zeros((1, 1, 2, 2), np.uint8), 1, np.zeros((2, 2), np.float32)),
        (np.zeros((1, 1, 2, 2), np.float32), 1, np.zeros((1, 2), np.float32)),
    ],
)
def test_arrays_that_are_no_exemplars_are_refused(images, factor, ranges):
    with pytest.raises(ShapeError, match=r"exemplars: received .* expected finite uint8 or float32"):
        Exemplars(images, factor, ranges)
