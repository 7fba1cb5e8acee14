"""What a user's own code may do to a search, and what is told of it: without Ray where that can be."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions as rx
from ray.air.execution._internal import RayActorManager
from ray.tune.experiment import Trial
from tiny_search import digits_case, named_space

from atom.errors import ConfigError, StoreError
from pipelines import nas
from pipelines.architecture import report
from pipelines.architecture.building import build_space
from pipelines.architecture.case import NasCase
from pipelines.architecture.scores import Scores
from pipelines.architecture.tune_round import Watch, memory_kills_are_deaths
from pipelines.console.signals import StopSignal
from pipelines.workers.faults import is_machine_fault, reason_of
from pipelines.workers.pool import Limits
from pipelines.workers.remote import network_slug

SHAPE: dict[str, Any] = {"channels": 1, "image_size": (8, 8), "num_classes": 3}
GENOTYPE = "Genotype(normal=[('sep_conv_3x3', 0), ('dil_conv_5x5', 1)], " * 5
SPACE = """
import os
import sys
import time


def sound(channels, image_size, num_classes):
    from atom import nets

    return nets.build("convnet-w4-d1", channels=channels, image_size=image_size, num_classes=num_classes)


def exits(**sizes):
    sys.exit(0)


def crashes(**sizes):
    os._exit(3)


def hangs(**sizes):
    time.sleep(600)


networks = [("exits", exits, None), ("crashes", crashes, 7), ("hangs", hangs, None), ("sound", sound, None)]


def leaves():
    sys.exit(0)


none = [("exits", exits, None)]
"""


def test_long_names_make_short_file_names_that_differ() -> None:
    one, two = (network_slug(f"{GENOTYPE}{end}") for end in "ab")
    assert one != two
    assert max(len(network_slug(name).encode()) for name in (one, "ü" * 250)) <= 100
    assert network_slug("net.py:make") == "net.py_make"


def test_scores_are_published_before_the_trainings_that_may_fail(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(report, "publish", lambda case, scored, winners, tracker: told.append(winners) or 0)

    def fail(case: NasCase, scored: Scores, stop: StopSignal) -> None:
        raise StoreError("the disk is full.")

    monkeypatch.setattr("pipelines.architecture.rank.rank", lambda case, stop: Scores())
    monkeypatch.setattr("pipelines.architecture.winner.retrain", fail)
    asked = {"proxies": ("random",), "retrain": 1, "tracking_uri": mlflow_uri}
    case = digits_case(tmp_path, networks=named_space(net=1), **asked)
    with pytest.raises(StoreError, match="the disk is full"), case.tracker("rank") as tracker:
        nas.run(case, tracker, StopSignal())
    assert told == [None]


def test_a_trial_that_is_slow_is_said_and_silence_ends_a_search(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(chunk_timeout_s=100.0, pending_timeout_s=50.0)
    seen = Watch(limits=limits, timeout_s=100.0, on_tick=lambda doing: None, stop=None)
    trial = Trial("network", trial_id="t", stub=True)
    trial.set_status(Trial.RUNNING)
    monkeypatch.setattr(seen, "doing", lambda trial: "a (random, seed 0)")
    begun_s = now_s = seen._answer_s
    monkeypatch.setattr("pipelines.architecture.tune_round.time.monotonic", lambda: now_s)
    seen.on_trial_start(0, [trial], trial)
    for passed_s in (49.0, 51.0, 60.0):
        now_s = begun_s + passed_s
        seen.on_step_end(0, [trial])
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for a (random, seed 0), 51 s so far; at 100 s (--timeout-s) it is given up"
    ]
    assert not seen.too_long(trial)
    now_s = begun_s + 151.0
    seen.on_step_end(0, [trial])
    assert seen.too_long(trial)
    assert "No worker answered for 150 s (a (random, seed 0)); look" in seen.problem
    assert seen.ended()


def test_a_search_without_workers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Watch(
        limits=Limits(pending_timeout_s=50.0), timeout_s=100.0, on_tick=lambda doing: None, stop=None
    )
    now_s = seen._running_s + 51.0
    monkeypatch.setattr("pipelines.architecture.tune_round.time.monotonic", lambda: now_s)
    seen.on_step_end(0, [])
    assert "No worker could be started for 50 s; free the cluster's resources" in seen.problem


def test_a_worker_killed_by_the_memory_monitor_costs_its_network_and_not_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Exception] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda actor, error: told.append(error))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=actor._on_error)
    monkeypatch.setattr(RayActorManager, "_cleanup_actor", lambda manager, tracked_actor: None)
    low = rx.OutOfMemoryError("the node running low on memory: 23GB used / 24GB limit")
    with memory_kills_are_deaths():
        # Without resources: a manager of them would start Ray.
        manager = RayActorManager(SimpleNamespace())
        manager._actor_task_failed(tracked_actor_task=task, exception=low)
    # As Tune's controller demands: otherwise it ends.
    assert [type(error) for error in told] == [rx.RayActorError] * 2
    failure = reason_of(told[0])
    assert failure.memory == "yes"
    assert "killed by Ray, since its node ran low on memory (23GB used / 24GB limit)" in failure.reason
    assert is_machine_fault(told[0])


def test_a_space_of_this_project_is_not_built_on_the_cluster() -> None:
    assert len(build_space("small", **SHAPE, limits=Limits()).names) == 240
    with pytest.raises(ConfigError, match="--space tiny: unknown"):
        build_space("tiny", **SHAPE, limits=Limits())


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_code_that_exits_crashes_or_hangs_costs_its_network_alone(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad_space.py").write_text(SPACE)
    spec = f"{tmp_path}/bad_space.py"
    space = build_space(f"{spec}:networks", **SHAPE, limits=Limits(max_retries=0, chunk_timeout_s=30.0))
    problems = {candidate.name: candidate.problem for candidate in space.candidates}
    assert "it called exit(0)" in problems["exits"]
    assert problems["crashes"] == (
        "its worker ended without a word: killed, probably for memory, or its code ended the process"
        " (gave up after 1 try)"
    )
    assert "30 s" in problems["hangs"]
    assert problems["sound"] == ""
    assert [c.parameters is not None for c in space.candidates] == [False, False, False, True]
    assert "building 4 networks" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"bad_space.py:leaves: .*exit\(0\)"):
        build_space(f"{spec}:leaves", **SHAPE, limits=Limits())
    with pytest.raises(ConfigError, match=r"none of its 1 networks can be built; 'exits': .*exit\(0\)"):
        build_space(f"{spec}:none", **SHAPE, limits=Limits())
