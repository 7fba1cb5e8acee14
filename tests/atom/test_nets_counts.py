"""Parameters and multiply-adds: arithmetic against real networks, torch's counter, and known figures."""

import statistics

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from atom.nets import ConvNetSpec, build, convnet_space, count_multiply_adds, count_parameters
from atom.nets.plain import convnet

SPACE = convnet_space()


def flops(net, channels, size):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, channels, *size))
    return counter.get_total_flops()


def test_default_network_has_the_known_size_and_cost():
    assert count_parameters(ConvNetSpec(), 3, (32, 32)) == 320_010
    assert count_multiply_adds(ConvNetSpec(), 3, (32, 32)) == 50_745_344


def test_sizes_of_the_space_are_the_known_ones():
    parameters = [count_parameters(spec, 3, (32, 32)) for spec in SPACE]
    assert (min(parameters), statistics.median(parameters), max(parameters)) == (24_522, 375_354, 6_496_010)


def test_costs_of_the_space_are_the_known_ones():
    costs = [count_multiply_adds(spec, 3, (32, 32)) / 1e6 for spec in SPACE]
    found = tuple(round(value, 2) for value in (min(costs), statistics.median(costs), max(costs)))
    assert found == (0.97, 14.16, 1821.64)
    assert sum(costs) == pytest.approx(96_400, rel=1e-3)


def test_arithmetic_equals_the_parameters_of_all_720_networks():
    with torch.device("meta"):
        for spec in SPACE:
            net = convnet(spec, channels=3, image_size=(32, 32), num_classes=10)
            assert count_parameters(spec, 3, (32, 32)) == count_parameters(net, 3, (32, 32)), spec.name


@pytest.mark.parametrize("spec", SPACE[7:360:61], ids=lambda spec: spec.name)
@pytest.mark.parametrize(("channels", "size"), [(3, (8, 8)), (1, (28, 28)), (2, (9, 14))])
def test_arithmetic_equals_a_real_network(spec, channels, size):
    net = build(spec.name, channels=channels, image_size=size, num_classes=7)
    assert count_parameters(spec, channels, size, num_classes=7) == count_parameters(net, channels, size)
    expected = count_multiply_adds(spec, channels, size, num_classes=7)
    assert 2 * expected == flops(net, channels, size)
    assert count_multiply_adds(net, channels, size) == expected


def test_depth_left_open_is_counted_at_its_default():
    assert count_parameters(ConvNetSpec(), 3, (64, 64)) == count_parameters(ConvNetSpec(depth=4), 3, (64, 64))


def test_other_networks_are_counted_by_running_them():
    net = build("resnet18", channels=3, image_size=(32, 32), num_classes=10).train()
    assert count_multiply_adds(net, 3, (32, 32)) == pytest.approx(555.4e6, rel=1e-3)
    assert count_parameters(net, 3, (32, 32)) == pytest.approx(11.17e6, rel=1e-3)
    assert net.training
