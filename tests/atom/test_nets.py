"""Networks by name: shapes, features, independence of the images of a batch, bad names."""

from dataclasses import replace

import pytest
import torch

from atom.errors import ConfigError
from atom.nets import ConvNetSpec, build, convnet_space, known_names, parse_convnet, require_blocks
from atom.nets.shapes import plan_halving

SPACE = convnet_space()
OTHERS = ("alexnet", "alexnet-batch", "vgg11", "vgg11-batch", "resnet18", "resnet18-batch", "vit")
N, K = 3, 7


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def images(channels, size, num=N, seed=0):
    return torch.randn(num, channels, *size, generator=torch.Generator().manual_seed(seed))


def check_features(net, images_NCHW):
    """Blocks are maps of the batch, alive, and classifier(embedding) is what forward gives."""
    net.eval()
    with torch.no_grad():
        activations, embedding = net.blocks(images_NCHW)
        logits = net(images_NCHW)
    assert all(each.ndim == 4 and each.shape[0] == len(images_NCHW) for each in activations)
    assert embedding.shape == (len(images_NCHW), net.classifier.in_features)
    assert logits.shape == (len(images_NCHW), K)
    torch.testing.assert_close(logits, net.classifier(embedding), rtol=1e-5, atol=1e-5)
    for features in (*activations, embedding):
        assert features.isfinite().all()
        assert features.std(0).max() > 0, "features do not depend on the image"
    return activations, embedding


def test_space_holds_each_of_its_720_networks_once():
    assert len(SPACE) == 720
    assert len(set(SPACE)) == 720
    assert len({spec.name for spec in SPACE}) == 720
    assert convnet_space() == SPACE


@pytest.mark.parametrize("spec", SPACE[5::48], ids=lambda spec: spec.name)
def test_sampled_convnets_of_the_space_show_one_activation_a_block(spec):
    narrow = replace(spec, width=8)
    net = build(narrow.name, channels=2, image_size=(12, 10), num_classes=K)
    activations, _ = check_features(net, images(2, (12, 10)))
    assert len(activations) == spec.depth
    assert activations[0].shape == (N, 8, 12, 10)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (9, 30), (2, 16), (1, 4)])
@pytest.mark.parametrize("pooling", ["nopool", "max", "avg"])
@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group", "nonorm"])
def test_features_stay_alive_at_any_size_and_great_depth(size, pooling, norm):
    net = build(f"convnet-w8-d8-{norm}-leakyrelu-{pooling}", channels=1, image_size=size, num_classes=K)
    activations, _ = check_features(net, images(1, size))
    assert len(activations) == 8


def test_default_convnet_has_the_shapes_of_the_literature():
    net = build("convnet", channels=3, image_size=(32, 32), num_classes=K)
    activations, embedding = check_features(net, images(3, (32, 32)))
    assert [tuple(each.shape[1:]) for each in activations] == [(128, 32, 32), (128, 16, 16), (128, 8, 8)]
    assert embedding.shape == (N, 2048)


def test_images_of_28_pixels_give_maps_of_32():
    for name in ("convnet-w4", "alexnet", "resnet18"):
        net = build(name, channels=1, image_size=(28, 28), num_classes=K)
        with torch.no_grad():
            activations, _ = net.blocks(images(1, (28, 28), num=1))
        assert activations[0].shape[2:] == (32, 32), name


@pytest.mark.parametrize(("side", "depth"), [(8, 3), (32, 3), (33, 4), (64, 4), (128, 5), (224, 6)])
def test_default_depth_follows_the_image_size(side, depth):
    net = build("convnet-w4", channels=1, image_size=(side // 2, side), num_classes=K)
    assert len(net.convs) == depth


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (28, 30))])
def test_other_networks_take_any_size_and_channel_count(name, channels, size):
    check_features(build(name, channels=channels, image_size=size, num_classes=K), images(channels, size))


@pytest.mark.parametrize(("name", "grid"), [("vit", (8, 8)), ("alexnet", (32, 32))])
def test_large_images_pass(name, grid):
    net = build(name, channels=3, image_size=(128, 128), num_classes=K)
    activations, _ = check_features(net, images(3, (128, 128), num=2))
    assert activations[-1].shape[2:] == grid


def test_vit_drops_out_in_training_but_never_in_its_blocks():
    net = build("vit", channels=1, image_size=(8, 8), num_classes=K).train()
    batch = images(1, (8, 8))
    with torch.no_grad():
        assert not torch.equal(net(batch), net(batch))
        assert torch.equal(net.blocks(batch)[1], net.blocks(batch)[1])


@pytest.mark.parametrize(
    "name",
    ["convnet-w8", "convnet-w8-layer", "convnet-w8-group", "convnet-w8-nonorm", "convnet-w8-batch", *OTHERS],
)
def test_mixes_batch_says_whether_an_image_depends_on_its_neighbours(name):
    net = build(name, channels=1, image_size=(8, 8), num_classes=K).train()
    batch = images(1, (8, 8), num=4)
    with torch.no_grad():
        together = net.blocks(batch)[1]
        permuted = net.blocks(batch[[2, 0, 3, 1]])[1]
        fewer = net.blocks(batch[:2])[1]
    torch.testing.assert_close(permuted, together[[2, 0, 3, 1]], rtol=1e-4, atol=1e-4)
    is_independent = torch.allclose(fewer, together[:2], rtol=1e-4, atol=1e-4)
    assert is_independent is not net.mixes_batch
    assert net.mixes_batch is ("batch" in name)


def test_channels_last_gives_the_same_logits():
    net = build("convnet-w8", channels=3, image_size=(8, 8), num_classes=K)
    batch = images(3, (8, 8))
    with torch.no_grad():
        expected = net(batch)
        net = net.to(memory_format=torch.channels_last)
        found = net(batch.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_building_leaves_torch_generator_alone_and_repeats_itself():
    state = torch.random.get_rng_state()
    one = build("convnet-w8", channels=1, image_size=(8, 8), num_classes=K)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)  # what the generator holds does not matter
    two = build("convnet-w8", channels=1, image_size=(8, 8), num_classes=K)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_halving_is_left_out_where_one_position_would_meet_a_further_block():
    assert plan_halving((8, 8), [True] * 4) == ([True, True, False, True], (1, 1))
    assert plan_halving((1, 8), [True]) == ([False], (1, 8))
    assert plan_halving((7, 7), [True], round_up=True) == ([True], (4, 4))


def test_names_parse_in_any_order_and_print_in_one():
    spec = ConvNetSpec(width=64, depth=2, norm="none", activation="sigmoid", pooling="none")
    assert parse_convnet("convnet-nopool-sigmoid-d2-nonorm-w64") == spec
    assert spec.name == "convnet-w64-d2-nonorm-sigmoid-nopool"
    assert parse_convnet("convnet") == ConvNetSpec()
    assert parse_convnet("convnet-d4") == ConvNetSpec(depth=4)
    assert all(parse_convnet(each.name) == each for each in SPACE)
    assert parse_convnet(ConvNetSpec().name) == ConvNetSpec()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("convnt", r"unknown; known are convnet, alexnet.*Did you mean 'convnet'"),
        ("resnet-18", r"known are convnet.*Did you mean 'resnet18'"),
        ("vit-batch", r"'vit-batch': unknown; known are"),
        ("vgg11-bath", r"unknown norm 'bath'.*Did you mean 'batch'"),
        ("convnet-instanc", r"unknown part 'instanc'.*Did you mean 'instance'"),
        ("convnet-none", r"write nonorm or nopool"),
        ("convnet-d3-d4", r"'d4' gives the depth a second time"),
        ("convnet-d9", r"depth 9: expected 1 to 8"),
        ("convnet-w0", r"width 0: expected a positive"),
        ("convnet-w30-group", r"width 30 with norm group: expected a multiple of 4"),
        ("convnet-", r"unknown part ''"),
    ],
)
def test_bad_names_are_refused_with_a_hint(name, said):
    with pytest.raises(ConfigError, match=said):
        build(name, channels=1, image_size=(8, 8), num_classes=K)


@pytest.mark.parametrize("sizes", [(0, (8, 8), 5), (1, (0, 8), 5), (1, (8, 8), 0)])
def test_sizes_below_one_are_refused(sizes):
    channels, image_size, num_classes = sizes
    with pytest.raises(ConfigError, match="expected at least 1"):
        build("convnet", channels=channels, image_size=image_size, num_classes=num_classes)


def test_unknown_choice_in_a_spec_is_refused():
    with pytest.raises(ConfigError, match="norm 'btach': unknown; known are none, batch"):
        ConvNetSpec(norm="btach")


def test_all_known_names_build_and_can_distil():
    for name in known_names():
        net = build(name, channels=1, image_size=(8, 8), num_classes=K)
        assert require_blocks(net, name) is net
