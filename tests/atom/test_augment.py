"""DSA rows and their application, against slow float64 operations written per image."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.augment import NUM_PARAMS, ROTATE_DEGREES, _colour, _cutout, augment, draw_params
from atom.errors import ConfigError, ShapeError
from atom.settings import DSA_OPERATIONS
from atom.streams import stream
from atom.warp import AffineWarp

HEIGHT, WIDTH = 8, 6


def images_and_rows(operation: str, seed: int = 0, count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    rng = stream(seed, "test/augment")
    images = torch.from_numpy(rng.standard_normal((count, 3, HEIGHT, WIDTH)))
    rows = draw_params((operation,), num_rows=count, height=HEIGHT, width=WIDTH, rng=rng)
    return images, torch.from_numpy(rows).double()


def dense(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """What a compiled or CUDA call computes: every operation on every row."""
    warped = AffineWarp.apply(_colour(images, rows), rows[:, 3:9])
    return _cutout(warped, rows)


def affine_oracle(image: torch.Tensor, theta: list[list[float]]) -> torch.Tensor:
    """Bilinear sampling of one image by loops, theta in the unit square as in `affine_grid`."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            unit_x, unit_y = (2 * x + 1) / width - 1, (2 * y + 1) / height - 1
            from_x = theta[0][0] * unit_x + theta[0][1] * unit_y + theta[0][2]
            from_y = theta[1][0] * unit_x + theta[1][1] * unit_y + theta[1][2]
            source_x, source_y = ((from_x + 1) * width - 1) / 2, ((from_y + 1) * height - 1) / 2
            for row in (math.floor(source_y), math.floor(source_y) + 1):
                for column in (math.floor(source_x), math.floor(source_x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        weight = (1 - abs(source_y - row)) * (1 - abs(source_x - column))
                        for channel in range(channels):
                            out[channel, y, x] += weight * image[channel, row, column]
    return out


def oracle(operation: str, image: torch.Tensor, row: list[float]) -> torch.Tensor:
    """The published operation on one image, its magnitudes read out of the row."""
    height, width = image.shape[1:]
    if operation == "color":
        image = image + row[0]
        grey = (image[0] + image[1] + image[2]) / 3
        image = (image - grey) * row[1] + grey
        return (image - image.mean()) * row[2] + image.mean()
    if operation == "cutout":
        image = image.clone()
        image[:, int(row[9]) : int(row[10]), int(row[11]) : int(row[12])] = 0
        return image
    if operation == "flip":
        return image.flip(2) if row[3] < 0 else image
    if operation == "crop":
        out = torch.zeros_like(image)
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + int(row[8]), x + int(row[5])
                if 0 <= from_y < height and 0 <= from_x < width:
                    out[:, y, x] = image[:, from_y, from_x]
        return out
    if operation == "scale":
        return affine_oracle(image, [[row[3], 0, 0], [0, row[7], 0]])
    cos, sin = row[3], row[6] * width / height
    return affine_oracle(image, [[cos, -sin, 0], [sin, cos, 0]])


@pytest.mark.parametrize("operation", DSA_OPERATIONS)
@pytest.mark.parametrize("apply", [augment, dense])
def test_every_operation_equals_its_slow_form(operation, apply):
    images, rows = images_and_rows(operation)
    expected = [oracle(operation, image, row) for image, row in zip(images, rows.tolist(), strict=True)]
    torch.testing.assert_close(apply(images, rows), torch.stack(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("operation", ["scale", "rotate"])
def test_warp_and_its_gradient_equal_grid_sample(operation):
    images, rows = images_and_rows(operation)
    weight = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    results = []
    for apply in (augment, dense):
        out = apply(images, rows)
        results.append((out, torch.autograd.grad((out * weight).sum(), images)[0]))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(("height", "width"), [(8, 48), (48, 8), (4, 64), (8, 32)])
def test_gradient_of_oblong_images_turned_as_far_as_dsa_turns_is_that_of_grid_sample(height, width):
    rng = stream(0, "test/augment/oblong")
    images = torch.from_numpy(rng.standard_normal((2, 1, height, width))).requires_grad_()
    weight = torch.from_numpy(rng.standard_normal((2, 1, height, width)))
    rows = torch.from_numpy(draw_params((), num_rows=2, height=height, width=width, rng=rng)).double()
    angle = torch.deg2rad(torch.tensor([ROTATE_DEGREES, -ROTATE_DEGREES], dtype=torch.float64))
    rows[:, 3] = rows[:, 7] = angle.cos()
    rows[:, 4], rows[:, 6] = -angle.sin() * width / height, angle.sin() * height / width
    ours, theirs = (
        torch.autograd.grad((apply(images, rows) * weight).sum(), images)[0] for apply in (dense, augment)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("operation", DSA_OPERATIONS)
@pytest.mark.parametrize("apply", [augment, dense])
def test_gradient_equals_finite_differences(operation, apply):
    images, rows = images_and_rows(operation, count=2)
    small = images[:, :, :5, :4].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(lambda inputs: apply(inputs, rows), (small,))


@pytest.mark.parametrize("apply", [augment, dense])
def test_identity_rows_return_the_image_bit_for_bit(apply):
    images, turned = images_and_rows("rotate")
    rows = torch.from_numpy(
        draw_params((), num_rows=5, height=HEIGHT, width=WIDTH, rng=stream(0, "test/identity"))
    )
    rows[1] = turned[1].float()
    out = apply(images.float(), rows)
    keep = [0, 2, 3, 4]
    assert torch.equal(out[keep], images.float()[keep])
    assert not torch.equal(out[1], images[1].float())


@pytest.mark.parametrize("shape", [(8, 6), (7, 9), (28, 28)])
def test_flip_and_whole_pixel_shift_are_exact_on_the_dense_path(shape):
    height, width = shape
    images = torch.from_numpy(stream(0, "test/exact").standard_normal((2, 3, height, width))).float()
    rows = torch.from_numpy(
        draw_params((), num_rows=2, height=height, width=width, rng=stream(0, "test/identity"))
    )
    rows[0, 3] = -1.0
    rows[1, 5] = 2.0
    out = dense(images, rows)
    assert torch.equal(out[0], images[0].flip(2))
    assert torch.equal(out[1], torch.nn.functional.pad(images[1], (0, 2))[:, :, 2:])


def test_one_batch_may_mix_operations():
    images, _ = images_and_rows("color", count=len(DSA_OPERATIONS))
    rows = torch.stack([images_and_rows(name, seed=index)[1][0] for index, name in enumerate(DSA_OPERATIONS)])
    alone = torch.cat([augment(images[i : i + 1], rows[i : i + 1]) for i in range(len(rows))])
    torch.testing.assert_close(augment(images, rows), alone)
    torch.testing.assert_close(dense(images, rows), alone)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    height=st.integers(4, 65),
    width=st.integers(4, 65),
    operation=st.sampled_from(DSA_OPERATIONS),
)
def test_rows_stay_in_the_published_ranges(seed, height, width, operation):
    rows = draw_params((operation,), num_rows=9, height=height, width=width, rng=stream(seed, "test/range"))
    assert rows.dtype == np.float32
    assert rows.shape == (9, NUM_PARAMS)
    assert (np.abs(rows[:, 0]) <= 0.5).all()
    assert ((rows[:, 1] >= 0) & (rows[:, 1] <= 2)).all()
    assert ((rows[:, 2] >= 0.5) & (rows[:, 2] <= 1.5)).all()
    assert (np.abs(rows[:, 5]) <= int(width * 0.125 + 0.5)).all()
    assert (np.abs(rows[:, 8]) <= int(height * 0.125 + 0.5)).all()
    if operation == "cutout":
        assert ((rows[:, 10] - rows[:, 9] <= int(height * 0.5 + 0.5)) & (rows[:, 10] > rows[:, 9])).all()
        assert ((rows[:, 12] - rows[:, 11] <= int(width * 0.5 + 0.5)) & (rows[:, 12] > rows[:, 11])).all()
    if operation == "scale":
        assert ((rows[:, [3, 7]] >= 1 / 1.2 - 1e-6) & (rows[:, [3, 7]] <= 1.2 + 1e-6)).all()
    if operation == "rotate":
        assert (rows[:, 3] >= math.cos(math.radians(15)) - 1e-6).all()


def test_one_call_draws_one_operation_and_every_operation_comes_up():
    kinds = set()
    for iteration in range(60):
        rows = draw_params(
            DSA_OPERATIONS, num_rows=20, height=32, width=32, rng=stream(0, "test/mode", iteration)
        )
        identity = draw_params((), num_rows=20, height=32, width=32, rng=stream(0, "test/mode"))
        changed = (rows != identity).any(axis=0)
        kinds.add(tuple(np.flatnonzero(changed)))
    assert kinds == {(0, 1, 2), (5, 8), (9, 10, 11, 12), (3,), (3, 7), (3, 4, 6, 7)}


def test_equal_streams_draw_equal_rows():
    draws = [
        draw_params(DSA_OPERATIONS, num_rows=4, height=9, width=7, rng=stream(3, "test/equal", 5))
        for _ in range(2)
    ]
    assert np.array_equal(draws[0], draws[1])


def test_a_traced_call_is_one_graph_and_takes_new_rows_without_recompiling():
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    traced = torch.compile(augment, backend=count, fullgraph=True)
    for operation in DSA_OPERATIONS:
        images, rows = images_and_rows(operation)
        torch.testing.assert_close(traced(images, rows), augment(images, rows))
    assert len(graphs) == 1


def test_unknown_operation_and_wrong_rows_are_refused():
    with pytest.raises(ConfigError, match="unknown operation 'blur'; known are color"):
        draw_params(("blur",), num_rows=1, height=4, width=4, rng=stream(0, "test/bad"))
    with pytest.raises(ShapeError, match=r"rows \(3, 13\)"):
        augment(torch.zeros(2, 3, 4, 4), torch.zeros(3, NUM_PARAMS))
