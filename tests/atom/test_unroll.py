"""The walk back through a training against the full unroll, in float64."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from atom import nets
from atom.augment import augment, draw_params
from atom.errors import ConfigError
from atom.methods import unroll_reference
from atom.methods.unroll import SGD, Adam, FlatNetwork, Optimizer, Training
from atom.streams import stream

CLASSES, IMAGES = 3, 6
OPTIMIZERS: dict[str, tuple[Optimizer, dict[str, float | str]]] = {
    "sgd": (SGD(), {"optimizer": "sgd"}),
    "momentum": (SGD(0.9, 0.01), {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (Adam(), {"optimizer": "adam"}),
}


def random(*shape: int, purpose: str = "values") -> Tensor:
    return torch.from_numpy(stream(0, f"test/{purpose}").standard_normal(shape))


def small_network() -> nn.Module:
    net = nets.build("convnet-w4-d2", channels=2, image_size=(6, 4), num_classes=CLASSES).double().eval()
    nets.fill_weights(net, stream(0, "test/weights"))
    return net


def make_leaves() -> dict[str, Tensor]:
    leaves = {
        "images": random(IMAGES, 2, 6, 4),
        "logits": random(IMAGES, CLASSES, purpose="logits"),
        "log_rate": torch.tensor(-2.0, dtype=torch.float64),
    }
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def step_loss(logits_of: object, leaves: Mapping[str, Tensor], number: int) -> Tensor:
    """Cross-entropy with learned labels on four of the images, augmented; other ones in every step."""
    rows = torch.from_numpy(stream(0, "test/rows", number).permutation(IMAGES)[:4])
    params = draw_params(
        ("color", "scale"), num_rows=4, height=6, width=4, rng=stream(1, "test/rows", number)
    )
    images = augment(leaves["images"][rows], torch.from_numpy(params))
    return cross_entropy(logits_of(images), leaves["logits"][rows].softmax(1))  # pyrefly: ignore[not-callable]


def rate(leaves: Mapping[str, Tensor], number: int) -> Tensor:
    return leaves["log_rate"].exp() / (1 + number)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_walk_equals_the_full_unroll(name: str, num_steps: int, start: int) -> None:
    optimizer, reference = OPTIMIZERS[name]
    net, leaves, steps = small_network(), make_leaves(), range(start, start + num_steps)
    flat = FlatNetwork(net)
    test_images, test_labels = random(5, 2, 6, 4, purpose="test"), torch.tensor([0, 1, 2, 0, 1])
    names = [parameter for parameter, _ in net.named_parameters()]

    def of_list(weights: Sequence[Tensor], images: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (images,))

    judged, expected = unroll_reference.unrolled(
        lambda weights, leaves, number: step_loss(lambda images: of_list(weights, images), leaves, number),
        lambda weights: cross_entropy(of_list(weights, test_images), test_labels),
        list(net.parameters()),
        leaves,
        rate=rate,
        steps=steps,
        **reference,  # pyrefly: ignore[bad-argument-type]
    )
    training = Training(
        lambda weights, leaves, number: step_loss(lambda images: flat(weights, images), leaves, number),
        rate,
        optimizer,
    )
    states = training.run(optimizer.start(flat.weights()), leaves, steps)
    last = states[-1][0].requires_grad_()
    loss = cross_entropy(flat(last, test_images), test_labels)
    (cotangent,) = torch.autograd.grad(loss, last)
    found = training.gradients(states, leaves, steps, cotangent)
    assert loss.item() == pytest.approx(judged, rel=1e-12)
    for leaf in leaves:
        scale = float(expected[leaf].abs().max())
        assert scale > 0
        # Adam's first step is hardly more than the gradient's sign: what is left of its derivative is a difference.
        tolerance = 1e-11 if name == "adam" else 1e-12
        assert float((found[leaf] - expected[leaf]).abs().max()) <= tolerance * scale, leaf


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torch(name: str) -> None:
    optimizer, _ = OPTIMIZERS[name]
    target = random(7, purpose="target")
    weights = nn.Parameter(random(7))
    theirs = {
        "sgd": lambda: torch.optim.SGD([weights], lr=0.1),
        "momentum": lambda: torch.optim.SGD([weights], lr=0.1, momentum=0.9, weight_decay=0.01),
        "adam": lambda: torch.optim.Adam([weights], lr=0.1),
    }[name]()
    training = Training(lambda values, _, number: ((values - target) ** 4).sum(), lambda *_: 0.1, optimizer)
    states = training.run(optimizer.start(weights.detach().clone()), {}, range(4))
    for _ in range(4):
        theirs.zero_grad()
        ((weights - target) ** 4).sum().backward()
        theirs.step()
    torch.testing.assert_close(states[-1][0], weights.detach(), rtol=1e-7, atol=1e-9)


def test_a_dead_weight_has_a_finite_gradient_under_adam() -> None:
    training = Training(lambda values, leaves, _: (values[0] * leaves["x"]).square(), lambda *_: 0.1, Adam())
    leaves = {"x": torch.tensor(2.0)}
    states = training.run(Adam().start(torch.ones(2)), leaves, range(3))
    found = training.gradients(states, leaves, range(3), torch.ones(2))
    assert bool(found["x"].isfinite())


def test_a_leaf_that_nothing_depends_on_has_a_gradient_of_zero() -> None:
    training = Training(lambda values, leaves, _: values.square().sum(), lambda *_: 0.1, SGD())
    leaves = {"unused": torch.ones(3)}
    states = training.run((torch.ones(2),), leaves, range(2))
    assert training.gradients(states, leaves, range(2), torch.ones(2))["unused"].tolist() == [0, 0, 0]


def test_batch_norm_is_refused() -> None:
    net = nets.build("convnet-w4-d2-batch", channels=2, image_size=(6, 4), num_classes=CLASSES)
    with pytest.raises(ConfigError, match="networks with BatchNorm do not allow"):
        FlatNetwork(net)
