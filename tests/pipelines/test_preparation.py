"""Real images on their way to the workers: shrunk, refused, preprocessed once and for all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_digits import digits_set

from atom import data
from atom.data import ImageSet, RealData
from atom.errors import ConfigError
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from pipelines.console.commands import DataSettings
from pipelines.output.store import Store
from pipelines.real_images import (
    PREPROCESS_NAME,
    Loading,
    blank_classes,
    check_ipc,
    judging_images,
    load_real,
    not_whitened,
    notes_on_images,
    preprocessing,
    put_classes,
    whitening_flaw,
)

WHITENED = DistillSettings(zca="on")
PLAIN = DistillSettings(zca="off")
MOST = 140
"""Training images of the smallest class of digits."""


@pytest.fixture(scope="module")
def digits() -> RealData:
    return data.load("digits", data_dir=Path("unused"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


def tensors_equal(one: Preprocess, other: Preprocess) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def refuse_to_fit(*_: object, **__: object) -> Preprocess:
    raise AssertionError("fitted although a copy was at hand")


def test_smoke_run_takes_the_first_images_of_every_class(digits: RealData) -> None:
    small = load_real(DataSettings(dataset="digits"), smoke=True)
    assert small.train.per_class_counts().tolist() == [100] * 10
    assert small.test.per_class_counts().tolist() == [20] * 10
    first = digits.train.indices_of(3)[0]
    assert np.array_equal(small.train.images[small.train.indices_of(3)[0]], digits.train.images[first])
    assert (
        load_real(DataSettings(dataset="digits"), smoke=False).train.fingerprint == digits.train.fingerprint
    )


def folder_of(root: Path, digits: RealData, names: tuple[str, ...]) -> str:
    for part, images in (("train", digits.train), ("test", digits.test)):
        for class_id, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for row in images.indices_of(class_id)[:3]:
                Image.fromarray(images.images[row, 0]).save(root / part / name / f"{row}.png")
    return f"folder:{root}"


def test_sets_are_judged_on_test_images_or_on_those_put_aside(digits: RealData) -> None:
    assert judging_images(digits, "test") is digits.test
    held = digits.hold_out(0.2)
    assert judging_images(held, "validation") is held.validation
    with pytest.raises(ConfigError, match="no training images are put aside; pass --validation-frac as well"):
        judging_images(digits, "validation")


def test_what_a_users_images_show_is_told_by_their_classes_and_said(digits: RealData, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_dir": tmp_path / "data"}
    own = load_real(
        DataSettings(dataset=folder_of(tmp_path / "own", digits, ("0", "1")), **options), smoke=False
    )
    cats = DataSettings(dataset=folder_of(tmp_path / "mnist", digits, ("cat", "dog")), **options)
    other = load_real(cats, smoke=False)
    said = load_real(cats.model_copy(update={"symbols": "on"}), smoke=False)
    assert (own.symbols, other.symbols, said.symbols) == (True, False, True)
    assert "classes called 0, 1, ... count as written symbols" in " ".join(notes_on_images(own))
    assert "pass --symbols on if" in " ".join(notes_on_images(other))
    assert not any("mirror" in note for real in (said, digits) for note in notes_on_images(real))


def test_a_given_set_knows_what_the_images_show_unless_the_user_says_otherwise(digits: RealData) -> None:
    given = digits_set()
    given = replace(given, source={**given.source, "symbols": False})
    asked = DataSettings(dataset="digits")
    assert not load_real(asked, smoke=False, given=given).symbols
    assert load_real(asked.model_copy(update={"symbols": "on"}), smoke=False, given=given).symbols


@pytest.mark.parametrize("levels", [0, 2])
def test_classes_that_show_nothing_are_named(digits: RealData, levels: int) -> None:
    assert blank_classes(digits) == []
    images = digits.train.images.copy()
    of_class = digits.train.labels == 7
    # One colour each, or with the faintest noise.
    images[of_class] = 100 + np.random.default_rng(0).integers(0, levels + 1, images[of_class].shape)
    train = ImageSet.create(images, digits.train.labels, digits.train.class_names)
    assert blank_classes(digits.with_images(train, digits.test)) == ["7"]


@pytest.mark.parametrize(
    ("ipc", "factor", "init", "message"),
    [
        (MOST + 1, 1, "real", f"--ipc {MOST + 1}: class .* of digits has only {MOST} training images"),
        (MOST // 4 + 1, 2, "real", rf"--factor 2 \(which starts from .*; pass --ipc {MOST // 4} or less"),
    ],
)
def test_more_images_than_the_smallest_class_has_are_refused(
    digits: RealData, ipc: int, factor: int, init: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_ipc(digits, ipc=ipc, factor=factor, init=init)
    check_ipc(digits, ipc=ipc - 1, factor=factor, init=init)


def test_images_that_start_from_noise_are_not_limited_by_the_real_ones(digits: RealData) -> None:
    check_ipc(digits, ipc=MOST + 1, factor=2, init="noise")
    with pytest.raises(ConfigError, match=r"too few for the coreset .* pass --baselines without a name"):
        check_ipc(digits, ipc=MOST + 1, factor=1, init="noise", baselines=["random"])


def test_real_images_in_all_are_counted_class_by_class(digits: RealData) -> None:
    labels = digits.train.labels
    few = digits.train.subset(np.flatnonzero((labels != 9) | (np.cumsum(labels == 9) <= 1)))
    real = digits.with_images(few, digits.test)
    # Of 19 images nine classes have two, and the last, of which there is one, has one.
    check_ipc(real, ipc=2, factor=1, init="noise", baselines=["random"], images_in_all=19)
    with pytest.raises(
        ConfigError, match=r"^--images-in-all 20: class '9' .* only 1 training images, too few"
    ):
        check_ipc(real, ipc=2, factor=1, init="noise", baselines=["random"], images_in_all=20)
    with pytest.raises(ConfigError, match=r"^--set runs/x, of 20 images in all: class '9'"):
        check_ipc(
            real,
            ipc=2,
            factor=1,
            init="noise",
            baselines=["random"],
            images_in_all=20,
            asked="--set runs/x, of 20 images in all",
        )


def test_grey_images_stored_as_colour_are_not_whitened_by_themselves(
    digits: RealData, capsys: pytest.CaptureFixture[str]
) -> None:
    def coloured(images: ImageSet) -> ImageSet:
        return ImageSet.create(images.images.repeat(3, axis=1), images.labels, images.class_names)

    grey = digits.with_images(coloured(digits.train), coloured(digits.test))
    flaw = whitening_flaw(grey, DistillSettings())
    (note,) = not_whitened(flaw)
    assert "not whitened, since all channels hold one grey image; pass --zca on" in note
    assert whitening_flaw(grey, WHITENED) is None
    assert whitening_flaw(digits, DistillSettings()) is None


def test_preprocessing_of_the_output_is_used_before_any_fit(
    digits: RealData, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    fitted = preprocessing(digits, WHITENED, store, None)
    assert torch.get_num_threads() == threads
    assert fitted.zca is not None
    monkeypatch.setattr(Preprocess, "fit", refuse_to_fit)
    assert tensors_equal(preprocessing(digits, WHITENED, store, None), fitted)


def test_whitening_is_shared_by_outputs_through_the_cache(
    digits: RealData, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    fitted = preprocessing(digits, WHITENED, store, cache)
    assert [path.name[:4] for path in cache.iterdir()] == ["zca-"]
    other = Store.open(str(tmp_path / "other"))
    monkeypatch.setattr(Preprocess, "fit", refuse_to_fit)
    assert tensors_equal(preprocessing(digits, WHITENED, other, cache), fitted)
    assert other.read_bytes(PREPROCESS_NAME) == store.read_bytes(PREPROCESS_NAME)
    third, otherwise = Store.open(str(tmp_path / "third")), WHITENED.model_copy(update={"zca_eps": 0.2})
    with pytest.raises(AssertionError, match="fitted although"):
        preprocessing(digits, otherwise, third, cache)


def test_normalisation_alone_is_not_cached(digits: RealData, tmp_path: Path, store: Store) -> None:
    assert preprocessing(digits, PLAIN, store, tmp_path / "cache").zca is None
    assert not (tmp_path / "cache").exists()


def test_damaged_copy_is_made_anew_with_a_warning(
    digits: RealData, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    fitted = preprocessing(digits, WHITENED, store, None)
    whole = store.read_bytes(PREPROCESS_NAME)
    store.write_bytes(PREPROCESS_NAME, whole[:-100])
    assert tensors_equal(preprocessing(digits, WHITENED, store, None), fitted)
    assert "is damaged and is made anew" in caplog.text
    assert store.read_bytes(PREPROCESS_NAME) == whole


def test_cache_that_cannot_be_written_costs_a_warning_only(
    digits: RealData, tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    preprocessing(digits, WHITENED, store, blocked / "cache")
    assert "the whitening is not cached" in caplog.text
    assert store.exists(PREPROCESS_NAME)


@pytest.mark.ray
def test_workers_get_the_images_of_each_class_read_only(ray_cluster: None) -> None:
    import ray

    images = np.arange(2 * 5 * 3, dtype=np.float32).reshape(5, 2, 3, 1)
    references = put_classes(images, np.array([1, 0, 1, 2, 0]), 3)
    first, second, third = ray.get([references[c] for c in range(3)], timeout=60)
    assert np.array_equal(first, images[[1, 4]])
    assert np.array_equal(second, images[[0, 2]])
    assert np.array_equal(third, images[[3]])
    assert not first.flags.writeable


def test_a_class_of_one_image_over_and_over_is_named(digits: RealData) -> None:
    assert notes_on_images(digits) == []
    images = digits.train.images.copy()
    images[digits.train.labels == 3] = images[digits.train.indices_of(3)[0]]
    train = ImageSet.create(images, digits.train.labels, digits.train.class_names)
    count = len(digits.train.indices_of(3))
    assert notes_on_images(digits.with_images(train, digits.test)) == [
        f"all {count} training images of 3 are identical"
    ]


def test_blank_classes_get_one_note(digits: RealData) -> None:
    images = np.where(digits.train.labels[:, None, None, None] == 7, 9, digits.train.images).astype(np.uint8)
    train = ImageSet.create(images, digits.train.labels, digits.train.class_names)
    assert [note.split(",")[0] for note in notes_on_images(digits.with_images(train, digits.test))] == [
        "all images of 7 are blank"
    ]


def test_a_single_class_is_said_to_make_accuracies_meaningless(digits: RealData) -> None:
    one = ImageSet.create(digits.train.images[:9], [0] * 9, ["digit"])
    assert "one class only, 'digit'" in notes_on_images(digits.with_images(one, one))[0]


def test_what_a_source_remarks_is_noted(digits: RealData) -> None:
    assert notes_on_images(replace(digits, remarks=("half of it is missing",))) == ["half of it is missing"]


def test_smoke_judges_train_per_class_by_the_whole_set() -> None:
    asked = DataSettings(dataset="digits", train_per_class=130, validation_frac=0.05)
    assert load_real(asked, smoke=True).train.per_class_counts().tolist() == [95] * 10
    with pytest.raises(ConfigError, match="class '8' of digits has only 140 training images"):
        load_real(DataSettings(dataset="digits", train_per_class=141), smoke=True)


def test_images_smaller_than_any_network_takes_are_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "dots" / part / name).mkdir(parents=True)
            Image.new("L", (1, 1)).save(tmp_path / "dots" / part / name / "0.png")
    asked = DataSettings(dataset=f"folder:{tmp_path / 'dots'}", data_dir=tmp_path / "data")
    with pytest.raises(
        ConfigError, match=r"its images are 1x1 pixels, too small for any network; pass --image-size 4"
    ):
        load_real(asked, smoke=False)


def test_a_download_is_announced_and_followed_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with Loading() as loading:
        loading.downloaded("cifar.tar.gz", 0, None)
        loading.downloaded("cifar.tar.gz", 1_000_000, 170_000_000)
        loading.downloaded("cifar.tar.gz", 170_000_000, 170_000_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "downloading cifar.tar.gz"
    assert lines[-1].startswith("cifar.tar.gz: 170/170 MB")
