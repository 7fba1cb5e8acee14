"""What an actor and a task compute, called directly, without a cluster where none is needed."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from tiny_digits import GROUPS, ITERATIONS, NETWORK, NUM_CLASSES, problem, real_references, white_digits

from atom.data import load
from atom.data.mapped import MAPPED_BYTES
from atom.evaluate import evaluate
from atom.methods.method import State
from atom.pixels import Pixels, as_stored
from atom.preprocess import Preprocess
from atom.resolve import resolve_evaluation
from atom.settings import EvaluateSettings
from pipelines.output.records import note_peak, peak_of
from pipelines.output.store import Store
from pipelines.workers import memory
from pipelines.workers.memory import Peak
from pipelines.workers.remote import DistillWorker, RemoteWorker, Trial, TrialContext, run_trial

GROUP = GROUPS[2]
FAST = resolve_evaluation(
    EvaluateSettings(epochs=3, batch_train=8, eval_precision="float32"), device_kind="cpu", symbols=True
)
OF_ALL = dict.fromkeys(("atom", "random", "fixed"), FAST)
CONTEXT = TrialContext(num_classes=NUM_CLASSES, settings=OF_ALL, device_kind="cpu", threads=1)


@pytest.fixture(scope="module")
def real(ray_cluster: None) -> dict[int, Any]:
    return real_references()


def equal(one: State, other: State) -> bool:
    return (
        one.iteration == other.iteration
        and np.array_equal(one.losses, other.losses)
        and all(np.array_equal(array, other.arrays[name]) for name, array in [*one.arrays.items()])
    )


def small_test() -> tuple[np.ndarray, np.ndarray]:
    images, labels = white_digits()
    return images[:60], labels[:60]


def per_class(count: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = white_digits()
    rows = np.concatenate([np.flatnonzero(labels == c)[-count:] for c in range(NUM_CLASSES)])
    return images[rows], labels[rows]


@pytest.mark.ray
def test_state_of_one_worker_goes_on_in_another_with_the_same_bits(real: dict[int, Any]) -> None:
    whole = DistillWorker(problem()).advance(GROUP, real, None, ITERATIONS)
    half = DistillWorker(problem()).advance(GROUP, real, None, 5)
    assert half.iteration == 5
    assert half.losses.shape == (5, len(GROUP))
    assert equal(DistillWorker(problem()).advance(GROUP, real, half, ITERATIONS), whole)


@pytest.mark.ray
def test_worker_that_did_another_group_before_computes_the_same(real: dict[int, Any]) -> None:
    used = DistillWorker(problem())
    used.advance(GROUPS[0], real, None, 2)
    assert equal(used.advance(GROUP, real, None, 3), DistillWorker(problem()).advance(GROUP, real, None, 3))


@pytest.mark.ray
def test_state_that_came_in_and_images_in_the_store_are_left_untouched(real: dict[int, Any]) -> None:
    worker = DistillWorker(problem())
    before = worker.advance(GROUP, real, None, 2)
    kept = before.images.copy()
    images = ray.get(real[GROUP[0]], timeout=60).copy()
    worker.advance(GROUP, real, before, 6)
    assert np.array_equal(before.images, kept)
    assert np.array_equal(ray.get(real[GROUP[0]], timeout=60), images)


@pytest.mark.ray
def test_threads_of_the_recipe_hold_while_computing_and_only_then(
    real: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    worker = DistillWorker(problem(threads_per_actor=2))
    monkeypatch.setattr(worker, "_note", lambda _: seen.append(torch.get_num_threads()))
    worker.advance(GROUP, real, None, 2)
    assert seen[1:] == [2, 2]
    assert torch.get_num_threads() == 1


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_progress_answers_while_the_actor_computes(real: dict[int, Any]) -> None:
    actor = RemoteWorker.options(num_cpus=1).remote()
    reference = actor.advance.remote(problem(iterations=400), GROUP, real, None, 400)
    seen: set[int] = set()
    while not ray.wait([reference], timeout=0.01)[0]:
        seen.add(ray.get(actor.progress.remote(), timeout=100))
    assert ray.get(actor.progress.remote(), timeout=100) == 400
    assert any(0 < done < 400 for done in seen)
    ray.kill(actor)


@pytest.mark.ray
def test_progress_never_answers_for_the_group_before(
    real: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = DistillWorker(problem())
    worker.advance(GROUPS[0], real, None, ITERATIONS)
    seen: list[int] = []

    def fetch(*_: Any, **__: Any) -> list[np.ndarray]:
        seen.append(worker.progress())
        raise TimeoutError

    monkeypatch.setattr(ray, "get", fetch)
    with pytest.raises(TimeoutError):
        worker.advance(GROUP, real, None, 3)
    assert seen == [0]


def test_peak_of_memory_is_that_since_the_count_began(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    memory.begin()
    small = memory.peak()
    held = np.ones(10_000_000)
    large = memory.peak()
    assert large.host - small.host > 0.9 * held.nbytes
    for peak in (small, large, small):
        note_peak(store, peak)
    assert peak_of(store) == large
    assert Peak(1, 5).or_more(Peak(2, None)) == Peak(2, 5)
    if sys.platform == "linux":
        del held
        memory.begin()
        assert memory.peak().host < large.host


def test_trial_gives_the_accuracy_of_the_core() -> None:
    images, labels = per_class(2)
    test_images, test_labels = small_test()
    expected = evaluate(
        images,
        labels,
        test_images=test_images,
        test_labels=test_labels,
        network=NETWORK,
        num_classes=NUM_CLASSES,
        seeds=[4],
        settings=FAST,
        device=torch.device("cpu"),
        threads=1,
    )
    sets: Any = {"atom": {None: (images, labels)}}
    result = run_trial(Trial("atom", NETWORK, 4), sets, test_images, test_labels, CONTEXT)
    assert result["accuracy"] == expected.accuracies[0]
    assert result["seconds"] > 0


def test_trial_is_tested_on_pixels_as_on_preprocessed_images() -> None:
    real = load("digits", data_dir=Path("unused")).test
    preprocess = Preprocess.fit(real.images, zca=False)
    pixels = Pixels(real.images, preprocess)
    sets: Any = {"atom": {None: per_class(2)}}
    found = [
        run_trial(Trial("atom", NETWORK, 4), sets, test, real.labels, CONTEXT)
        for test in (pixels, preprocess.apply(real.images).numpy())
    ]
    assert found[0]["scores"] == found[1]["scores"]


def test_many_images_are_stored_as_pixels_and_whitened_ones_never() -> None:
    few = load("digits", data_dir=Path("unused")).test.images
    many = np.resize(few, (MAPPED_BYTES // few[0].nbytes, *few.shape[1:]))
    plain, whitening = (Preprocess.fit(few, zca=zca) for zca in (False, True))
    stored = [as_stored(images, preprocess) for images in (few, many) for preprocess in (plain, whitening)]
    assert [isinstance(one, Pixels) for one in stored] == [False, False, True, False]
    assert np.array_equal(np.asarray(stored[2][100:200]), plain.apply(many[100:200]).numpy())
    assert np.array_equal(stored[1], whitening.apply(few).numpy())


def test_trial_trains_on_the_draw_of_its_own_seed() -> None:
    one, other = per_class(1), per_class(3)
    sets: Any = {"random": {0: one, 1: other}, "fixed": {None: other}}
    drawn = run_trial(Trial("random", NETWORK, 1), sets, *small_test(), CONTEXT)
    fixed = run_trial(Trial("fixed", NETWORK, 1), sets, *small_test(), CONTEXT)
    assert drawn["accuracy"] == fixed["accuracy"]


def test_name_of_a_trial_is_a_file_name_whatever_the_network_is_called() -> None:
    name = Trial("atom", "mine.nets:build", 3).name
    assert name == "atom-mine.nets_build-s3"
    assert Path(name).name == name
