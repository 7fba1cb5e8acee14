"""Which images of a class are kept, in which order, and how a distilled set from disk becomes a memory."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from apps.continual.precomputed import from_distilled
from apps.continual.selection import KINDS, order_distilled, select
from atom import coreset, formation
from atom.distilled import DistilledSet
from atom.embedding import embed
from atom.errors import ConfigError
from atom.preprocess import Preprocess

C, H, W = 2, 8, 6
NETWORK = "convnet-w4-d2"
NAMES = ("cat", "dog", "owl", "bee", "elk")


def white_noise(number: int, *, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(number, C, H, W)).astype(np.float32))


def preprocessing(*, zca: bool, seed: int = 0) -> Preprocess:
    pixels = np.random.default_rng(seed).integers(0, 200 + seed, (120, C, H, W)).astype(np.uint8)
    return Preprocess.fit(pixels, zca=zca)


def make_set(*, ipc: int = 4, factor: int = 1, zca: bool = True) -> DistilledSet:
    return DistilledSet(
        images_NCHW=white_noise(len(NAMES) * ipc, seed=3),
        labels=torch.arange(len(NAMES)).repeat_interleave(ipc),
        class_names=NAMES,
        ipc=ipc,
        factor=factor,
        method="atom",
        preprocess=preprocessing(zca=zca),
    )


def take(distilled: DistilledSet, classes=(3, 1), **changes):
    arguments = {
        "storage": "float32",
        "class_names": NAMES,
        "image_shape": (C, H, W),
        "preprocess": distilled.preprocess,
        "seed": 0,
        "network": NETWORK,
    }
    return from_distilled(distilled, classes, **(arguments | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_smaller_choice_is_a_prefix_of_a_larger_one(kind):
    white_NCHW = white_noise(11)
    chosen = [
        select(kind, white_NCHW, number=n, seed=2, class_id=4, network=NETWORK).tolist() for n in range(1, 15)
    ]
    for smaller, larger in pairwise(chosen):
        assert larger[: len(smaller)] == smaller
    assert sorted(chosen[10]) == list(range(11))
    assert chosen[13] == chosen[10]


@pytest.mark.parametrize("kind", ["herding", "kcenter"])
def test_choice_is_the_coreset_of_the_embedding(kind):
    white_NCHW = white_noise(11)
    features_ND = embed(white_NCHW, NETWORK, num_classes=2, seed=2, precision="float32").numpy()
    rows = select(kind, white_NCHW, number=6, seed=2, class_id=4, network=NETWORK)
    np.testing.assert_array_equal(rows, coreset.select(kind, features_ND, count=6))


def test_random_choice_depends_on_the_seed_and_the_class_alone():
    white_NCHW, other_NCHW = white_noise(30), white_noise(30, seed=5)

    def draw(images_NCHW: torch.Tensor, *, seed: int, class_id: int) -> list[int]:
        return select("random", images_NCHW, number=9, seed=seed, class_id=class_id).tolist()

    assert draw(white_NCHW, seed=0, class_id=1) == draw(other_NCHW, seed=0, class_id=1)
    assert draw(white_NCHW, seed=0, class_id=1) != draw(white_NCHW, seed=0, class_id=2)
    assert draw(white_NCHW, seed=0, class_id=1) != draw(white_NCHW, seed=1, class_id=1)


def test_selection_that_makes_no_sense_is_refused():
    with pytest.raises(
        ConfigError, match="kind 'best' selects no images; known are random, herding, kcenter"
    ):
        select("best", white_noise(3), number=1, seed=0, class_id=0)
    with pytest.raises(ConfigError, match="selection of 0 images for class 7"):
        select("random", white_noise(3), number=0, seed=0, class_id=7)


@pytest.mark.parametrize("factor", [1, 2])
def test_every_prefix_of_the_distilled_order_takes_the_image_that_brings_its_mean_closest(factor):
    white_NCHW = white_noise(7)
    decoded = formation.decode(white_NCHW, factor)
    features = embed(decoded, NETWORK, num_classes=2, seed=1, precision="float32").double()
    features_ND = features.unflatten(0, (7, factor**2)).mean(dim=1).numpy()
    order = order_distilled(white_NCHW, seed=1, factor=factor, network=NETWORK).tolist()
    for size in range(1, 8):
        before = order[: size - 1]
        distance = {
            row: np.linalg.norm(features_ND[[*before, row]].mean(axis=0) - features_ND.mean(axis=0))
            for row in range(7)
            if row not in before
        }
        assert distance[order[size - 1]] <= min(distance.values()) + 1e-9


def test_order_of_distilled_images_moves_with_them():
    white_NCHW, shuffle = white_noise(6), [4, 0, 5, 2, 1, 3]
    order = order_distilled(white_NCHW, seed=0, network=NETWORK)
    moved = order_distilled(white_NCHW[shuffle], seed=0, network=NETWORK)
    assert [shuffle[row] for row in moved] == order.tolist()


@pytest.mark.parametrize("factor", [1, 2])
def test_set_from_disk_gives_its_images_by_class_in_the_distilled_order(factor, tmp_path):
    distilled = DistilledSet.load(make_set(factor=factor).save(tmp_path / "set"))
    exemplars = take(distilled)
    assert list(exemplars) == [3, 1]
    for class_id, kept in exemplars.items():
        images_NCHW = distilled.images_NCHW[distilled.labels == class_id]
        order = order_distilled(images_NCHW, seed=0, factor=factor, network=NETWORK)
        assert torch.equal(torch.from_numpy(kept.images_NCHW), images_NCHW[order])
        assert kept.num_images == 4
        expected = formation.decode(images_NCHW[order], factor)
        assert torch.equal(kept.white(distilled.preprocess), expected)


@pytest.mark.parametrize(("factor", "zca"), [(1, True), (1, False), (2, False)])
def test_set_of_another_preprocessing_is_brought_to_that_of_the_run_with_its_decoded_pixels_unchanged(
    factor, zca
):
    distilled, run = make_set(factor=factor, zca=zca), preprocessing(zca=zca, seed=40)
    kept = take(distilled, (0,), preprocess=run)[0]
    own_NCHW = distilled.images_NCHW[distilled.labels == 0]
    rows = order_distilled(torch.from_numpy(kept.images_NCHW), seed=0, factor=factor, network=NETWORK)
    assert rows.tolist() == [0, 1, 2, 3]
    pixels = distilled.preprocess.invert(formation.decode(own_NCHW, factor)).flatten(1).sort(dim=0).values
    found = run.invert(kept.white(run)).flatten(1).sort(dim=0).values
    torch.testing.assert_close(found, pixels, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"class_names": ("cat", "dog")},
            r"classes cat, dog, owl, bee, ... \(5\), but the stream has cat, dog;",
        ),
        ({"class_names": NAMES[::-1]}, "pass a set distilled from the same source"),
        ({"image_shape": (1, 28, 28)}, "has images of 2x8x6, but the stream has 1x28x28"),
        ({"classes": (2, 9)}, "has no images of class 9"),
        ({"storage": "int4"}, "storage 'int4' is unknown"),
    ],
)
def test_set_that_does_not_fit_the_stream_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        take(make_set(), **changes)


def test_whitening_under_a_grid_of_images_cannot_be_exchanged():
    with pytest.raises(ConfigError, match="factor 2 and another ZCA whitening than this run"):
        take(make_set(factor=2), preprocess=preprocessing(zca=True, seed=40))


def test_soft_labels_go_with_their_images_in_the_order_in_which_these_are_kept():
    rng = torch.Generator().manual_seed(0)
    labels = torch.rand(4 * len(NAMES), len(NAMES), generator=rng).softmax(1)
    plain, soft = take(make_set()), take(replace(make_set(), soft_labels=labels))
    for class_id, kept in soft.items():
        assert np.array_equal(kept.images_NCHW, plain[class_id].images_NCHW)
        order = order_distilled(
            make_set().images_NCHW[make_set().labels == class_id], seed=0, network=NETWORK
        )
        own = labels[make_set().labels == class_id].numpy()
        assert np.array_equal(kept.soft_NK, own[order])
        assert kept.num_bytes == plain[class_id].num_bytes + 4 * kept.num_images * len(NAMES)
        assert np.array_equal(kept.head(2).soft_NK, own[order[:2]])
