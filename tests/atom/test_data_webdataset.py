"""WebDataset's tar files: the same set however they are cut, and a sentence for what is wrong with one."""

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from atom.data import RealData, load
from atom.data.place import split_pattern
from atom.data.shards import expanded, part_of
from atom.errors import ConfigError, DataError

Put = Callable[[Path, str], str]
Member = tuple[str, bytes]


def picture(seed: int, *, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def write_tar(path: Path, members: Sequence[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def sample(key: str, label: int, *, seed: int | None = None) -> list[Member]:
    return [
        (f"{key}.cls", str(label).encode()),
        (f"{key}.png", picture(hash_of(key) if seed is None else seed)),
    ]


def hash_of(key: str) -> int:
    return int.from_bytes(key.encode(), "big") % 10_000


def shards(root: Path, *, label: Callable[[int], int] = lambda number: number % 2) -> Path:
    """Two shards to train on and one to test on, of two classes."""
    for shard in range(2):
        numbers = range(3 * shard, 3 * shard + 3)
        write_tar(
            root / f"train-{shard:04d}.tar",
            [member for number in numbers for member in sample(f"{number:06d}", label(number))],
        )
    write_tar(root / "val-0000.tar", [*sample("000100", label(0)), *sample("000101", label(1))])
    return root


def read(place: object, data_dir: Path, **asked: object) -> RealData:
    return load(f"webdataset:{place}", data_dir=data_dir, **asked)


def test_samples_are_sorted_by_class_and_path(tmp_path: Path) -> None:
    data = read(shards(tmp_path / "pets"), tmp_path / "data")
    assert (data.name, data.source.title) == ("pets", "pets (webdataset)")
    assert data.train.class_names == ("0", "1")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 1]
    expected = np.asarray(Image.open(io.BytesIO(picture(hash_of("000004"))))).transpose(2, 0, 1)
    np.testing.assert_array_equal(data.train.images[2], expected)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "/*.tar",
        "/{train,val}-*.tar",
        "/{train-{0000..0001},val-0000}.tar",
        "/train-000[01].tar|/val-0000.tar",
    ],
)
def test_shards_are_meant_by_directory_glob_and_braces(tmp_path: Path, s3: Put, pattern: str) -> None:
    root = shards(tmp_path / "pets")
    known = read(root, tmp_path / "data")
    uri = s3(root, f"wds{hash_of(pattern)}/pets")
    if "|" in pattern:
        pattern = "/{" + pattern.replace("/", "").replace("|", ",") + "}"
    for place in (root, root.as_uri(), uri):
        found = read(f"{place}{pattern}", tmp_path / "other")
        assert found.train.fingerprint == known.train.fingerprint
        assert found.test.fingerprint == known.test.fingerprint
        assert found.name == "pets"


@given(st.randoms(use_true_random=False), st.integers(1, 4), st.booleans())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_how_samples_are_cut_into_shards_and_in_which_order_changes_no_bit(
    tmp_path: Path, rng: random.Random, num_shards: int, by_folder: bool
) -> None:
    root = tmp_path / "pets"
    shutil.rmtree(root, ignore_errors=True)
    keys = [f"{number:06d}" for number in range(8)]
    rng.shuffle(keys)
    for shard in range(num_shards):
        name = f"train/{shard}.tar" if by_folder else f"pets-train-{shard}.tar"
        chosen = keys[shard::num_shards]
        write_tar(root / name, [member for key in chosen for member in sample(key, int(key) % 2)])
    write_tar(root / ("test/0.tar" if by_folder else "test.tar"), [*sample("a", 0), *sample("b", 1)])
    data = load(f"webdataset:{root}", data_dir=tmp_path / "data", keep_decoded=False)
    assert data.train.fingerprint == _FIRST.setdefault("train", data.train.fingerprint)
    assert data.test.fingerprint == _FIRST.setdefault("test", data.test.fingerprint)


_FIRST: dict[str, str] = {}


def test_one_tar_may_hold_both_parts_in_directories(tmp_path: Path, s3: Put) -> None:
    members = [
        member
        for part, keys in (("train", "abcd"), ("val", "ef"))
        for key in keys
        for member in sample(f"./{part}/{key}", "abcdef".index(key) % 2, seed=ord(key))
    ]
    hidden = [("./train/._a.png", b"x"), ("__MACOSX/train/a.png", b"x"), ("README", b"x")]
    file = write_tar(tmp_path / "in" / "My Pets.tar", [*hidden, *members])
    data = read(file, tmp_path / "data")
    assert data.name == "my-pets"
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [0, 1]
    uri = s3(file.parent, "one")
    assert read(f"{uri}/My%20Pets.tar", tmp_path / "data").train.fingerprint == data.train.fingerprint


@pytest.mark.parametrize("name", ["classes.txt", "classnames.txt"])
@pytest.mark.parametrize("folder", ["", "train"])
def test_a_file_beside_the_shards_names_the_classes(tmp_path: Path, name: str, folder: str) -> None:
    root = tmp_path / "pets"
    write_tar(root / "train" / "0.tar", [*sample("a", 0), *sample("b", 2)])
    write_tar(root / "test" / "0.tar", [*sample("c", 2), *sample("d", 0)])
    (root / folder / name).write_text("cat\ndog\n\nowl\n")
    data = read(root, tmp_path / "data")
    assert data.train.class_names == ("cat", "owl")
    assert data.train.labels.tolist() == [0, 1]
    assert data.remarks == ("1 of 3 class names have no images and are left out: dog",)
    # As atom-evaluate asks, which knows the names from the set.
    again = read(root, tmp_path / "data", class_names=("cat", "owl"))
    assert again.train.fingerprint == data.train.fingerprint
    with pytest.raises(DataError, match=rf"names other classes than \S+{name} \(cat, owl\); leave it out"):
        read(root, tmp_path / "data", class_names=("owl", "cat"))


def test_a_flag_names_the_classes(tmp_path: Path) -> None:
    root = shards(tmp_path / "pets")
    assert read(root, tmp_path / "data", class_names=("cat", "dog")).train.class_names == ("cat", "dog")
    # The same files called otherwise are another set.
    assert read(root, tmp_path / "data").train.class_names == ("0", "1")
    with pytest.raises(
        DataError, match=r"--class-names names 3 classes \(a, b, c\), but the labels are 0, 1; name"
    ):
        read(root, tmp_path / "data", class_names=("a", "b", "c"))


def test_numbers_with_gaps_name_their_classes(tmp_path: Path) -> None:
    root = shards(tmp_path / "pets", label=lambda number: (10, 9)[number % 2])
    data = read(root, tmp_path / "data")
    assert data.train.class_names == ("9", "10")
    assert data.test.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"but the labels are 9, 10; name each once"):
        read(root, tmp_path / "data", class_names=("cat", "dog"))


def with_json(root: Path, told: Mapping[str, Sequence[object]]) -> Path:
    for part, keys in (("train", "ab"), ("test", "cd")):
        members = [
            member
            for place, key in enumerate(keys)
            for member in [
                (f"{key}.jpg", picture(ord(key), kind="JPEG")),
                (
                    f"{key}.json",
                    json.dumps({field: labels[place] for field, labels in told.items()}).encode(),
                ),
                (f"{key}.txt", b"a caption"),
            ]
        ]
        write_tar(root / f"{part}.tar", members)
    return root


def test_labels_may_be_fields_of_json(tmp_path: Path) -> None:
    root = with_json(tmp_path / "pets", {"label": [1.0, 0], "species": ["owl", "cat"]})
    data = read(root, tmp_path / "data")
    assert (data.train.class_names, data.train.labels.tolist()) == (("0", "1"), [0, 1])
    named = read(root, tmp_path / "data", label_column="species")
    assert named.train.class_names == ("cat", "owl")
    np.testing.assert_array_equal(named.train.images, data.train.images)
    with pytest.raises(DataError, match=r"names other classes than the labels \(cat, owl\); leave it out"):
        read(root, tmp_path / "data", label_column="species", class_names=("a", "b"))


def test_cls_counts_before_json(tmp_path: Path) -> None:
    root = shards(tmp_path / "pets")
    for part in ("train-0000", "train-0001", "val-0000"):
        members = []
        for key, label in (("a", 0), ("b", 1)):
            members += [(f"{key}.JSON", b'{"label": 7}'), *sample(f"{key}", label)]
        write_tar(root / f"{part}.tar", members)
    assert read(root, tmp_path / "data").train.class_names == ("0", "1")


def test_a_part_without_labels_is_passed_over(tmp_path: Path) -> None:
    root = shards(tmp_path / "pets")
    write_tar(root / "test-0000.tar", [("a.png", picture(1)), *sample("b", -1)])
    data = read(root, tmp_path / "data")
    assert data.remarks == ("the test part has no labels, so the validation part is the test part",)
    assert len(read(root, tmp_path / "data", test_part="val").test) == 2
    with pytest.raises(
        DataError, match=r"the test part has no labels; name a part that has them as --test-part"
    ):
        read(root, tmp_path / "data", test_part="test")
    write_tar(root / "holdout" / "0.tar", [*sample("a", 0), *sample("b", 1), *sample("c", 1)])
    assert len(read(root, tmp_path / "data", test_part="holdout").test) == 3
    assert read(root, tmp_path / "data").remarks[0] == (
        f"1 shard is called after no part and left out, the first: {root / 'holdout' / '0.tar'}"
    )
    with pytest.raises(DataError, match="--test-part train: is the training part"):
        read(root, tmp_path / "data", test_part="train")


def test_shards_are_found_in_the_cache_until_one_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shards(tmp_path / "pets")
    first = read(root, tmp_path / "data")
    with monkeypatch.context() as patched:
        patched.setattr("atom.data.webdataset.samples_of", None)
        assert read(root, tmp_path / "data").train.fingerprint == first.train.fingerprint
    write_tar(root / "val-0000.tar", [*sample("a", 0), *sample("b", 1), *sample("c", 0)])
    assert len(read(root, tmp_path / "data").test) == 3


def test_broken_images_are_skipped_where_that_is_asked_for(tmp_path: Path) -> None:
    root = shards(tmp_path / "pets")
    write_tar(root / "train-0002.tar", [("x.png", b"no image"), ("x.cls", b"0"), ("y.cls", b"1")])
    with pytest.raises(DataError, match=r"train-0002\.tar, x\.png: not an image Pillow can read"):
        read(root, tmp_path / "data")
    data = read(root, tmp_path / "data", skip_broken=True)
    assert len(data.train) == 6
    assert "train-0002.tar, y: there is no image here" in data.skipped[1]


X = picture(1)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("x.png", X)],
            r"x\.png: has no label; expected the number of its class in a member \.cls, or a field",
        ),
        ([("x.png", X), ("x.json", b"{}")], r"x\.png: has no label"),
        ([("x.png", X), ("x.cls", b"cat")], r"x\.cls: holds 'cat'; expected the number of a class"),
        ([("x.png", X), ("x.json", b"{")], r"x\.json: is no JSON"),
        ([("x.png", X), ("x.json", b"3")], r"x\.json: holds int; expected an object with a field"),
        (
            [("x.png", X), ("x.json", b'{"label": [1, 2]}')],
            r"x\.json: field 'label' holds \[1, 2\]; expected",
        ),
        ([("x.png", X), ("x.json", b'{"label": "cat"}')], r"some labels are numbers and others names"),
        ([("x.png", X), ("x.jpg", X), ("x.cls", b"0")], r"x: has 2 images, \.jpg and \.png; expected one"),
        ([("x.png", X), ("x.PNG", X), ("x.cls", b"0")], r"x: has two members \.png; write the archive again"),
        ([("x.json", b" " * (2**20 + 1))], r"x\.json: has 1048577 bytes, too many for a label"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(tmp_path: Path, members: list[Member], message: str) -> None:
    root = shards(tmp_path / "pets")
    write_tar(root / "train-0002.tar", members)
    with pytest.raises(DataError, match=message):
        read(root, tmp_path / "data")


def test_a_test_label_that_training_does_not_have_is_named(tmp_path: Path) -> None:
    root = shards(tmp_path / "pets")
    write_tar(root / "val-0000.tar", [*sample("a", 0), *sample("b", 5)])
    with pytest.raises(
        DataError, match=r"val-0000\.tar, b\.png: its label is 5; expected one of the training part's"
    ):
        read(root, tmp_path / "data")
    (root / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"its label is 5; expected one of the 2 classes of \S+classes\.txt"):
        read(root, tmp_path / "data")
    (root / "classes.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"classes\.txt: cannot be read .*; write one class a line, in UTF-8"):
        read(root, tmp_path / "data")


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("kept", ["member", "header", "nothing", "text"])
def test_a_shard_that_was_cut_off_is_refused(tmp_path: Path, s3: Put, kept: str, *, far: bool) -> None:
    """At the border of two members too, where Python's reader takes it for the end."""
    root = shards(tmp_path / "pets")
    file = root / "train-0001.tar"
    with tarfile.open(file) as archive:
        third = archive.getmembers()[2]
    whole = file.read_bytes()
    # A fifth member's header, whose check sum is wrong then.
    damaged = whole[: third.offset] + b"junk" + whole[third.offset + 4 :]
    cut = {"member": whole[: third.offset], "header": damaged, "nothing": b"", "text": b"no archive" * 200}[
        kept
    ]
    file.write_bytes(cut)
    place = s3(root, f"cut-{kept}") if far else root
    with pytest.raises(
        DataError, match=r"train-0001\.tar: damaged or cut off after .*; fetch the file again"
    ):
        read(place, tmp_path / "data")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("/none", r"none does not exist; expected a tar file, or a directory with shards"),
        ("/none/*.tar", r"none does not exist; expected a directory with shards"),
        ("/empty", r"empty holds no \*\.tar; expected"),
        ("/a-*.tar", r"no file in \S+ is called a-\*\.tar"),
        ("/train-{0000..0002}.tar", r"train-0002\.tar: the shard does not exist; fetch it, or name those"),
        (
            "/train-{0}.tar",
            r"train-\{0\}\.tar: \{0\} is no range such as \{0000\.\.0009\} and no list such as",
        ),
        ("/train-{0..999999}.tar", r"means more than 100000 files; name fewer"),
        ("/{0..999}{0..999}.tar", r"means more than 100000 files; name fewer"),
        (
            "/train-{0000..0001}.tar",
            r"no shards of a part to test on; .* a pattern has to mean both, as \{train,val\}",
        ),
        (
            "/val-*.tar",
            r"pets holds no sample to train on; expected shards called train\*, or in a directory train/",
        ),
        ("/packed/a.tar.gz", r"a\.tar\.gz: is packed, and images cannot be read from within; unpack it"),
        ("/packed", r"a\.tar\.gz: is packed"),
        ("/packed/*.gz", r"a\.tar\.gz: is packed"),
        (
            "/odd",
            r"odd/a\.tar, x\.png: nothing tells whether it is for training or testing; call shards train-",
        ),
    ],
)
def test_shards_that_are_not_there_are_named(tmp_path: Path, pattern: str, message: str) -> None:
    root = shards(tmp_path / "pets")
    (root / "empty").mkdir()
    (root / "packed").mkdir()
    (root / "packed" / "a.tar.gz").write_bytes(b"x")
    write_tar(root / "odd" / "a.tar", sample("x", 0))
    with pytest.raises(DataError, match=message):
        read(f"{root}{pattern}", tmp_path / "data")


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["train", "0.tar"], "train"),
        (["data", "train-0000.tar"], "train"),
        (["imagenet1k-validation-00.tar"], "validation"),
        (["train", "val_0.tar"], "validation"),
        (["Training", "x"], "train"),
        (["trainset0.tar"], "train"),
        (["train", "testudo.tar"], "train"),
        (["valley.tar"], None),
        (["valid.tar"], "validation"),
        (["constrained.tar"], None),
        (["my-latest.tar"], None),
        ([], None),
    ],
)
def test_parts_are_told_by_words_in_names(names: list[str], part: str | None) -> None:
    assert part_of(names[::-1]) == part


def test_a_class_called_like_a_part_is_a_class(tmp_path: Path) -> None:
    members = [
        member
        for part in ("train", "test")
        for number, name in enumerate(("train", "valley", "test_tube"))
        for member in sample(f"{part}/{name}/{number}", number)
    ]
    write_tar(tmp_path / "all.tar", members)
    found = read(tmp_path / "all.tar", tmp_path / "data")
    assert (len(found.train), len(found.test)) == (3, 3)


def test_a_packed_shard_beside_plain_ones_is_refused(tmp_path: Path) -> None:
    root = shards(tmp_path / "pets")
    (root / "train-9999.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"train-9999\.tar\.gz: is packed"):
        read(root, tmp_path / "data")


def test_a_pattern_alone_is_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = shards(tmp_path / "pets")
    monkeypatch.chdir(root)
    expected = read(root, tmp_path / "data")
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tar"))
    assert (
        read("{" + ",".join(names) + "}", tmp_path / "data").train.fingerprint == expected.train.fingerprint
    )


def test_members_that_are_no_samples_are_ignored_and_links_are_not(tmp_path: Path) -> None:
    root = shards(tmp_path / "pets")
    expected = read(root, tmp_path / "data").train.fingerprint
    with tarfile.open(sorted(root.rglob("*train*.tar"))[0], "a") as archive:
        for name in ("README.md", "index.json", "dataset.info.txt"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    assert read(root, tmp_path / "again").train.fingerprint == expected
    with tarfile.open(sorted(root.rglob("*train*.tar"))[0], "a") as archive:
        link = tarfile.TarInfo("copy.png")
        link.type, link.linkname = tarfile.LNKTYPE, "x.png"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"copy\.png: is a link, or sparse; write the archive again"):
        read(root, tmp_path / "third")


@given(st.integers(0, 99), st.integers(0, 30), st.integers(1, 5))
def test_ranges_keep_the_width_of_their_first_number(first: int, more: int, width: int) -> None:
    texts = expanded(f"a-{{{first:0{width}d}..{first + more}}}.tar")
    assert texts == [
        f"a-{number:0{max(width, len(str(first)))}d}.tar" for number in range(first, first + more + 1)
    ]


def test_a_directory_called_like_a_pattern_is_no_pattern(tmp_path: Path) -> None:
    shards(tmp_path / "pets [1]")
    assert split_pattern(str(tmp_path / "pets [1]")) == (str(tmp_path / "pets [1]"), "")
    assert len(read(tmp_path / "pets [1]", tmp_path / "data").train) == 6


def test_columns_of_parquet_are_no_choice_of_shards(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--image-column x: webdataset has no such choice; it is for parquet"
    ):
        read(tmp_path, tmp_path / "data", image_column="x")
