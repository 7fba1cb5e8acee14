"""Replicas on further workers: the answers are the same whichever of them come, late, or never."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import ray
import torch
from tiny_digits import NETWORK, NUM_CLASSES, white_digits

from atom.methods.lookup import find_method
from atom.methods.settings import DistillSettings
from atom.resolve import resolve_settings
from pipelines.real_images import put_classes
from pipelines.workers.remote import Problem, RemoteDistillWorker
from pipelines.workers.replicas import Helpers

Arrays = Mapping[str, np.ndarray]
NUMBERS = range(5)


def answer(arrays: Arrays, iteration: int, number: int) -> Arrays:
    return {"sum": arrays["images"].sum() + np.asarray(100 * iteration + number)}


def sound() -> Any:
    """Answers as it should. Made in a function: workers cannot import this file."""

    def of(arrays: Arrays, iteration: int, number: int) -> Arrays:
        return {"sum": arrays["images"].sum() + np.asarray(100 * iteration + number)}

    class Sound:
        def replicas(
            self, arrays: Arrays, iteration: int, numbers: Sequence[int], *, scale: int
        ) -> list[Arrays]:
            assert scale == 7
            return [of(arrays, iteration, number) for number in numbers]

    return ray.remote(num_cpus=0)(Sound)


def dying() -> Any:
    """Ends its process when it is asked for replicas."""

    class Dying:
        def replicas(
            self, arrays: Arrays, iteration: int, numbers: Sequence[int], *, scale: int
        ) -> list[Arrays]:
            return os._exit(1) if numbers else []

    return ray.remote(num_cpus=0)(Dying)


def wrong() -> Any:
    """Has a fault of its program."""

    class Wrong:
        def replicas(
            self, arrays: Arrays, iteration: int, numbers: Sequence[int], *, scale: int
        ) -> list[Arrays]:
            return [arrays["no such"] for _ in numbers]

    return ray.remote(num_cpus=0)(Wrong)


def ask(kind: Any, count: int, *, enough: Callable[[Helpers], bool]) -> list[int]:
    """Ask for the replicas of iteration 2 until `enough` holds; which of the last ones were computed here."""
    helpers, here, arrays = Helpers(kind.remote, count, {"scale": 7}), [], {"images": np.arange(4.0)}

    def compute(number: int) -> Arrays:
        here.append(number)
        return answer(arrays, 2, number)

    end_s = time.monotonic() + 60
    while True:
        here.clear()
        answers = helpers(arrays, 2, NUMBERS, compute)
        assert [int(one["sum"]) for one in answers] == [206, 207, 208, 209, 210]
        if enough(helpers):
            helpers.close()
            return here
        time.sleep(0.1)
        assert time.monotonic() < end_s


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestHelpers:
    def test_each_takes_a_share(self) -> None:
        assert ask(sound(), 2, enough=lambda helpers: len(helpers._ready) == 2) == [0, 3]

    def test_the_share_of_one_that_dies_is_computed_here(self, caplog: pytest.LogCaptureFixture) -> None:
        assert ask(dying(), 1, enough=lambda _: "was lost" in caplog.text) == [0, 2, 4, 1, 3]

    def test_nobody_waits_for_one_that_is_never_placed(self) -> None:
        assert ask(sound().options(num_cpus=1000), 1, enough=lambda _: True) == list(NUMBERS)

    def test_one_with_a_fault_of_its_program_is_not_replaced(self, caplog: pytest.LogCaptureFixture) -> None:
        assert ask(wrong(), 1, enough=lambda helpers: helpers._count == 0) == [0, 2, 4, 1, 3]
        assert "KeyError" in caplog.text

    def test_workers_of_a_distillation_take_their_share(self) -> None:
        asked = DistillSettings.model_validate(
            {"method": "rat-bptt", "network": NETWORK, "inner_steps": 2, "replicas": 3, "iterations": 1}
        )
        shape = {"channels": 1, "height": 8, "width": 8, "num_classes": NUM_CLASSES}
        settings = resolve_settings(asked, device_kind="cpu", symbols=True, **shape)
        images, labels = white_digits()
        unit = tuple(range(NUM_CLASSES))
        known = {"unit": unit, "real": put_classes(images, labels, NUM_CLASSES), "prepared": {}}
        real = {c: torch.from_numpy(images[labels == c]) for c in unit}
        method = find_method("rat-bptt")(settings, device=torch.device("cpu"), **shape)
        start = method.start(unit, real).arrays
        expected = [method.replica(start, 0, number, unit=unit, real=real) for number in range(3)]
        problem = Problem(settings, 1, 8, 8, NUM_CLASSES, "cpu")
        helpers = Helpers(lambda: RemoteDistillWorker.options(num_cpus=0).remote(problem), 1, known)
        end_s = time.monotonic() + 100
        while not helpers._ready and time.monotonic() < end_s:
            helpers(start, 0, [], lambda number: {})
            time.sleep(0.1)
        here: list[int] = []

        def compute(number: int) -> Arrays:
            here.append(number)
            return expected[number]

        answers = helpers(start, 0, range(3), compute)
        helpers.close()
        assert here == [0, 2]
        assert answers[1].keys() == expected[1].keys()
        assert all(np.array_equal(answers[1][name], array) for name, array in expected[1].items())
