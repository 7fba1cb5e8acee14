"""Experts: the same weights however their training is cut, and what they refuse."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

from atom import nets
from atom.batches import batches_of
from atom.errors import ConfigError
from atom.methods import flat_reference
from atom.methods.experts import Arrays, Expert, Recipe, epochs_done, train
from atom.streams import stream

CPU = torch.device("cpu")
SIZES = (9, 7, 12)
RECIPE = Recipe("convnet-w4-d1", seed=3, rate=0.1, batch=8, dsa_strategy="color_crop")


def real_images() -> dict[int, Tensor]:
    noise = [stream(0, "test/real", class_id=c).normal(0.3 * c, 1, (n, 2, 8, 6)) for c, n in enumerate(SIZES)]
    return {c: torch.from_numpy(images).float() for c, images in enumerate(noise)}


def trained(recipe: Recipe, epochs: int, before: Arrays | None = None, **options: Any) -> Arrays:
    expert = Expert(1, epochs, recipe)
    return train(expert, real_images(), before, num_classes=3, device=CPU, **options)


def same_bits(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"momentum": 0.9, "weight_decay": 5e-4, "most": 20},
        {"flat_rho": 0.1, "flat_alpha": 0.3, "momentum": 0.5},
    ],
)
def test_bits_do_not_depend_on_how_the_training_is_cut(change: dict[str, Any]) -> None:
    recipe, epochs = replace(RECIPE, **change), []
    whole, part = trained(recipe, 4), None
    while epochs_done(part) < 4:
        part = trained(recipe, 4, part, seconds=0, on_epoch=epochs.append)
    assert part is not None
    assert epochs == [1, 2, 3, 4]
    assert same_bits(part, whole)
    assert ("velocity" in whole) == (recipe.momentum > 0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_extended_expert_is_one_trained_from_scratch_and_a_longer_one_begins_like_a_short_one(
    momentum: float,
) -> None:
    recipe = replace(RECIPE, momentum=momentum)
    short, long = trained(recipe, 2), trained(recipe, 5)
    assert same_bits(trained(recipe, 5, short), long)
    expert = Expert(1, 2, recipe)
    assert same_bits(expert.read_from(long), expert.read_from(short))
    # What is read may be somebody's read-only memory, and is left as it is.
    for array in short.values():
        array.flags.writeable = False
    assert same_bits(trained(recipe, 5, short), long)
    assert same_bits(trained(recipe, 2, short), short)


@pytest.mark.parametrize("sgd", [{}, {"momentum": 0.9, "weight_decay": 0.05}])
def test_flat_experts_are_the_steps_of_gsam_in_float64(sgd: dict[str, float]) -> None:
    """Of a step, and of several epochs of several steps."""
    flat = {"flat_rho": 0.05, "flat_alpha": 0.4}
    recipe = replace(RECIPE, dsa_strategy="none", batch=14, network="convnet-w2-d1", **flat, **sgd)
    real = {c: images.double() for c, images in real_images().items()}
    found = train(Expert(1, 3, recipe), real, num_classes=3, device=CPU)["epochs"]
    net = nets.build(recipe.network, channels=2, image_size=(8, 6), num_classes=3).double().eval()
    images = torch.cat(list(real.values()))
    labels = torch.tensor([c for c, n in enumerate(SIZES) for _ in range(n)])

    def gradient_on(rows: np.ndarray) -> flat_reference.Gradient:
        def gradient(weights: list[float]) -> list[float]:
            vector_to_parameters(torch.tensor(weights, dtype=torch.float64), net.parameters())
            loss = cross_entropy(net(images[rows]), labels[rows])
            parts = torch.autograd.grad(loss, list(net.parameters()))
            return torch.cat([part.flatten() for part in parts]).tolist()

        return gradient

    weights = found[0].tolist()
    velocity, told = [0.0] * len(weights), {"rate": 0.1, "rho": 0.05, "alpha": 0.4, **sgd}
    for epoch in range(3):
        order = stream(recipe.seed, "expert/pass", epoch, 1).permutation(len(images))
        batches = batches_of(order, recipe.batch)
        assert len(batches) == 2
        for rows in batches:
            weights, velocity = flat_reference.step(weights, velocity, gradient_on(rows), **told)
        np.testing.assert_allclose(found[epoch + 1], weights, rtol=1e-10, atol=1e-13)
    # What is disturbed is put back: without any disturbance the steps are those of SGD.
    plain = train(Expert(1, 3, replace(recipe, flat_rho=0.0)), real, num_classes=3, device=CPU)["epochs"]
    tiny = train(Expert(1, 3, replace(recipe, flat_rho=1e-9)), real, num_classes=3, device=CPU)["epochs"]
    np.testing.assert_allclose(tiny, plain, atol=1e-7)
    assert np.abs(found - plain).max() > 1e-4


def test_an_expert_of_no_epochs_is_its_first_weights() -> None:
    assert trained(RECIPE, 0)["epochs"].shape[0] == 1
    assert np.array_equal(trained(RECIPE, 0)["epochs"][0], trained(RECIPE, 1)["epochs"][0])


def test_every_part_of_a_recipe_and_the_number_decide_the_weights() -> None:
    expected = trained(RECIPE, 1)["epochs"][1]
    changes: list[dict[str, Any]] = [
        {"seed": 4},
        {"rate": 0.2},
        {"batch": 20},
        {"weight_decay": 0.1},
        {"dsa_strategy": "none"},
        {"most": 5},
        {"precision": "bfloat16"},
        {"flat_rho": 0.1},
    ]
    for change in changes:
        assert not np.array_equal(trained(replace(RECIPE, **change), 1)["epochs"][1], expected), change
    other = train(Expert(0, 1, RECIPE), real_images(), num_classes=3, device=CPU)
    assert not np.array_equal(other["epochs"][0], trained(RECIPE, 0)["epochs"][0])


def test_what_cannot_be_an_expert_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expert 1: its weights are no longer finite after epoch \d"):
        trained(replace(RECIPE, rate=1e30), 4)
    with pytest.raises(ConfigError, match="that no flag sets; pass another --network"):
        trained(replace(RECIPE, rate=1e30, momentum=0.9), 4)
    with pytest.raises(ConfigError, match="a smaller --lr-expert, or for a teacher a smaller --lr-teacher"):
        trained(replace(RECIPE, rate=1e30, momentum=0.0), 4)
    with pytest.raises(ConfigError, match=r"BatchNorm's running statistics"):
        trained(replace(RECIPE, network="convnet-w4-d1-batch"), 1)
