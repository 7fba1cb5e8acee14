import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from atom.errors import ConfigError, ShapeError
from atom.methods import matching_reference as reference
from atom.methods.matching import (
    Objective,
    channel_attention,
    class_statistics,
    matching_loss,
    power,
    spatial_attention,
)
from atom.methods.matching_defaults import default_task_balance

METHODS = ["atom", "spatial", "channel", "dm"]


def features(seed: int = 0, *, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 5, 4, generator=generator, dtype=torch.float64)


class TwoBlocks(nn.Module):
    """Two convolutions in float64, small enough for loops, with every dimension of its own size."""

    mixes_batch = False

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = torch.randn(3, 2, 3, 3, generator=generator, dtype=torch.float64)
        self.second = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)

    def blocks(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        one = nn.functional.conv2d(images, self.first, padding=1).relu()
        two = nn.functional.conv2d(one, self.second, padding=1).relu()
        return [one, two], nn.functional.avg_pool2d(two, 2).flatten(1)


class Unchanged:
    """A network whose every block gives the images back."""

    def __init__(self, num_blocks: int, *, mixes_batch: bool = False) -> None:
        self.num_blocks, self.mixes_batch = num_blocks, mixes_batch
        self.seen: list[int] = []

    def blocks(self, images_NCHW: Tensor, /) -> tuple[list[Tensor], Tensor]:
        self.seen.append(len(images_NCHW))
        return [images_NCHW] * self.num_blocks, images_NCHW.flatten(1)


@pytest.mark.parametrize("exponent", [1, 2, 3, 4, 5, 8])
def test_power_equals_pow(exponent: int) -> None:
    torch.testing.assert_close(power(features(), exponent), features().abs().pow(exponent))


@pytest.mark.parametrize("exponent", [1, 2, 4])
def test_attention_maps_equal_the_reference(exponent: int) -> None:
    spatial = spatial_attention(features(), exponent=exponent)
    channel = channel_attention(features(), exponent=exponent)
    for row, feature in enumerate(features()):
        expected = torch.tensor(reference.spatial_map(feature, exponent), dtype=torch.float64)
        torch.testing.assert_close(spatial[row], expected)
        expected = torch.tensor(reference.channel_map(feature, exponent), dtype=torch.float64)
        torch.testing.assert_close(channel[row], expected)


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 50))
def test_attention_ignores_the_scale_of_a_layer(scale: float, seed: int) -> None:
    torch.testing.assert_close(spatial_attention(scale * features(seed)), spatial_attention(features(seed)))
    torch.testing.assert_close(channel_attention(scale * features(seed)), channel_attention(features(seed)))


def test_a_silent_layer_gives_zeros_and_a_finite_gradient() -> None:
    silent = torch.zeros(2, 3, 4, 5, requires_grad=True)
    total = spatial_attention(silent).sum() + channel_attention(silent).sum()
    (gradient,) = torch.autograd.grad(total, silent)
    assert total.item() == 0
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("attention", [spatial_attention, channel_attention])
def test_attention_gradient_is_right(attention: object) -> None:
    assert torch.autograd.gradcheck(attention, features().requires_grad_())


def test_attention_refuses_flat_features() -> None:
    with pytest.raises(ShapeError, match="expected \\[N, C, H, W\\]"):
        spatial_attention(torch.zeros(3, 4))


def objective(method: str, task_balance: float = 0.01) -> Objective:
    return Objective(method in ("atom", "spatial"), method in ("atom", "channel"), 4, task_balance)


def losses(real: Tensor, synthetic: Tensor, chosen: Objective, *, num_classes: int = 1) -> Tensor:
    net = TwoBlocks()
    targets, own = (
        class_statistics(net, images, num_classes=num_classes, objective=chosen)
        for images in (real, synthetic)
    )
    counts = (len(real) // num_classes, len(synthetic) // num_classes)
    return matching_loss(targets, own, objective=chosen, counts=counts)


@pytest.mark.parametrize("method", METHODS)
def test_loss_equals_the_reference(method: str) -> None:
    real, synthetic = features(0, count=6), features(1, count=4)
    chosen = objective(method, task_balance=0.3)
    expected = [
        reference.class_loss(TwoBlocks().blocks, r, s, method=method, p=4, task_balance=0.3)
        for r, s in zip(real.chunk(2), synthetic.chunk(2), strict=True)
    ]
    torch.testing.assert_close(
        losses(real, synthetic, chosen, num_classes=2), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize("method", METHODS)
def test_gradient_equals_central_differences_of_the_reference(method: str) -> None:
    real, synthetic = features(0), features(1, count=1).requires_grad_()
    chosen = objective(method)
    (gradient,) = torch.autograd.grad(losses(real, synthetic, chosen).sum(), synthetic)

    def slow(images: Tensor) -> float:
        return reference.class_loss(TwoBlocks().blocks, real, images, method=method, p=4, task_balance=0.01)

    torch.testing.assert_close(
        gradient, reference.numeric_gradient(slow, synthetic.detach()), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("method", METHODS)
def test_loss_gradient_passes_gradcheck(method: str) -> None:
    real = features(0)
    assert torch.autograd.gradcheck(
        lambda images: losses(real, images, objective(method)), features(1, count=2).requires_grad_()
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_set_matches_itself(method: str) -> None:
    assert losses(features(), features(), objective(method)).item() == 0


@pytest.mark.parametrize("method", METHODS)
def test_order_within_a_class_does_not_matter(method: str) -> None:
    real, synthetic = features(0, count=5), features(1)
    torch.testing.assert_close(
        losses(real[[3, 1, 4, 0, 2]], synthetic[[2, 0, 1]], objective(method)),
        losses(real, synthetic, objective(method)),
    )


def test_atom_is_spatial_plus_channel_with_one_embedding_term() -> None:
    real, synthetic = features(0), features(1)
    parts = {method: losses(real, synthetic, objective(method)) for method in METHODS}
    torch.testing.assert_close(parts["atom"], parts["spatial"] + parts["channel"] - parts["dm"])


def test_classes_do_not_influence_each_other() -> None:
    real, synthetic, chosen = features(0, count=6), features(1, count=4), objective("atom")
    together = losses(real, synthetic, chosen, num_classes=2)
    alone = [losses(r, s, chosen) for r, s in zip(real.chunk(2), synthetic.chunk(2), strict=True)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_network_that_mixes_the_batch_sees_one_class_at_a_time() -> None:
    net = Unchanged(2, mixes_batch=True)
    together = class_statistics(net, features(0, count=6), num_classes=3, objective=objective("atom"))
    assert net.seen == [2, 2, 2]
    assert [tuple(statistic.shape) for statistic in together] == [(3, 20), (3, 2), (3, 40)]


def test_attention_needs_more_than_one_block() -> None:
    net = Unchanged(1)
    with pytest.raises(ConfigError, match="pass a deeper network or --method dm"):
        class_statistics(net, features(), num_classes=1, objective=objective("atom"))
    assert len(class_statistics(net, features(), num_classes=1, objective=objective("dm"))) == 1


def test_statistics_of_bfloat16_features_are_float32() -> None:
    images = features().bfloat16()
    statistics = class_statistics(Unchanged(2), images, num_classes=1, objective=objective("atom"))
    assert {statistic.dtype for statistic in statistics} == {torch.float32}


def test_balance_grows_with_the_image() -> None:
    assert (default_task_balance(32, 32), default_task_balance(64, 64)) == (0.01, 0.02)
