"""Lossless files of images: what comes back, what they take, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.continual.lossless import decode, encode, least_bytes

sides = st.integers(1, 17)


def smooth(channels: int, height: int, width: int) -> np.ndarray:
    """Slow ramps, another one in each channel."""
    ramp = np.arange(height)[:, None] * 2 + np.arange(width)
    return np.stack([(ramp + 40 * c) % 256 for c in range(channels)]).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), sides, sides, st.integers(0, 2**32 - 1), st.sampled_from([1, 16, 255]))
def test_every_image_comes_back_bit_for_bit_and_never_takes_more_than_its_values(c, h, w, seed, spread):
    image_CHW = np.random.default_rng(seed).integers(0, spread + 1, (c, h, w)).astype(np.uint8)
    file = encode(image_CHW)
    np.testing.assert_array_equal(decode(file, (c, h, w)), image_CHW)
    assert len(file) <= c * h * w


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_smooth_images_of_any_number_of_channels_become_smaller(channels):
    image_CHW = smooth(channels, 32, 24)
    file = encode(image_CHW)
    assert least_bytes((channels, 32, 24)) <= len(file) < image_CHW.size / 2
    np.testing.assert_array_equal(decode(file, (channels, 32, 24)), image_CHW)


def test_image_longer_than_a_file_may_be_is_kept_as_it_is():
    image_CHW = np.zeros((2, 9000, 1), np.uint8)
    assert encode(image_CHW) == image_CHW.tobytes()


@pytest.mark.parametrize("change", [lambda f: f[:-9], lambda f: b"", lambda f: b"\x00" + f[1:]])
def test_damaged_file_is_refused(change):
    with pytest.raises(ValueError, match="cannot be read"):
        decode(change(encode(smooth(3, 32, 24))), (3, 32, 24))


def test_file_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"of \(24, 32\) pixels, expected \(32, 24\)"):
        decode(encode(smooth(3, 32, 24)), (3, 24, 32))
