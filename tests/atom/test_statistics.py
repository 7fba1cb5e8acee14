"""BatchNorm statistics re-estimated on real images: what they become, and what stays as it was."""

import pytest
import torch
from test_evaluate import FAST, run_evaluate, toy_set
from torch import nn

from atom import nets
from atom.train import STATISTICS_BATCH, reestimate_statistics

BATCH = "convnet-w8-d2-batch"


def batch_net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.Dropout(dropout))


def test_statistics_are_those_of_the_images():
    net, images_NCHW = batch_net().eval(), torch.randn(40, 2, 5, 3) * 3 + 1
    reestimate_statistics(net, images_NCHW)
    norm = net[0]
    torch.testing.assert_close(norm.running_mean, images_NCHW.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, images_NCHW.var((0, 2, 3)))
    # The momentum is that of later trainings.
    assert (net.training, norm.training, norm.momentum) == (False, False, 0.1)


def test_statistics_of_many_images_are_those_of_all_alike():
    net = batch_net()
    # Class by class, as they are often stored: batches of one class each would know nothing of the difference.
    count = STATISTICS_BATCH + 1
    images_NCHW = torch.cat([torch.randn(count, 2, 3, 3) - 3, torch.randn(count, 2, 3, 3) + 3])
    reestimate_statistics(net, images_NCHW)
    torch.testing.assert_close(net[0].running_mean, images_NCHW.mean((0, 2, 3)), rtol=0, atol=0.05)
    torch.testing.assert_close(net[0].running_var, images_NCHW.var((0, 2, 3)), rtol=0.02, atol=0)


def test_the_last_image_is_no_batch_of_its_own():
    net = batch_net()
    count = 2 * STATISTICS_BATCH + 1
    images_NCHW = torch.zeros(count, 2, 3, 3)
    images_NCHW[-1] = 1
    reestimate_statistics(net, images_NCHW)
    torch.testing.assert_close(net[0].running_mean, torch.full((2,), 1 / count), rtol=0.01, atol=0)


def test_layers_stay_in_their_modes_and_frozen_statistics_as_they_are():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.Dropout(0.5)).train()
    net[0].eval()
    reestimate_statistics(net, torch.randn(40, 2, 5, 3) * 3 + 1)
    assert [module.training for module in net.modules()] == [True, False, True, True]
    assert torch.equal(net[0].running_mean, torch.zeros(2))
    assert (net[1].running_mean - 1).abs().max() < 0.5


def test_weights_and_the_global_generator_stay_as_they_are():
    net, images_NCHW = batch_net(dropout=0.5), torch.randn(9, 2, 3, 3)
    with_weights = nets.build(BATCH, channels=2, image_size=(8, 6), num_classes=3)
    before = {name: value.clone() for name, value in with_weights.named_parameters()}
    reestimate_statistics(with_weights, torch.randn(9, 2, 8, 6))
    assert all(torch.equal(value, before[name]) for name, value in with_weights.named_parameters())
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    reestimate_statistics(net, images_NCHW)
    assert torch.equal(torch.rand(1), expected)


def test_networks_with_batch_norm_are_tested_twice_and_the_strict_number_stays():
    real, _ = toy_set(30, "real")
    images, labels = toy_set(12)
    # Images of another scale: what the network knows of them is right, its statistics are not.
    loud = (8 * images + 5, labels)
    strict = run_evaluate(network=BATCH, train=loud, seeds=(0, 1))
    both = run_evaluate(network=BATCH, train=loud, seeds=(0, 1), statistics_images=real)
    assert strict.with_real_statistics is None
    assert both.accuracies == strict.accuracies
    assert both.with_real_statistics is not None
    assert len(both.with_real_statistics) == 2
    assert sum(both.with_real_statistics) > sum(both.accuracies) + 20


@pytest.mark.parametrize("network", ["convnet-w8-d2", "vit"])
def test_networks_without_batch_norm_are_tested_once(network):
    real, _ = toy_set(30, "real")
    settings = FAST.model_copy(update={"epochs": 1})
    result = run_evaluate(network=network, settings=settings, statistics_images=real)
    assert result.with_real_statistics is None
