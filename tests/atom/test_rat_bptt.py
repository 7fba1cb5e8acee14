"""Back-propagation through training in windows: against a plain loop in float64, and what it promises besides."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_samples import there
from torch import Tensor
from torch.nn.functional import cross_entropy

from atom import nets
from atom.augment import augment, draw_params
from atom.errors import ConfigError
from atom.formation import decode, label_decoded
from atom.methods import unroll_reference
from atom.methods.backpropagation import STEPS_PER_ITERATION
from atom.methods.method import NOTHING, Arrays, State
from atom.methods.rat_bptt import RandomTruncated
from atom.methods.settings import DistillSettings
from atom.methods.unroll import Leaves, Training
from atom.resolve import resolve_settings
from atom.settings import OwnTraining, parse_dsa_strategy
from atom.streams import stream
from atom.train import train_network

SHAPE = {"channels": 2, "height": 8, "width": 6, "num_classes": 4}
SIZES = (9, 7, 12, 8)
UNIT = (3, 0)
DSA = "color_crop_scale"


def make_settings(**values: object) -> DistillSettings:
    small = {
        "method": "rat-bptt",
        "iterations": 5,
        "batch_outer": 8,
        "network": "convnet-w4-d1",
        "zca": "off",
        "seed": 3,
        "inner_steps": 3,
    }
    asked = DistillSettings.model_validate({**small, **values})
    return resolve_settings(asked, device_kind="cpu", symbols=False, **SHAPE)


def make_method(settings: DistillSettings) -> RandomTruncated:
    return RandomTruncated(settings, **SHAPE, device=torch.device("cpu"))


def real_images(dtype: torch.dtype = torch.float32) -> dict[int, Tensor]:
    shape = (SHAPE["channels"], SHAPE["height"], SHAPE["width"])
    noise = [stream(0, "test/real", class_id=c).normal(0.3 * c, 1, (n, *shape)) for c, n in enumerate(SIZES)]
    return {c: torch.from_numpy(images).to(dtype) for c, images in enumerate(noise)}


def run(settings: DistillSettings, until: int, state: State | None = None) -> State:
    method, real = make_method(settings), real_images()
    return method.advance(state or method.start(UNIT, real), until, unit=UNIT, real=real)


def drawn(settings: DistillSettings, purpose: str, counter: int, replica: int) -> np.random.Generator:
    return stream(settings.seed, f"RandomTruncated/{purpose}", counter, replica)


def slow_gradients(
    settings: DistillSettings, leaves: Mapping[str, Tensor], iteration: int, real: Mapping[int, Tensor]
) -> tuple[float, dict[str, Tensor]]:
    """By a loop of torch's own optimiser up to the window, then the full unroll; the same random numbers."""
    options, per_class = settings.options, settings.options.batch_per_class
    operations = parse_dsa_strategy(options.inner_dsa_strategy)
    height, width = SHAPE["height"], SHAPE["width"]

    def augmented(images: Tensor, purpose: str, counter: int, replica: int) -> Tensor:
        rng = drawn(settings, purpose, counter, replica)
        rows = draw_params(operations, num_rows=len(images), height=height, width=width, rng=rng)
        return augment(images, torch.from_numpy(rows)) if operations else images

    losses, sums = [], {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for replica in range(options.replicas):
        net = nets.build(settings.network, channels=2, image_size=(height, width), num_classes=4)
        nets.fill_weights(net, drawn(settings, "weights", iteration, replica))
        net = net.double().eval()
        names = [name for name, _ in net.named_parameters()]

        def logits(
            weights: Sequence[Tensor], images: Tensor, net: object = net, names: object = names
        ) -> Tensor:
            return torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (images,))

        def loss(
            weights: Sequence[Tensor],
            leaves: Mapping[str, Tensor],
            number: int,
            replica: int = replica,
            f: object = logits,
        ) -> Tensor:
            counter = iteration * STEPS_PER_ITERATION + number
            images = there(leaves["images"], UNIT, settings, 4)
            if per_class < settings.ipc:
                rng = drawn(settings, "images", counter, replica)
                images = [own[torch.from_numpy(rng.permutation(len(own))[:per_class])] for own in images]
            decoded = torch.cat([decode(own, settings.factor) for own in images])
            labels = torch.tensor([c for c in UNIT for _ in range(len(decoded) // len(UNIT))])
            if "logits" in leaves:
                soft = there(leaves["logits"], UNIT, settings, 4)
                if per_class < settings.ipc:
                    rng = drawn(settings, "images", counter, replica)
                    soft = [own[torch.from_numpy(rng.permutation(len(own))[:per_class])] for own in soft]
                labels = torch.cat(soft).softmax(1).repeat_interleave(settings.factor**2, dim=0)
            return cross_entropy(f(weights, augmented(decoded, "augment", counter, replica)), labels)

        def judge(weights: Sequence[Tensor], replica: int = replica, f: object = logits) -> Tensor:
            rng = drawn(settings, "batch", iteration, replica)
            pool = torch.cat([real[c] for c in UNIT])
            pool_labels = torch.tensor([c for c in UNIT for _ in real[c]])
            rows = sorted(rng.choice(len(pool), size=min(options.batch_outer, len(pool)), replace=False))
            images = augmented(pool[rows], "augment real", iteration, replica)
            return cross_entropy(f(weights, images), pool_labels[rows])

        before = options.inner_steps - options.window
        if before and options.window_at == "random":
            before = int(drawn(settings, "window", iteration, replica).integers(1, before + 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=float(leaves["log_rate"].detach().exp()))
        for number in range(before):
            optimizer.zero_grad()
            loss(list(net.parameters()), {n: leaf.detach() for n, leaf in leaves.items()}, number).backward()
            optimizer.step()
        found, gradients = unroll_reference.unrolled(
            loss,
            judge,
            list(net.parameters()),
            leaves,
            rate=lambda leaves, number: leaves["log_rate"].exp(),
            steps=range(before, before + options.window),
            optimizer="adam" if options.inner_optimizer == "adam" else "sgd",
            momentum=0.9 if options.inner_optimizer == "momentum" else 0.0,
        )
        losses.append(found)
        for name, gradient in gradients.items():
            sums[name] += gradient / options.replicas
    return float(np.mean(losses)), sums


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"window": 2, "inner_steps": 5},
        {"window": 1, "inner_steps": 4, "window_at": "end", "inner_dsa_strategy": DSA},
        {"ipc": 3, "batch_per_class": 2, "replicas": 2, "window": 2},
        {"ipc": 2, "factor": 2, "inner_dsa_strategy": DSA},
        {"inner_optimizer": "adam", "lr_inner": 0.01, "batch_outer": 100},
        {"inner_optimizer": "momentum"},
        {"lr_label": 0.01},
        {"lr_label": 0.01, "ipc": 3, "batch_per_class": 2, "window": 2, "factor": 2, "init": "noise"},
        {"lr_label": 0.01, "images_in_all": 3, "replicas": 2},
        {"lr_label": 0.01, "images_in_all": 5, "factor": 2, "inner_dsa_strategy": DSA},
    ],
)
def test_gradients_equal_a_plain_loop(values: dict[str, object]) -> None:
    settings, real = make_settings(**values), real_images(torch.float64)
    method = make_method(settings)
    start = method.start(UNIT, real_images())
    leaves = {name: torch.tensor(start.arrays[name]).double() for name in method.learned}
    loss, found = method.gradients(leaves, 2, unit=UNIT, real=real)
    reference_leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    expected_loss, expected = slow_gradients(settings, reference_leaves, 2, real)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    for name, gradient in found.items():
        scale = float(expected[name].abs().max())
        assert scale > 0
        assert float((gradient - expected[name]).abs().max()) <= 1e-10 * scale, name


def test_the_images_move_by_adam_at_a_clipped_gradient() -> None:
    settings, real = make_settings(), real_images()
    method = make_method(settings)
    start = method.start(UNIT, real)
    images, log_rate = (
        torch.nn.Parameter(torch.tensor(start.arrays[name])) for name in ("images", "log_rate")
    )
    groups = [
        {"params": [images], "lr": settings.lr_img},
        {"params": [log_rate], "lr": settings.options.lr_lr},
    ]
    theirs, mean = torch.optim.Adam(groups), None
    for iteration in range(4):
        _, found = method.gradients({"images": images, "log_rate": log_rate}, iteration, unit=UNIT, real=real)
        norm = float(found["images"].norm())
        mean = norm if mean is None else 0.9 * mean + 0.1 * norm
        images.grad, log_rate.grad = found["images"] * min(1.0, 2 * mean / norm), found["log_rate"]
        theirs.step()
    end = method.advance(start, 4, unit=UNIT, real=real)
    torch.testing.assert_close(torch.from_numpy(end.images), images.detach(), rtol=1e-4, atol=1e-5)
    assert float(end.arrays["log_rate"]) == pytest.approx(log_rate.item(), rel=1e-5)
    assert float(end.arrays["norm"]) == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("cuts", [[2, 5], [1, 1, 4, 5]])
def test_bits_do_not_depend_on_how_the_way_is_cut(cuts: list[int]) -> None:
    settings = make_settings(ipc=2, inner_dsa_strategy=DSA, window=2, batch_per_class=1)
    whole, state = run(settings, 5), None
    for until in cuts:
        state = run(settings, until, state)
    assert state is not None
    assert all(np.array_equal(state.arrays[name], array) for name, array in whole.arrays.items())
    assert np.array_equal(state.losses, whole.losses, equal_nan=True)
    assert whole.losses.shape == (5, 1)


@pytest.mark.parametrize(("lr_label", "learns"), [(0.0, False), (0.02, True)])
def test_labels_are_learned_where_a_step_size_says_so(lr_label: float, learns: bool) -> None:
    settings = make_settings(ipc=2, lr_label=lr_label)
    part = RandomTruncated.result(settings, UNIT, run(settings, 5))
    assert (part.soft_labels is not None) == RandomTruncated.learns_labels(settings) == learns
    if part.soft_labels is not None:
        assert part.soft_labels.argmax(2).tolist() == [[3, 3], [0, 0]]
        np.testing.assert_allclose(part.soft_labels.sum(2), 1, atol=1e-6)


@pytest.mark.parametrize("values", [{}, {"inner_optimizer": "momentum", "lr_label": 0.05, "factor": 2}])
def test_the_set_carries_its_inner_training(values: dict[str, object]) -> None:
    settings = make_settings(ipc=2, inner_steps=4, **values)
    method, state = make_method(settings), run(settings, 5)
    part = method.result(settings, UNIT, state)
    own = OwnTraining.model_validate(dict(part.training))
    net = nets.build(settings.network, channels=2, image_size=(8, 6), num_classes=4)
    nets.fill_weights(net, method.start_weights(4, 0))
    method.weights.load(method.weights.draw(method.start_weights(4, 0)))
    leaves = {name: torch.tensor(state.arrays[name]) for name in method.learned}
    inner = Training(
        lambda weights, leaves, number: method._step_loss(weights, leaves, 4, number, 0, unit=UNIT),
        method.rate,
        method.optimizer,
    )
    first = method.network.weights()
    expected = inner.run(method.optimizer.start(first), leaves, range(4))[-1][0]
    images = decode(torch.from_numpy(part.images).flatten(0, 1), settings.factor)
    targets = torch.tensor(UNIT).repeat_interleave(2)
    if part.soft_labels is not None:
        targets = torch.from_numpy(part.soft_labels).flatten(0, 1)
    assert train_network(net, images, label_decoded(targets, settings.factor), settings=own, seed=9) == 4
    found = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    assert float((expected - first).abs().max()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("values", [{"inner_optimizer": "adam"}, {"batch_per_class": 1}])
def test_a_training_that_an_evaluation_cannot_make_is_not_carried(values: dict[str, object]) -> None:
    settings = make_settings(ipc=2, **values)
    start = make_method(settings).start(UNIT, real_images())
    assert not RandomTruncated.result(settings, UNIT, start).training


def test_stored_states_may_be_read_only() -> None:
    settings = make_settings(lr_label=0.05)
    state = make_method(settings).start(UNIT, real_images())
    state.arrays["logits"].setflags(write=False)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert RandomTruncated.result(settings, UNIT, state).soft_labels is not None
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize("broken_at", [0, 3, 5])
def test_a_pixel_that_is_not_finite_fails_the_unit_at_once_wherever_the_way_is_cut(
    broken_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, real = make_method(make_settings()), real_images()
    # A step that is left out before has no loss, and is not where the images broke.
    explode(method, monkeypatch, iteration=1, number=0)
    start, sound = method.start(UNIT, real), method.updated
    if broken_at == 0:
        start.arrays["images"][0, 0, 0, 0, 0] = np.inf

    def updated(arrays: Leaves, gradients: Leaves, iteration: int) -> dict[str, Tensor]:
        new = sound(arrays, gradients, iteration)
        new["images"][0, 0, 0, 0, 0] += np.inf if iteration + 1 == broken_at else 0.0
        return new

    monkeypatch.setattr(method, "updated", updated)
    ends = []
    for cuts in ([5], [1, 5], [1, 3, 4, 5]):
        state = start
        for until in cuts:
            state = method.advance(state, until, unit=UNIT, real=real)
        ends.append(state)
    for end in ends:
        assert (end.iteration, len(end.losses), set(end.failures)) == (broken_at, broken_at, set(UNIT))
        assert f"class 3: its images are no longer finite after iteration {broken_at}," in end.failures[3]
        assert (
            f"class 0: images of class 3, which move it, are no longer finite after iteration {broken_at},"
            in (end.failures[0])
        )
        assert end.failures == ends[0].failures
        assert np.array_equal(end.losses, ends[0].losses, equal_nan=True)
        assert all(np.array_equal(end.arrays[n], a, equal_nan=True) for n, a in ends[0].arrays.items())
        assert np.isnan(end.images).all()


def explode(method: RandomTruncated, monkeypatch: pytest.MonkeyPatch, *, iteration: int, number: int) -> None:
    """Make one replica of one iteration give NaN."""
    sound = method.of_replica

    def of_replica(leaves: Leaves, at: int, replica: int, **known: Any) -> tuple[float, dict[str, Tensor]]:
        loss, found = sound(leaves, at, replica, **known)
        if (at, replica) != (iteration, number):
            return loss, found
        return float("nan"), {name: gradient * torch.nan for name, gradient in found.items()}

    monkeypatch.setattr(method, "of_replica", of_replica)


def test_a_training_that_explodes_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, real = make_settings(), real_images()
    method = make_method(settings)
    start = method.start(UNIT, real)
    explode(method, monkeypatch, iteration=1, number=0)
    first = method.advance(start, 1, unit=UNIT, real=real)
    second = method.advance(first, 2, unit=UNIT, real=real)
    assert all(np.array_equal(second.arrays[name], array) for name, array in first.arrays.items())
    assert np.isnan(second.losses[1]).all()
    assert not second.failures
    assert np.isfinite(method.advance(second, 5, unit=UNIT, real=real).images).all()


def test_adam_counts_the_steps_that_it_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, real = make_settings(), real_images()
    method = make_method(settings)
    start = method.start(UNIT, real)
    explode(method, monkeypatch, iteration=0, number=0)
    end = method.advance(start, 2, unit=UNIT, real=real)
    images = torch.nn.Parameter(torch.tensor(start.images))
    leaves = {"images": images.detach(), "log_rate": torch.tensor(start.arrays["log_rate"])}
    _, found = method.gradients(leaves, 1, unit=UNIT, real=real)
    images.grad = found["images"]
    torch.optim.Adam([images], lr=settings.lr_img).step()
    torch.testing.assert_close(torch.from_numpy(end.images), images.detach(), rtol=1e-4, atol=1e-5)
    assert float(end.arrays["norm"]) == pytest.approx(float(found["images"].norm()), rel=1e-5)
    assert int(end.arrays["steps"]) == 1


def test_a_state_from_before_steps_were_counted_goes_on() -> None:
    settings = make_settings()
    whole, half = run(settings, 4), run(settings, 2)
    older = replace(half, arrays={name: array for name, array in half.arrays.items() if name != "steps"})
    end = run(settings, 4, older)
    assert all(np.array_equal(end.arrays[name], array) for name, array in whole.arrays.items())


def test_a_replica_that_explodes_leaves_the_step_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    method, real = make_method(make_settings(replicas=3)), real_images()
    start = method.start(UNIT, real)
    leaves = {name: torch.tensor(start.arrays[name]) for name in method.learned}
    known = {"unit": UNIT, "real": real, "prepared": NOTHING}
    others = [method.of_replica(leaves, 0, number, **known) for number in (0, 2)]
    explode(method, monkeypatch, iteration=0, number=1)
    loss, found = method.gradients(leaves, 0, unit=UNIT, real=real)
    assert loss == pytest.approx(sum(one for one, _ in others) / 2)
    assert found is not None
    for name, gradient in found.items():
        assert torch.equal(gradient, others[0][1][name] / 2 + others[1][1][name] / 2)


def test_bits_do_not_depend_on_where_the_replicas_are_computed() -> None:
    settings, real = make_settings(replicas=3, inner_dsa_strategy=DSA), real_images()
    here, another = make_method(settings), make_method(settings)
    start = here.start(UNIT, real)
    alone = here.advance(start, 3, unit=UNIT, real=real)

    def elsewhere(
        arrays: Arrays, iteration: int, numbers: Sequence[int], compute: Callable[[int], Arrays]
    ) -> list[Arrays]:
        far = [another.replica(arrays, iteration, n, unit=UNIT, real=real) for n in numbers[1:]]
        return [compute(numbers[0]), *far]

    here.elsewhere = elsewhere
    together = here.advance(start, 3, unit=UNIT, real=real)
    assert all(np.array_equal(together.arrays[name], array) for name, array in alone.arrays.items())
    assert np.array_equal(together.losses, alone.losses)


def test_all_classes_are_one_unit_and_defaults_are_settled() -> None:
    settings = make_settings(ipc=3)
    assert RandomTruncated.units(settings, (3, 0, 2)) == [(3, 0, 2)]
    assert (settings.options.window, settings.options.batch_per_class) == (3, 3)
    assert (settings.lr_img, settings.precision) == (0.05, "float32")


def test_networks_that_cannot_be_differentiated_through_are_refused() -> None:
    sentence = (
        "--network convnet-w4-d1-batch: with rat-bptt a training is differentiated, which networks with Batch"
    )
    with pytest.raises(ConfigError, match=sentence):
        make_settings(network="convnet-w4-d1-batch")


ONCE = """
import torch
from torch import nn
from torch.autograd.function import once_differentiable

class Identity(torch.autograd.Function):
    @staticmethod
    def forward(context, images):
        return images.clone()

    @staticmethod
    @once_differentiable
    def backward(context, gradient):
        return gradient.clone()

class Once(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 5), nn.Linear(5, outputs)

    def forward(self, images):
        return self.last(Identity.apply(self.first(images.flatten(1)).tanh()))

def make(channels, image_size, num_classes):
    return Once(channels * image_size[0] * image_size[1], num_classes)
"""


@pytest.mark.parametrize("method", ["rat-bptt", "mtt", "dc"])
def test_a_network_that_cannot_be_differentiated_twice_is_refused(method: str, tmp_path: Path) -> None:
    file = tmp_path / "once.py"
    file.write_text(ONCE)
    with pytest.raises(
        ConfigError, match=rf"--network .*once.py:make: {method} differentiates the network twice"
    ):
        resolve_settings(
            DistillSettings.model_validate({"method": method, "network": f"{file}:make", "zca": "off"}),
            device_kind="cpu",
            symbols=False,
            **SHAPE,
        )


def test_networks_with_tiny_maps_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make_settings(network="convnet-w4-d2")
        assert not caplog.records
        make_settings(network="convnet-w4-d3")
    assert (
        "InstanceNorm sees maps of 2 pixels, of which rat-bptt makes images worse than random" in caplog.text
    )


@pytest.mark.parametrize(("flag", "value"), [("momentum_img", 0.9), ("dsa_strategy", "flip"), ("power", 2)])
def test_what_it_does_not_read_is_refused(flag: str, value: object) -> None:
    from atom.methods.lookup import check_read

    with pytest.raises(
        ConfigError, match=f"--{flag.replace('_', '-')}: the method rat-bptt does not read it"
    ):
        check_read(DistillSettings.model_validate({"method": "rat-bptt", flag: value}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"window": 9},
            "--window 9: there are only 3 steps of --inner-steps; pass at most 3, or leave it out",
        ),
        ({"window_at": "end"}, "--window-at end: the window is all steps; pass a smaller --window as well"),
        ({"window": 3, "window_at": "end"}, "--window-at end: the window is all steps"),
        ({"ipc": 2, "batch_per_class": 3}, "--batch-per-class 3: there are only 2 stored images of a class"),
        (
            {"images_in_all": 5, "lr_label": 0.1, "batch_per_class": 1},
            "--batch-per-class 1: not all classes have as many of the images of --images-in-all 5; leave it out",
        ),
    ],
)
def test_more_than_there_is_and_what_nothing_reads_is_refused(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_settings(**values)


def test_settings_that_were_written_are_read_back() -> None:
    for settings in (make_settings(), make_settings(window=3, batch_per_class=1)):
        assert DistillSettings.model_validate(settings.model_dump(mode="json")) == settings
