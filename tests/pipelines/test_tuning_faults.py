"""What ends a round of scores early: workers that cannot start, and an output that cannot be written."""

from collections.abc import Callable

import numpy as np
import pytest
import ray

from apps.nas.proxies import Proxy
from apps.nas.space import load_space
from apps.nas.trial import Recipe, Score, Unit
from atom.errors import ClusterError, StoreError
from atom.resolve import resolve_evaluation
from atom.settings import DeviceKind, EvaluateSettings
from pipelines.architecture.remote import Shared
from pipelines.architecture.tuning import Ranked, run_units
from pipelines.workers.pool import Limits
from pipelines.workers.resources import ActorSize

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

NETWORKS = ("convnet-w32-d1-nonorm-relu-max", "convnet-w32-d1-nonorm-relu-avg")
COUNTED = [Unit(name, "parameters", 0) for name in NETWORKS]


def shared(*, device_kind: DeviceKind = "cpu") -> Shared:
    images = (np.zeros((4, 1, 8, 8), dtype=np.float32), np.arange(4) % 2)
    settings = resolve_evaluation(EvaluateSettings(epochs=1), device_kind="cpu", symbols=True)
    return Shared(
        proxies={"parameters": Proxy("parameters", "zero-cost", "main", 0)},
        space=load_space("small", channels=1, image_size=(8, 8), num_classes=2),
        recipe=Recipe(settings, whole_epochs=1, steps=1),
        device_kind=device_kind,
        small=ray.put({}),
        real=ray.put({"main": {part: images for part in ("train", "validation", "test")}}),
        timeout_s=60.0,
    )


def score(given: Shared, on_score: Callable[[Unit, Score], None]) -> Ranked:
    return run_units(
        COUNTED,
        given,
        cost=lambda unit: 1.0,
        size=ActorSize(1, 1.0, 0.0),
        limits=Limits(max_retries=1),
        on_score=on_score,
        on_tick=lambda: None,
        packs_per_worker=1,
    )


def test_workers_that_cannot_start_are_given_up_with_the_reason(ray_cluster: None) -> None:
    # The worker has no GPU, as on a node with PyTorch for CPUs.
    with pytest.raises(ClusterError, match=r"No worker could start, 2 rounds .* finds no CUDA device"):
        score(shared(device_kind="cuda"), lambda unit, each: None)


def test_what_taking_a_score_raises_comes_out_as_it_is(ray_cluster: None) -> None:
    def full(unit: Unit, each: Score) -> None:
        raise StoreError("the disk is full.")

    with pytest.raises(StoreError, match=r"^the disk is full\.$"):
        score(shared(), full)
