"""Fewer images than ipc of every class: which they are, that empty places count for nothing, and what is refused."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from distilled_samples import make_set
from PIL import Image
from torch import Tensor

from atom.card import write_card
from atom.combine import merge, take
from atom.coreset import select_per_class
from atom.distilled import DistilledSet
from atom.errors import ArtifactError, ConfigError
from atom.exports import export_dd_ranking, export_mtt_pt, import_dc_pt
from atom.methods.joint import Joint
from atom.methods.lookup import find_method
from atom.methods.method import State
from atom.methods.settings import DistillSettings
from atom.methods.soundness import check_state
from atom.resolve import resolve_settings
from atom.settings import images_of_classes, rows_of
from atom.soundness import check_even
from atom.streams import stream

SHAPE = {"channels": 2, "height": 8, "width": 6, "num_classes": 4}
SIZES = (9, 8, 12, 10)
UNIT = (0, 1, 2, 3)
TRAJECTORIES = {
    "num_experts": 2,
    "batch_expert": 8,
    "max_start_epoch": 2,
    "lr_img": 5.0,
    "max_loss": 9,
    "ema": 0.5,
}
METHODS: dict[str, Mapping[str, object]] = {
    "dd": {"lr_label": 0.1, "batch_outer": 8, "distill_epochs": 2},
    "rat-bptt": {"lr_label": 0.1, "batch_outer": 8, "inner_steps": 3, "window": 2},
    "datm": {**TRAJECTORIES, "syn_steps": 3},
}


def make_settings(method: str, **values: object) -> DistillSettings:
    small = {"iterations": 3, "network": "convnet-w4-d1", "zca": "off", "seed": 3, **METHODS[method]}
    asked = DistillSettings.model_validate({"method": method, **small, **values})
    return resolve_settings(asked, device_kind="cpu", symbols=False, **SHAPE)


def real_images() -> dict[int, Tensor]:
    shape = (SHAPE["channels"], SHAPE["height"], SHAPE["width"])
    noise = [stream(0, "test/real", class_id=c).normal(0.3 * c, 1, (n, *shape)) for c, n in enumerate(SIZES)]
    return {c: torch.from_numpy(images).float() for c, images in enumerate(noise)}


def run(settings: DistillSettings, *, empty: float | None = None) -> tuple[Joint, State, State]:
    """The method, its first state, empty places perhaps holding another value in every array, and its last."""
    method, real = find_method(settings.method)(settings, **SHAPE, device=torch.device("cpu")), real_images()
    assert isinstance(method, Joint)
    prepared = method.prepare_all(real)
    start = method.start(UNIT, real, prepared=prepared)
    if empty is not None:
        arrays = {name: array.copy() for name, array in start.arrays.items()}
        for name in ("images", "logits", "images_mean", "logits_mean"):
            for row, count in enumerate(method.counts(UNIT)):
                if name in arrays:
                    arrays[name][row, count:] = empty
        start = State.first(arrays, columns=1)
    end = method.advance(start, 3, unit=UNIT, real=real, prepared=prepared)
    check_state(end, UNIT, 3)
    assert not end.failures
    return method, start, end


def some(array: np.ndarray, counts: list[int], *, there: bool) -> np.ndarray:
    """Of [K, I, ...] what belongs to images that there are, or to the empty places."""
    return np.concatenate([own[:n] if there else own[n:] for own, n in zip(array, counts, strict=True)])


def uneven(**changes: object) -> DistilledSet:
    """A set of 6 images of 4 classes."""
    soft = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
    whole = make_set()
    fields = {
        "images_NCHW": whole.images_NCHW[:6],
        "labels": torch.tensor([0, 0, 1, 1, 2, 3]),
        "soft_labels": soft,
    }
    return make_set(**(fields | changes))


@pytest.mark.parametrize("number", range(1, 9))
def test_image_i_is_of_class_i_mod_k(number: int) -> None:
    counts = images_of_classes(number, 4)
    assert counts == [[i % 4 for i in range(number)].count(c) for c in range(4)]
    settings = make_settings("rat-bptt", images_in_all=number)
    assert (settings.ipc, settings.per_class(4)) == (-(-number // 4), counts)
    labels = np.repeat(np.arange(4), settings.ipc)[rows_of(counts, settings.ipc)]
    assert labels.tolist() == np.repeat(np.arange(4), counts).tolist()
    assert resolve_settings(settings, device_kind="cpu", symbols=False, **SHAPE) == settings
    assert DistillSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("number", [3, 6])
@pytest.mark.parametrize("method", METHODS)
def test_empty_places_move_nothing_and_stay(method: str, number: int, factor: int) -> None:
    settings = make_settings(method, images_in_all=number, factor=factor)
    made, start, plain = run(settings)
    _, filled, other = run(settings, empty=7.0)
    counts = made.counts(UNIT)
    assert not some(start.images, counts, there=False).any()
    assert np.array_equal(plain.losses, other.losses)
    assert np.isfinite(plain.losses).all()
    for name, array in plain.arrays.items():
        if array.shape[:2] == start.images.shape[:2]:
            kept = (some(one.arrays[name], counts, there=True) for one in (plain, other))
            assert np.array_equal(*kept), name
        else:
            assert np.array_equal(array, other.arrays[name]), name
    for name in ("images", "logits"):
        assert np.array_equal(*(some(one.arrays[name], counts, there=False) for one in (filled, other)))
        moved = np.abs(some(plain.arrays[name] - start.arrays[name], counts, there=True))
        assert moved.reshape(number, -1).max(1).min() > 0


@pytest.mark.parametrize("method", METHODS)
def test_as_many_as_of_every_class_are_those_of_ipc(method: str) -> None:
    steps = {"distill_steps": 1} if method == "dd" else {}
    (_, _, all_of_it), (_, _, by_class) = (
        run(make_settings(method, **steps, **size)) for size in ({"images_in_all": 8}, {"ipc": 2})
    )
    assert all_of_it.arrays.keys() == by_class.arrays.keys()
    assert all(np.array_equal(array, by_class.arrays[name]) for name, array in all_of_it.arrays.items())
    assert np.array_equal(all_of_it.losses, by_class.losses)


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        (
            "rat-bptt",
            {"images_in_all": 5, "ipc": 3},
            "--ipc 3: --images-in-all 5 comes to at most 2 of each of 4",
        ),
        (
            "rat-bptt",
            {"images_in_all": 5, "lr_label": 0},
            "--images-in-all 5: labels are hard, and a class without",
        ),
        (
            "dd",
            {"images_in_all": 5, "distill_steps": 2},
            "--distill-steps 2: the images of --images-in-all 5 are all",
        ),
        (
            "dd",
            {"images_in_all": 1, "lr_label": 0.0},
            "pass --lr-label as well, such as 0.05, or --ipc instead",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(method: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_settings(method, **values)


def test_a_set_of_images_in_all_is_what_it_was_after_a_save(tmp_path) -> None:
    made = uneven()
    found = DistilledSet.load(made.save(tmp_path / "six"))
    assert torch.equal(found.images_NCHW, made.images_NCHW)
    assert torch.equal(found.labels, made.labels)
    assert torch.equal(found.soft_labels, made.soft_labels)  # pyrefly: ignore
    assert (found.ipc, found.per_class, found.size, found.size_slug) == (
        2,
        [2, 2, 1, 1],
        "6 images in all",
        "images6",
    )
    card = (tmp_path / "six" / "README.md").read_text()
    assert "distilled to 6 images in all" in card
    assert "6 images of 8x6 pixels and 3 channel(s), in all, for 4 classes" in card
    assert (make_set().size, make_set().size_slug) == ("ipc 2", "ipc2")
    assert "1 image of 8x6 pixels" in write_card(
        uneven(
            ipc=1, images_NCHW=made.images_NCHW[:1], labels=made.labels[:1], soft_labels=made.soft_labels[:1]
        )  # pyrefly: ignore
    )


def test_the_picture_has_each_image_in_the_row_of_its_class() -> None:
    blank = uneven().preprocess.apply(torch.zeros(3, 3, 8, 6, dtype=torch.uint8))
    soft = torch.full((3, 4), 0.25)
    few = uneven(ipc=1, images_NCHW=blank, labels=torch.tensor([0, 1, 2]), soft_labels=soft)
    few.validate()
    beside = make_set(
        ipc=1, images_NCHW=uneven().preprocess.apply(torch.zeros(4, 3, 8, 6, dtype=torch.uint8))
    )
    pictures = [np.asarray(one.sheet().convert("L")) < 40 for one in (few, beside)]
    assert pictures[0].shape == pictures[1].shape
    assert isinstance(few.sheet(), Image.Image)
    # One blank image of four is missing, all others lie where they lay.
    assert not (pictures[0] & ~pictures[1]).any()
    assert pictures[1].sum() * 0.7 < pictures[0].sum() < pictures[1].sum() * 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"soft_labels": None}, "images have shape .*expected 8 images .4 classes, ipc 2., none of size 0"),
        ({"ipc": 3}, "expected 12 images .4 classes, ipc 3., perhaps up to 3 fewer"),
        ({"ipc": 1}, "expected 4 images .4 classes, ipc 1., perhaps up to 3 fewer"),
        (
            {"labels": torch.tensor([0, 0, 1, 2, 2, 3])},
            "label 2 of image 3, expected 1, since the images lie class by",
        ),
    ],
)
def test_other_numbers_of_images_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        uneven(**changes).validate()


def test_fewer_of_each_class_are_taken_and_nothing_is_merged() -> None:
    one = take(uneven(), 1)
    one.validate()
    assert one.is_even
    assert torch.equal(one.images_NCHW, uneven().images_NCHW[[0, 2, 4, 5]])
    assert take(uneven(), 2).per_class == [2, 2, 1, 1]
    with pytest.raises(
        ConfigError, match="merge: set 1: the set has 6 images in all for 4 classes, not as many of"
    ):
        merge([make_set(soft_labels=torch.full((8, 4), 0.25)), uneven()])
    with pytest.raises(
        ConfigError, match=r"--set: the set has 6 images in all .*which it needs; pass a set that was"
    ):
        check_even(uneven(), "--set", "it needs")
    check_even(make_set(), "--set", "it needs")


def test_other_projects_files_hold_it_where_they_can(tmp_path) -> None:
    made = uneven()
    export_mtt_pt(made, tmp_path / "mtt")
    back = import_dc_pt(
        tmp_path / "mtt" / "images_best.pt",
        preprocess=made.preprocess,
        class_names=made.class_names,
        method="datm",
    )
    assert back.labels.tolist() == made.labels.tolist()
    assert torch.allclose(back.soft_labels, made.soft_labels, atol=1e-6)  # pyrefly: ignore
    # Of each stored image four decoded ones, whose places would tell of other classes.
    with pytest.raises(ConfigError, match=r"export_mtt_pt: the set has 6 images in all .* with a factor"):
        export_mtt_pt(replace(made, factor=2), tmp_path / "tiles")
    with pytest.raises(ConfigError, match="export_dd_ranking: the set has 6 images in all"):
        export_dd_ranking(made, tmp_path / "ranking")


def test_real_images_of_equal_storage_are_as_many_of_each_class() -> None:
    labels_N = np.repeat(np.arange(4), 5)
    features_ND = stream(0, "test/features").normal(size=(20, 3))
    for method in ("random", "herding", "kcenter"):
        rows = select_per_class(method, features_ND, labels_N, ipc=[2, 1, 1, 0], num_classes=4, seed=0)
        assert labels_N[rows].tolist() == [0, 0, 1, 2]
        alike = select_per_class(method, features_ND, labels_N, ipc=2, num_classes=4, seed=0)
        assert rows[:2].tolist() == alike[:2].tolist()
