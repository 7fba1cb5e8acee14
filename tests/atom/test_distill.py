import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from distill_samples import (
    HEIGHT,
    WIDTH,
    make_distiller,
    make_settings,
    real_images,
    run,
    run_in_float64,
)
from torch import Tensor

from atom import nets
from atom.augment import augment, draw_params
from atom.draws import rows_of_batch
from atom.errors import ConfigError
from atom.methods import matching_reference as reference
from atom.methods.matching_loop import Matching
from atom.methods.method import State
from atom.methods.settings import DistillSettings
from atom.settings import DSA_OPERATIONS, parse_dsa_strategy
from atom.streams import stream

METHODS = ["atom", "spatial", "channel", "dm"]
DSA = "_".join(DSA_OPERATIONS)


def same_bits(first: State, second: State) -> bool:
    return (
        first.iteration == second.iteration
        and np.array_equal(first.losses, second.losses)
        and all(np.array_equal(first.arrays[name], second.arrays[name]) for name in ("images", "momentum"))
    )


def slow_network(
    settings: DistillSettings, iteration: int
) -> Callable[[Tensor], tuple[list[Tensor], Tensor]]:
    """`blocks` in float64 with the weights of an iteration, drawn by the public stream."""
    net = nets.build(settings.network, channels=2, image_size=(HEIGHT, WIDTH), num_classes=4)
    nets.fill_weights(net, stream(settings.seed, "distill/weights", iteration))
    return nets.require_blocks(net.double().eval(), settings.network).blocks


def slow_class(settings: DistillSettings, start_NCHW: Tensor, class_id: int, *, steps: int) -> Tensor:
    """Images of one class after some iterations, by the reference and central differences."""
    real_NCHW = real_images()[class_id].double()
    operations = parse_dsa_strategy(settings.dsa_strategy)

    def gradient(images_NCHW: Tensor, iteration: int) -> Tensor:
        numbers = [
            stream(settings.seed, f"distill/{what}", iteration, class_id) for what in ("batch", "augment")
        ]
        rows_B = rows_of_batch(numbers[0], len(real_NCHW), settings.batch_real)
        row_1P = torch.from_numpy(
            draw_params(operations, num_rows=1, height=HEIGHT, width=WIDTH, rng=numbers[1])
        ).double()
        blocks = slow_network(settings, iteration)

        def same_transform(images: Tensor) -> Tensor:
            return augment(images, row_1P.repeat(len(images), 1)) if operations else images

        real_batch = same_transform(real_NCHW[torch.from_numpy(rows_B)])

        def loss(images: Tensor) -> float:
            decoded = torch.stack(reference.decode_stored(images, settings.factor))
            return reference.class_loss(
                blocks,
                real_batch,
                same_transform(decoded),
                method=settings.method,
                p=getattr(settings.options, "power", 1),
                task_balance=settings.options.task_balance,
            )

        return reference.numeric_gradient(loss, images_NCHW)

    return reference.momentum_steps(
        gradient, start_NCHW, steps=steps, lr=settings.lr_img or 0.0, momentum=settings.momentum_img
    )


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_iterations_equal_the_reference(method: str, factor: int) -> None:
    settings = make_settings(method=method, factor=factor)
    start, end = run_in_float64(settings, [2, 0], 2)
    expected = slow_class(settings, torch.from_numpy(start.images[1]), 0, steps=2)
    torch.testing.assert_close(torch.from_numpy(end.images[1]), expected, rtol=1e-5, atol=1e-6)
    assert float(np.abs(end.images - start.images).max()) > 1e-3


def test_iterations_with_augmentation_equal_the_reference() -> None:
    settings = make_settings(dsa_strategy="color_cutout_flip_scale_rotate", ipc=2)
    start, end = run_in_float64(settings, [1], 2)
    expected = slow_class(settings, torch.from_numpy(start.images[0]), 1, steps=2)
    torch.testing.assert_close(torch.from_numpy(end.images[0]), expected, rtol=1e-5, atol=1e-6)


def test_a_float32_iteration_equals_the_reference() -> None:
    settings = make_settings()
    end = run(settings, [0, 1], 1)
    for row, class_id in enumerate([0, 1]):
        start = torch.from_numpy(run(settings, [class_id], 0).images[0])
        expected = slow_class(settings, start, class_id, steps=1).float()
        torch.testing.assert_close(torch.from_numpy(end.images[row]), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cuts", [[6], [2, 5, 6], [1, 1, 6], [0, 3, 6]])
def test_result_does_not_depend_on_how_the_way_is_cut(cuts: list[int]) -> None:
    settings, real = make_settings(dsa_strategy=DSA), real_images()
    whole = run(settings, [0, 2], 6)
    state = make_distiller(settings).start([0, 2], real)
    for until in cuts:
        state = make_distiller(settings).advance(state, until, unit=[0, 2], real=real)
    assert same_bits(state, whole)


def test_another_group_in_between_changes_nothing() -> None:
    settings, real = make_settings(dsa_strategy=DSA), real_images()
    distiller = make_distiller(settings)
    first = run(settings, [0, 2], 3, distiller=distiller)
    run(settings, [1, 3], 4, distiller=distiller)
    assert same_bits(
        distiller.advance(first, 6, unit=[0, 2], real=real),
        run(settings, [0, 2], 6),
    )


def test_threads_are_those_of_the_settings_whatever_the_process_uses() -> None:
    settings, expected = make_settings(), run(make_settings(), [0, 1], 2)
    torch.set_num_threads(2)
    try:
        assert same_bits(run(settings, [0, 1], 2), expected)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_advance_leaves_the_given_state_and_the_real_images_alone() -> None:
    settings, real = make_settings(), real_images()
    distiller = make_distiller(settings)
    state = distiller.start([0, 1], real)
    before = state.images.copy()
    state.images.flags.writeable = False
    distiller.advance(state, 2, unit=[0, 1], real=real)
    assert np.array_equal(state.images, before)
    assert all(torch.equal(images, real_images()[c]) for c, images in real.items())


def test_state_tells_the_losses_and_the_iterations_as_they_are_done() -> None:
    settings, real, done = make_settings(), real_images(), []
    distiller = make_distiller(settings)
    state = distiller.advance(distiller.start([0, 1], real), 2, unit=[0, 1], real=real)
    state = distiller.advance(state, 5, unit=[0, 1], real=real, on_iteration=done.append)
    assert done == [3, 4, 5]
    assert state.losses.shape == (5, 2)
    assert bool((state.losses > 0).all())
    assert same_bits(distiller.advance(state, 4, unit=[0, 1], real=real), state)


def test_seed_iteration_and_class_each_change_the_draw() -> None:
    def draw(seed: int, iteration: int, class_id: int) -> list[np.ndarray]:
        settings = make_settings(seed=seed, dsa_strategy="color")
        found = make_distiller(settings).draws.at(iteration, [class_id], [1000])
        return [np.asarray(part) for part in (found.weights, found.rows_GB, found.params_GP)]

    here = draw(0, 0, 0)
    for other in (draw(1, 0, 0), draw(0, 1, 0)):
        assert not any(np.array_equal(a, b) for a, b in zip(here, other, strict=True))
    neighbour = draw(0, 0, 1)
    assert [np.array_equal(a, b) for a, b in zip(here, neighbour, strict=True)] == [True, False, False]


def test_real_and_synthetic_images_of_a_class_get_the_same_augmentation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Tensor] = []

    def spy(images_NCHW: Tensor, params_NP: Tensor) -> Tensor:
        seen.append(params_NP)
        return augment(images_NCHW, params_NP)

    monkeypatch.setattr("atom.methods.matching_step.augment", spy)
    monkeypatch.setattr(Matching, "_real_per_call", lambda self, num_classes: None)
    settings = make_settings(dsa_strategy="rotate", ipc=2)
    run(settings, [2, 0], 1)
    rows = [
        draw_params(
            ("rotate",), num_rows=1, height=HEIGHT, width=WIDTH, rng=stream(3, "distill/augment", 0, c)
        )
        for c in (2, 0)
    ]
    for given, count in zip(seen, (settings.batch_real, settings.ipc), strict=True):
        assert np.array_equal(given.numpy(), np.concatenate(rows).repeat(count, axis=0))


@pytest.mark.parametrize("network", ["convnet-w4-d2", "vit"])
def test_global_random_state_is_neither_used_nor_changed(network: str) -> None:
    settings = make_settings(network=network, dsa_strategy=DSA)
    torch.manual_seed(1)
    first = run(settings, [0], 1)
    torch.manual_seed(2)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    assert same_bits(run(settings, [0], 1), first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]


def test_a_class_that_diverges_leaves_the_others_their_bits() -> None:
    sound, settings = real_images(), make_settings()
    broken = {**sound, 1: torch.full_like(sound[1], 3e38)}
    group, distiller = (0, 1, 2), make_distiller(settings)
    expected = distiller.advance(distiller.start(group, sound), 6, unit=group, real=sound)
    state = distiller.advance(distiller.start(group, broken), 3, unit=group, real=broken)
    assert list(state.failures) == [1]
    assert state.failures[1].startswith(
        "class 1: its images are no longer finite after iteration 0, at --lr-img 0.1;"
    )
    end = distiller.advance(state, 6, unit=group, real=broken)
    assert end.failures == state.failures
    assert bool(np.isnan(end.images[1]).all())
    for row in (0, 2):
        assert np.array_equal(end.images[row], expected.images[row])
        assert np.array_equal(end.losses[:, row], expected.losses[:, row])


def test_a_class_that_ends_out_of_range_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(images: torch.Tensor, real: torch.Tensor, *, class_id: int) -> None:
        if class_id == 2:
            raise ConfigError("class 2: too far off")

    expected = run(make_settings(), (0, 2), 6)
    monkeypatch.setattr("atom.methods.ending.check_range", refuse)
    state = run(make_settings(), (0, 2), 6)
    assert state.failures == {2: "class 2: too far off"}
    assert np.array_equal(state.images[0], expected.images[0])
    assert bool(np.isnan(state.images[1]).all())
