import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from distilled_samples import RESULTS, make_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from atom import sheet
from atom.artifact import FILES, PARQUET, STRETCHED_SHEET
from atom.card import write_card
from atom.distilled import DistilledSet, describe_source, plain, without_folders
from atom.errors import ArtifactError, ShapeError
from atom.sheet import STRETCH_FROM_FRAC, classes_shown

shapes = st.tuples(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(2, 7),
    st.integers(2, 6),
    st.integers(1, 2),
)


def read_all(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def assert_same(left: DistilledSet, right: DistilledSet) -> None:
    for name in ("images_NCHW", "labels"):
        assert torch.equal(getattr(left, name), getattr(right, name))
    for name in (
        "class_names",
        "ipc",
        "factor",
        "method",
        "settings",
        "source",
        "versions",
        "git_commit",
        "earlier_programs",
        "results",
    ):
        assert getattr(left, name) == getattr(right, name), name
    assert (left.soft_labels is None) == (right.soft_labels is None)
    if left.soft_labels is not None:
        assert torch.equal(left.soft_labels, right.soft_labels)
    mine, other = left.preprocess.tensors(), right.preprocess.tensors()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes, st.booleans(), st.booleans(), st.integers(0, 50))
def test_save_then_load_is_identity(tmp_path, shape, zca, soft, seed):
    num_classes, ipc, channels, height, width, factor = shape
    soft_labels = torch.rand(num_classes * ipc, num_classes).softmax(1) if soft else None
    distilled = make_set(
        num_classes=num_classes, ipc=ipc, channels=channels, height=height, width=width, zca=zca, seed=seed,
        factor=factor, soft_labels=soft_labels,
    )  # fmt: skip
    path = distilled.save(tmp_path / "set")
    assert_same(DistilledSet.load(path), distilled)


def test_saved_directory_holds_exactly_the_documented_files(tmp_path):
    path = make_set().save(tmp_path / "deep" / "set")
    assert sorted(read_all(path)) == sorted(set(FILES) - {STRETCHED_SHEET})
    assert [p.name for p in path.parent.iterdir()] == ["set"]


def test_saving_twice_gives_the_same_bytes(tmp_path):
    first, second = make_set().save(tmp_path / "a"), make_set().save(tmp_path / "b")
    assert read_all(first) == read_all(second)


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path):
    # Hash seeds differ between processes, and with them the order of unordered containers.
    code = "from distilled_samples import make_set; import sys; make_set().save(sys.argv[1])"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}; {code}", tmp_path / "b"],
        check=True, timeout=60,
    )  # fmt: skip
    assert read_all(tmp_path / "b") == read_all(make_set().save(tmp_path / "a"))


def test_settings_and_results_become_plain_values():
    distilled = make_set(
        settings={
            "path": io,
            "n": np.int64(3),
            "pair": (1, 2),
            "nan": float("nan"),
            "t": torch.tensor([1.0]),
        },
        results=[{"mean": np.float32(0.5), "std": float("inf")}],
    )
    assert distilled.settings["n"] == 3
    assert distilled.settings["pair"] == [1, 2]
    assert distilled.settings["nan"] is None
    assert distilled.results == ({"mean": 0.5, "std": None},)
    json.dumps(plain(distilled.settings), allow_nan=False)


def test_decode_expands_the_factor_and_labels_follow():
    distilled = make_set(factor=2)
    images, labels = distilled.decode()
    assert images.shape == (4 * 2 * 4, 3, 8, 6)
    assert labels.tolist() == [label for label in range(4) for _ in range(2 * 4)]
    assert torch.equal(make_set().decode()[0], make_set().images_NCHW)


def test_preprocess_brings_real_images_into_the_space_of_the_set():
    distilled = make_set()
    real = torch.randint(0, 256, (5, 3, 8, 6), dtype=torch.uint8)
    white = distilled.preprocess_images(real)
    assert white.dtype == torch.float32
    assert torch.equal(white, distilled.preprocess.apply(real))
    back = distilled.preprocess.invert(white)
    torch.testing.assert_close(back, real / 255, atol=1e-4, rtol=0)


def test_pixels_undo_the_preprocessing_and_are_clipped():
    distilled = make_set()
    rng = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (40, 3, 8, 6), generator=rng, dtype=torch.uint8)
    torch.testing.assert_close(distilled.pixels(), real[:8] / 255, atol=1e-4, rtol=0)
    wild = make_set(images_NCHW=100 * torch.randn(8, 3, 8, 6)).pixels()
    assert wild.min() == 0
    assert wild.max() == 1


def test_pixels_of_a_factor_set_are_those_of_the_decoded_images():
    distilled = make_set(factor=2)
    expected = distilled.preprocess.invert(distilled.decode()[0]).clamp(0, 1)
    assert torch.equal(distilled.pixels(), expected)


def test_dataset_looks_like_one_of_torchvision():
    distilled = make_set(factor=2)
    dataset = distilled.dataset()
    image, label = dataset[9]
    assert len(dataset) == len(dataset.targets) == len(dataset.data) == 32
    assert image.shape == (3, 8, 6)
    assert type(label) is int
    assert label == dataset.targets[9] == 1
    assert dataset.classes == list(distilled.class_names)
    assert dataset.class_to_idx["class 3"] == 3
    assert repr(dataset) == "DistilledDataset(atom, ipc 2, factor 2): 32 images of 3x8x6, 4 classes"
    assert dataset.soft_targets is None


def test_dataset_applies_transforms():
    dataset = make_set(factor=2).dataset(transform=lambda image: image.mean(), target_transform=str)
    assert dataset[31][0].shape == ()
    assert dataset[31][1] == "3"


def test_soft_labels_are_what_a_network_trains_on():
    soft = torch.rand(8, 4).softmax(1)
    distilled = make_set(factor=2, soft_labels=soft)
    images, targets = distilled.decode()
    assert torch.equal(targets, soft.repeat_interleave(4, dim=0))
    assert distilled.decoded_labels().tolist() == make_set(factor=2).decode()[1].tolist()
    dataset = distilled.dataset()
    assert torch.equal(dataset[31][1], soft[7])
    assert torch.equal(dataset.soft_targets, targets)
    assert dataset.targets == distilled.decoded_labels().tolist()
    batch, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=3)))
    logits = batch.flatten(1)[:, :4]
    expected = torch.nn.functional.cross_entropy(images[:3].flatten(1)[:, :4], targets[:3])
    assert torch.equal(torch.nn.functional.cross_entropy(logits, labels), expected)
    assert distilled.dataset(target_transform=torch.argmax)[31][1] == soft[7].argmax()


def test_parquet_of_a_set_with_soft_labels_holds_classes_and_soft_labels(tmp_path):
    soft = torch.rand(8, 4).softmax(1)
    table = pq.read_table(make_set(soft_labels=soft, factor=2).save(tmp_path / "set") / PARQUET)
    assert table["label"].to_pylist() == sorted([0, 1, 2, 3] * 8)
    assert np.array_equal(np.array(table["soft_label"].to_pylist(), np.float32), soft.numpy().repeat(4, 0))


def test_a_set_remembers_how_to_train_on_it_and_whose_method_made_it(tmp_path):
    about = {"made_by": "sliding | images", "citation": "A. Nobody, *Blend*"}
    made = make_set(method="blend.py:Blend", training={"lr_net": 0.02, "epochs": 7}, about=about)
    loaded = DistilledSet.load(made.save(tmp_path / "set"))
    assert (loaded.training, loaded.about) == ({"lr_net": 0.02, "epochs": 7}, about)
    card = (tmp_path / "set" / "README.md").read_text()
    # Somebody else's words are taken literally.
    assert r"made by sliding \| images." in card
    assert "\nThe method:\n\nA. Nobody, \\*Blend\\*\n" in card


@pytest.mark.parametrize("training", [{"lr_net": -1.0}, {"warmup": 3}, {"eval_dsa_strategy": "blur"}])
def test_a_training_that_no_evaluation_could_do_is_refused(training):
    with pytest.raises(ArtifactError, match=r"training .* expected settings of an evaluation"):
        make_set(training=training).validate()


def test_a_training_names_no_protocol():
    with pytest.raises(ArtifactError, match="expected no protocol, which whoever evaluates the set chooses"):
        make_set(training={"protocol": "idc"}).validate()


def test_dataset_feeds_a_data_loader():
    loader = torch.utils.data.DataLoader(make_set().dataset(), batch_size=3)
    images, labels = next(iter(loader))
    assert images.shape == (3, 3, 8, 6)
    assert labels.tolist() == [0, 0, 1]


def test_with_results_changes_the_results_only():
    distilled = make_set(results=())
    assert distilled.results == ()
    assert_same(distilled.with_results(RESULTS), make_set())


@pytest.mark.parametrize(
    ("num_classes", "ipc", "channels", "factor"), [(10, 1, 3, 1), (3, 7, 1, 1), (2, 3, 2, 2), (1, 1, 4, 1)]
)
def test_sheet_shows_every_image_and_is_wide_enough(num_classes, ipc, channels, factor):
    distilled = make_set(num_classes=num_classes, ipc=ipc, channels=channels, factor=factor)
    sheet = distilled.sheet()
    assert sheet.mode == "RGB"
    assert sheet.width >= 400
    assert sheet.height < 4 * sheet.width
    colours = {colour for _, colour in sheet.getcolors(maxcolors=1 << 20)}
    first = distilled.pixels()[0, : 3 if channels >= 3 else 1].mul(255).round().byte()
    corner = tuple(first[:, 0, 0].tolist())
    assert (corner if len(corner) == 3 else corner * 3) in colours


def test_real_images_of_another_size_than_the_set_are_refused():
    distilled = make_set(zca=False)
    with pytest.raises(
        ShapeError, match=r"images have shape \(1, 3, 9, 6\), but those of this set are \[N, 3, 8, 6\]"
    ):
        distilled.preprocess_images(torch.zeros(1, 3, 9, 6))


def test_sheet_enlarges_without_smoothing():
    flat = torch.full((2, 1, 8, 6), 0.25)
    distilled = make_set(num_classes=2, ipc=1, channels=1, zca=False)
    images = distilled.preprocess.apply(flat)
    images[1] = distilled.preprocess.apply(flat * 3)[1]
    sheet = make_set(num_classes=2, ipc=1, channels=1, zca=False, images_NCHW=images).sheet()
    greys = dict((colour, count) for count, colour in sheet.getcolors(maxcolors=1 << 20))
    scale = 64 // 8
    assert greys[(64, 64, 64)] >= 8 * 6 * scale**2
    assert greys[(191, 191, 191)] >= 8 * 6 * scale**2


@pytest.mark.parametrize("stretched", [False, True])
def test_sheet_of_more_classes_than_find_room_shows_the_first_and_says_so(monkeypatch, stretched):
    few, many = make_set(num_classes=12), make_set(num_classes=40)
    alone = np.asarray(few.sheet(stretched=stretched))
    monkeypatch.setattr(sheet, "MAX_PIXELS", (len(alone) + 45) * alone.shape[1])
    assert classes_shown(many) == 12
    assert "![Images of the first 12 of 40 classes, one row a class](sheet.png)" in write_card(many)
    shown = np.asarray(many.sheet(stretched=stretched))
    line, above = len(shown) - len(alone), 20 * stretched
    assert line == 20
    # Below the margin, into which letters of the captions reach.
    assert np.array_equal(shown[above + line + 8 :], alone[above + 8 :])
    assert shown[above : above + line].min() < 255


@pytest.mark.parametrize(("num_classes", "ipc", "size"), [(21841, 1, 64), (1000, 10, 224), (3, 60, 4000)])
def test_no_sheet_is_larger_than_what_image_programs_open(num_classes, ipc, size):
    of_shape = torch.empty(1).expand(num_classes * ipc, 3, size, size)
    values = SimpleNamespace(images_NCHW=of_shape, num_classes=num_classes, ipc=ipc, factor=1)
    plan = sheet._Plan.of(values, sheet.MAX_COLUMNS)
    assert 1 <= plan.classes < num_classes
    assert plan.width * plan.height < Image.MAX_IMAGE_PIXELS / 2


def test_saved_sheet_is_the_sheet(tmp_path):
    distilled = make_set()
    with Image.open(distilled.save(tmp_path / "set") / "sheet.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(distilled.sheet()))


def make_loud_set(**changes):
    """A set a quarter of whose values or more no picture can show."""
    quiet = make_set(zca=False, **changes)
    return make_set(zca=False, images_NCHW=4 * quiet.images_NCHW, **changes)


def test_a_set_that_pictures_cut_off_gets_a_second_sheet_that_says_it_is_stretched(tmp_path):
    loud = make_loud_set()
    assert loud.clipped_frac() > STRETCH_FROM_FRAC
    path = loud.save(tmp_path / "set")
    assert sorted(read_all(path)) == sorted(FILES)
    card = (path / "README.md").read_text()
    assert f"As they are: {100 * loud.clipped_frac():.0f} % of the values" in card
    assert "(sheet.png)" in card
    assert "(sheet-stretched.png)" in card
    with Image.open(path / STRETCHED_SHEET) as stretched, Image.open(path / "sheet.png") as plain:
        # The words stand above the same sheet.
        assert stretched.width == plain.width
        assert stretched.height > plain.height
        assert np.asarray(stretched)[: stretched.height - plain.height].min() < 255
    loud = make_set().save(path)
    assert not (path / STRETCHED_SHEET).exists()


def test_real_images_are_not_clipped():
    for zca in (False, True):
        assert make_set(zca=zca).clipped_frac() == 0


def test_stretched_pixels_span_the_whole_range_image_by_image():
    loud = make_loud_set()
    shown, as_is = loud.pixels(stretched=True), loud.pixels()
    assert bool(((shown >= 0) & (shown <= 1)).all())
    # Of 144 values, one or two each side of the percentiles are cut off, and the others keep their order.
    assert ((shown > 0) & (shown < 1)).float().mean() > 0.95
    assert ((as_is > 0) & (as_is < 1)).float().mean() < 0.75
    flat = make_set(zca=False, images_NCHW=torch.zeros(8, 3, 8, 6))
    assert bool(flat.pixels(stretched=True).isfinite().all())


def test_source_of_real_data_holds_what_the_card_needs():
    from atom.data.image_set import ImageSet, RealData, SourceInfo

    images = ImageSet.create(np.zeros((4, 3, 8, 6), dtype=np.uint8), np.array([0, 1, 0, 1]), ("a", "b"))
    info = SourceInfo(title="Toys", citation="Me, 2026", licence="MIT", homepage="")
    source = describe_source(
        RealData(
            name="toys", spec="folder:/home/me/toys", train=images, test=images, source=info, skipped=()
        ),
        image_size=8,
    )
    assert source["image_shape"] == [3, 8, 6]
    assert source["num_train"] == 4
    assert (source["spec"], source["image_size"]) == ("folder", 8)
    assert source["crop"] == "the centre square of each image, resized to image_size"
    assert {"name", "spec", "fingerprint", "title", "citation", "licence", "homepage"} <= source.keys()


@pytest.mark.parametrize(
    ("network", "published"),
    [
        ("convnet", "convnet"),
        ("/home/me/net.py:build", "net.py:build"),
        ("my.module:build", "my.module:build"),
    ],
)
def test_a_published_network_names_no_folder(network, published):
    assert without_folders(network) == published
