"""Dataset distillation: against the full unroll in float64, its own training, its labels, and what it refuses."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from distill_samples import there
from torch import Tensor
from torch.nn.functional import cross_entropy

from atom import nets
from atom.errors import ConfigError
from atom.evaluate import evaluate
from atom.formation import decode, label_decoded
from atom.methods import unroll_reference
from atom.methods.backpropagation import SMOOTHING, first_logits
from atom.methods.dd import Ordered, start_seed
from atom.methods.lookup import find_method
from atom.methods.method import Part, State
from atom.methods.settings import DistillSettings
from atom.methods.soundness import joined
from atom.methods.unroll import Training
from atom.resolve import resolve_settings
from atom.settings import EvaluateSettings, OwnTraining
from atom.streams import stream
from atom.train import train_network

SHAPE = {"channels": 2, "height": 8, "width": 6, "num_classes": 4}
SIZES = (9, 8, 12, 10)
UNIT = (3, 0, 1, 2)


def make_settings(**values: object) -> DistillSettings:
    small = {
        "method": "dd",
        "iterations": 5,
        "network": "convnet-w4-d1",
        "zca": "off",
        "seed": 3,
        "lr_inner": 0.1,
    }
    asked = DistillSettings.model_validate({**small, "batch_outer": 8, "distill_epochs": 2, **values})
    return resolve_settings(asked, device_kind="cpu", symbols=False, **SHAPE)


def make_method(settings: DistillSettings) -> Ordered:
    return Ordered(settings, **SHAPE, device=torch.device("cpu"))


def real_images(dtype: torch.dtype = torch.float32) -> dict[int, Tensor]:
    shape = (SHAPE["channels"], SHAPE["height"], SHAPE["width"])
    noise = [stream(0, "test/real", class_id=c).normal(0.3 * c, 1, (n, *shape)) for c, n in enumerate(SIZES)]
    return {c: torch.from_numpy(images).to(dtype) for c, images in enumerate(noise)}


def run(
    settings: DistillSettings, until: int, state: State | None = None, unit: Sequence[int] = UNIT
) -> State:
    method, real = make_method(settings), real_images()
    return method.advance(state or method.start(unit, real), until, unit=unit, real=real)


def distilled(settings: DistillSettings) -> Part:
    assert settings.iterations is not None
    return joined({UNIT: Ordered.result(settings, UNIT, run(settings, settings.iterations))})


def leaves_of(method: Ordered) -> dict[str, Tensor]:
    """At the start, in float64, step sizes and labels moved off it so that no two are alike."""
    start = method.start(UNIT, real_images())
    leaves = {name: torch.tensor(start.arrays[name]).double() for name in method.learned}
    for name in leaves.keys() - {"images"}:
        noise = stream(0, f"test/{name}").normal(0, 0.3, leaves[name].shape)
        leaves[name] = leaves[name] + torch.from_numpy(noise)
    return leaves


def slow_gradients(
    settings: DistillSettings, leaves: Mapping[str, Tensor], iteration: int, real: Mapping[int, Tensor]
) -> tuple[float, dict[str, Tensor]]:
    """By the full unroll, one network after the other; the same random numbers."""
    options, height, width = settings.options, SHAPE["height"], SHAPE["width"]
    steps = options.distill_steps
    losses, sums = [], {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for replica in range(options.replicas):
        net = nets.build(settings.network, channels=2, image_size=(height, width), num_classes=4)
        if options.inner_init == "fixed":
            nets.fill_weights(net, stream(start_seed(settings), "evaluate/weights"))
        else:
            nets.fill_weights(net, stream(settings.seed, "Ordered/weights", iteration, replica))
        net = net.double().eval()
        names = [name for name, _ in net.named_parameters()]

        def logits(
            weights: Sequence[Tensor], images: Tensor, net: object = net, names: object = names
        ) -> Tensor:
            return torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (images,))

        def loss(
            weights: Sequence[Tensor], leaves: Mapping[str, Tensor], number: int, f: object = logits
        ) -> Tensor:
            images = decode(torch.cat(there(leaves["images"], UNIT, settings, 4)), settings.factor)
            total = 0.0
            mine = range(number % steps, len(images), steps)
            for row in mine:
                stored = row // settings.factor**2
                log_probabilities = f(weights, images[row : row + 1]).log_softmax(1)[0]
                if "logits" in leaves:
                    target = torch.cat(there(leaves["logits"], UNIT, settings, 4))[stored].softmax(0)
                    total = total - (target * log_probabilities).sum() / len(mine)
                else:
                    total = total - log_probabilities[UNIT[stored // settings.ipc]] / len(mine)
            return total

        def judge(weights: Sequence[Tensor], replica: int = replica, f: object = logits) -> Tensor:
            pool = torch.cat([real[c] for c in UNIT])
            labels = torch.tensor([c for c in UNIT for _ in real[c]])
            rng = stream(settings.seed, "Ordered/batch", iteration, replica)
            rows = sorted(rng.choice(len(pool), size=min(options.batch_outer, len(pool)), replace=False))
            return cross_entropy(f(weights, pool[rows]), labels[rows])

        found, gradients = unroll_reference.unrolled(
            loss,
            judge,
            list(net.parameters()),
            leaves,
            rate=lambda leaves, number: leaves["log_rate"][number].exp(),
            steps=range(steps * options.distill_epochs),
            optimizer="sgd",
        )
        losses.append(found)
        for name, gradient in gradients.items():
            sums[name] += gradient / options.replicas
    return float(np.mean(losses)), sums


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"ipc": 4, "distill_steps": 2, "distill_epochs": 3},
        {"ipc": 2, "inner_init": "fixed", "replicas": 2},
        {"ipc": 3, "lr_label": 0.01, "replicas": 2},
        {"factor": 2, "lr_label": 0.01, "batch_outer": 100},
        {"images_in_all": 3, "lr_label": 0.01, "replicas": 2},
        {"images_in_all": 6, "lr_label": 0.01, "factor": 2},
    ],
)
def test_gradients_equal_the_full_unroll(values: dict[str, object]) -> None:
    settings, real = make_settings(**values), real_images(torch.float64)
    method = make_method(settings)
    leaves = leaves_of(method)
    loss, found = method.gradients(leaves, 2, unit=UNIT, real=real)
    reference_leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    expected_loss, expected = slow_gradients(settings, reference_leaves, 2, real)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = float(expected[name].abs().max())
        assert scale > 0
        assert float((gradient - expected[name]).abs().max()) <= 1e-12 * scale, name


def test_labels_that_are_nearly_one_hot_are_hard_labels() -> None:
    hard, soft = (make_method(make_settings(ipc=2, **more)) for more in ({}, {"lr_label": 0.01}))
    real, leaves = real_images(torch.float64), leaves_of(hard)
    one_hot = torch.eye(4, dtype=torch.float64)[list(UNIT)][:, None].expand(-1, 2, -1)
    loss, expected = hard.gradients(leaves, 1, unit=UNIT, real=real)
    soft_loss, found = soft.gradients({**leaves, "logits": 40 * one_hot}, 1, unit=UNIT, real=real)
    assert soft_loss == pytest.approx(loss, rel=1e-12)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14)


def test_labels_start_smoothed_and_end_as_distributions() -> None:
    settings = make_settings(ipc=2, lr_label=0.5)
    first = torch.from_numpy(first_logits(UNIT, 4)).softmax(1)
    assert first.argmax(1).tolist() == list(UNIT)
    torch.testing.assert_close(first.max(1).values, torch.full((4,), 1 - SMOOTHING * 3 / 4).double())
    part = distilled(settings)
    assert part.soft_labels is not None
    assert part.soft_labels.shape == (4, 2, 4)
    assert (part.soft_labels > 0).all()
    np.testing.assert_allclose(part.soft_labels.sum(2), 1, atol=1e-6)
    assert not np.allclose(part.soft_labels.max(2), 1 - SMOOTHING * 3 / 4, atol=0.05)


def test_only_what_is_asked_for_is_learned() -> None:
    assert not Ordered.learns_labels(make_settings())
    assert Ordered.learns_labels(make_settings(lr_label=0.01))
    assert distilled(make_settings(iterations=1)).soft_labels is None
    held = run(make_settings(lr_lr=0.0), 2)
    np.testing.assert_allclose(held.arrays["log_rate"], np.log(0.1), rtol=1e-6)


@pytest.mark.parametrize("lr_label", [0.0, 0.05])
def test_another_order_of_the_classes_orders_the_set(lr_label: float) -> None:
    settings = make_settings(ipc=2, lr_label=lr_label, batch_outer=100, inner_init="fixed")
    one, other = (run(settings, 2, unit=unit) for unit in (UNIT, (0, 1, 2, 3)))
    for name in ("images", *(["logits"] if lr_label else [])):
        np.testing.assert_allclose(one.arrays[name][[1, 2, 3, 0]], other.arrays[name], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("cuts", [[2, 5], [1, 1, 4, 5], [5]])
def test_bits_do_not_depend_on_how_the_way_is_cut(cuts: list[int]) -> None:
    settings = make_settings(ipc=2, lr_label=0.05, replicas=2)
    whole, state = run(settings, 5), None
    for until in cuts:
        state = run(settings, until, state)
    assert state is not None
    assert all(np.array_equal(state.arrays[name], array) for name, array in whole.arrays.items())
    assert np.array_equal(state.losses, whole.losses, equal_nan=True)


@pytest.mark.parametrize("values", [{}, {"lr_label": 0.1, "factor": 2, "distill_steps": 4}])
def test_the_training_that_the_set_carries_is_the_one_it_was_made_for(values: dict[str, object]) -> None:
    settings = make_settings(ipc=2, inner_init="fixed", **values)
    part, method = Ordered.result(settings, UNIT, run(settings, 5)), make_method(settings)
    own = OwnTraining.model_validate(dict(part.training))
    # As the last step left them, of a run that is not yet at its end.
    state = run(settings.model_copy(update={"iterations": 6}), 5)
    leaves = {name: torch.tensor(state.arrays[name]) for name in method.learned}
    inner = Training(
        lambda weights, leaves, number: method._step_loss(weights, leaves, 4, number, 0, unit=UNIT),
        method.rate,
        method.optimizer,
    )
    method.weights.load(method.weights.draw(method.start_weights(4, 0)))
    expected = inner.run((method.network.weights(),), leaves, range(method.total))[-1][0]

    net = nets.build(settings.network, channels=2, image_size=(8, 6), num_classes=4)
    nets.fill_weights(net, stream(start_seed(settings), "evaluate/weights"))
    before = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    images = decode(torch.from_numpy(part.images).flatten(0, 1), settings.factor)
    targets = torch.tensor(UNIT).repeat_interleave(2)
    if part.soft_labels is not None:
        targets = torch.from_numpy(part.soft_labels).flatten(0, 1)
    steps = train_network(net, images, label_decoded(targets, settings.factor), settings=own, seed=9)
    found = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    assert steps == len(own.step_sizes) == method.total
    assert float((expected - before).abs().max()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def accuracies(part: Part, training: Mapping[str, object]) -> tuple[float, ...]:
    common = EvaluateSettings(epochs=4, eval_dsa_strategy="none", eval_precision="float32")
    real = real_images()
    judged = evaluate(
        torch.from_numpy(part.images).flatten(0, 1),
        torch.arange(4).repeat_interleave(part.images.shape[1]),
        test_images=torch.cat(list(real.values())),
        test_labels=torch.tensor([c for c in real for _ in real[c]]),
        network="convnet-w4-d1",
        num_classes=4,
        seeds=range(4),
        settings=OwnTraining.model_validate({**dict(common), **training}) if training else common,
        device=torch.device("cpu"),
        threads=1,
    )
    return judged.accuracies


def test_its_own_training_beats_the_common_one_and_with_fixed_weights_is_one_training() -> None:
    part = distilled(
        make_settings(ipc=2, iterations=60, inner_init="fixed", distill_epochs=5, batch_outer=100)
    )
    own, common = accuracies(part, part.training), accuracies(part, {})
    assert len(set(own)) == 1
    assert np.mean(own) > np.mean(common) + 10
    random = distilled(make_settings(ipc=2, iterations=5))
    assert "start_seed" not in random.training
    assert len(set(accuracies(random, random.training))) > 1


def test_defaults_are_those_of_the_paper_where_there_are_ten_images_of_a_class() -> None:
    asked = DistillSettings.model_validate({"method": "dd", "ipc": 10, "network": "convnet-w4-d1"})
    settings = resolve_settings(asked, device_kind="cpu", symbols=False, **SHAPE)
    assert (settings.options.distill_steps, settings.options.distill_epochs) == (10, 3)
    one = resolve_settings(asked.changed(ipc=1), device_kind="cpu", symbols=False, **SHAPE)
    assert (one.options.distill_steps, one.options.distill_epochs) == (1, 15)
    assert find_method("dd").units(settings, UNIT) == [UNIT]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ipc": 10, "distill_steps": 3}, "--distill-steps 3: the 10 images of a class do not divide"),
        ({"distill_steps": 2}, "--distill-steps 2: the 1 images of a class do not divide"),
        ({"network": "convnet-w4-d1-batch"}, "networks with BatchNorm do not allow"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_settings(**values)


@pytest.mark.parametrize("values", [{"ipc": 0}, {"distill_steps": 0}, {"lr_inner": 0.0}, {"lr_label": -1.0}])
def test_numbers_out_of_range_are_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        make_settings(**values)
