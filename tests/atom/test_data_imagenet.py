"""ImageNet as it is published and as Kaggle has it: every layout and table gives the same set, and errors name both."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from atom.data import RealData, load, official
from atom.data.imagenet_tables import first_names
from atom.errors import DataError

NAMES = {
    "n02012849": "crane",
    "n01440764": "tench, Tinca tinca",
    "n03126707": "crane",
}
WNIDS = sorted(NAMES)
# Numbers of the development kit, whose order is another than that of the identifiers.
NUMBERS = {"n03126707": 1, "n01440764": 2, "n02012849": 3}
VALIDATION = ["n03126707", "n01440764", "n02012849", "n01440764", "n03126707", "n02012849"]
"""Classes of the validation images 1 to 6."""

Put = Callable[[Path, str], str]


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


def write_images(folder: Path) -> None:
    """Images as the archives of the challenge unpack to."""
    for k, wnid in enumerate(WNIDS):
        for number in range(3):
            picture(folder / "train" / wnid / f"{wnid}_{number}.JPEG", 10 * k + number)
    for number in range(1, 7):
        picture(folder / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", 100 + number)


def write_solution(file: Path) -> None:
    """Kaggle's table, whose rows are in no order."""
    rows = [f"ILSVRC2012_val_{n:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for n, wnid in enumerate(VALIDATION, 1)]
    file.write_text("\n".join(["ImageId,PredictionString", *rows[::-1]]) + "\n")


def write_devkit(folder: Path) -> None:
    folder.mkdir(parents=True)
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(number, wnid, NAMES[wnid], 0) for wnid, number in NUMBERS.items()]
    rows.append((1001, "n00001740", "entity", 2))
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kinds)[:, None]})
    text = "".join(f"{NUMBERS[wnid]}\n" for wnid in VALIDATION)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(text)


def write_names(file: Path) -> None:
    file.write_text("".join(f"{wnid} {NAMES[wnid]}\n" for wnid in WNIDS))


def official_layout(root: Path) -> Path:
    write_images(root)
    write_devkit(root / "ILSVRC2012_devkit_t12" / "data")
    return root


def kaggle_layout(root: Path) -> Path:
    write_images(root / "ILSVRC" / "Data" / "CLS-LOC")
    picture(root / "ILSVRC" / "Data" / "CLS-LOC" / "test" / "ILSVRC2012_test_00000001.JPEG", 1)
    write_solution(root / "LOC_val_solution.csv")
    write_names(root / "LOC_synset_mapping.txt")
    return root


def sorted_layout(root: Path) -> Path:
    """Validation images moved into directories of their classes, as the usual script does."""
    write_images(root)
    for number, wnid in enumerate(VALIDATION, 1):
        (root / "val" / wnid).mkdir(exist_ok=True)
        image = root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG"
        image.rename(root / "val" / wnid / image.name)
    return root


def imagenet(root: Path, **asked: object) -> RealData:
    return load(f"imagenet:{root}", data_dir=root.parent / "data", **{"image_size": 8, **asked})


def fingerprints(data: RealData) -> tuple[str, str]:
    return data.train.fingerprint, data.test.fingerprint


def test_the_official_layout_is_read_by_the_development_kit(tmp_path: Path) -> None:
    data = imagenet(official_layout(tmp_path / "in"))
    assert data.name == "imagenet"
    assert data.train.class_names == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    # Images 2 and 4 are of the first class.
    with Image.open(tmp_path / "in" / "val" / "ILSVRC2012_val_00000004.JPEG") as image:
        second = np.asarray(image.convert("RGB"))
    assert abs(float(data.test.images[1].mean()) - second.mean()) < 8
    assert not data.symbols


@pytest.mark.parametrize("layout", [kaggle_layout, sorted_layout])
def test_every_layout_is_the_same_set(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    known = imagenet(official_layout(tmp_path / "known"))
    root = layout(tmp_path / "other")
    write_names(root / "LOC_synset_mapping.txt")
    assert fingerprints(imagenet(root)) == fingerprints(known)
    assert fingerprints(imagenet(root)) == fingerprints(known)


def test_kaggles_copy_says_that_its_test_part_has_no_labels(tmp_path: Path) -> None:
    remark = imagenet(kaggle_layout(tmp_path / "in")).remarks[0]
    assert remark == "test/ has no labels, so val/ is the test part"


def test_without_names_it_is_the_same_set_as_its_folder(tmp_path: Path) -> None:
    root = sorted_layout(tmp_path / "in")
    as_folder = load(f"folder:{root}", data_dir=tmp_path / "data", image_size=8)
    assert imagenet(root).train.class_names == tuple(WNIDS)
    assert fingerprints(imagenet(root)) == fingerprints(as_folder)


def test_the_official_layout_may_lie_at_a_uri(tmp_path: Path, s3: Put) -> None:
    for layout in (official_layout, kaggle_layout):
        root = layout(tmp_path / layout.__name__)
        uri = s3(root, layout.__name__)
        far = load(f"imagenet:{uri}", data_dir=tmp_path / "data", image_size=8)
        assert fingerprints(far) == fingerprints(imagenet(root))


def test_a_table_that_changed_has_images_read_anew(tmp_path: Path) -> None:
    root = kaggle_layout(tmp_path / "in")
    first = imagenet(root)
    table = root / "LOC_val_solution.csv"
    table.write_text(table.read_text().replace("val_00000001,n03126707", "val_00000001,n01440764"))
    assert imagenet(root).test.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert fingerprints(first)[0] == fingerprints(imagenet(root))[0]


@pytest.mark.parametrize("layout", [official_layout, sorted_layout])
def test_validation_images_of_classes_that_are_not_there_are_left_out(
    tmp_path: Path, layout: Callable[[Path], Path]
) -> None:
    root = layout(tmp_path / "in")
    shutil.rmtree(root / "train" / "n02012849")
    data = imagenet(root)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    what = "2 images" if layout is official_layout else "1 classes"
    assert data.remarks[0] == f"{what} of val/ have no training images and are left out"


def test_a_subset_reads_validation_images_by_their_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"n03126707": "crane", "n01440764": "tench"}
    monkeypatch.setitem(
        __import__("atom.data.imagenet_subsets", fromlist=["SUBSETS"]).SUBSETS, "imagenette", chosen
    )
    root = kaggle_layout(tmp_path / "in")
    data = load(f"imagenette:{root}", data_dir=tmp_path / "data", image_size=8)
    assert data.train.class_names == ("crane", "tench")
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert not any("left out" in remark for remark in data.remarks)


def test_only_the_whole_set_passes_for_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = imagenet(official_layout(tmp_path / "in"))
    what = "9 training images instead of 1,281,167"
    assert data.source.title == f"ImageNet (ILSVRC 2012) (not the official files: {what})"
    monkeypatch.setattr(official, "IMAGENET_TRAIN", 9)
    assert "6 test images instead of 50,000" in imagenet(tmp_path / "in").source.title


def without_table(root: Path) -> None:
    (root / "LOC_val_solution.csv").unlink()


def without_meta(root: Path) -> None:
    without_table(root)
    write_devkit(root / "data")
    (root / "data" / "meta.mat").unlink()


@pytest.mark.parametrize("break_it", [without_table, without_meta])
def test_validation_images_without_a_table_are_refused_with_what_was_looked_for(
    tmp_path: Path, break_it: Callable[[Path], None]
) -> None:
    root = kaggle_layout(tmp_path / "in")
    break_it(root)
    said = (
        r"CLS-LOC/val: holds ImageNet's validation images in one directory, and no table tells their classes; looked"
        r" for LOC_val_solution\.csv, and for ILSVRC2012_validation_ground_truth\.txt with meta\.mat, in \S+in, \S+LOC"
    )
    with pytest.raises(DataError, match=said):
        imagenet(root)


def unlisted(root: Path) -> None:
    picture(root / "ILSVRC" / "Data" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000007.JPEG", 7)


def missing(root: Path) -> None:
    (root / "ILSVRC" / "Data" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000005.JPEG").unlink()


def no_row(root: Path) -> None:
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000001\n")


def no_text(root: Path) -> None:
    (root / "LOC_synset_mapping.txt").write_bytes(b"n01440764 \xff\n")


def no_name(root: Path) -> None:
    (root / "LOC_synset_mapping.txt").write_text("n01440764\n")


def no_meta(root: Path) -> None:
    (root / "LOC_synset_mapping.txt").unlink()
    (root / "meta.mat").write_text("no table")


def wrong_number(root: Path) -> None:
    without_table(root)
    write_devkit(root / "data")
    (root / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n7\n")


def own_class(root: Path) -> None:
    picture(root / "ILSVRC" / "Data" / "CLS-LOC" / "train" / "cat" / "1.JPEG", 7)


def no_validation(root: Path) -> None:
    for image in (root / "ILSVRC" / "Data" / "CLS-LOC" / "val").iterdir():
        image.unlink()


def no_class(root: Path) -> None:
    (root / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n" + "".join(f"ILSVRC2012_val_{n:08d},n01440764 1\n" for n in range(1, 7))
    )


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (unlisted, r"ILSVRC2012_val_00000007\.JPEG: \S+LOC_val_solution\.csv does not tell its class"),
        (missing, r"val/ILSVRC2012_val_00000005\.JPEG: there is no image here"),
        (no_row, r"LOC_val_solution\.csv, line 2: 'ILSVRC2012_val_00000001' is not what ImageNet has there"),
        (no_text, r"LOC_synset_mapping\.txt: cannot be read"),
        (no_name, r"LOC_synset_mapping\.txt, line 1: 'n01440764' is not what ImageNet has there"),
        (no_meta, r"meta\.mat: not the development kit's table of classes"),
        (wrong_number, r"ground_truth\.txt, line 2: '7' is no class of \S+meta\.mat; fetch both again"),
        (
            own_class,
            r"train/cat: is not called by WordNet's identifier, such as n01440764; pass folder:\S+in for",
        ),
        (
            no_validation,
            r"test/ and val/ in \S+ holds neither .* unpack ILSVRC2012_img_val\.tar into \S+/val",
        ),
        (no_class, r"class 'crane \(n02012849\)' has no test images"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, break_it: Callable[[Path], None], message: str) -> None:
    root = kaggle_layout(tmp_path / "in")
    break_it(root)
    with pytest.raises(DataError, match=message):
        imagenet(root)


def test_a_missing_image_is_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    root = kaggle_layout(tmp_path / "in")
    missing(root)
    data = imagenet(root, skip_broken=True)
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2]
    assert len(data.skipped) == 1


def test_images_keep_no_sizes_that_the_networks_cannot_take(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the image is 9x12 .*; pass --image-size"):
        imagenet(official_layout(tmp_path / "in"), image_size=None)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (
            official_layout,
            r"val: ImageNet's validation images as they are published.*; pass imagenet:{root}\.",
        ),
        (
            kaggle_layout,
            r"^{root} has the layout of ImageNet, with its images in ILSVRC/Data/CLS-LOC/; pass imagenet:",
        ),
    ],
)
def test_a_folder_in_imagenets_layout_is_told_of_its_own_source(
    tmp_path: Path, layout: Callable[[Path], Path], said: str
) -> None:
    root = layout(tmp_path / "in")
    with pytest.raises(DataError, match=said.replace("{root}", re.escape(str(root)))):
        load(f"folder:{root}", data_dir=tmp_path / "data", image_size=8)


@given(
    st.dictionaries(
        st.from_regex(r"n\d{8}", fullmatch=True), st.sampled_from(["crane", "crane, derrick", "owl"])
    )
)
@settings(max_examples=50, deadline=None)
def test_no_two_classes_have_one_name(words: dict[str, str]) -> None:
    names = first_names(words, sorted(words))
    assert len(set(names)) == len(words)
    assert all(
        name.split(" (")[0] == words[wnid].split(",")[0]
        for wnid, name in zip(sorted(words), names, strict=True)
    )
