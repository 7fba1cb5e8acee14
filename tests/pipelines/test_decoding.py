"""Images that Ray tasks decode: those of the driver, bit by bit, and what becomes of tasks that are lost."""

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
import ray
from PIL import Image

from atom.data import RealData, load
from atom.data import decode as decoding_here
from atom.data.decode import Entry, Outcome
from atom.data.place import Remote, Slice, _Disk
from pipelines.workers import decoding
from pipelines.workers.decoding import ClusterDecoder

# Workers cannot import a test file, so its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

COUNT = 75
"""Images of a part: two tasks, the second not full."""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Of several sizes and kinds, one broken and one transparent in parts."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for number in range(COUNT):
            folder = tmp_path / "pictures" / part / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            side, channels = 5 + number % 3, (3, 4)[number == 10]
            pixels = rng.integers(0, 256, (side, side + 1, channels), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "pictures" / "train" / "cat" / "0.png").write_bytes(b"no image")
    return tmp_path / "pictures"


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_here, "MANY", COUNT // 2)


def loaded(pictures: Path, elsewhere: ClusterDecoder | None, told: list[tuple[int, int]]) -> RealData:
    return load(
        f"folder:{pictures}",
        data_dir=pictures.parent / "data",
        image_size=8,
        skip_broken=True,
        on_decoded=lambda done, total: told.append((done, total)),
        decode_elsewhere=elsewhere,
        keep_decoded=False,
    )


def assert_same(one: RealData, other: RealData) -> None:
    assert (one.train.fingerprint, one.test.fingerprint) == (other.train.fingerprint, other.test.fingerprint)
    assert (one.skipped, one.remarks) == (other.skipped, other.remarks)


@pytest.mark.ray
def test_tasks_decode_what_the_driver_decodes(
    ray_cluster: None, pictures: Path, few_are_many: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    plain = loaded(pictures, None, told)
    assert (len(plain.skipped), len(plain.remarks)) == (1, 2)
    assert told == [(0, COUNT), (COUNT, COUNT)] * 2

    with ClusterDecoder() as decoder:
        # Without its help: what a task did not bring back would be missing.
        monkeypatch.setattr(decoder, "_fetched", lambda reference, *_: ray.get(reference))
        assert_same(loaded(pictures, decoder, []), plain)


@pytest.mark.ray
def test_what_a_lost_task_leaves_the_driver_decodes(
    ray_cluster: None,
    pictures: Path,
    few_are_many: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver, work = os.getpid(), decoding._outcomes

    def lost(entries: list[Entry], image_size: int | None) -> list[Outcome]:
        if os.getpid() != driver:
            os._exit(1)
        return work(entries, image_size)

    monkeypatch.setattr(decoding, "_outcomes", lost)
    with ClusterDecoder() as decoder:
        found = loaded(pictures, decoder, [])
    assert_same(found, loaded(pictures, None, []))
    assert [record.name for record in caplog.records].count(decoding.__name__) == 1
    assert "decoded by the driver" in caplog.text


@pytest.mark.ray
def test_only_so_many_images_are_in_memory_and_those_left_are_given_up(
    ray_cluster: None, few_are_many: None, pictures: Path
) -> None:
    taken = 0
    content = next(pictures.rglob("1.png")).read_bytes()

    def entries() -> Iterator[Entry]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield Entry("here", 0, content)

    with ClusterDecoder() as decoder:
        outcomes = decoder(entries(), 8)
        next(outcomes)
        # The cluster of the tests has two processors: four tasks at once.
        assert taken <= 5 * decoding.TASK_IMAGES
        outcomes.close()


def test_files_are_read_by_the_driver_and_places_at_uris_by_the_task(tmp_path: Path) -> None:
    file = tmp_path / "one.bin"
    file.write_bytes(b"0123456789")
    far = Remote(str(file), _Disk(pafs.LocalFileSystem(), "s3"))
    assert far.read_at(0, 1) == b"0"
    sent = [
        decoding._with_content(Entry("here", 0, source))
        for source in (file, Slice(file, 2, 3), far, Slice(far, 4, 2), b"bytes", None, tmp_path / "gone")
    ]
    assert [entry.source for entry in sent[:2]] == [b"0123456789", b"234"]
    there = [entry.source for entry in pickle.loads(pickle.dumps(sent))]
    assert there[4:] == [b"bytes", None, tmp_path / "gone"]
    assert [source.read_bytes() for source in there[2:4] if isinstance(source, Remote | Slice)] == [
        b"0123456789",
        b"45",
    ]
