"""Sources at URIs: the same images as from a local disk, and a sentence where nothing can be read."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from atom.data import RealData, load
from atom.data.class_folders import class_folders, entries_of
from atom.data.labelled import load_labelled
from atom.data.place import Remote, Slice, lasting, may_exist, place_of
from atom.data.request import Request
from atom.errors import ConfigError, DataError, StoreError

Put = Callable[[Path, str], str]


def pictures(root: Path, *, folders: tuple[str, ...] = ("train", "test"), count: int = 3) -> Path:
    """Directories of two classes, every image another."""
    rng = np.random.default_rng(0)
    for folder in folders:
        for name in ("cat", "dog"):
            (root / folder / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / name / f"{number}.png")
    return root


def table(root: Path) -> Path:
    """The same images in the Hugging Face layout, class by class."""
    pictures(root / "pictures")
    for part in ("train", "test"):
        files = sorted((root / "pictures" / part).rglob("*.png"))
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        labels = [file.parent.name for file in files]
        (root / "data").mkdir(exist_ok=True)
        target = root / "data" / f"{part}-00000-of-00001.parquet"
        pq.write_table(pa.table({"image": images, "label": labels}), target, row_group_size=2)
    return root


def same(one: RealData, other: RealData) -> bool:
    fingerprints = [(data.train.fingerprint, data.test.fingerprint) for data in (one, other)]
    return fingerprints[0] == fingerprints[1] and one.name == other.name and one.source == other.source


SETS = {
    "folder": pictures,
    "sessions": lambda root: pictures(root / "in", folders=("2024", "2025")).parent / "in",
    "parquet": table,
}


@pytest.mark.parametrize("kind", SETS)
def test_a_source_on_s3_is_the_same_as_on_a_disk(tmp_path: Path, s3: Put, kind: str) -> None:
    root = SETS[kind](tmp_path / "pets")
    uri = s3(root, f"{kind}/{root.name}")
    local = load(f"{kind}:{root}", data_dir=tmp_path / "one")
    for address in (root.as_uri(), uri, f"{uri}/"):
        assert same(load(f"{kind}:{address}", data_dir=tmp_path / "two"), local)
    assert same(load(f"{kind}:{uri}", data_dir=tmp_path / "two", keep_decoded=False), local)


def test_images_of_a_uri_are_found_in_the_cache_until_they_change(
    tmp_path: Path, s3: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pictures(tmp_path / "pets")
    uri = s3(root, "cached")
    first = load(f"folder:{uri}", data_dir=tmp_path / "data")
    with monkeypatch.context() as patched:
        patched.setattr("atom.data.parts.decode_all", None)
        assert load(f"folder:{uri}", data_dir=tmp_path / "data").train.fingerprint == first.train.fingerprint
    Image.new("RGB", (5, 5), "red").save(root / "train" / "cat" / "1.png")
    s3(root, "cached")
    changed = load(f"folder:{uri}", data_dir=tmp_path / "data")
    assert changed.train.fingerprint != first.train.fingerprint


def test_directories_of_classes_are_listed_side_by_side_and_asked_for_nothing_else(
    tmp_path: Path, s3: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = place_of(s3(pictures(tmp_path / "pets"), "listed"), spec="folder")
    assert isinstance(root, Remote)
    request = Request("folder", "folder", root, tmp_path, None, allow_download=False, skip_broken=False)
    classes = class_folders(request, root / "train", [])
    assert {directory.path for directory in classes.values()} <= set(root.disk.listed)
    # All is known now: nobody asks the server.
    monkeypatch.setattr(root.disk, "filesystem", None)
    assert len(entries_of(classes, root / "train", ("cat", "dog"))) == 6


def test_a_table_at_a_uri_that_cannot_be_read_may_be_damaged_or_far(tmp_path: Path, s3: Put) -> None:
    root = table(tmp_path / "pets")
    uri = s3(root, "cut")
    shard = root / "data" / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    s3(root, "cut")
    with pytest.raises(
        DataError,
        match=rf"^{uri}/data/train.*: cannot be read, or is not a whole parquet file .* run the same",
    ):
        load(f"parquet:{uri}", data_dir=tmp_path / "data")


def test_new_images_of_a_learner_may_lie_at_a_uri(tmp_path: Path, s3: Put) -> None:
    root = pictures(tmp_path / "pets") / "train"
    local = load_labelled(f"folder:{root}", data_dir=tmp_path / "data")
    far = load_labelled(f"folder:{s3(root, 'learner')}", data_dir=tmp_path / "data")
    assert far.images.fingerprint == local.images.fingerprint


@pytest.mark.parametrize("kind", ["folder", "parquet"])
@pytest.mark.parametrize("uri", ["s3://images/nowhere", "s3://nobody/at/all"])
def test_a_place_that_is_not_there_is_named(tmp_path: Path, s3: Put, kind: str, uri: str) -> None:
    with pytest.raises(DataError, match=rf"^{kind}:{uri}: {uri} does not exist; expected a directory"):
        load(f"{kind}:{uri}", data_dir=tmp_path)


def test_a_file_where_a_directory_is_expected_is_named(tmp_path: Path, s3: Put) -> None:
    uri = f"{s3(pictures(tmp_path / 'pets'), 'file')}/train/cat/0.png"
    with pytest.raises(DataError, match=rf"{uri} is a file; expected a directory"):
        load(f"folder:{uri}", data_dir=tmp_path)


def test_a_server_that_does_not_answer_is_one_sentence(
    tmp_path: Path, s3: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3(pictures(tmp_path / "pets"), "away")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        DataError, match=rf"^{uri}: cannot be read \(.*\); check the address, the cred"
    ) as found:
        load(f"folder:{uri}?region=us-east-1", data_dir=tmp_path)
    assert "\n" not in str(found.value)


def test_an_image_that_cannot_be_fetched_is_not_skipped_as_a_broken_one(
    tmp_path: Path, s3: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3(pictures(tmp_path / "pets"), "outage")

    def away(place: Remote) -> bytes:
        raise DataError(f"{place}: cannot be read")

    monkeypatch.setattr(Remote, "read_bytes", away)
    with pytest.raises(DataError, match=r"0\.png: cannot be read"):
        load(f"folder:{uri}", data_dir=tmp_path, skip_broken=True)


def test_passwords_of_a_uri_are_in_no_message(tmp_path: Path, s3: Put) -> None:
    with pytest.raises(DataError) as found:
        load("folder:s3://me:pa55word@images/nowhere", data_dir=tmp_path)
    assert "pa55word" not in str(found.value)
    data = load(
        f"folder:{s3(pictures(tmp_path / 'pets'), 'own').replace('//', '//me:pa55word@')}", data_dir=tmp_path
    )
    assert data.spec.startswith("folder:s3://***@images")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "npz:s3://images/a.npz",
            r"npz is read from paths only; URIs are for imagenet, imagenette, .* and webdataset",
        ),
        ("cifar10:gs://images", "cifar10 is read from paths only"),
        (
            "s3://images/pets",
            "For images at a URI, pass folder:s3://images/pets, parquet:s3://images/pets or web",
        ),
    ],
)
def test_a_uri_of_a_source_without_is_refused(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(spec, data_dir=tmp_path)


@pytest.mark.parametrize("uri", ["ftp://images/pets", "s3://images/my pets"])
def test_a_uri_that_cannot_be_opened_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(
        StoreError, match=rf"^Cannot open --dataset folder: {uri}: .*pass a path, or a URI such"
    ):
        load(f"folder:{uri}", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("uri", "opened"),
    [
        ("gs://images/pets", "gs://images/pets?retry_limit_seconds=60"),
        ("gcs://images/pets?scheme=http", "gcs://images/pets?scheme=http&retry_limit_seconds=60"),
        ("gs://images/pets?retry_limit_seconds=5", "gs://images/pets?retry_limit_seconds=5"),
        ("s3://images/pets", "s3://images/pets"),
    ],
)
def test_google_s_client_gives_up_after_a_minute(
    monkeypatch: pytest.MonkeyPatch, uri: str, opened: str
) -> None:
    class FileSystem:
        @staticmethod
        def from_uri(text: str) -> tuple[None, str]:
            return None, text

    monkeypatch.setattr(pafs, "FileSystem", FileSystem)
    found = place_of(uri, spec="folder:")
    assert (str(found), found.path) == (f"{uri.partition(':')[0]}://{opened}", opened)


def test_a_part_of_a_file_that_became_shorter_is_named(tmp_path: Path, s3: Put) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.bin").write_bytes(bytes(range(10)))
    uri = s3(tmp_path / "in", "slices")
    for place in (tmp_path / "in" / "a.bin", place_of(f"{uri}/a.bin", spec="folder")):
        assert Slice(place, 3, 4).read_bytes() == bytes([3, 4, 5, 6])
        with pytest.raises(DataError, match=r"a\.bin: became shorter while it was read"):
            Slice(place, 8, 4).read_bytes()
    with pytest.raises(DataError, match=r"b\.bin: does not exist; check the address"):
        Slice(tmp_path / "b.bin", 0, 1).read_bytes()


def test_a_place_is_known_in_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lasting("pets") == os.fspath(tmp_path / "pets")
    assert lasting("s3://images/pets") == "s3://images/pets"
    assert may_exist("s3://images/pets")
    assert not may_exist("s3://***@images/pets")
    assert not may_exist("pets")


def test_a_listing_tells_of_all_that_it_holds(
    tmp_path: Path, s3: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(s3(pictures(tmp_path / "pets"), "listed"), spec="folder")
    asked: list[object] = []
    ask = pafs.FileSystem.get_file_info

    class Counted:
        def get_file_info(self, what: object) -> object:
            asked.append(what)
            return ask(filesystem, what)

    filesystem, place.disk.filesystem = place.disk.filesystem, Counted()
    names = sorted(path.name for path in place.iterdir() if path.is_dir() and not path.is_file())
    assert names == ["test", "train"]
    assert not (place / "data").exists()
    assert sorted(map(str, place.glob("t*/cat/*.png"))) == [
        f"s3://images/listed/{part}/cat/{number}.png" for part in ("test", "train") for number in range(3)
    ]
    # What the place is, its list, and below it those of two parts and their classes called cat.
    assert len(asked) == 6
