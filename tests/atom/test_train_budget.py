"""Trainings that end by steps or seconds, and what is told after each epoch."""

import numpy as np
import pytest
import torch
from torch import nn

import atom.train as training
from atom import nets
from atom.batches import batches_of
from atom.errors import ConfigError
from atom.settings import EvaluateSettings
from atom.streams import stream
from atom.train import Budget, accuracy, train_network

C, H, W, K = 2, 8, 6, 3
SETTINGS = EvaluateSettings(
    epochs=4, lr_net=0.05, batch_train=8, eval_dsa_strategy="color_crop", eval_precision="float32"
)


def images(count=20):
    rng = stream(0, "test/budget")
    labels_N = torch.arange(count) % K
    return torch.from_numpy(rng.standard_normal((count, C, H, W), dtype="float32")), labels_N


def network(name="convnet-w8-d1-batch"):
    return nets.build(name, channels=C, image_size=(H, W), num_classes=K)


def train(*, count=20, settings=SETTINGS, net=None, **more):
    """Weights and the number of steps."""
    net = network() if net is None else net
    steps = train_network(net, *images(count), settings=settings, seed=3, **more)
    return [value.clone() for value in net.state_dict().values()], steps


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def rates(monkeypatch):
    """The step sizes of the steps taken, in order."""
    seen = []

    class Recording(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Recording)
    return seen


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless a step moves it."""

    class Clock:
        now_s = 50.0

        def monotonic(self):
            return self.now_s

    fake = Clock()
    monkeypatch.setattr(training, "time", fake)
    return fake


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 12, 13, 40])
@pytest.mark.parametrize("batch", [7, 20, 256])
def test_as_many_steps_are_taken_as_the_budget_says(rates, steps, batch):
    settings = SETTINGS.model_copy(update={"batch_train": batch})
    assert train(settings=settings, budget=Budget(steps=steps))[1] == steps
    assert len(rates) == steps


def test_without_a_budget_the_epochs_decide(rates):
    assert train()[1] == len(rates) == 4 * 3


def test_a_budget_of_the_same_steps_is_the_same_training():
    assert equal(train()[0], train(budget=Budget(steps=4 * 3))[0])


def test_a_budget_ignores_the_epochs_of_the_settings():
    other = SETTINGS.model_copy(update={"epochs": 1})
    assert equal(train(budget=Budget(steps=7))[0], train(settings=other, budget=Budget(steps=7))[0])


def test_a_longer_training_begins_as_the_shorter_one_while_the_rate_is_the_same():
    seen = []

    def forward(net, images_BCHW):
        seen.append(images_BCHW.clone())
        return net(images_BCHW)

    train(budget=Budget(steps=5), forward=forward)
    train(budget=Budget(steps=11), forward=forward)
    assert equal(seen[:5], seen[5:10])


@pytest.mark.parametrize(("steps", "high"), [(1, 1), (2, 1), (5, 3), (8, 4)])
def test_the_rate_drops_at_half_of_the_steps(rates, steps, high):
    train(budget=Budget(steps=steps))
    assert rates == [0.05] * high + [pytest.approx(0.005)] * (steps - high)


@pytest.mark.parametrize(("epochs", "high"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_the_rate_drops_at_half_of_the_epochs(rates, epochs, high):
    train(settings=SETTINGS.model_copy(update={"epochs": epochs}))
    assert rates == [0.05] * high * 3 + [pytest.approx(0.005)] * (epochs - high) * 3


def test_seconds_end_a_training_and_drop_the_rate_at_half(rates, clock):
    def forward(net, images_BCHW):
        clock.now_s += 0.25
        return net(images_BCHW)

    # Steps begin at 0, 0.25, ... 2.25 seconds; the time is looked at before each.
    assert train(budget=Budget(seconds=2.5), forward=forward)[1] == 10
    assert rates == [0.05] * 5 + [pytest.approx(0.005)] * 5


def test_seconds_may_run_beyond_the_epochs_of_the_settings(clock):
    def forward(net, images_BCHW):
        clock.now_s += 1
        return net(images_BCHW)

    one = SETTINGS.model_copy(update={"epochs": 1})
    assert train(settings=one, budget=Budget(seconds=8), forward=forward)[1] == 8


def test_seconds_that_are_over_at_once_leave_the_network_as_it_was(monkeypatch):
    readings = iter(range(100))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(readings))
    net = network()
    before = [value.clone() for value in net.state_dict().values()]
    weights, steps = train(net=net, budget=Budget(seconds=0.5))
    assert steps == 0
    assert equal(before, weights)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"steps": 3, "seconds": 1.0},
        {"steps": 0},
        {"steps": -1},
        {"seconds": 0.0},
        {"seconds": -2.0},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
    ],
)
def test_a_budget_that_is_none_is_refused(given):
    with pytest.raises(ConfigError, match=r"training budget .*: expected a positive number of steps or of"):
        Budget(**given)


def test_whole_epochs_are_told_in_order():
    told = []
    train(on_epoch=told.append)
    assert told == [1, 2, 3, 4]


@pytest.mark.parametrize(("steps", "epochs"), [(2, []), (3, [1]), (7, [1, 2]), (9, [1, 2, 3])])
def test_an_epoch_that_a_budget_cuts_is_not_told(steps, epochs):
    told = []
    train(budget=Budget(steps=steps), on_epoch=told.append)
    assert told == epochs


def test_asking_the_network_after_each_epoch_changes_nothing():
    class WithDropout(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network("convnet-w8-d1-batch")
            self.drop = nn.Dropout(0.5)

        def forward(self, images_BCHW):
            return self.inner(self.drop(images_BCHW))

    asked, answers = WithDropout(), []
    images_NCHW, labels_N = images()
    modes = []

    def ask(_epoch):
        modes.append(asked.training)
        answers.append(accuracy(asked, images_NCHW, labels_N))

    weights, steps = train(net=asked, on_epoch=ask)
    assert equal(weights, train(net=WithDropout())[0])
    assert modes == [True] * 4
    assert len(answers) == 4
    assert steps == 12


def test_an_error_after_an_epoch_ends_the_training():
    net, told = network(), []

    def stop(epoch):
        told.append(epoch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(net=net, on_epoch=stop)
    assert told == [1]


def test_a_training_leaves_the_generator_alone_even_where_a_budget_cuts_it():
    before = torch.get_rng_state()
    train(budget=Budget(steps=2))
    assert torch.equal(torch.get_rng_state(), before)


class OneByOne(nn.Module):
    """BatchNorm on maps of one pixel, which PyTorch refuses to train on one image."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, 4, (H, W)), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, K)
        self.seen = []

    def forward(self, images):
        if self.training:
            self.seen.append(len(images))
        return self.linear(self.norm(self.conv(images)).flatten(1))


@pytest.mark.parametrize(("count", "sizes"), [(17, [6, 6, 5]), (9, [5, 4]), (16, [8, 8]), (3, [3])])
def test_an_epoch_ends_in_no_small_rest(count, sizes):
    net = OneByOne()
    assert train(count=count, net=net)[1] == len(sizes) * 4
    assert net.seen == sizes * 4
    assert net.training


def test_an_odd_number_of_images_in_pairs_is_seen_once_an_epoch(rates):
    epochs = []
    settings = SETTINGS.model_copy(update={"batch_train": 2})
    assert train(count=9, settings=settings, on_epoch=epochs.append)[1] == len(rates) == 4 * 4
    assert epochs == [1, 2, 3, 4]
    assert rates == [0.05] * 8 + [pytest.approx(0.005)] * 8


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_batches_hold_every_row_once_in_order_and_never_more_than_asked(batch):
    for count in range(1, 40):
        batches = batches_of(np.arange(count), batch)
        sizes = [len(rows) for rows in batches]
        assert np.concatenate(batches).tolist() == list(range(count))
        in_pairs = batch == 2 and count % 2 == 1 and count > 1
        assert len(sizes) == -(-count // batch) - in_pairs
        assert max(sizes) <= batch + in_pairs
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 1 or count == 1 or batch == 1


def test_a_batch_of_one_stays_where_batchnorm_takes_it():
    net = network()
    seen = []
    net.register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0])) if module.training else None
    )
    train(count=3, net=net, settings=SETTINGS.model_copy(update={"batch_train": 1}))
    assert seen == [1, 1, 1] * 4


@pytest.mark.parametrize(
    ("count", "batch", "todo"), [(5, 1, "a batch size of at least 2"), (1, 8, "more images")]
)
def test_batches_of_one_that_batchnorm_refuses_are_said(count, batch, todo):
    settings = SETTINGS.model_copy(update={"batch_train": batch})
    with pytest.raises(ConfigError, match=f"a batch holds one of {count} images, .*; pass {todo}"):
        train(count=count, net=OneByOne(), settings=settings)
