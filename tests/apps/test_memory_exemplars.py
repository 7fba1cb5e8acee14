"""Exemplars of one class: what is stored, what a network gets back, and what it costs in bytes."""

import numpy as np
import pytest
import torch

from apps.continual.exemplars import STORAGES, Exemplars, as_pixels, image_bytes
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
