import numpy as np
import pytest
from distill_samples import make_distiller, make_settings, real_images, run
from torch import nn

from atom.errors import ConfigError
from atom.methods.method import State

NETWORKS = ["alexnet", "vgg11", "resnet18", "vit", "convnet-w4-d2-batch", "convnet-w4-d2-nonorm-sigmoid-max"]
SIZE = (8, 6)


def distil(network: str, class_ids: list[int], *, until: int = 1, **values: object) -> State:
    return run(make_settings(network=network, batch_real=4, **values), class_ids, until, size=SIZE)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_distils(network: str) -> None:
    start, end = distil(network, [0, 1], until=0), distil(network, [0, 1])
    assert bool(np.isfinite(end.images).all())
    assert bool(np.isfinite(end.losses).all())
    assert bool((np.abs(end.images - start.images).max(axis=(1, 2, 3, 4)) > 0).all())


@pytest.mark.parametrize("network", ["convnet-w4-d2", "convnet-w4-d2-batch", "convnet-w4-d2-layer"])
def test_a_class_does_not_depend_on_the_others_of_its_group(network: str) -> None:
    first, second = distil(network, [0, 1], until=2, ipc=2), distil(network, [0, 3], until=2, ipc=2)
    np.testing.assert_allclose(first.images[0], second.images[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first.losses[:, 0], second.losses[:, 0], rtol=1e-4)


def test_batch_statistics_are_those_of_the_batch_and_dropout_is_silent() -> None:
    settings = make_settings(network="convnet-w4-d2-batch")
    distiller = make_distiller(settings)
    modes = {type(module): module.training for module in distiller.net.modules()}
    assert modes[nn.BatchNorm2d]
    assert not modes[nn.Conv2d]
    assert not any(parameter.requires_grad for parameter in distiller.net.parameters())


def test_batch_norm_gives_the_same_bits_after_other_groups() -> None:
    settings, real = make_settings(network="convnet-w4-d2-batch"), real_images()
    distiller = make_distiller(settings)
    run(settings, [2, 3], 2, distiller=distiller)
    state = distiller.start([0, 1], real)
    again = distiller.advance(state, 2, unit=[0, 1], real=real)
    assert np.array_equal(again.images, run(settings, [0, 1], 2).images)


def test_attention_needs_two_blocks() -> None:
    with pytest.raises(ConfigError, match="pass a deeper network or --method dm"):
        distil("convnet-w4-d1", [0])
    assert distil("convnet-w4-d1", [0], method="dm").iteration == 1


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no method blocks"):
        distil(f"{__file__}:headless", [0])


def headless(*, channels: int, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size[0] * image_size[1], num_classes))
