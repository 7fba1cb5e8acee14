import numpy as np
import pytest
import torch
from distill_samples import CPU, HEIGHT, SIZES, WIDTH, make_distiller, make_settings, real_images, run
from distilled_samples import make_set

from atom import coreset
from atom.draws import rows_of_batch
from atom.embedding import embed
from atom.errors import ConfigError, ShapeError
from atom.formation import decode, encode
from atom.initial import check_start, initial_from_set
from atom.methods.matching_loop import Atom
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.streams import stream

INITS = ["real", "noise", "herding", "kcenter"]


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("init", INITS)
def test_start_has_the_shapes_of_the_group(init: str, factor: int) -> None:
    state = run(make_settings(init=init, ipc=1, factor=factor), [3, 0], 0)
    assert state.images.shape == state.arrays["momentum"].shape == (2, 1, 2, HEIGHT, WIDTH)
    assert state.images.dtype == np.float32
    assert (state.iteration, state.losses.shape) == (0, (0, 2))
    assert not state.arrays["momentum"].any()
    assert bool(np.isfinite(state.images).all())


@pytest.mark.parametrize("init", ["real", "herding", "kcenter"])
def test_images_start_as_different_real_images_of_their_class(init: str) -> None:
    state = run(make_settings(init=init, ipc=3), [1, 2], 0)
    for row, class_id in enumerate([1, 2]):
        real = real_images()[class_id].flatten(1).numpy()
        places = [int(np.flatnonzero((real == image.ravel()).all(axis=1))[0]) for image in state.images[row]]
        assert len(set(places)) == 3


@pytest.mark.parametrize("init", ["herding", "kcenter"])
def test_a_coreset_start_is_chosen_by_features_of_the_network(init: str) -> None:
    settings, real = make_settings(init=init, ipc=2), real_images()[2]
    features = embed(
        real, settings.network, num_classes=len(SIZES), seed=settings.seed, precision="float32"
    ).numpy()
    expected = real[torch.from_numpy(coreset.select(init, features, count=2))]
    assert np.array_equal(run(settings, [2], 0).images[0], expected.numpy())


@pytest.mark.parametrize("init", INITS)
def test_start_of_a_class_does_not_depend_on_the_others(init: str) -> None:
    settings = make_settings(init=init, ipc=2)
    assert np.array_equal(run(settings, [3, 1], 0).images[1], run(settings, [1], 0).images[0])


@pytest.mark.parametrize("init", ["real", "noise"])
def test_another_seed_starts_elsewhere(init: str) -> None:
    first, second = (run(make_settings(init=init, ipc=2, seed=seed), [2], 0) for seed in (0, 1))
    assert not np.array_equal(first.images, second.images)


def test_noise_is_standard_normal() -> None:
    images = run(make_settings(init="noise", ipc=50), [0], 0).images
    assert abs(float(images.mean())) < 0.1
    assert abs(float(images.std()) - 1) < 0.1


def test_tiles_hold_shrunk_real_images() -> None:
    settings, real = make_settings(factor=2, ipc=2), real_images()[0]
    rows = stream(settings.seed, "distill/init").choice(len(real), size=8, replace=False)
    stored = torch.from_numpy(run(settings, [0], 0).images[0])
    torch.testing.assert_close(stored, encode(real[torch.from_numpy(rows)], 2))
    assert decode(stored, 2).shape == (8, 2, HEIGHT, WIDTH)


def test_images_of_one_recipe_start_as_they_are_class_by_class() -> None:
    earlier = make_set(ipc=3, factor=2)
    first = initial_from_set(
        earlier, earlier.preprocess, class_names=["class 2", "class 0"], ipc=2, factor=earlier.factor
    )
    assert torch.equal(first, earlier.images_NCHW[[6, 7, 0, 1]].unflatten(0, (2, 2)))


@pytest.mark.parametrize(("before", "factor", "ipc"), [(1, 2, 1), (2, 1, 7), (2, 2, 2)])
def test_another_preprocessing_or_factor_takes_the_decoded_images_for_real_ones(
    before: int, factor: int, ipc: int
) -> None:
    earlier = make_set(num_classes=2, ipc=5 if before == 1 else 2, factor=before)
    preprocess = Preprocess.fit(torch.arange(256, dtype=torch.uint8).repeat(9).view(16, 3, 8, 6), zca=False)
    first = initial_from_set(earlier, preprocess, class_names=["class 1", "class 0"], ipc=ipc, factor=factor)
    pixels = earlier.preprocess.invert(earlier.decode()[0])
    mean, std = preprocess.mean_C.view(1, 3, 1, 1), preprocess.std_C.view(1, 3, 1, 1)
    for row, label in enumerate([1, 0]):
        own = ((pixels - mean) / std)[earlier.decoded_labels() == label][: ipc * factor**2]
        torch.testing.assert_close(first[row], encode(own, factor))


@pytest.mark.parametrize(
    ("changes", "asked", "words"),
    [
        ({"class_names": ("x", "b", "c", "d")}, {}, "knows no class 'class 0', only 'x', 'b', 'c'"),
        ({"height": 6}, {}, r"images are \(3, 6, 6\) .*, but those of --dataset are \(3, 8, 6\); pass a set"),
        (
            {"soft_labels": torch.full((8, 4), 0.25)},
            {},
            "has soft labels, .* only images are taken from a set; pass one with hard",
        ),
        (
            {},
            {"ipc": 3},
            "has 2 images a class with factor 1, enough for 2 .*, but 3 are asked for; pass fewer",
        ),
        ({}, {"factor": 2}, "enough for 0 with factor 2, but 1 are asked for; pass a smaller --factor"),
        ({"factor": 2}, {"ipc": 9}, "enough for 8 with factor 1, but 9 are asked for; pass fewer"),
    ],
)
def test_a_set_that_does_not_fit_is_no_start(
    changes: dict[str, object], asked: dict[str, int], words: str
) -> None:
    names = [f"class {c}" for c in range(4)]
    check_start(make_set(), class_names=names, image_shape=(3, 8, 6), ipc=2, factor=1)
    wanted = {"ipc": 1, "factor": 1, **asked}
    with pytest.raises(ConfigError, match=f"--init: the set.* {words}"):
        check_start(make_set(**changes), class_names=names, image_shape=(3, 8, 6), **wanted)


def test_a_distiller_without_the_set_of_its_settings_says_so() -> None:
    with pytest.raises(
        ConfigError, match=r"init set:ab12: .*`initial_from_set`, expected one of real, noise"
    ):
        run(make_settings(init="set:ab12"), [0], 0)


def test_a_batch_repeats_images_only_where_the_class_is_too_small() -> None:
    counts = np.bincount(rows_of_batch(stream(0, "test"), 20, 20), minlength=20)
    assert counts.tolist() == [1] * 20
    counts = np.bincount(rows_of_batch(stream(0, "test"), 7, 24), minlength=7)
    assert counts.sum() == 24
    assert set(counts.tolist()) == {3, 4}
    assert len(set(rows_of_batch(stream(0, "test"), 1000, 30).tolist())) == 30


def test_classes_of_unequal_size_distil_with_a_batch_larger_than_each() -> None:
    settings = make_settings(batch_real=16)
    together = run(settings, [0, 1, 2, 3], 2)
    assert bool(np.isfinite(together.images).all())
    alone = run(settings, [1], 2)
    np.testing.assert_allclose(together.images[1], alone.images[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("init", "factor", "ipc"), [("real", 1, 8), ("kcenter", 2, 2), ("herding", 1, 8)])
def test_a_class_too_small_for_the_start_is_refused(init: str, factor: int, ipc: int) -> None:
    settings = make_settings(init=init, factor=factor, ipc=ipc)
    with pytest.raises(ConfigError, match=r"class 1 has 7 training images.*--ipc.*--init noise"):
        run(settings, [0, 1], 0)
    assert run(make_settings(init="noise", factor=factor, ipc=ipc), [0, 1], 0).images.shape[1] == ipc


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (HEIGHT + 1, WIDTH)])
def test_images_of_another_size_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=r"class 0: real images have shape"):
        make_distiller(make_settings()).start([0], real_images(size=size))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", None),
        ("lr_img", None),
        ("task_balance", None),
        ("precision", "auto"),
        ("compile", "auto"),
        ("zca", "auto"),
        ("dsa_strategy", "auto"),
    ],
)
def test_an_unresolved_setting_is_refused(name: str, value: str | None) -> None:
    with pytest.raises(ConfigError, match=f"{name} hold unresolved defaults; pass .* resolve_settings"):
        make_distiller(make_settings(**{name: value}))


def test_settings_as_a_user_writes_them_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match="iterations, lr_img, dsa_strategy, zca, classes_per_group, precision, compile hold",
    ):
        Atom(DistillSettings(), channels=1, height=8, width=8, num_classes=2, device=CPU)
