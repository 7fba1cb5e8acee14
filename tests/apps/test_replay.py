"""Replay: its losses against slow loops in float64, and what the training loop shows them."""

import math
from itertools import chain

import numpy as np
import pytest
import torch

from apps.continual.replay import (
    Batch,
    cross_entropy_among,
    der_loss,
    er_ace_loss,
    er_loss,
    objective_of,
    train_beside,
)
from apps.continual.settings import LearnerSettings
from atom.errors import ConfigError
from atom.streams import stream

K, C, H, W = 5, 2, 4, 3
SETTINGS = LearnerSettings(step_epochs=3, batch_current=4, batch_memory=3)


def made(classes, per_class, purpose):
    labels_N = np.repeat(classes, per_class)
    images_NCHW = stream(0, f"test/replay/{purpose}").standard_normal(
        (len(labels_N), C, H, W), dtype=np.float32
    )
    return torch.tensor(images_NCHW), torch.tensor(labels_N)


CURRENT, MEMORY = made((4, 1), 7, "current"), made((0, 3), 4, "memory")


# Losses, in float64, on a linear map as the network.


MATRIX_DK = torch.tensor(stream(0, "test/replay/matrix").standard_normal((C * H * W, K)))


def linear(images_BCHW):
    return images_BCHW.double().flatten(1) @ MATRIX_DK


def batches():
    stored_BK = torch.tensor(stream(0, "test/replay/stored").standard_normal((8, K)))
    draws = [Batch(*MEMORY, stored_BK), Batch(MEMORY[0][:5], MEMORY[1][:5], stored_BK[:5])]
    return Batch(*CURRENT), draws


def slow_cross_entropies(batch, classes):
    losses = []
    for image, label in zip(batch.images_BCHW, batch.labels_B.tolist(), strict=True):
        logits = [float((image.double().flatten() * MATRIX_DK[:, k]).sum()) for k in range(K)]
        losses.append(math.log(sum(math.exp(logits[k]) for k in classes)) - logits[label])
    return losses


def test_er_averages_over_current_and_remembered_images_together():
    current, draws = batches()
    losses = slow_cross_entropies(current, range(K)) + slow_cross_entropies(draws[0], range(K))
    assert er_loss(linear, current, draws.__getitem__).item() == pytest.approx(
        sum(losses) / len(losses), rel=1e-12
    )


def test_er_ace_adds_two_means_over_their_own_classes():
    current, draws = batches()
    seen = (3, 0, 4, 1)
    loss = er_ace_loss(linear, current, draws.__getitem__, step_classes=(4, 1), seen_classes=seen)
    expected = np.mean(slow_cross_entropies(current, (4, 1))) + np.mean(slow_cross_entropies(draws[0], seen))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_der_adds_squared_distance_and_labels_of_two_different_draws():
    current, draws = batches()
    loss = der_loss(linear, current, draws.__getitem__, alpha=0.3, beta=0.7)
    squares = [
        float(((linear(image[None])[0] - stored) ** 2).mean())
        for image, stored in zip(draws[0].images_BCHW, draws[0].logits_BK, strict=True)
    ]
    expected = np.mean(slow_cross_entropies(current, range(K))) + 0.3 * np.mean(squares)
    expected += 0.7 * np.mean(slow_cross_entropies(draws[1], range(K)))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_masked_classes_have_no_gradient():
    logits_BK = torch.tensor(stream(0, "test/replay/logits").standard_normal((6, K)), requires_grad=True)
    cross_entropy_among((4, 1), logits_BK, torch.tensor([4, 1, 1, 4, 4, 1])).backward()
    assert bool((logits_BK.grad[:, [0, 2, 3]] == 0).all())
    assert bool((logits_BK.grad[:, [1, 4]] != 0).all())


def test_cross_entropy_among_all_classes_is_the_plain_one():
    logits_BK = linear(MEMORY[0])
    plain = torch.nn.functional.cross_entropy(logits_BK, MEMORY[1])
    assert torch.equal(cross_entropy_among(range(K), logits_BK, MEMORY[1]), plain)


# The loop.


def watched(**changes):
    """What an objective is shown in a training on images that carry their own row as brightness."""
    rows_N = torch.arange(10.0)
    current = Batch(rows_N.view(-1, 1, 1, 1).repeat(1, C, H, W), torch.arange(10) % 2)
    memory = Batch(100 + rows_N[:4].view(-1, 1, 1, 1).repeat(1, C, H, W), torch.arange(4) % 2)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(C * H * W, K))
    shown, drawn = [], []

    def objective(net, batch, draw):
        shown.append(batch.images_BCHW[:, 0, 0, 0].tolist())
        drawn.append([draw(which).images_BCHW[:, 0, 0, 0].tolist() for which in range(2)])
        return 0 * net(batch.images_BCHW).sum()

    settings = SETTINGS.model_copy(update={"replay_dsa_strategy": "none", **changes})
    plain = {"dtype": torch.float32, "layout": torch.contiguous_format, "seed": 0, "step": 1}
    train_beside(net, current, memory, objective=objective, settings=settings, **plain)
    return shown, drawn


def test_every_image_comes_once_an_epoch_in_a_new_order():
    shown, _ = watched()
    epochs = [list(chain(*shown[i : i + 3])) for i in range(0, 9, 3)]
    assert [len(batch) for batch in shown] == [4, 3, 3] * 3
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_memory_batches_hold_distinct_images_and_two_draws_differ():
    _, drawn = watched()
    assert all(len(set(batch)) == 3 and set(batch) <= {100, 101, 102, 103} for two in drawn for batch in two)
    assert any(set(one) != set(other) for one, other in drawn)


def test_a_memory_smaller_than_a_batch_is_drawn_whole():
    _, drawn = watched(batch_memory=50)
    assert all(sorted(batch) == [100, 101, 102, 103] for two in drawn for batch in two)


@pytest.mark.parametrize("learner", ["er", "er-ace"])
@pytest.mark.parametrize("with_memory", [False, True])
def test_no_image_of_a_step_is_left_alone_for_batchnorm(learner, with_memory):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(C, 4, (H, W)), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, K)
    )
    seen = []
    net.register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0])) if module.training else None
    )
    objective = objective_of(learner, SETTINGS, step_classes=(1, 4), seen_classes=(0, 1, 3, 4))
    train_beside(
        net,
        Batch(CURRENT[0][:9], CURRENT[1][:9]),
        Batch(*MEMORY) if with_memory else None,
        objective=objective,
        settings=SETTINGS.model_copy(update={"step_epochs": 1, "replay_dsa_strategy": "none"}),
        dtype=torch.float32,
        layout=torch.contiguous_format,
        seed=0,
        step=1,
    )
    together = {("er", True): [6, 6, 6], ("er-ace", True): [3, 3] * 3}
    assert seen == together.get((learner, with_memory), [3, 3, 3])


@pytest.mark.parametrize("learner", ["er-ace", "der++"])
def test_a_memory_batch_of_one_that_batchnorm_refuses_is_told_in_a_sentence(learner):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(C, 4, (H, W)), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, K)
    )
    with pytest.raises(ConfigError, match=r"a batch holds one of 8 images, .* a batch size of at least 2"):
        train_beside(
            net,
            Batch(*CURRENT),
            Batch(*MEMORY, torch.zeros(len(MEMORY[1]), K)),
            objective=objective_of(learner, SETTINGS, step_classes=(1, 4), seen_classes=(0, 1, 3, 4)),
            settings=SETTINGS.model_copy(update={"batch_memory": 1, "replay_dsa_strategy": "none"}),
            dtype=torch.float32,
            layout=torch.contiguous_format,
            seed=0,
            step=1,
        )
