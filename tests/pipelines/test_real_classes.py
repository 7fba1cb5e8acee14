"""Images of classes in the object store: the same bits as those of the whole set, and only while they are needed."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_digits import GROUPS, digest, distil, kill_workers

from atom import data
from atom.data import ImageSet
from atom.data.mapped import opened
from atom.errors import ClusterError, DataError
from atom.pixels import Pixels
from atom.preprocess import Preprocess
from pipelines.real_classes import RealClasses, whole

pytestmark = pytest.mark.ray


@cache
def digits() -> ImageSet:
    return data.load("digits", data_dir=Path("unused")).train


def classes(*, zca: bool = False) -> RealClasses:
    return RealClasses(digits(), Preprocess.fit(digits().images, zca=zca))


def fetched(reference: object) -> object:
    import ray

    return ray.get(reference, timeout=60)


def test_pixels_preprocessed_by_class_are_those_of_the_whole_set_bit_for_bit(ray_cluster: None) -> None:
    made = classes()
    for class_id in (0, 7, 9):
        found = fetched(made[class_id])
        assert isinstance(found, Pixels)
        assert found.images_NCHW.dtype == np.uint8
        expected = made.preprocessed[digits().indices_of(class_id)]
        assert np.array_equal(found[:].numpy(), expected)


def test_whitened_images_are_stored_as_the_whole_set_was_whitened(ray_cluster: None) -> None:
    preprocess = Preprocess.fit(digits().images, zca=True)
    found = fetched(RealClasses(digits(), preprocess)[3])
    assert np.array_equal(found, preprocess.apply(digits().images)[digits().labels == 3].numpy())


@pytest.mark.parametrize("zca", [False, True])
def test_work_that_reads_all_classes_gets_them_preprocessed_and_stored_once(
    ray_cluster: None, *, zca: bool
) -> None:
    made = classes(zca=zca)
    assert whole(made)[5] is whole(made)[5]
    for class_id in range(10):
        expected = made.preprocessed[digits().labels == class_id]
        assert np.array_equal(fetched(whole(made)[class_id]), expected)


def test_a_class_that_is_not_there_is_no_class() -> None:
    assert list(classes()) == list(range(10))
    assert 10 not in classes()
    assert -1 not in classes()


@pytest.mark.parametrize("zca", [False, True])
def test_a_class_of_a_file_that_changed_is_not_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, zca: bool
) -> None:
    monkeypatch.setattr("atom.data.mapped.MAPPED_BYTES", 1)
    np.save(tmp_path / "images.npy", digits().images)
    images = ImageSet.create(opened(tmp_path / "images.npy"), digits().labels, digits().class_names)
    assert images.fingerprint == digits().fingerprint
    made = RealClasses(images, Preprocess.fit(digits().images, zca=zca))
    with (tmp_path / "images.npy").open("r+b") as content:
        content.seek(-64 * int(np.flatnonzero(digits().labels[::-1] == 3)[0]) - 1, 2)
        content.write(b"\x07")
    with pytest.raises(DataError, match="the images of class '3' are no longer what was decoded"):
        made[3]


@pytest.mark.parametrize("zca", [False, True])
def test_some_images_are_preprocessed_alone_unless_they_are_whitened(*, zca: bool) -> None:
    some, rows = classes(zca=zca), np.array([900, 3, 1200, 4])
    assert np.array_equal(some.rows[rows], classes(zca=zca).preprocessed[rows])
    assert ("preprocessed" in vars(some)) == zca


def test_asking_whether_a_class_is_there_stores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.put", None)
    assert 3 in classes()


@pytest.mark.parametrize("zca", [False, True])
def test_a_full_store_and_disk_are_one_sentence(monkeypatch: pytest.MonkeyPatch, *, zca: bool) -> None:
    from ray.exceptions import OutOfDiskError

    def full(_: object) -> None:
        raise OutOfDiskError

    made = classes(zca=zca)
    monkeypatch.setattr("ray.put", full)
    for ask in (lambda: made[3], lambda: whole(made)):
        with pytest.raises(
            ClusterError, match=r"The images of class '[03]', .* MB, find no room in Ray's object"
        ):
            ask()


@pytest.fixture(scope="module")
def expected(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """From float32 images that are all in the store from the start."""
    return digest(distil(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("num_actors", [1, 2])
def test_classes_stored_while_they_are_distilled_give_the_same_bits(
    expected: dict[int, str], tmp_path: Path, num_actors: int
) -> None:
    assert digest(distil(tmp_path, num_actors=num_actors, real=classes())) == expected


def test_a_killed_worker_s_group_goes_on_from_images_that_are_still_there(
    expected: dict[int, str], tmp_path: Path
) -> None:
    outcome = distil(tmp_path, real=classes(), hook=lambda stored: kill_workers() if stored == 2 else None)
    assert outcome.retries == 1
    assert digest(outcome) == expected


def test_a_group_s_images_are_asked_for_when_it_begins_and_not_again(
    ray_cluster: None, tmp_path: Path
) -> None:
    asked: list[int] = []

    class Counted(RealClasses):
        def __getitem__(self, class_id: int) -> object:
            asked.append(class_id)
            return super().__getitem__(class_id)

    begun: list[list[int]] = []
    distil(
        tmp_path,
        real=Counted(digits(), Preprocess.fit(digits().images, zca=False)),
        hook=lambda _: begun.append(sorted(asked)),
    )
    assert asked == [class_id for group in GROUPS for class_id in group]
    assert begun[0] == sorted(GROUPS[0])


def test_bits_do_not_depend_on_how_many_images_are_preprocessed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preprocess = Preprocess.fit(digits().images, zca=False)
    together = preprocess.apply(digits().images)
    monkeypatch.setattr("atom.preprocess._STEP_BYTES", 1000)
    assert torch.equal(preprocess.apply(digits().images), together)
    assert Preprocess.fit(digits().images, zca=False).digest == preprocess.digest
