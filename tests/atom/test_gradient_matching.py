"""dc, dsa and idc: the objective and whole iterations against slow float64 loops, and what the seam promises."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from distill_samples import CHANNELS, CPU, HEIGHT, SIZES, WIDTH, real_images
from torch import Tensor, nn

from atom import nets
from atom.augment import augment, draw_params
from atom.batches import batches_of
from atom.draws import rows_of_batch
from atom.errors import ConfigError
from atom.methods import gradient_loop
from atom.methods import gradients_reference as reference
from atom.methods.gradients import (
    absolute_distance,
    class_gradients,
    convolution_weights,
    cosine_distance,
    row_weights,
    squared_distance,
)
from atom.methods.lookup import check_read, find_method
from atom.methods.matching_reference import decode_stored, momentum_steps, numeric_gradient
from atom.methods.method import Prepared, State
from atom.methods.settings import DistillSettings
from atom.resolve import resolve_settings
from atom.settings import parse_dsa_strategy
from atom.streams import stream

METHODS = ["dc", "dsa", "idc"]
SHAPE = {"channels": CHANNELS, "height": HEIGHT, "width": WIDTH, "num_classes": len(SIZES)}
# Differentiable without corners: central differences of a gradient's gradient need that.
NETWORK = "convnet-w3-d2-sigmoid"
DISTANCES = [
    (cosine_distance, reference.cosine_distance),
    (squared_distance, reference.squared_distance),
    (absolute_distance, reference.absolute_distance),
]


def resolved(method: str, *, kind: str = "cpu", **values: object) -> DistillSettings:
    """Settings of a problem that takes milliseconds a step."""
    small = {"iterations": 4, "batch_real": 5, "network": NETWORK, "seed": 3}
    small |= {"trained_networks": 2, "training_passes": 3, "lr_img": 5.0} if method == "idc" else {}
    asked = DistillSettings.model_validate({**small, "method": method, **values})
    check_read(asked)
    return resolve_settings(asked, device_kind=kind, symbols=False, **SHAPE)  # type: ignore


def made(settings: DistillSettings) -> gradient_loop.GradientMatching:
    return find_method(settings.method)(settings, **SHAPE, device=CPU)  # type: ignore


def prepared_by(settings: DistillSettings, real: dict[int, Tensor]) -> Prepared:
    return made(settings).prepare_all(real)


def run(
    settings: DistillSettings, unit: Sequence[int], until: int, *, double: bool = False
) -> tuple[State, State]:
    """Start and end of a unit, in float32 or float64."""
    method, real = made(settings), real_images()
    if double:
        method.net.double()
        real = {c: images.double() for c, images in real.items()}
    prepared = prepared_by(settings, real)
    start = method.start(unit, real, prepared=prepared)
    return start, method.advance(start, until, unit=unit, real=real, prepared=prepared)


def same_bits(first: State, second: State) -> bool:
    return np.array_equal(first.losses, second.losses) and all(
        np.array_equal(first.arrays[name], second.arrays[name]) for name in ("images", "momentum")
    )


def fresh(settings: DistillSettings, purpose: str, count: int) -> nn.Module:
    """A network in float64 with the weights of that count, drawn by the public stream."""
    net = nets.build(settings.network, channels=CHANNELS, image_size=(HEIGHT, WIDTH), num_classes=len(SIZES))
    nets.fill_weights(net, stream(settings.seed, purpose, count))
    return net.double().eval()


def operations_of(settings: DistillSettings) -> tuple[str, ...]:
    """Augmentation of the images; dc has none, and its settings tell that of teachers."""
    return () if settings.method == "dc" else parse_dsa_strategy(settings.dsa_strategy)


def slow_pass(
    images: Tensor,
    class_ids: Sequence[int],
    settings: DistillSettings,
    batch: int,
    rng: np.random.Generator,
) -> list[tuple[Tensor, list[int]]]:
    """The batches of one pass of the network, augmented as the streams say."""
    operations = operations_of(settings)
    batches = []
    for rows in batches_of(rng.permutation(len(images)), batch):
        part = torch.stack([images[row] for row in rows])
        if operations:
            params = draw_params(operations, num_rows=len(rows), height=HEIGHT, width=WIDTH, rng=rng)
            part = augment(part, torch.from_numpy(params).double())
        batches.append((part, [class_ids[row] for row in rows]))
    return batches


def slow_numbers(settings: DistillSettings, class_id: int, count: int) -> tuple[Tensor, Tensor]:
    """Real images and the augmentation's row of one class at step `count`."""
    real = real_images()[class_id].double()
    batch, seed = settings.batch_real, settings.seed
    rows = rows_of_batch(stream(seed, "distill/batch", count, class_id), len(real), batch)
    operations = operations_of(settings)
    rng = stream(seed, "distill/augment", count, class_id)
    row = draw_params(operations, num_rows=1, height=HEIGHT, width=WIDTH, rng=rng)
    return real[torch.from_numpy(rows)], torch.from_numpy(row).double()


def slow_loss(settings: DistillSettings, net: nn.Module, images: Tensor, class_id: int, count: int) -> float:
    """The loss of one class at step `count`, with that step's real images and augmentation."""
    real, row = slow_numbers(settings, class_id, count)
    decoded = torch.stack(decode_stored(images, settings.factor))
    one, other = (augment(part, row.repeat(len(part), 1)) for part in (real, decoded))
    metric = getattr(settings.options, "metric", "l1")
    return reference.class_loss(net, one, other, class_id, method=settings.method, metric=metric)


def slow_trained(settings: DistillSettings, count: int) -> nn.Module:
    """The network of idc at step `count`: trained anew from its random weights up to its stage."""
    rng = stream(settings.seed, "distill/trained", count)
    number, stage = int(rng.integers(2)), int(rng.integers(3))
    net = fresh(settings, "expert/weights", number)
    real = real_images()
    images = torch.cat([real[c].double() for c in real])
    class_ids = [c for c in real for _ in range(len(real[c]))]
    batches = []
    for i in range(stage):
        rng = stream(settings.seed, "expert/pass", i, number)
        batches += slow_pass(images, class_ids, settings, 64, rng)
    reference.descent(net, batches, lr=0.01, momentum=0.9, weight_decay=5e-4)
    return net


def slow_class(settings: DistillSettings, start: Tensor, class_id: int, *, steps: int) -> Tensor:
    """Images of one class after some iterations, where classes are apart."""

    def gradient(images: Tensor, count: int) -> Tensor:
        idc = settings.method == "idc"
        net = slow_trained(settings, count) if idc else fresh(settings, "distill/weights", count)
        return numeric_gradient(lambda moved: slow_loss(settings, net, moved, class_id, count), images)

    return momentum_steps(
        gradient, start, steps=steps, lr=settings.lr_img or 0.0, momentum=settings.momentum_img
    )


def some_gradients(seed: int, net: nn.Module) -> list[Tensor]:
    return [
        torch.from_numpy(stream(seed, "test/gradients", i).normal(size=tuple(p.shape)))
        for i, p in enumerate(net.parameters())
    ]


@pytest.mark.parametrize(("fast", "slow"), DISTANCES)
def test_distances_equal_the_reference(fast, slow) -> None:
    net = fresh(resolved("dc"), "test", 0)
    one, other = some_gradients(0, net), some_gradients(1, net)
    assert float(fast(one, other)) == pytest.approx(slow(one, other), rel=1e-12)
    assert float(fast(one, one)) == pytest.approx(0, abs=1e-5)


def test_biases_do_not_count_in_the_cosines() -> None:
    net = fresh(resolved("dc"), "test", 0)
    one, other = some_gradients(0, net), some_gradients(1, net)
    moved = [gradient + 3 if gradient.ndim < 2 else gradient for gradient in other]
    assert float(cosine_distance(one, moved)) == float(cosine_distance(one, other))
    shapes = {tuple(weight.shape) for weight in row_weights(net)}
    assert shapes == {(3, 2, 3, 3), (3, 3, 3, 3), (4, net.classifier.in_features)}
    assert {tuple(w.shape) for w in convolution_weights(net)} == shapes - {(4, net.classifier.in_features)}


@pytest.mark.parametrize("dead", ["real", "synthetic", "both"])
def test_a_dead_channel_costs_one_and_leaves_the_gradient_finite(dead: str) -> None:
    one, other = (torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(2))
    one[1] *= dead == "synthetic"
    other[1] *= dead == "real"
    other.requires_grad_()
    distance = cosine_distance([one], [other])
    (gradient,) = torch.autograd.grad(distance, other)
    alive = [0, 2]
    other.requires_grad_(False)
    assert float(distance.detach()) == pytest.approx(
        1 + float(cosine_distance([one[alive]], [other[alive]])), abs=1e-6
    )
    assert bool(gradient.isfinite().all())


def test_gradients_of_weights_equal_central_differences() -> None:
    net = fresh(resolved("dc", network="convnet-w2-d1-sigmoid"), "test", 0)
    images = real_images()[1].double()
    found = class_gradients(net(images), 1, list(net.parameters()), differentiable=False)
    slow = reference.numeric_weight_gradients(net, images, 1)
    plain = reference.weight_gradients(net, images, 1)
    for gradient, name in zip(found, slow, strict=True):
        torch.testing.assert_close(gradient, slow[name], rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(gradient, plain[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("dc", {"factor": 2}),
        ("dc", {"ipc": 2, "outer_steps": 1, "network": "convnet-w3-d2"}),
        ("dsa", {"ipc": 2, "outer_steps": 1, "dsa_strategy": "color_cutout_flip_scale_rotate"}),
        ("idc", {"factor": 2, "dsa_strategy": "none", "metric": "mse"}),
        ("idc", {"lr_img": 0.05}),
    ],
)
def test_two_iterations_equal_the_reference(method: str, values: dict[str, object]) -> None:
    settings = resolved(method, **values)
    start, end = run(settings, [2, 0], 2, double=True)
    expected = slow_class(settings, torch.from_numpy(start.images[1]), 0, steps=2)
    torch.testing.assert_close(torch.from_numpy(end.images[1]), expected, rtol=1e-5, atol=1e-6)
    assert float(np.abs(end.images - start.images).max()) > 1e-3


def plain_gradient(
    settings: DistillSettings, net: nn.Module, images: Tensor, class_id: int, count: int
) -> tuple[float, Tensor]:
    """Loss and image gradient of one class by autograd alone, in a few lines of torch."""
    leaf = images.clone().requires_grad_()
    real, row = slow_numbers(settings, class_id, count)
    batches = [augment(part, row.repeat(len(part), 1)) for part in (real, leaf)]
    weights = [weight for weight in net.parameters() if weight.ndim > 1]
    one, other = (
        torch.autograd.grad(-net(part).log_softmax(1)[:, class_id].mean(), weights, create_graph=True)
        for part in batches
    )
    loss = torch.zeros((), dtype=torch.float64)
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a.detach(), b, strict=True):
            loss = loss + 1 - (x * y).sum() / (x.norm() * y.norm() + 1e-6)
    return float(loss.detach()), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_joint_iterations_train_the_network_on_the_images_of_all_classes(method: str) -> None:
    settings = resolved(method, ipc=2, outer_steps=2, inner_epochs=3)
    unit = range(len(SIZES))
    start, end = run(settings, unit, 2, double=True)
    images, velocity = torch.from_numpy(start.images), torch.zeros(start.images.shape, dtype=torch.float64)
    losses, net = [], nn.Module()
    for count in range(4):
        if count % 2 == 0:
            net = fresh(settings, "distill/weights", count)
        else:
            class_ids = [c for c in unit for _ in range(2)]
            batches = []
            for epoch in range(3):
                rng = stream(settings.seed, "distill/inner", count, epoch)
                batches += slow_pass(images.flatten(0, 1), class_ids, settings, 256, rng)
            reference.descent(net, batches, lr=0.01)
        found = [plain_gradient(settings, net, images[c], c, count) for c in unit]
        losses.append([loss for loss, _ in found])
        velocity = settings.momentum_img * velocity + torch.stack([gradient for _, gradient in found])
        images = images - (settings.lr_img or 0.0) * velocity
    torch.testing.assert_close(torch.from_numpy(end.images), images, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(end.losses, np.array(losses).reshape(2, 2, len(SIZES)).mean(1), rtol=1e-5)


@pytest.mark.parametrize(("method", "ipc"), [("dc", 1), ("dsa", 1), ("dsa", 2), ("idc", 1)])
@pytest.mark.parametrize("cuts", [[4], [1, 3, 4], [0, 2, 2, 4]])
def test_bits_do_not_depend_on_how_the_way_is_cut(method: str, ipc: int, cuts: list[int]) -> None:
    settings, real = resolved(method, ipc=ipc), real_images()
    unit = range(4)
    _, whole = run(settings, unit, 4)
    prepared = prepared_by(settings, real)
    state, done = made(settings).start(unit, real), []
    for until in cuts:
        state = made(settings).advance(
            state, until, unit=unit, real=real, prepared=prepared, on_iteration=done.append
        )
    assert same_bits(state, whole)
    assert done == [1, 2, 3, 4]
    assert whole.losses.shape == (4, 4)


@pytest.mark.parametrize("method", METHODS)
def test_classes_that_are_apart_have_their_bits_alone_and_in_company(method: str) -> None:
    settings = resolved(method)
    _, alone = run(settings, [2], 4)
    _, together = run(settings, [0, 2, 3], 4)
    assert np.array_equal(alone.images[0], together.images[1])
    assert np.array_equal(alone.losses[:, 0], together.losses[:, 1])


def test_units_are_groups_of_classes_unless_the_network_is_trained_on_the_images() -> None:
    for settings in (resolved("dc"), resolved("dsa", ipc=3, outer_steps=1), resolved("idc", ipc=3)):
        assert find_method(settings.method).units(settings, range(4)) == [(0,), (1,), (2,), (3,)]
    grouped = resolved("dsa", classes_per_group=3)
    assert find_method("dsa").units(grouped, range(4)) == [(0, 1, 2), (3,)]
    joint = resolved("dsa", ipc=3)
    assert find_method("dsa").units(joint, range(4)) == [(0, 1, 2, 3)]
    with pytest.raises(
        ConfigError, match=r"--classes-per-group 2: with 3 outer steps dsa trains its network"
    ):
        resolved("dsa", ipc=3, classes_per_group=2)


@pytest.mark.parametrize(
    ("kind", "ipc", "loop"),
    [
        *(("cuda", ipc, loop) for ipc, loop in [(1, (1, 1)), (10, (10, 50)), (20, (20, 25)), (30, (30, 20))]),
        *(
            ("cuda", ipc, loop)
            for ipc, loop in [(40, (40, 15)), (50, (50, 10)), (2, (2, 250)), (100, (50, 10))]
        ),
        *(("cpu", ipc, loop) for ipc, loop in [(1, (1, 1)), (2, (2, 20)), (10, (10, 20)), (50, (10, 20))]),
    ],
)
def test_loops_follow_the_published_table_on_a_gpu(kind: str, ipc: int, loop: tuple[int, int]) -> None:
    options = resolved("dc", kind=kind, ipc=ipc).options
    assert tuple(options.model_dump().values()) == loop


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_nothing_is_left_open_and_what_is_resolved_stays(method: str, kind: str) -> None:
    settings = resolved(method, kind=kind, ipc=2, iterations=None, lr_img=None)
    values = settings.model_dump()
    assert [name for name, value in values.items() if value in (None, "auto")] == []
    assert (settings.precision, settings.compile) == ("float32", "off")
    assert resolve_settings(settings, device_kind=kind, symbols=None, **SHAPE) == settings  # type: ignore


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("atom", {"outer_steps": 3}, "--outer-steps: the method atom does not read it, only dc, dsa do"),
        ("idc", {"inner_epochs": 3}, "--inner-epochs: the method idc does not read it, only dc, dsa do"),
        ("dsa", {"metric": "l1"}, "--metric: the method dsa does not read it, only idc does"),
        ("dc", {"inner_epochs": 3}, "--inner-epochs 3: with one outer step dc never trains its network"),
        (
            "dsa",
            {"ipc": 2, "outer_steps": 1, "inner_epochs": 3},
            "never trains its network; pass --outer-steps 2",
        ),
        ("dc", {"dsa_strategy": "crop"}, "--dsa-strategy: the method dc does not read it"),
        ("idc", {"compile": "on"}, "--compile: the method idc does not read it"),
        (
            "dc",
            {"network": "convnet-batch"},
            "--network convnet-batch: dc matches the gradients of one class",
        ),
        ("idc", {"network": "resnet18-batch"}, "pass a network without BatchNorm, such as convnet"),
    ],
)
def test_what_the_method_does_not_do_is_refused(method: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(method, **values)


FLAT = """
from torch import nn

class Flat(nn.Sequential):
    def blocks(self, images):
        return [images], images.flatten(1)

def make(channels, image_size, num_classes):
    return Flat(nn.Flatten(), nn.Linear(channels * image_size[0] * image_size[1], num_classes))
"""


def test_idc_needs_convolutions_and_dc_does_not(tmp_path: Path) -> None:
    network = tmp_path / "flat.py"
    network.write_text(FLAT)
    with pytest.raises(
        ConfigError, match=r"idc matches the weights of convolutions, and .* pass --method dc"
    ):
        resolved("idc", network=f"{network}:make")
    _, end = run(resolved("dc", network=f"{network}:make"), [1], 2)
    assert bool(np.isfinite(end.images).all())


@pytest.mark.parametrize(
    ("network", "small"), [("convnet", True), ("convnet-d2", False), ("convnet-layer", False)]
)
def test_random_networks_that_normalise_tiny_maps_are_warned_of(
    network: str, small: bool, caplog: pytest.LogCaptureFixture
) -> None:
    asked, shape = DistillSettings(method="dc", network=network), {**SHAPE, "height": 8, "width": 8}
    resolve_settings(asked, device_kind="cpu", symbols=False, **shape)  # pyrefly: ignore
    told = "--network convnet: its InstanceNorm sees maps of 4 pixels, of which dc makes images worse than random"
    assert [record.getMessage().startswith(told) for record in caplog.records] == [True] * small


@pytest.mark.parametrize("network", ["vit", "alexnet", "convnet-w4-d2-max-layer"])
def test_other_networks_distil_too(network: str) -> None:
    start, end = run(resolved("dsa", network=network, ipc=2), range(4), 1)
    assert bool(np.isfinite(end.images).all())
    assert float(np.abs(end.images - start.images).max()) > 0


def test_bfloat16_is_taken_where_it_is_asked_for() -> None:
    exact, rough = (run(resolved("dsa", precision=name), [0, 1], 1) for name in ("float32", "bfloat16"))
    assert not np.array_equal(exact[1].losses, rough[1].losses)
    np.testing.assert_allclose(rough[1].losses, exact[1].losses, rtol=0.1)


def test_the_stages_of_a_trained_network_differ_and_the_last_one_knows_its_images() -> None:
    settings = resolved("idc", training_passes=80, network="convnet-w8-d2", dsa_strategy="none")
    real = real_images()
    (first, last) = prepared_by(settings, real).values()
    assert len({stage.tobytes() for network in (first, last) for stage in network["epochs"]}) == 160
    net = made(settings).net

    def accuracy(stage: np.ndarray) -> float:
        nn.utils.vector_to_parameters(torch.from_numpy(stage), net.parameters())
        right = [(net(images).argmax(1) == c).float().mean() for c, images in real.items()]
        return float(torch.stack(right).mean())

    assert accuracy(first["epochs"][-1]) > accuracy(first["epochs"][0]) + 0.1


def test_where_the_network_is_trained_on_all_classes_one_that_diverges_fails_them_all() -> None:
    settings, real = resolved("dsa", ipc=2), real_images()
    broken = {**real, 1: torch.full_like(real[1], torch.nan)}
    method, unit, ends = made(settings), (0, 1, 2), []
    start = method.start(unit, real)
    for cuts in ([4], [1, 4], [1, 2, 3, 4]):
        state = start
        for until in cuts:
            state = method.advance(state, until, unit=unit, real=broken)
        ends.append(state)
    for end in ends:
        assert (end.iteration, set(end.failures)) == (1, set(unit))
        assert all("are no longer finite after iteration 1," in why for why in end.failures.values())
        assert end.failures == ends[0].failures
        assert np.array_equal(end.losses, ends[0].losses, equal_nan=True)
        assert np.isnan(end.images).all()


def test_a_class_that_diverges_leaves_the_others_their_bits() -> None:
    settings, real = resolved("dsa"), real_images()
    broken = {**real, 1: torch.full_like(real[1], torch.nan)}
    method, unit = made(settings), (0, 1, 2)
    _, expected = run(settings, unit, 4)
    state = method.advance(method.start(unit, broken), 4, unit=unit, real=broken)
    assert list(state.failures) == [1]
    for row in (0, 2):
        assert np.array_equal(state.images[row], expected.images[row])


def test_a_random_network_is_drawn_only_where_its_weights_are_read() -> None:
    drawn = {m: made(resolved(m)).draws.at(0, [0], [9]).weights is not None for m in ("dc", "dsa", "idc")}
    assert drawn == {"dc": True, "dsa": True, "idc": False}
