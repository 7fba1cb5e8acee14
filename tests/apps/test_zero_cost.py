"""Zero-cost scores against slow computations by hand, in float64; and what they leave alone."""

import copy
import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from apps.nas.zero_cost import METHODS, zero_cost_score
from atom.errors import ConfigError, ShapeError
from atom.nets import build, count_multiply_adds, count_parameters, fill_weights, parse_convnet
from atom.streams import stream

NORMS = ("nonorm", "batch", "layer", "instance", "group")
ACTIVATIONS = ("sigmoid", "relu", "leakyrelu")
POOLINGS = ("nopool", "max", "avg")
# Every norm and every activation with every pooling once, in nine networks instead of 45.
MIXED = [
    f"{NORMS[index % 5]}-{activation}-{pooling}"
    for index, (activation, pooling) in enumerate(product(ACTIVATIONS, POOLINGS))
]
B, C, H, W, K = 5, 2, 12, 8, 3
SMALL = (8, 4)  # pixels, where every weight is moved one by one
LEARNED = ("synflow", "naswot", "grad-norm", "jacob-cov")


def network(name, seed=0, image_size=(H, W)):
    """Fresh weights, norms with an affine part that is not the identity, float64."""
    net = build(name, channels=C, image_size=image_size, num_classes=K)
    fill_weights(net, stream(seed, "test/weights"))
    rng = stream(seed, "test/affine")
    with torch.no_grad():
        for path, parameter in net.named_parameters():
            if "norm" in path:
                parameter += torch.from_numpy(0.3 * rng.standard_normal(tuple(parameter.shape)))
    return net.double()


def batch(seed=0, num_images=B, shape=(C, H, W), num_classes=K):
    rng = stream(seed, "test/batch")
    images_BCHW = torch.from_numpy(rng.standard_normal((num_images, *shape)))
    return images_BCHW, torch.from_numpy(rng.integers(num_classes, size=num_images))


def score(method, net, images_BCHW, labels_B):
    return zero_cost_score(method, net, images_BCHW=images_BCHW, labels_B=labels_B)


def normalised(name, map_NCHW, weight, bias):
    """The norm of a ConvNet by its formula; layer, instance and group norms see one image at a time."""
    spec = parse_convnet(name)
    size = map_NCHW.shape
    if spec.norm == "none":
        return map_NCHW
    if spec.norm == "batch":
        values, dims = map_NCHW, (0, 2, 3)
    else:
        groups = {"layer": 1, "instance": size[1], "group": 4}[spec.norm]
        values, dims = map_NCHW.reshape(size[0], groups, -1), (2,)
    centred = values - values.mean(dims, keepdim=True)
    unit_NCHW = (centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt()).reshape(size)
    affine = (slice(None),) if spec.norm == "layer" else (slice(None), None, None)
    return unit_NCHW * weight[affine] + bias[affine]


def by_hand(name, state, images_NCHW, *, with_norms=True):
    """Logits of a ConvNet, and what its activations receive, from its weights alone."""
    spec, received, map_NCHW = parse_convnet(name), [], images_NCHW
    activate = {"sigmoid": torch.sigmoid, "relu": torch.relu, "leakyrelu": functional.leaky_relu}
    for block in range(spec.depth or 0):
        path = f"convs.{block}"
        conv = [state[f"{path}.conv.{part}"] for part in ("weight", "bias")]
        map_NCHW = functional.conv2d(map_NCHW, *conv, padding=1)
        if with_norms and spec.norm != "none":
            affine = [state[f"{path}.norm.{part}"] for part in ("weight", "bias")]
            map_NCHW = normalised(name, map_NCHW, *affine)
        received.append(map_NCHW)
        map_NCHW = activate[spec.activation](map_NCHW)
        if spec.pooling != "none":
            windows = map_NCHW.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # N, c, h, 2, w, 2
            map_NCHW = windows.mean((3, 5)) if spec.pooling == "avg" else windows.amax((3, 5))
    return map_NCHW.flatten(1) @ state["classifier.weight"].T + state["classifier.bias"], received


def layer_weights(state):
    return [name for name in state if name.endswith(("conv.weight", "classifier.weight"))]


def central_differences(function, tensor, step):
    """Derivative of a number with respect to every element of a tensor, which is moved and moved back."""
    slopes = torch.zeros_like(tensor)
    flat, out = tensor.view(-1), slopes.view(-1)
    for index in range(len(flat)):
        there = float(flat[index])
        ends = []
        for sign in (1, -1):
            flat[index] = there + sign * step
            ends.append(float(function()))
        flat[index] = there
        out[index] = (ends[0] - ends[1]) / (2 * step)
    return slopes


def exact_determinant(matrix):
    """Of integers, by fraction-free elimination."""
    rows, sign, last = [[int(each) for each in row] for row in matrix], 1, 1
    for pivot in range(len(rows) - 1):
        swap = next((i for i in range(pivot, len(rows)) if rows[i][pivot]), None)
        if swap is None:
            return 0
        if swap != pivot:
            rows[pivot], rows[swap], sign = rows[swap], rows[pivot], -sign
        for i, j in product(range(pivot + 1, len(rows)), range(pivot + 1, len(rows))):
            rows[i][j] = (rows[i][j] * rows[pivot][pivot] - rows[i][pivot] * rows[pivot][j]) // last
        for i in range(pivot + 1, len(rows)):
            rows[i][pivot] = 0
        last = rows[pivot][pivot]
    return sign * rows[-1][-1]


@pytest.mark.parametrize("parts", MIXED)
def test_synflow_equals_finite_differences_of_the_network_without_norms(parts):
    name = f"convnet-w4-d2-{parts}"
    net = network(name, image_size=SMALL)
    state = {key: value.abs() for key, value in net.state_dict().items()}
    ones_1CHW = torch.ones(1, C, *SMALL, dtype=torch.float64)
    flow = 0.0
    for key in layer_weights(state):
        slopes = central_differences(
            lambda: by_hand(name, state, ones_1CHW, with_norms=False)[0].sum(), state[key], 1e-5
        )
        flow += float((state[key] * slopes).abs().sum())
    assert score("synflow", net, *batch(shape=(C, *SMALL))) == pytest.approx(math.log(flow), abs=1e-8)


def test_synflow_of_a_perceptron_is_the_sum_over_its_paths():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    fill_weights(net, stream(1, "test"))
    first, second = (net[index].weight.abs().tolist() for index in (1, 3))
    bias = net[1].bias.abs().tolist()
    flow = 0.0
    for out, hidden in product(range(3), range(4)):
        # A path counts once for every weight on it: two from a pixel, one from a bias, none from the last bias.
        flow += sum(2 * first[hidden][pixel] * second[out][hidden] for pixel in range(6))
        flow += bias[hidden] * second[out][hidden]
    assert score("synflow", net, *batch(shape=(1, 3, 2))) == pytest.approx(math.log(flow), abs=1e-12)


def test_synflow_does_not_see_norms():
    names = [f"convnet-w4-d2-{norm}" for norm in NORMS]
    scores = [score("synflow", network(name), *batch()) for name in names]
    assert scores == [scores[0]] * len(names)


@pytest.mark.parametrize("method", ["synflow", "jacob-cov"])
def test_scores_without_a_loss_ignore_labels(method):
    net, (images_BCHW, labels_B) = network("convnet-w4-d2"), batch()
    assert score(method, net, images_BCHW, labels_B) == score(method, net, images_BCHW, 0 * labels_B)


@pytest.mark.parametrize(("norm", "activation"), list(product(NORMS, ACTIVATIONS)))
def test_naswot_equals_loops_over_images_and_units(norm, activation):
    name = f"convnet-w8-d2-{norm}-{activation}-max"
    net, (images_BCHW, labels_B) = network(name), batch()
    _, received = by_hand(name, net.state_dict(), images_BCHW)
    codes = [[value > 0 for layer in received for value in layer[i].flatten().tolist()] for i in range(B)]
    agreements = [[sum(a == b for a, b in zip(one, two, strict=True)) for two in codes] for one in codes]
    expected = math.log(exact_determinant(agreements))
    assert score("naswot", net, images_BCHW, labels_B) == pytest.approx(expected, rel=1e-12)


def test_naswot_is_minus_infinity_for_two_equal_images():
    images_BCHW, labels_B = batch()
    images_BCHW[3] = images_BCHW[1]
    assert score("naswot", network("convnet-w8-d2"), images_BCHW, labels_B) == -math.inf


def test_naswot_is_minus_infinity_where_units_are_fewer_than_images():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    images_BCHW, labels_B = batch(num_images=20, shape=(1, 2, 2), num_classes=2)
    assert score("naswot", net, images_BCHW, labels_B) == -math.inf


def test_naswot_counts_every_call_of_an_activation_that_is_used_twice():
    class Twice(nn.Module):
        def __init__(self, second):
            super().__init__()
            self.first, self.act, self.last = nn.Linear(8, 9), nn.ReLU(inplace=True), nn.Linear(9, 9)
            self.second = self.act if second is None else second

        def forward(self, images_BCHW):
            return self.second(self.last(self.act(self.first(images_BCHW.flatten(1)))))

    shared, apart = Twice(None).double(), Twice(nn.ReLU()).double()
    for net in (shared, apart):
        fill_weights(net, stream(2, "test"))
    batch_4 = batch(num_images=4, shape=(1, 2, 4))
    assert score("naswot", shared, *batch_4) == score("naswot", apart, *batch_4)


@pytest.mark.parametrize("parts", MIXED)
def test_grad_norm_equals_finite_differences(parts):
    name = f"convnet-w4-d2-{parts}"
    net, (images_BCHW, labels_B) = network(name, image_size=SMALL), batch(shape=(C, *SMALL))
    state = {key: value.clone() for key, value in net.state_dict().items()}

    def loss():
        logits_BK = by_hand(name, state, images_BCHW)[0]
        return sum(logits_BK[i].logsumexp(0) - logits_BK[i, labels_B[i]] for i in range(B)) / B

    norms = [float(central_differences(loss, state[key], 1e-6).norm()) for key in layer_weights(state)]
    assert score("grad-norm", net, images_BCHW, labels_B) == pytest.approx(sum(norms), rel=1e-6)


@pytest.mark.parametrize(("norm", "activation"), list(product(NORMS, ACTIVATIONS)))
def test_jacob_cov_equals_the_formula_on_the_full_jacobian(norm, activation):
    name = f"convnet-w8-d2-{norm}-{activation}-avg"
    net, (images_BCHW, labels_B) = network(name), batch()
    state = net.state_dict()
    # One matrix of all outputs and all images, summed over outputs: with BatchNorm images influence each other.
    full = torch.func.jacrev(lambda images: by_hand(name, state, images)[0])(images_BCHW)
    values = np.linalg.eig(np.corrcoef(full.sum((0, 1)).flatten(1).numpy()))[0]
    expected = -sum(math.log(v + 1e-5) + 1 / (v + 1e-5) for v in values)
    assert score("jacob-cov", net, images_BCHW, labels_B) == pytest.approx(expected, rel=1e-9)


def test_jacob_cov_ranks_a_linear_network_below_one_that_tells_images_apart():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(C * H * W, K)).double()
    fill_weights(linear, stream(3, "test"))
    low, high = (score("jacob-cov", net, *batch()) for net in (linear, network("convnet-w8-d2")))
    # All rows are equal: eigenvalues B and 0.
    zeros, all_of_it = (B - 1) * (math.log(1e-5) + 1e5), math.log(B + 1e-5) + 1 / (B + 1e-5)
    assert low == pytest.approx(-zeros - all_of_it, rel=1e-6)
    assert low < high < 0


def test_jacob_cov_is_minus_infinity_where_no_image_matters():
    net = network("convnet-w4-d1-nonorm-relu")
    with torch.no_grad():
        net.convs[0].conv.bias.fill_(-1e3)
    assert score("jacob-cov", net, *batch()) == -math.inf


def test_counts_are_those_of_the_network_modules():
    net, images = build("resnet18", channels=C, image_size=(H, W), num_classes=K), batch()
    assert score("parameters", net, *images) == count_parameters(net, C, (H, W))
    assert score("multiply-adds", net, *images) == count_multiply_adds(net, C, (H, W))


def everything(net):
    tensors = [*net.state_dict().values(), *(p.grad for p in net.parameters())]
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in net.modules()]
    marks = [
        [(name, module, module.training) for name, module in net.named_modules()],
        [(p.requires_grad, p.dtype, p.data_ptr()) for p in net.parameters()],
        hooks,
    ]
    return [each.clone() for each in tensors], marks


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["convnet-w8-d2-batch", "convnet-w8-d2-layer-leakyrelu-max"])
def test_network_images_and_random_numbers_are_left_as_they_were(method, name):
    net, (images_BCHW, labels_B) = network(name), batch()
    net(images_BCHW).sum().backward()  # gradients and running statistics that could change
    net.convs[0].eval()
    net.convs[1].conv.weight.requires_grad_(False)
    tensors, marks = everything(net)
    given, generator = images_BCHW.clone(), torch.get_rng_state()
    score(method, net, images_BCHW, labels_B)
    after, marks_after = everything(net)
    assert all(torch.equal(a, b) for a, b in zip(tensors, after, strict=True))
    assert marks == marks_after
    assert torch.equal(images_BCHW, given)
    assert not images_BCHW.requires_grad
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("method", METHODS)
def test_equal_weights_score_the_same_whatever_the_mode_and_what_is_frozen(method):
    net, images = network("convnet-w8-d2-batch"), batch()
    other = copy.deepcopy(net).eval().requires_grad_(False)
    with torch.no_grad():
        assert score(method, net, *images) == score(method, net, *images) == score(method, other, *images)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", NORMS)
def test_order_of_the_batch_does_not_matter(method, norm):
    net, (images_BCHW, labels_B) = network(f"convnet-w8-d2-{norm}"), batch()
    order_B = torch.tensor([3, 0, 4, 2, 1])
    one = score(method, net, images_BCHW, labels_B)
    assert score(method, net, images_BCHW[order_B], labels_B[order_B]) == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("method", LEARNED)
def test_float32_agrees_with_float64(method):
    net, (images_BCHW, labels_B) = network("convnet-w8-d2-instance"), batch()
    expected = score(method, net, images_BCHW, labels_B)
    assert score(method, net.float(), images_BCHW.float(), labels_B) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["resnet18-batch", "vit"])
@pytest.mark.parametrize("method", ["synflow", "grad-norm", "jacob-cov"])
def test_large_networks_have_a_finite_score_without_dropout(name, method):
    net = build(name, channels=C, image_size=(8, 8), num_classes=K)
    images = batch(shape=(C, 8, 8))
    generator = torch.get_rng_state()
    scores = {score(method, net, *images) for _ in range(2)}
    assert len(scores) == 1
    assert math.isfinite(scores.pop())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("method", LEARNED)
def test_network_with_nan_weights_is_refused(method):
    net = network("convnet-w8-d2")
    with torch.no_grad():
        net.convs[0].conv.weight[0] = math.nan
    with pytest.raises(ConfigError, match=f"{method}.*expected a finite number"):
        score(method, net, *batch())


def test_synflow_ranks_a_network_without_flow_last():
    net = network("convnet-w8-d2")
    with torch.no_grad():
        net.classifier.weight.zero_()
    assert score("synflow", net, *batch()) == -math.inf


@pytest.mark.parametrize("signs", ["000000", "303000", "3s10p3"])
def test_cells_have_every_score_though_nothing_may_lead_through_them(signs):
    net = build(f"nasbench201-n1-{signs}", channels=C, image_size=(H, W), num_classes=K).double()
    scores = {method: score(method, net, *batch()) for method in LEARNED}
    last = {method for method, value in scores.items() if value == -math.inf}
    assert last >= {"synflow", "jacob-cov"} if signs != "3s10p3" else not last


def test_naswot_refuses_functional_activations():
    net = build("resnet18", channels=C, image_size=(8, 8), num_classes=K)
    with pytest.raises(ConfigError, match=r"no activation module.*use modules"):
        score("naswot", net, *batch(shape=(C, 8, 8)))


def test_naswot_refuses_activations_that_do_not_have_images_first():
    net = nn.Sequential(nn.Flatten(0, 1), nn.ReLU(), nn.Unflatten(0, (B, C)), nn.Flatten(), nn.LazyLinear(K))
    net.double()(batch()[0])
    with pytest.raises(ConfigError, match=r"shape \(10, 12, 8\) for 5 images"):
        score("naswot", net, *batch())


@pytest.mark.parametrize("method", ["synflow", "grad-norm"])
def test_network_without_layer_weights_is_refused(method):
    with pytest.raises(ConfigError, match=f"{method}: the network has no convolution or linear layer"):
        score(method, nn.Sequential(nn.Flatten(), nn.ReLU()), *batch())


def test_wrong_arguments_are_refused_by_name():
    net, (images_BCHW, labels_B) = network("convnet-w4-d1"), batch()
    with pytest.raises(ConfigError, match="'snip' is unknown; known are parameters, multiply-adds, synflow"):
        score("snip", net, images_BCHW, labels_B)
    with pytest.raises(ShapeError, match=r"images have shape \(5, 2, 12\)"):
        score("naswot", net, images_BCHW[..., 0], labels_B)
    with pytest.raises(ShapeError, match=r"labels have shape \(4,\) for 5 images"):
        score("grad-norm", net, images_BCHW, labels_B[1:])
