"""What a user's own code may do to a search, and what is told of it: without Ray where that can be."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from atom.errors import StoreError
from pipelines import nas
from pipelines.architecture import report
from pipelines.architecture.job import NasJob
from pipelines.architecture.scored import Scored
from pipelines.signals import StopSignal
from pipelines.worker import network_slug

GENOTYPE = "Genotype(normal=[('sep_conv_3x3', 0), ('dil_conv_5x5', 1)], " * 5


def test_long_names_make_short_file_names_that_differ() -> None:
    one, two = (network_slug(f"{GENOTYPE}{end}") for end in "ab")
    assert one != two
    assert max(len(network_slug(name).encode()) for name in (one, "ü" * 250)) <= 100
    assert network_slug("net.py:make") == "net.py_make"


def test_scores_are_published_before_the_trainings_that_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(report, "publish", lambda job, scored, winners, tracker: told.append(winners) or 0)

    def fail(scored: Scored, stop: StopSignal) -> None:
        raise StoreError("the disk is full.")

    job: Any = SimpleNamespace(
        command=SimpleNamespace(mode="rank", retrain=1),
        log_inputs=lambda tracker: None,
        rank=lambda stop: Scored(),
        retrain=fail,
    )
    with pytest.raises(StoreError, match="the disk is full"):
        nas.run(cast(NasJob, job), cast(Any, None), StopSignal())
    assert told == [None]
