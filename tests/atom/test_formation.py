import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atom.errors import ConfigError, ShapeError
from atom.formation import decode, encode, enlarge_by_matrices, label_decoded, tile_bounds
from atom.methods import matching_reference as reference


def stored(height: int = 7, width: int = 6) -> torch.Tensor:
    return torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_decoding_equals_the_reference(factor: int) -> None:
    expected = torch.stack(reference.decode_stored(stored(), factor))
    torch.testing.assert_close(decode(stored(), factor), expected)


def test_decoding_gradient_is_right() -> None:
    assert torch.autograd.gradcheck(lambda images: decode(images, 2), stored(4, 5).requires_grad_())


@pytest.mark.parametrize("size", [(7, 6), (9, 17), (4, 3)])
def test_enlarging_by_matrices_is_bilinear_interpolation_and_so_is_its_gradient(
    size: tuple[int, int],
) -> None:
    tiles = stored(4, 3).requires_grad_()
    ours = enlarge_by_matrices(tiles, *size)
    theirs = torch.nn.functional.interpolate(tiles, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grads = [torch.autograd.grad((full * weight).sum(), tiles)[0] for full in (ours, theirs)]
    torch.testing.assert_close(*grads)


@given(size=st.integers(1, 40), factor=st.integers(1, 8))
def test_tiles_cover_an_axis_without_overlap(size: int, factor: int) -> None:
    if factor > size:
        with pytest.raises(ConfigError):
            tile_bounds(size, factor)
        return
    bounds = tile_bounds(size, factor)
    covered = [pixel for start, end in bounds for pixel in range(start, end)]
    assert covered == list(range(size))
    assert len(bounds) == factor
    assert max(end - start for start, end in bounds) - min(end - start for start, end in bounds) <= 1


@pytest.mark.parametrize("factor", [2, 3])
def test_constant_images_survive_encoding_and_decoding(factor: int) -> None:
    images = torch.arange(2.0 * factor**2).view(-1, 1, 1, 1).expand(-1, 3, 7, 6)
    torch.testing.assert_close(decode(encode(images, factor), factor), images.contiguous())


def test_labels_follow_the_decoded_images() -> None:
    images = torch.stack([torch.full((1, 4, 4), float(label)) for label in (5, 3)])
    labels = label_decoded(torch.tensor([5, 3]), 2)
    assert labels.tolist() == decode(images, 2).mean((1, 2, 3)).int().tolist() == [5, 5, 5, 5, 3, 3, 3, 3]


def test_encoding_wants_whole_grids() -> None:
    with pytest.raises(ShapeError, match="do not fill grids of 2x2"):
        encode(torch.zeros(5, 1, 4, 4), 2)


def test_decoding_wants_images() -> None:
    with pytest.raises(ShapeError, match="expected \\[N, C, H, W\\]"):
        decode(torch.zeros(5, 4), 2)
