"""Distilled images at the scale of real ones: what is kept, what is put right, and what is refused."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from distill_samples import CPU, make_settings, real_images
from hypothesis import given
from hypothesis import strategies as st

from atom import nets
from atom.data import load
from atom.errors import ConfigError
from atom.formation import decode
from atom.methods import matching_reference as reference
from atom.methods.lookup import find_method
from atom.methods.matching_loop import Atom, Matching
from atom.methods.method import State
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.scale import RANGE_MULTIPLE, check_range, to_real_scale
from atom.streams import stream

C, H, W = 2, 5, 4
Real = dict[int, torch.Tensor]
METHODS = ("atom", "spatial", "channel", "dm")


def noise(count: int, seed: int = 0, *, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
    rng = stream(seed, "test/scale")
    return torch.from_numpy(rng.normal(mean, std, (count, C, H, W)))


def scaled_by_hand(images: torch.Tensor, real: torch.Tensor, factor: int) -> torch.Tensor:
    """The same in loops over images, channels and pixels."""
    means = [[float(channel.mean()) for channel in image] for image in images]
    around = torch.stack(
        [
            torch.stack([ch - m for ch, m in zip(i, ms, strict=True)])
            for i, ms in zip(images, means, strict=True)
        ]
    )
    decoded = reference.decode_stored(around, factor)
    per = factor * factor
    owns = [
        math.sqrt(sum(float((d * d).mean()) for d in decoded[i * per : (i + 1) * per]) / per)
        for i in range(len(images))
    ]
    low, high, spreads = [math.inf] * C, [-math.inf] * C, []
    for image in real:
        total = 0.0
        for c, channel in enumerate(image):
            m = float(channel.mean())
            low[c], high[c] = min(low[c], m), max(high[c], m)
            total += float(((channel - m) ** 2).sum())
        spreads.append(math.sqrt(total / image.numel()))
    together = [math.sqrt(sum(x * x for x in xs) / len(xs)) for xs in (spreads, owns)]
    ratio = together[0] / together[1]
    out = torch.zeros_like(images)
    for i, image in enumerate(around):
        held = min(max(owns[i] * ratio, min(spreads)), max(spreads))
        for c, channel in enumerate(image):
            out[i, c] = channel * held / owns[i] + min(max(means[i][c] * ratio, low[c]), high[c])
    return out


@pytest.mark.parametrize("factor", [1, 2])
def test_scale_equals_the_reference(factor: int) -> None:
    images, real = noise(3, std=7.0, mean=4.0), noise(6, 1, std=0.5, mean=0.2)
    expected = scaled_by_hand(images, real, factor)
    torch.testing.assert_close(to_real_scale(images, real, factor=factor), expected, rtol=1e-12, atol=1e-12)


@given(st.floats(0.01, 1000), st.integers(1, 2))
def test_the_number_that_nothing_held_does_not_matter(number: float, factor: int) -> None:
    images, real = noise(3), noise(6, 1, std=0.5, mean=0.2)
    once = to_real_scale(images, real, factor=factor)
    torch.testing.assert_close(
        to_real_scale(number * images, real, factor=factor), once, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("factor", [1, 2])
def test_images_at_the_scale_of_real_ones_stay_as_they_are(factor: int) -> None:
    # Quiet and loud ones, so that no distilled image is out of their range.
    real = torch.cat([noise(6, 1, std=0.2, mean=0.2), noise(6, 2, std=0.9, mean=-0.2)])
    once = to_real_scale(noise(3, std=30), real, factor=factor)
    torch.testing.assert_close(to_real_scale(once, real, factor=factor), once)
    torch.testing.assert_close(to_real_scale(real, real, factor=1), real)


def test_networks_with_instance_norm_see_the_same_images() -> None:
    real = noise(6, 1).float()
    # Means at the scale of real ones: such networks see them at the border, beside the padding.
    images = (noise(3) + torch.tensor([0.1, -0.1]).view(1, 2, 1, 1)).float()
    net = nets.build("convnet-w8-d1", channels=C, image_size=(H, W), num_classes=3).eval()
    loud = 12 * images
    before, after = net(images), net(to_real_scale(loud, real, factor=1))
    torch.testing.assert_close(before, after, rtol=0.02, atol=0.02)
    batch = nets.build("convnet-w8-d1-batch", channels=C, image_size=(H, W), num_classes=3).eval()
    assert (batch(loud) - batch(images)).abs().max() > 1


def test_a_class_of_blank_images_stays_blank() -> None:
    blank = torch.full((4, C, H, W), -0.75)
    loud = noise(2, std=900.0, mean=100.0)
    assert torch.equal(to_real_scale(loud, blank, factor=1), blank[:2].to(loud.dtype))
    assert torch.equal(to_real_scale(blank, blank, factor=1), blank)


def test_flat_images_keep_what_tells_them_apart() -> None:
    levels = torch.linspace(-0.5, 0.5, 5, dtype=torch.float64).view(5, 1, 1, 1).expand(5, C, H, W)
    start = levels[[0, 3]]
    torch.testing.assert_close(to_real_scale(start, levels, factor=1), start)
    loud = start + 100 * noise(2, std=1.0)
    held = to_real_scale(loud, levels, factor=1)
    assert deviation(held) < 1e-12
    assert bool(((held >= -0.5) & (held <= 0.5)).all())


def test_a_loud_image_does_not_silence_the_others() -> None:
    images, real = noise(10), noise(60, 1, std=0.5)
    images[3] *= 900
    held = to_real_scale(images, real, factor=1)
    each = [deviation(held[i : i + 1]) for i in range(10)]
    of_real = [deviation(real[i : i + 1]) for i in range(60)]
    assert min(of_real) * 0.999 < min(each)
    assert max(each) < max(of_real) * 1.001


def test_a_tile_with_an_offset_of_its_own_is_out_of_range() -> None:
    real = noise(6, std=0.1)
    tiles = torch.zeros(4, C, H, W, dtype=torch.float64)
    tiles[2] += 50
    with pytest.raises(ConfigError, match="class 0: its distilled images reach"):
        check_range(tiles, real, class_id=0)


def test_images_far_out_of_the_range_of_the_class_are_refused_with_its_name() -> None:
    real = noise(6, std=0.1)
    spike = torch.zeros(1, C, H, W, dtype=torch.float64)
    spike[0, 0, 2, 1] = 1.0
    farthest = float((real - real.mean((2, 3), keepdim=True)).abs().max())
    check_range(spike * RANGE_MULTIPLE * farthest, real, class_id=3)
    with pytest.raises(
        ConfigError, match=r"class 3: its distilled images reach .* its real ones .* smaller --lr-img"
    ):
        check_range(spike * RANGE_MULTIPLE * farthest * 2, real, class_id=3)


def real_digits(blank: int | None = None, *, rgb: bool = False) -> Real:
    """Preprocessed images of three digits, those of one of them blank; with `rgb` whitened colour images."""
    train = load("digits", data_dir=Path("unused")).train
    rows = np.flatnonzero(train.labels < 3)
    images, labels = train.images[rows].copy(), train.labels[rows]
    if blank is not None:
        images[labels == blank] = 0
    if rgb:
        images = np.repeat(images, 3, axis=1)
    white = Preprocess.fit(images, zca=rgb).apply(images)
    return {c: white[torch.from_numpy(labels == c)] for c in range(3)}


def distilled(real: Real, until: int = 12, **values: object) -> tuple[Matching, State]:
    settings = make_settings(iterations=12, lr_img=1.0, batch_real=16, network="convnet-w8-d2", **values)
    channels, height, width = real[0].shape[1:]
    distiller = find_method(settings.method)(
        settings, channels=channels, height=height, width=width, num_classes=len(real), device=CPU
    )
    group = tuple(real)
    state = distiller.advance(distiller.start(group, real), until, unit=group, real=real)
    return distiller, state


def deviation(images: torch.Tensor) -> float:
    return float((images - images.mean((2, 3), keepdim=True)).double().square().mean().sqrt())


def assert_at_scale(state: State, real: Real, factor: int = 1) -> None:
    """Every image is as loud as real images of its class are, and has means that they have."""
    for class_id, (own, images) in enumerate(zip(state.images, real.values(), strict=True)):
        of_real = [deviation(image[None]) for image in images]
        for stored in torch.from_numpy(own).double():
            mean = stored.mean((1, 2), keepdim=True)
            loudness = float(decode((stored - mean)[None], factor).square().mean().sqrt())
            assert min(of_real) * 0.999 <= loudness <= max(of_real) * 1.001
            low, high = images.double().mean((2, 3)).aminmax(dim=0)
            assert bool(((mean[:, 0, 0] >= low - 1e-5) & (mean[:, 0, 0] <= high + 1e-5)).all())
        check_range(decode(torch.from_numpy(own), factor), images, class_id=class_id)


SOURCES = {"digits": real_digits, "whitened": lambda: real_digits(rgb=True), "noise": real_images}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_at_the_scale_of_real_images(method: str, source: Callable[[], Real]) -> None:
    real = source()
    _, state = distilled(real, method=method, ipc=2)
    assert_at_scale(state, real)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("init", ["real", "noise", "herding", "kcenter"])
def test_so_do_images_from_every_start_and_with_a_factor(init: str, source: Callable[[], Real]) -> None:
    real = source()
    _, state = distilled(real, init=init, factor=2)
    assert_at_scale(state, real, factor=2)


@pytest.mark.parametrize("network", ["convnet-w8-d2-batch", "convnet-w8-d2-nonorm", "convnet-w8-d2-group"])
def test_so_do_images_of_networks_with_another_norm(network: str) -> None:
    real = real_digits()
    settings = {"lr_img": 0.01, "network": network}
    distiller = Atom(
        make_settings(iterations=6, batch_real=16, **settings),
        channels=1,
        height=8,
        width=8,
        num_classes=3,
        device=CPU,
    )
    state = distiller.advance(distiller.start((0, 1, 2), real), 6, unit=(0, 1, 2), real=real)
    assert_at_scale(state, real)


def test_the_scale_is_free_until_the_last_iteration_and_that_does_not_depend_on_the_way() -> None:
    real = real_digits()
    distiller, before = distilled(real, until=11)
    assert deviation(torch.from_numpy(before.images[0])) > 2 * deviation(real[0])
    cut = distiller.advance(before, 12, unit=(0, 1, 2), real=real)
    _, whole = distilled(real)
    assert np.array_equal(cut.images, whole.images)
    # Nothing is left to do: not even rounding changes the images.
    again = distiller.advance(whole, 12, unit=(0, 1, 2), real=real)
    assert np.array_equal(again.images, whole.images)


def test_a_blank_class_neither_explodes_nor_disturbs_the_others() -> None:
    real = real_digits(blank=1)
    _, free = distilled(real, until=11)
    _, state = distilled(real)
    assert np.abs(free.images[1]).max() > 10
    torch.testing.assert_close(torch.from_numpy(state.images[1]), real[1][:1])
    assert deviation(torch.from_numpy(state.images[0])) == pytest.approx(deviation(real[0]), rel=1e-5)


def test_a_class_of_one_picture_stays_in_its_range() -> None:
    """Whitened, a blank class is no longer blank: all its images are one faint pattern."""
    real = real_digits(blank=1, rgb=True)
    _, state = distilled(real)
    assert np.abs(state.images[1]).max() <= 2 * float(real[1].abs().max())


@pytest.mark.slow
def test_a_set_trains_networks_that_see_scale_better_than_random_images_do() -> None:
    """The README's digits set in small: BatchNorm stayed at chance on it."""
    from atom.evaluate import evaluate
    from atom.settings import EvaluateSettings

    real = load("digits", data_dir=Path("unused"))
    preprocess = Preprocess.fit(real.train.images, zca=False)
    white = preprocess.apply(real.train.images)
    of = {c: white[torch.from_numpy(real.train.labels == c)] for c in range(10)}
    settings = DistillSettings.model_validate(
        {
            **make_settings().model_dump(),
            "iterations": 100,
            "lr_img": 1.0,
            "batch_real": 64,
            "network": "convnet-w32",
            "dsa_strategy": "color_crop_cutout_scale_rotate",
        }
    )
    distiller = find_method(settings.method)(
        settings, channels=1, height=8, width=8, num_classes=10, device=CPU
    )
    state = distiller.advance(distiller.start(tuple(range(10)), of), 100, unit=tuple(range(10)), real=of)
    first = torch.stack([of[c][0] for c in range(10)])

    def reached(images: torch.Tensor) -> float:
        return evaluate(
            images,
            torch.arange(10),
            test_images=preprocess.apply(real.test.images),
            test_labels=real.test.labels,
            network="convnet-w32-batch",
            num_classes=10,
            seeds=[0],
            settings=EvaluateSettings(epochs=150, eval_dsa_strategy="color_crop_cutout_scale_rotate"),
            device=CPU,
            threads=1,
        ).mean

    assert reached(torch.from_numpy(state.images[:, 0])) > reached(first) + 5
