"""Fresh weights: in place, repeatable, and distributed as torch's own initialisation."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn

from atom.errors import ConfigError
from atom.nets import WeightDraw, build, fill_weights
from atom.streams import stream

NAMES = ("convnet-w8", "convnet-w8-batch", "convnet-w8-layer", "resnet18-batch", "vit")


def small(name):
    return build(name, channels=1, image_size=(8, 8), num_classes=5)


def bits(net):
    return [each.detach().clone() for each in (*net.parameters(), *net.buffers())]


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_same_stream_gives_the_same_bits_whatever_the_network_held(name):
    net = small(name)
    fill_weights(net, stream(3, "test", 1))
    expected = bits(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(float("nan"))
        net.train()(torch.ones(2, 1, 8, 8))
    fill_weights(net, stream(3, "test", 1))
    assert same(bits(net), expected)
    fill_weights(net, stream(3, "test", 2))
    assert not same(bits(net), expected)


def test_parameters_keep_identity_storage_and_layout():
    net = small("convnet-w8").to(memory_format=torch.channels_last)
    before = [(id(p), p.data_ptr(), p.stride()) for p in net.parameters()]
    fill_weights(net, stream(0, "test"))
    assert [(id(p), p.data_ptr(), p.stride()) for p in net.parameters()] == before


def test_memory_format_does_not_change_the_weights():
    net, other = small("convnet-w8"), small("convnet-w8").to(memory_format=torch.channels_last)
    fill_weights(net, stream(0, "test"))
    fill_weights(other, stream(0, "test"))
    assert same(bits(net), bits(other))


@pytest.mark.parametrize("name", ["convnet-w64", "vit"])
def test_bounds_and_variances_are_those_of_torch(name):
    drawn = small(name)
    fill_weights(drawn, stream(0, "test"))
    fresh = copy.deepcopy(drawn)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in fresh.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    for (path, parameter), other in zip(drawn.named_parameters(), fresh.parameters(), strict=True):
        ours, theirs = parameter.detach(), other.detach()
        if theirs.std() == 0:
            assert torch.equal(ours, theirs), path
        elif theirs.numel() >= 4096:
            assert ours.std() == pytest.approx(theirs.std().item(), rel=0.05), path
            assert abs(ours.mean()) < 5 * ours.std() / ours.numel() ** 0.5, path
            if "tokens" not in path:  # those are normal
                assert ours.abs().max() == pytest.approx(theirs.abs().max().item(), rel=0.01), path


@pytest.mark.parametrize(
    ("module", "fan_in"),
    [
        (nn.Linear(50, 400), 50),
        (nn.Conv2d(6, 300, 3, groups=2), 27),
        (nn.ConvTranspose2d(40, 30, 3), 270),
        (nn.Conv1d(5, 700, 4), 20),
    ],
    ids=["linear", "grouped", "transposed", "1d"],
)
def test_weight_and_bias_fill_the_interval_of_torch(module, fan_in):
    bound = fan_in**-0.5
    for reset in (lambda: fill_weights(module, stream(0, "test")), module.reset_parameters):
        reset()
        for parameter in (module.weight, module.bias):
            assert 0.85 * bound < parameter.abs().max() <= bound


def test_norms_start_anew():
    net = small("convnet-w8-batch").train()
    net(torch.randn(4, 1, 8, 8))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    fill_weights(net, stream(0, "test"))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
            assert (module.running_mean == 0).all()
            assert (module.running_var == 1).all()
            assert module.num_batches_tracked == 0


def test_draw_in_a_thread_touches_neither_network_nor_torch_generator():
    net = small("convnet-w8")
    plan, before, state, found = WeightDraw(net), bits(net), torch.random.get_rng_state(), []
    thread = threading.Thread(target=lambda: found.append(plan.draw(stream(0, "test"))))
    thread.start()
    thread.join(timeout=10)
    assert same(bits(net), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found[0].shape == (plan.size,)
    plan.load(found[0])
    expected = small("convnet-w8")
    fill_weights(expected, stream(0, "test"))
    assert same(bits(net), bits(expected))


def test_float64_networks_get_the_same_values():
    net = small("convnet-w8").double()
    fill_weights(net, stream(0, "test"))
    other = small("convnet-w8")
    fill_weights(other, stream(0, "test"))
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs.double())


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight


def test_shared_parameters_are_drawn_once():
    net = Shared()
    assert WeightDraw(net).size == 16 + 4 + 4
    fill_weights(net, stream(0, "test"))
    assert net.two.weight is net.one.weight


class ConstantConv(nn.Conv2d):
    def reset_parameters(self):
        nn.init.constant_(self.weight, 0.25)
        nn.init.zeros_(self.bias)


class Drawn(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3))

    def draw_weights(self, rng):
        self.table.copy_(torch.from_numpy(rng.standard_normal(3, dtype=np.float32)))


def test_foreign_modules_draw_for_themselves_and_repeatably():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.Sequential(ConstantConv(1, 2, 3), nn.Embedding(7, 4), nn.PReLU(), Drawn(), layer)
    state = torch.random.get_rng_state()
    fill_weights(net, stream(0, "test"))
    first = bits(net)
    assert (net[0].weight == 0.25).all()
    assert net[1].weight.std() > 0.5
    assert (net[2].weight == 0.25).all()
    assert net[3].table.std() > 0
    assert (layer.self_attn.out_proj.bias == 0).all()
    fill_weights(net, stream(1, "test"))
    assert not torch.equal(net[1].weight, first[2])
    assert not torch.equal(net[3].table, first[4])
    fill_weights(net, stream(0, "test"))
    assert same(bits(net), first)
    assert torch.equal(torch.random.get_rng_state(), state)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3))


def test_a_module_that_nothing_can_draw_is_named():
    with pytest.raises(
        ConfigError, match=r"module '1' \(Bare\): nothing says how to draw its parameters table"
    ):
        fill_weights(nn.Sequential(nn.Linear(2, 2), Bare()), stream(0, "test"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_on_a_gpu_are_those_on_the_host():
    net, other = small("convnet-w8-batch"), small("convnet-w8-batch").cuda()
    plan = WeightDraw(other)
    assert plan.draw(stream(0, "test")).is_pinned()
    fill_weights(net, stream(0, "test"))
    fill_weights(other, stream(0, "test"))
    assert same(bits(net), [each.cpu() for each in bits(other)])
