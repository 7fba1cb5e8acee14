"""Scores on a real Ray: the same whatever the workers, lost workers, hung networks, stops, a full disk."""

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from apps.nas.proxies import Proxy
from apps.nas.space import Space, load_space
from apps.nas.trial import Recipe, Score, Unit
from atom.errors import ClusterError, StoreError
from atom.resolve import resolve_evaluation
from atom.settings import DeviceKind, EvaluateSettings
from atom.streams import stream
from pipelines.architecture.remote import Shared
from pipelines.architecture.scoring import Ranked, run_units
from pipelines.workers.pool import Limits
from pipelines.workers.resources import ActorSize

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SPACE_FILE = """
import os
import time
from pathlib import Path


def dies_once(channels, image_size, num_classes):
    marker = Path(__file__).with_suffix(".died")
    if not marker.exists():
        marker.touch()
        os._exit(1)
    from atom import nets

    return nets.build("convnet-w4-d1", channels=channels, image_size=image_size, num_classes=num_classes)


def always_dies(channels, image_size, num_classes):
    os._exit(1)


def hangs(channels, image_size, num_classes):
    time.sleep(600)


def tiny(name):
    return name, "convnet-" + name, 1000


# The costs keep whoever loads the space from building what dies.
some = [tiny("w4-d1"), ("dies-once", dies_once, 2000), tiny("w4-d2")]
deadly = [tiny("w4-d1"), ("always-dies", always_dies, 2000)]
slow = [tiny("w4-d1"), ("hangs", hangs, 2000)]
"""


@cache
def images() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Made images of two classes."""
    rng = stream(0, "tests/tuning")
    return {
        part: (rng.standard_normal((20, 1, 8, 8)).astype(np.float32), np.arange(20) % 2)
        for part in ("train", "validation", "test")
    }


def shared(
    space: Space, *, timeout_s: float = 60.0, device_kind: DeviceKind = "cpu", own: Proxy | None = None
) -> Shared:
    settings = resolve_evaluation(EvaluateSettings(epochs=2), device_kind="cpu", symbols=True)
    proxies = [Proxy("tiny", "set", "main", 20), Proxy("parameters", "zero-cost", "main", 0)]
    proxies += [own] if own else []
    return Shared(
        proxies={proxy.name: proxy for proxy in proxies},
        space=space,
        recipe=Recipe(settings, whole_epochs=1, steps=2),
        device_kind=device_kind,
        small=ray.put({"tiny": {None: images()["train"]}}),
        real=ray.put({"main": images()}),
        timeout_s=timeout_s,
    )


def convnets() -> Space:
    space = load_space("small", channels=1, image_size=(8, 8), num_classes=2)
    return space.with_candidates(space.candidates[:3])


def users(folder: Path, name: str) -> Space:
    """A space of the file above; its networks are counted as unbuildable without being built."""
    path = folder / "space.py"
    path.write_text(SPACE_FILE)
    (folder / "space.died").touch()
    from apps.nas.space import Candidate

    names = {
        "some": ("w4-d1", "dies-once", "w4-d2"),
        "deadly": ("w4-d1", "always-dies"),
        "slow": ("w4-d1", "hangs"),
    }
    found = [Candidate(each, 10, 1000, identity=each) for each in names[name]]
    return Space(f"{path}:{name}", tuple(found), 1, (8, 8), 2)


def units_of(space: Space) -> list[Unit]:
    return [Unit(name, "tiny", seed) for name in space.names for seed in (0, 1)]


def score(
    space: Space, *, workers: int = 2, limits: Limits | None = None, **options: Any
) -> tuple[dict[Unit, Score], Ranked]:
    found: dict[Unit, Score] = {}
    on_score: Callable[[Unit, Score], None] = options.pop("on_score", found.__setitem__)
    outcome = run_units(
        options.pop("units", units_of(space)),
        shared(
            space,
            timeout_s=options.pop("timeout_s", 60.0),
            device_kind=options.pop("device_kind", "cpu"),
            own=options.pop("own", None),
        ),
        cost=options.pop("cost", lambda unit: float(len(unit.network))),
        size=ActorSize(workers, cpus=1, gpus=0),
        limits=limits or Limits(max_retries=1),
        on_score=on_score,
        on_tick=lambda units: None,
        **options,
    )
    return found, outcome


def values(found: dict[Unit, Score]) -> dict[Unit, float]:
    return {unit: each.score for unit, each in found.items()}


def test_scores_depend_neither_on_workers_nor_on_the_order(ray_cluster: None) -> None:
    space = convnets()
    found, outcome = score(space)
    single, _ = score(space, workers=1, units=units_of(space)[::-1], cost=lambda unit: 1.0)
    assert set(found) == set(units_of(space))
    assert values(found) == values(single)
    assert (outcome.failed, outcome.retries, outcome.stopped) == ({}, 0, False)
    assert outcome.unit_seconds > 0


def test_a_lost_worker_costs_a_retry_and_no_score(ray_cluster: None, tmp_path: Path) -> None:
    space = users(tmp_path, "some")
    (tmp_path / "space.died").unlink()
    found, outcome = score(space)
    assert set(found) == set(units_of(space))
    assert outcome.retries >= 1
    assert outcome.failed == {}


def test_a_network_that_always_kills_its_worker_fails_alone(ray_cluster: None, tmp_path: Path) -> None:
    space = users(tmp_path, "deadly")
    found, outcome = score(space, units=[Unit(name, "tiny", 0) for name in space.names])
    assert set(found) == {Unit("w4-d1", "tiny", 0)}
    (failure,) = outcome.failed.values()
    assert "its worker" in failure.reason
    assert "gave up after 2 tries" in failure.reason


def test_a_network_that_hangs_is_ended_and_fails(ray_cluster: None, tmp_path: Path) -> None:
    space = users(tmp_path, "slow")
    found, outcome = score(
        space,
        # The one that hangs first, and once more under another seed.
        units=[Unit("hangs", "tiny", 0), Unit("w4-d1", "tiny", 0), Unit("hangs", "tiny", 1)],
        workers=1,
        cost=lambda unit: float(unit.network == "hangs"),
        limits=Limits(max_retries=3),
        # Enough for the other network on a busy machine: 5 s were not.
        timeout_s=20.0,
    )
    assert set(found) == {Unit("w4-d1", "tiny", 0)}
    late = "took longer than 20 s; if it is slow, not stuck, pass a larger --timeout-s (gave up after 1 try)"
    assert {str(unit): failure.reason for unit, failure in outcome.failed.items()} == {
        "hangs (tiny, seed 0)": late,
        "hangs (tiny, seed 1)": f"not tried, since hangs (tiny, seed 0) {late}",
    }
    assert list(outcome.too_long) == ["hangs"]


def test_a_users_proxy_that_hangs_costs_one_time_limit_and_no_network(
    ray_cluster: None, tmp_path: Path
) -> None:
    (tmp_path / "slow_proxy.py").write_text("import time\ndef sleep(net, images, labels): time.sleep(600)\n")
    space = convnets()
    first, *others = [Unit(name, "sleep", 0) for name in space.names]
    counted = [Unit(name, "parameters", 0) for name in space.names]
    found, outcome = score(
        space,
        units=[first, *others, *counted],
        workers=1,
        cost=lambda unit: float(unit == first) + float(unit.proxy == "sleep"),
        own=Proxy("sleep", "own", "main", 0, source=f"{tmp_path}/slow_proxy.py:sleep"),
        timeout_s=20.0,
    )
    assert set(found) == set(counted)
    late = "took longer than 20 s; if it is slow, not stuck, pass a larger --timeout-s (gave up after 1 try)"
    reasons = {unit: failure.reason for unit, failure in outcome.failed.items()}
    assert reasons == {first: late, **dict.fromkeys(others, f"not tried, since {first} {late}")}
    assert outcome.too_long == {}


def test_a_stop_keeps_what_is_done(ray_cluster: None) -> None:
    space, stop = convnets(), threading.Event()
    found: dict[Unit, Score] = {}

    def keep(unit: Unit, each: Score) -> None:
        found[unit] = each
        stop.set()

    _, outcome = score(space, workers=1, stop=stop, on_score=keep)
    assert outcome.stopped
    assert 1 <= len(found) < len(units_of(space))


def test_workers_that_never_come_are_given_up(ray_cluster: None) -> None:
    # Inside the test: workers cannot import its module.
    class Holder:
        """Holds the cluster's CPUs."""

        def ready(self) -> bool:
            return True

    holder = ray.remote(num_cpus=2)(Holder).remote()
    ray.get(holder.ready.remote(), timeout=60)
    try:
        with pytest.raises(ClusterError, match="No actor was placed within 3 s"):
            score(convnets(), limits=Limits(pending_timeout_s=3.0))
    finally:
        ray.kill(holder)


def test_workers_that_cannot_start_are_given_up_with_the_reason(ray_cluster: None) -> None:
    # The worker has no GPU, as on a node with PyTorch for CPUs.
    with pytest.raises(
        ClusterError,
        match=r"No actor could start, \d tries failed.*finds no CUDA device on this machine; pass cpu; check",
    ):
        score(convnets(), device_kind="cuda")


def test_what_taking_a_score_raises_comes_out_as_it_is(ray_cluster: None) -> None:
    def full(unit: Unit, each: Score) -> None:
        raise StoreError("the disk is full.")

    with pytest.raises(StoreError, match=r"^the disk is full\.$"):
        score(convnets(), on_score=full)
