"""Trajectory matching: experts, students against a plain loop in float64, and what the methods promise besides."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from distill_samples import there
from torch import Tensor
from torch.nn.functional import cross_entropy

from atom import nets
from atom.augment import augment, draw_params
from atom.batches import batches_of
from atom.errors import ConfigError
from atom.formation import decode
from atom.methods import unroll_reference
from atom.methods.lookup import find_method
from atom.methods.method import Prepared, State
from atom.methods.settings import DistillSettings
from atom.methods.trajectory import Trajectories
from atom.resolve import resolve_settings
from atom.scale import to_real_scale
from atom.settings import parse_dsa_strategy
from atom.streams import stream

SHAPE = {"channels": 2, "height": 8, "width": 6, "num_classes": 4}
SIZES = (9, 7, 12, 8)
UNIT = (3, 0)


def make_settings(method: str = "mtt", **values: object) -> DistillSettings:
    small = {
        "iterations": 5,
        "network": "convnet-w4-d1",
        "dsa_strategy": "none",
        "zca": "off",
        "seed": 3,
        "lr_img": 5.0,
        "num_experts": 2,
        "batch_expert": 8,
        "lr_expert": 0.3,
        "max_start_epoch": 2,
        "expert_epochs": 2,
        "syn_steps": 3,
    }
    asked = DistillSettings.model_validate({"method": method, **small, **values})
    return resolve_settings(asked, device_kind="cpu", symbols=False, **SHAPE)


def make_method(settings: DistillSettings) -> Trajectories:
    return find_method(settings.method)(settings, **SHAPE, device=torch.device("cpu"))  # pyrefly: ignore


def real_images() -> dict[int, Tensor]:
    shape = (SHAPE["channels"], SHAPE["height"], SHAPE["width"])
    noise = [stream(0, "test/real", class_id=c).normal(0.3 * c, 1, (n, *shape)) for c, n in enumerate(SIZES)]
    return {c: torch.from_numpy(images).float() for c, images in enumerate(noise)}


def prepared_by(settings: DistillSettings) -> Prepared:
    return make_method(settings).prepare_all(real_images())


def run(settings: DistillSettings, until: int, state: State | None = None) -> State:
    method, real, prepared = make_method(settings), real_images(), prepared_by(settings)
    state = state or method.start(UNIT, real, prepared=prepared)
    return method.advance(state, until, unit=UNIT, real=real, prepared=prepared)


def test_experts_are_the_steps_of_torchs_sgd_and_keep_every_epoch() -> None:
    settings = make_settings(dsa_strategy="color_scale")
    found = prepared_by(settings)
    epochs = found["expert 1"]["epochs"]
    net = nets.build(settings.network, channels=2, image_size=(8, 6), num_classes=4)
    nets.fill_weights(net, stream(settings.seed, "expert/weights", 0, 1))
    images = torch.cat(list(real_images().values()))
    labels = torch.tensor([c for c, n in enumerate(SIZES) for _ in range(n)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    for epoch, weights in enumerate(epochs):
        flat = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
        np.testing.assert_allclose(weights, flat, rtol=1e-4, atol=1e-5)
        rng = stream(settings.seed, "expert/pass", epoch, 1)
        for rows in batches_of(rng.permutation(len(images)), 8):
            params = draw_params(("color", "scale"), num_rows=len(rows), height=8, width=6, rng=rng)
            optimizer.zero_grad()
            logits = net(augment(images[rows], torch.from_numpy(params)))
            cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
    assert epochs.shape[0] == 2 - 1 + 2 + 1
    # On a CPU a weight that is only detached is the same memory in all of them.
    assert all(np.abs(one - other).max() > 1e-3 for one, other in zip(epochs[1:], epochs, strict=False))
    assert np.abs(epochs[0] - found["expert 0"]["epochs"][0]).max() > 1e-2


def slow_gradients(
    settings: DistillSettings, leaves: Mapping[str, Tensor], iteration: int, prepared: Prepared
) -> tuple[float, dict[str, Tensor]]:
    """By the full unroll on lists of weights; the same random numbers."""
    options, name = settings.options, type(make_method(settings)).__name__
    net = nets.build(settings.network, channels=2, image_size=(8, 6), num_classes=4).double().eval()
    names = [name for name, _ in net.named_parameters()]

    def drawn(purpose: str, counter: int, second: int = 0) -> np.random.Generator:
        return stream(settings.seed, f"{name}/{purpose}", counter, second)

    def weights_of(flat: np.ndarray) -> list[Tensor]:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(flat.copy()).double(), net.parameters())
        return [parameter.detach().clone() for parameter in net.parameters()]

    passes, place = divmod(iteration, options.num_experts)
    expert = drawn("expert", passes).permutation(options.num_experts)[place]
    epoch = int(drawn("start", iteration).integers(options.min_start_epoch, options.max_start_epoch))
    epochs = prepared[f"expert {expert}"]["epochs"]
    start, target = weights_of(epochs[epoch]), weights_of(epochs[epoch + options.expert_epochs])
    operations = parse_dsa_strategy(settings.dsa_strategy)

    def loss(weights: Sequence[Tensor], leaves: Mapping[str, Tensor], number: int) -> Tensor:
        images = torch.cat(there(leaves["images"], UNIT, settings, 4))
        if "logits" in leaves:
            targets = torch.cat(there(leaves["logits"], UNIT, settings, 4)).softmax(1)
        else:
            targets = torch.eye(4, dtype=torch.float64)[[c for c in UNIT for _ in range(settings.ipc)]]
        if options.batch_syn is not None and options.batch_syn < len(images):
            per_pass = -(-len(images) // options.batch_syn)
            order = drawn("order", iteration, number // per_pass).permutation(len(images))
            rows = list(batches_of(order, options.batch_syn))[number % per_pass]
            images, targets = images[rows], targets[rows]
        decoded = torch.cat([decode(image[None], settings.factor) for image in images])
        targets = torch.stack([target for target in targets for _ in range(settings.factor**2)])
        if operations:
            rng = drawn("augment", iteration, number)
            rows = draw_params(operations, num_rows=len(decoded), height=8, width=6, rng=rng)
            decoded = augment(decoded, torch.from_numpy(rows))
        logits = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (decoded,))
        return -(targets * logits.log_softmax(1)).sum(1).mean()

    def judge(weights: Sequence[Tensor]) -> Tensor:
        missed = sum(((one - other) ** 2).sum() for one, other in zip(weights, target, strict=True))
        return missed / sum(((one - other) ** 2).sum() for one, other in zip(start, target, strict=True))

    return unroll_reference.unrolled(
        loss,
        judge,
        start,
        leaves,
        rate=lambda leaves, number: leaves["log_rate"].exp(),
        steps=range(options.syn_steps),
        optimizer="sgd",
    )


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("mtt", {}),
        ("mtt", {"ipc": 3, "batch_syn": 4, "syn_steps": 5, "dsa_strategy": "color_crop_scale"}),
        ("mtt", {"ipc": 2, "factor": 2, "min_start_epoch": 1}),
        ("datm", {"ipc": 2, "batch_syn": 3, "replicas": 2}),
        ("datm", {"factor": 2, "dsa_strategy": "color_scale"}),
        ("datm", {"images_in_all": 9, "batch_syn": 3}),
        ("datm", {"images_in_all": 3, "factor": 2, "dsa_strategy": "color_scale"}),
    ],
)
def test_gradients_equal_the_full_unroll(method: str, values: dict[str, object]) -> None:
    settings = make_settings(method, max_loss=9, **values)
    made, prepared = make_method(settings), prepared_by(settings)
    start = made.start(UNIT, real_images(), prepared=prepared)
    leaves = {name: torch.tensor(start.arrays[name]).double() for name in made.rates}
    for iteration in (0, 3):
        loss, found = made.gradients(leaves, iteration, unit=UNIT, real={}, prepared=prepared)
        replicas = settings.options.replicas
        expected_loss, expected = 0.0, {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        for student in range(iteration * replicas, (iteration + 1) * replicas):
            wanted = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
            one_loss, one = slow_gradients(settings, wanted, student, prepared)
            expected_loss += one_loss / replicas
            for name, gradient in one.items():
                expected[name] += gradient / replicas
        assert loss == pytest.approx(expected_loss, rel=1e-12)
        assert found is not None
        for name, gradient in found.items():
            scale = float(expected[name].abs().max())
            assert scale > 0
            assert float((gradient - expected[name]).abs().max()) <= 1e-11 * scale, name


def test_a_student_that_does_not_move_has_lost_one_and_a_perfect_one_nothing() -> None:
    settings = make_settings(syn_steps=1, num_experts=1, max_start_epoch=1, expert_epochs=1)
    method = make_method(settings)
    start = method.start(UNIT, real_images())
    leaves = {name: torch.tensor(start.arrays[name]).double() for name in method.rates}
    still = {**leaves, "log_rate": torch.tensor(-50.0, dtype=torch.float64)}
    loss, _ = method.gradients(still, 0, unit=UNIT, real={}, prepared=prepared_by(settings))
    assert loss == pytest.approx(1.0, abs=1e-12)

    # An expert whose one step is that of the student.
    first = prepared_by(settings)["expert 0"]["epochs"][0].astype(np.float64)
    weights = torch.from_numpy(first).requires_grad_()
    images, labels = leaves["images"].flatten(0, 1), torch.tensor(UNIT)
    (gradient,) = torch.autograd.grad(cross_entropy(method.network(weights, images), labels), weights)
    after = (weights - leaves["log_rate"].exp() * gradient).detach().numpy()
    copied = {"expert 0": {"epochs": np.stack([first, after])}}
    loss, _ = method.gradients(leaves, 0, unit=UNIT, real={}, prepared=copied)
    assert loss == pytest.approx(0.0, abs=1e-20)


def test_an_odd_number_of_images_goes_through_in_pairs() -> None:
    settings, unit, real = make_settings(batch_syn=2), (3, 0, 1), real_images()
    method, prepared = make_method(settings), prepared_by(settings)
    start = method.start(unit, real, prepared=prepared)
    # Three images are one batch, since no image is left alone.
    whole = make_method(make_settings()).advance(start, 2, unit=unit, real=real, prepared=prepared)
    end = method.advance(start, 2, unit=unit, real=real, prepared=prepared)
    np.testing.assert_allclose(end.images, whole.images, rtol=1e-4, atol=1e-5)


def test_leaves_move_by_torchs_sgd() -> None:
    settings, real = make_settings("datm"), real_images()
    method, prepared = make_method(settings), prepared_by(settings)
    start = method.start(UNIT, real, prepared=prepared)
    leaves = {name: torch.nn.Parameter(torch.tensor(start.arrays[name])) for name in method.rates}
    momenta = {"images": 0.5, "log_rate": 0.5, "logits": 0.9}
    groups = [{"params": [leaf], "lr": method.rates[n], "momentum": momenta[n]} for n, leaf in leaves.items()]
    optimizer = torch.optim.SGD(groups)
    for iteration in range(3):
        loss, found = method.gradients(leaves, iteration, unit=UNIT, real={}, prepared=prepared)
        assert loss <= settings.options.max_loss
        for name, leaf in leaves.items():
            leaf.grad = found[name]
        optimizer.step()
    end = method.advance(start, 3, unit=UNIT, real=real, prepared=prepared)
    for name, leaf in leaves.items():
        torch.testing.assert_close(torch.tensor(end.arrays[name]), leaf.detach(), rtol=1e-4, atol=1e-5)
    soft = method.result(settings, UNIT, end).soft_labels
    assert soft is not None
    assert soft.shape == (2, 1, 4)
    np.testing.assert_allclose(soft.sum(2), 1, atol=1e-6)


@pytest.mark.parametrize("method", ["mtt", "datm"])
@pytest.mark.parametrize("cuts", [[2, 5], [1, 1, 4, 5]])
def test_bits_do_not_depend_on_how_the_way_is_cut(method: str, cuts: list[int]) -> None:
    settings = make_settings(method, ipc=2, batch_syn=3, dsa_strategy="color_crop_scale")
    whole, state = run(settings, 5), None
    for until in cuts:
        state = run(settings, until, state)
    assert state is not None
    assert all(np.array_equal(state.arrays[name], array) for name, array in whole.arrays.items())
    assert np.array_equal(state.losses, whole.losses, equal_nan=True)


@pytest.mark.parametrize("method", ["mtt", "datm"])
def test_the_running_mean_is_the_result_where_it_is_asked_for(method: str) -> None:
    leaves = ("images", "logits") if method == "datm" else ("images",)
    # Longer, so that its first five iterations are not yet put to scale.
    plain, settings = make_settings(method, iterations=9), make_settings(method, ema=0.7)
    steps = [run(plain, n) for n in range(6)]
    state, means = run(settings, 0), {name: steps[0].arrays[name] for name in leaves}
    for iteration in range(1, 6):
        state = run(settings, iteration, state)
        for name in leaves:
            now = steps[iteration].arrays[name]
            # An iteration that is left out moves nothing.
            if np.isfinite(state.losses[-1]):
                means[name] = np.float32(0.7) * means[name] + np.float32(1 - 0.7) * now
            if iteration < 5:
                np.testing.assert_array_equal(state.arrays[name], now)
                np.testing.assert_allclose(state.arrays[f"{name}_mean"], means[name], rtol=1e-5, atol=1e-6)
    end, real = state, real_images()
    assert np.isfinite(end.losses).any()
    assert np.array_equal(run(settings, 5).images, end.images)
    pairs = zip(means["images"], UNIT, strict=True)
    scaled = [to_real_scale(torch.from_numpy(mean), real[c], factor=1) for mean, c in pairs]
    np.testing.assert_allclose(end.images, torch.stack(scaled), rtol=1e-4, atol=1e-5)
    if method == "datm":
        np.testing.assert_allclose(end.arrays["logits"], means["logits"], rtol=1e-4, atol=1e-5)


def test_steps_that_end_too_far_off_are_left_out_and_where_all_are_the_run_fails() -> None:
    settings = make_settings(max_loss=1e-9)
    start, after = run(settings, 0), run(settings, 2)
    assert np.array_equal(after.images, start.images)
    assert np.isnan(after.losses).all()
    assert not after.failures
    end = run(settings, 5, after)
    assert set(end.failures) == set(UNIT)
    assert "none of 5 steps moved its images: each student ended farther" in end.failures[0]


def test_experts_that_do_not_move_are_said() -> None:
    settings, real = make_settings(), real_images()
    still = {
        name: {"epochs": np.stack([found["epochs"][0]] * len(found["epochs"]))}
        for name, found in prepared_by(settings).items()
    }
    method = make_method(settings)
    end = method.advance(method.start(UNIT, real), 5, unit=UNIT, real=real, prepared=still)
    assert (
        "moved its images: the experts' weights are the same 2 epochs after epochs 0 to 1; pass a larger"
        in (end.failures[0])
    )


def test_the_set_carries_the_learned_step_size_for_the_common_training() -> None:
    for method in ("mtt", "datm"):
        settings, real = make_settings(method, lr_lr=0.3), real_images()
        made, prepared = make_method(settings), prepared_by(settings)
        state = made.advance(
            made.start(UNIT, real, prepared=prepared), 5, unit=UNIT, real=real, prepared=prepared
        )
        part = made.result(settings, UNIT, state)
        rate = float(np.exp(state.arrays["log_rate"]))
        assert part.training == {"lr_net": pytest.approx(rate)}
        assert rate != pytest.approx(settings.options.lr_student)
        assert (part.soft_labels is None) == (method == "mtt")


def test_stored_logits_and_images_may_be_read_only() -> None:
    settings, real = make_settings("datm"), real_images()
    method, prepared = make_method(settings), prepared_by(settings)
    given = method.initial(UNIT, real)
    given.setflags(write=False)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            state = method.start(UNIT, real, given=given, prepared=prepared)
            state.arrays["logits"].setflags(write=False)
            assert method.result(settings, UNIT, state).soft_labels is not None
    finally:
        torch.set_warn_always(False)


def test_first_labels_are_what_the_experts_say_that_know_the_image() -> None:
    settings = make_settings("datm", ipc=2)
    method, prepared = make_method(settings), prepared_by(settings)
    start = method.start(UNIT, real_images(), prepared=prepared)
    for row, class_id in enumerate(UNIT):
        for image, logits in zip(start.images[row], start.arrays["logits"][row], strict=True):
            said = [
                method.network(torch.from_numpy(found["epochs"][-1]), torch.from_numpy(image)[None])[0]
                for found in prepared.values()
            ]
            right = [one for one in said if int(one.argmax()) == class_id] or said
            np.testing.assert_allclose(logits, torch.stack(right).mean(0).detach(), rtol=1e-4, atol=1e-5)


def test_the_last_start_grows_where_it_is_asked_to() -> None:
    method = make_method(
        make_settings(
            "datm", max_start_epoch=6, first_max_start_epoch=2, growth_iterations=8, min_start_epoch=1
        )
    )
    assert [method._max_start_epoch(i) for i in (0, 1, 2, 4, 7, 8, 100)] == [2, 2, 3, 4, 5, 6, 6]


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("mtt", {"min_start_epoch": 2}, "leaves no epoch before --max-start-epoch 2"),
        ("datm", {"first_max_start_epoch": 3}, "--first-max-start-epoch 3: expected more than"),
        ("mtt", {"network": "convnet-w4-d1-batch"}, "networks with BatchNorm do not allow"),
        (
            "datm",
            {"growth_iterations": 9},
            "--growth-iterations 9: nothing grows without --first-max-start-epoch",
        ),
        (
            "mtt",
            {"ipc": 2, "batch_syn": 99},
            "--batch-syn 99: there are only [0-9]+ stored images; pass at most",
        ),
        ("datm", {"images_in_all": 5, "batch_syn": 6}, "--batch-syn 6: there are only 5 stored images"),
        ("mtt", {"images_in_all": 5}, "the method mtt does not read it, only dd, rat-bptt, datm do"),
        (
            "mtt",
            {"growth_iterations": 9},
            "--growth-iterations: the method mtt does not read it, only datm does",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(method: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_settings(method, **values)
