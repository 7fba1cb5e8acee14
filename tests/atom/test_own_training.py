"""Trainings that a set carries: steps of their own sizes, images and order."""

import numpy as np
import pytest
import torch
from distilled_samples import make_set

from atom import nets
from atom.combine import merge, take
from atom.distilled import DistilledSet
from atom.errors import ArtifactError, ConfigError
from atom.settings import OwnTraining
from atom.streams import stream
from atom.train import Budget, train_network

C, H, W, K = 2, 8, 6, 3
STEPS = {"epochs": 2, "step_sizes": [0.5, 0.25, 0.125, 0.0625]}
PLAIN = {"momentum_net": 0.0, "weight_decay": 0.0, "eval_dsa_strategy": "none", "eval_precision": "float32"}


def images(count=6):
    images_NCHW = stream(0, "test/own").standard_normal((count, C, H, W), dtype="float32")
    return torch.from_numpy(images_NCHW), torch.arange(count) % K


def network(name="convnet-w8-d1"):
    net = nets.build(name, channels=C, image_size=(H, W), num_classes=K)
    nets.fill_weights(net, stream(0, "test/weights"))
    return net


def test_each_step_has_its_size_and_its_images_in_order():
    net, slow, seen = network(), network(), []
    images_NCHW, labels_N = images()
    hook = net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    settings = OwnTraining.model_validate(PLAIN | STEPS)
    assert train_network(net, images_NCHW, labels_N, settings=settings, seed=1) == 4
    hook.remove()
    rows = [[0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5]]
    assert all(torch.equal(batch, images_NCHW[own]) for batch, own in zip(seen, rows, strict=True))
    for own, rate in zip(rows, STEPS["step_sizes"], strict=True):
        loss = torch.nn.functional.cross_entropy(slow(images_NCHW[own]), labels_N[own])
        gradients = torch.autograd.grad(loss, list(slow.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(slow.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    for found, expected in zip(net.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_its_order_does_not_depend_on_the_seed():
    settings = OwnTraining.model_validate(PLAIN | STEPS)
    weights = []
    for seed in (1, 2):
        net = network()
        train_network(net, *images(), settings=settings, seed=seed)
        weights.append(torch.cat([p.detach().reshape(-1) for p in net.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("epochs", [None, 3])
def test_step_sizes_that_do_not_fill_the_epochs_are_refused(epochs):
    with pytest.raises(
        ConfigError, match=r"step_sizes has 4 numbers for (None|3) epochs, expected equally many"
    ):
        OwnTraining(epochs=epochs, step_sizes=STEPS["step_sizes"])


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_size_is_a_positive_number(size):
    with pytest.raises(ValueError, match="step_sizes"):
        OwnTraining(epochs=1, step_sizes=(0.1, size))


def test_a_training_of_its_own_takes_no_budget_and_needs_an_image_for_each_step():
    settings = OwnTraining.model_validate(PLAIN | STEPS)
    with pytest.raises(ConfigError, match="trained on by all of them; pass no budget"):
        train_network(network(), *images(), settings=settings, seed=0, budget=Budget(steps=3))
    with pytest.raises(ConfigError, match="2 steps an epoch for 1 images"):
        train_network(network(), *images(1), settings=settings, seed=0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(C * H * W, K), torch.nn.BatchNorm1d(K))
    with pytest.raises(ConfigError, match="a batch holds one of 2 images, and a BatchNorm"):
        train_network(net, *images(2), settings=settings, seed=0)


def test_order_and_step_sizes_are_loaded_as_they_were_saved(tmp_path):
    sizes = np.exp(stream(0, "test/sizes").normal(-3, 1, 4).astype(np.float32)).tolist()
    made = make_set(training=PLAIN | {"epochs": 2, "step_sizes": sizes, "start_seed": 12345})
    loaded = DistilledSet.load(made.save(tmp_path / "set"))
    assert loaded.training == made.training
    assert OwnTraining.model_validate(loaded.training).step_sizes == tuple(sizes)
    assert torch.equal(loaded.images_NCHW, made.images_NCHW)
    card = (tmp_path / "set" / "README.md").read_text()
    assert f"4 from {min(sizes):.4g} to {max(sizes):.4g}" in card.replace("\\", "")


def test_steps_that_do_not_divide_the_images_of_a_class_are_refused():
    make_set(training=STEPS).validate()
    with pytest.raises(
        ArtifactError, match="a training of 4 steps an epoch for 2 decoded images of each class"
    ):
        make_set(training={**STEPS, "epochs": 1}).validate()
    make_set(training={**STEPS, "epochs": 1}, factor=2).validate()


def test_parts_and_sums_of_a_set_lose_steps_that_were_for_its_images():
    one = make_set(training=STEPS)
    assert take(one, 2).training == STEPS
    assert not take(one, 1).training
    assert not merge([one, one]).training
    assert merge([one]).training == STEPS
