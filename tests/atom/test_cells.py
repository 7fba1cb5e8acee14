"""NAS-Bench-201's networks: names both ways, the published sizes, what a cell computes, and images of any size."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from atom.errors import ConfigError
from atom.nets import (
    CellSpec,
    build,
    cell_space,
    count_multiply_adds,
    count_parameters,
    parse_architecture,
    parse_cell,
    require_blocks,
    with_batch_norm,
)
from atom.nets.cells import Cell, CellNet

SPACE = cell_space()
N, C, H, W, K = 3, 2, 9, 14, 7
CUT = ("nasbench201-n1-000000", "nasbench201-n1-303000", "nasbench201-n1-s00003")
"""Nothing leads from the image to the logits."""


def test_the_space_has_15625_networks_with_short_names_that_are_safe_in_files():
    names = [spec.name for spec in SPACE]
    assert len(set(names)) == len(names) == 5**6
    assert all(re.fullmatch(r"nasbench201-[0s13p]{6}", name) for name in names)
    assert (names[0], names[-1]) == ("nasbench201-000000", "nasbench201-pppppp")


def test_every_name_and_every_string_of_the_benchmark_means_its_network():
    assert tuple(parse_cell(spec.name) for spec in SPACE) == SPACE
    assert tuple(parse_architecture(spec.architecture) for spec in SPACE) == SPACE
    small = CellSpec(SPACE[777].operations, cells=1)
    assert parse_cell(small.name) == small == parse_architecture(SPACE[777].architecture, cells=1)


def test_the_benchmarks_strings_list_the_edges_of_each_node():
    best = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    assert parse_architecture(best).name == "nasbench201-333s33"
    assert parse_cell("nasbench201-0s13p0").architecture == (
        "|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|"
    )


@pytest.mark.parametrize(
    "name",
    ["nasbench201", "nasbench201-33333", "nasbench201-33333x", "nasbench201-n-333333", "nasbench201-n1"],
)
def test_other_names_are_refused_with_what_is_expected(name):
    with pytest.raises(
        ConfigError, match=r"expected nasbench201-3s10p3 or .* 0 none, s skip_connect, 1 nor_"
    ):
        build(name, channels=C, image_size=(H, W), num_classes=K)


def test_numbers_of_cells_and_operations_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="with 0 cells a stage: expected 1 to 20"):
        parse_cell("nasbench201-n0-333333")
    with pytest.raises(ConfigError, match="operations none, conv: expected 6 of none, skip_connect"):
        CellSpec(("none", "conv"))  # pyrefly: ignore


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|nor_conv_3x3~0|",
        SPACE[9].architecture.replace("~2", "~1"),
        SPACE[9].architecture.replace("none", "nor_conv_7x7"),
        SPACE[9].architecture + "+|none~0|",
    ],
)
def test_other_strings_are_refused(text):
    with pytest.raises(ConfigError, match=r"expected one of NAS-Bench-201, .* edges 0-1, 0-2, 1-2"):
        parse_architecture(text)


def test_sizes_and_costs_are_the_published_ones():
    """The extremes of the benchmark's tables on CIFAR-10 and CIFAR-100, in millions; it counts the biases as well."""
    for name, num_classes, parameters, cost in (
        ("nasbench201-000000", 10, 0.073306, 7.78305),
        ("nasbench201-333333", 10, 1.531546, 220.11969),
        ("nasbench201-000000", 100, 0.079156, 7.7889),
        ("nasbench201-333333", 100, 1.537396, 220.12554),
    ):
        spec = parse_cell(name)
        assert count_parameters(spec, 3, (32, 32), num_classes=num_classes) == round(parameters * 1e6)
        found = count_multiply_adds(spec, 3, (32, 32), num_classes=num_classes) + num_classes
        assert found == round(cost * 1e6)


@pytest.mark.parametrize(
    "spec", [*SPACE[::1201], SPACE[-1], parse_cell("nasbench201-333333")], ids=lambda s: s.name
)
def test_arithmetic_equals_the_built_networks(spec):
    small = CellSpec(spec.operations, cells=2)
    for channels, size in ((3, (8, 8)), (1, (28, 28)), (C, (H, W))):
        net = build(small.name, channels=channels, image_size=size, num_classes=K)
        assert count_parameters(small, channels, size, num_classes=K) == count_parameters(net, channels, size)
        expected = count_multiply_adds(small, channels, size, num_classes=K)
        assert expected == count_multiply_adds(net, channels, size)
    with torch.device("meta"):
        published = CellNet(spec, channels=3, image_size=(32, 32), num_classes=10)
    assert count_parameters(spec, 3, (32, 32)) == count_parameters(published, 3, (32, 32))


@pytest.mark.parametrize("signs", ["0s13p0", "31sp03", "pppsss", "1p3s31"])
def test_a_cell_is_the_sum_over_the_paths_of_its_string(signs):
    torch.manual_seed(0)
    spec = parse_cell(f"nasbench201-{signs}")
    cell, map_NCHW = Cell(spec.operations, 4).double(), torch.randn(N, 4, 5, 6, dtype=torch.float64)
    convs = iter([module for module in cell.modules() if isinstance(module, nn.Conv2d)])
    values = {0: map_NCHW}
    for node, text in enumerate(spec.architecture.split("+"), 1):
        values[node] = torch.zeros_like(map_NCHW)
        for operation, source in (edge.split("~") for edge in text.strip("|").split("|")):
            given = values[int(source)]
            if operation == "skip_connect":
                values[node] = values[node] + given
            elif operation == "avg_pool_3x3":
                # The mean of the neighbours that there are.
                ones = functional.avg_pool2d(torch.ones_like(given), 3, 1, 1)
                values[node] = values[node] + functional.avg_pool2d(given, 3, 1, 1) / ones
            elif operation != "none":
                weight = next(convs).weight
                made = functional.conv2d(given.relu(), weight, padding=int(operation[-1]) // 2)
                values[node] = values[node] + functional.batch_norm(made, None, None, training=True)
    torch.testing.assert_close(cell(map_NCHW), values[3])


def test_three_stages_are_the_feature_blocks():
    net = build("nasbench201-n1-3s10p3", channels=C, image_size=(H, W), num_classes=K)
    assert require_blocks(net, "it") is net
    assert net.mixes_batch
    images_NCHW = torch.randn(N, C, H, W)
    maps, embedding = net.eval().blocks(images_NCHW)
    assert [tuple(each.shape[1:]) for each in maps] == [(16, 9, 14), (32, 5, 7), (64, 3, 4)]
    assert all((each >= 0).all() for each in maps)
    torch.testing.assert_close(net.classifier(embedding), net(images_NCHW))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (3, 7), (8, 8), (28, 28)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size_are_taken(size, channels):
    net = build("nasbench201-n1-3ps13s", channels=channels, image_size=size, num_classes=K)
    assert net(torch.randn(N, channels, *size)).shape == (N, K)


@pytest.mark.parametrize("name", CUT)
def test_a_network_that_nothing_leads_through_trains_on_and_answers_all_images_alike(name):
    net = build(name, channels=C, image_size=(H, W), num_classes=K)
    images_NCHW = torch.randn(N, C, H, W, requires_grad=True)
    loss = functional.cross_entropy(net(images_NCHW), torch.arange(N))
    (of_images,) = torch.autograd.grad(loss, images_NCHW, retain_graph=True)
    assert not of_images.any()
    loss.backward()
    # Weights that decide on nothing have a gradient of 0, not none: what sums over weights need not know of them.
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())
    logits = net.eval()(images_NCHW)
    torch.testing.assert_close(logits, logits[:1].expand(N, K))


def test_a_network_of_the_space_is_its_own_sibling_with_batch_norm():
    assert with_batch_norm("nasbench201-n1-333333") == "nasbench201-n1-333333"
