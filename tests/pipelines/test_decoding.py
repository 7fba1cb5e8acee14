"""Images that Ray tasks decode: those of the driver, bit by bit, and what becomes of tasks that are lost."""

import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
import ray
from PIL import Image

from atom.data import RealData, load
from atom.data import decode as decoding_here
from atom.data.decode import Entry, Outcome
from atom.data.place import Remote, Slice, _Disk
from atom.errors import DataError
from pipelines import real_images
from pipelines.console.commands import DataSettings
from pipelines.workers import decoding
from pipelines.workers.decoding import ClusterDecoder
from pipelines.workers.tasks import cancel

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
    """For the cluster of the tests, which is one node."""
    monkeypatch.setattr(decoding_here, "MANY", COUNT // 2)
    monkeypatch.setattr(decoding, "_LEAST_NODES", 1)


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
        monkeypatch.setattr(decoder, "_fetched", lambda sent, _: ray.get(sent.reference)[1])
        assert_same(loaded(pictures, decoder, []), plain)


@pytest.mark.ray
def test_one_machine_decodes_in_threads(
    ray_cluster: None, pictures: Path, few_are_many: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_LEAST_NODES", 2)
    monkeypatch.setattr(ClusterDecoder, "_send", None)
    with ClusterDecoder() as decoder:
        assert_same(loaded(pictures, decoder, []), loaded(pictures, None, []))


def exits(entries: list[Entry], image_size: int | None) -> None:
    os._exit(1)


def hangs(entries: list[Entry], image_size: int | None) -> None:
    time.sleep(60)


def has_no_credentials(entries: list[Entry], image_size: int | None) -> None:
    raise DataError("s3://pets: cannot be read.")


def has_another_decoder(entries: list[Entry], image_size: int | None) -> tuple[str, list[Outcome]]:
    return "Pillow 1.0", [np.zeros((3, 8, 8), np.uint8) for _ in entries]


@pytest.mark.ray
@pytest.mark.parametrize("task", [exits, hangs, has_no_credentials, has_another_decoder])
def test_what_a_task_does_not_bring_back_the_driver_decodes(
    ray_cluster: None,
    pictures: Path,
    few_are_many: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: Callable[..., Any],
) -> None:
    monkeypatch.setattr(decoding, "decoded", task)
    monkeypatch.setattr(decoding, "_ANSWER_S", 3.0 if task is hangs else 60.0)
    begun_s, waited, get = time.monotonic(), 0, ray.get

    def counted(reference: Any, *, timeout: float) -> Any:
        nonlocal waited
        waited += timeout == decoding._ANSWER_S
        return get(reference, timeout=timeout)

    cancelled: list[Any] = []
    monkeypatch.setattr(decoding.ray, "get", counted)
    monkeypatch.setattr(
        decoding, "cancel", lambda reference: cancelled.append(reference) or cancel(reference)
    )
    with ClusterDecoder() as decoder:
        found = loaded(pictures, decoder, [])
    monkeypatch.setattr(decoding.ray, "get", get)
    # Ray ends this process where a task is cancelled whose result has just come.
    assert len(cancelled) == (2 if task is hangs else 0)
    # Of four tasks that hang the first alone is waited for.
    assert task is not hangs or time.monotonic() - begun_s < 12
    assert waited == (1 if task is hangs else 4)
    assert decoder._tasks_read == (task is not has_no_credentials)
    assert_same(found, loaded(pictures, None, []))
    assert [record.name for record in caplog.records].count(decoding.__name__) == 1
    assert "decoded by the driver" in caplog.text


@pytest.mark.ray
def test_only_so_many_images_are_in_memory(
    ray_cluster: None, few_are_many: None, pictures: Path, monkeypatch: pytest.MonkeyPatch
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
        assert taken == 4 * decoding.TASK_IMAGES
        outcomes.close()
        monkeypatch.setattr(decoding, "_MOST_BYTES", 1)
        taken, outcomes = 0, decoder(entries(), 8)
        next(outcomes)
        assert taken == decoding.TASK_IMAGES
        outcomes.close()


@pytest.mark.parametrize(
    ("variables", "joined"),
    [
        ({}, False),
        ({"RAY_ADDRESS": "local"}, False),
        ({"RAY_ADDRESS": "192.0.2.1:6379"}, True),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, True),
    ],
)
def test_a_command_that_joins_a_cluster_has_it_decode(
    monkeypatch: pytest.MonkeyPatch, *, variables: dict[str, str], joined: bool
) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    given: dict[str, Any] = {}

    def load_real_images(spec: str, **options: Any) -> RealData:
        given.update(options)
        return load("digits", data_dir=Path("unused"))

    monkeypatch.setattr(real_images.real_data, "load", load_real_images)
    real_images.load_real(DataSettings(dataset="digits"), smoke=False)
    assert (given["decode_elsewhere"] is not None) == joined
    assert given["on_decoded"] is not None


def test_files_are_read_by_the_driver_and_places_at_uris_by_the_task(tmp_path: Path) -> None:
    file = tmp_path / "one.bin"
    file.write_bytes(b"0123456789")
    far = Remote(str(file), _Disk(pafs.LocalFileSystem(), "s3"))
    assert far.read_at(0, 1) == b"0"
    decoder = ClusterDecoder()
    sent = [
        decoder._with_content(Entry("here", 0, source))
        for source in (file, Slice(file, 2, 3), far, Slice(far, 4, 2), b"bytes", None, tmp_path / "gone")
    ]
    assert [entry.source for entry in sent[:2]] == [b"0123456789", b"234"]
    there = [entry.source for entry in pickle.loads(pickle.dumps(sent))]
    assert there[4:] == [b"bytes", None, tmp_path / "gone"]
    assert [source.read_bytes() for source in there[2:4] if isinstance(source, Remote | Slice)] == [
        b"0123456789",
        b"45",
    ]
    decoder._tasks_read = False
    assert decoder._with_content(Entry("there", 0, far)).source == b"0123456789"
