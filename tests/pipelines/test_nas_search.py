"""The search that stops networks early: what is proposed, what is kept, and what goes on after a kill."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_search import digits_case, named_space

from apps.nas.early import Report
from apps.nas.search_page import Tried
from apps.nas.table import from_parquet
from apps.nas.trial import Score, Unit, run_unit
from atom.errors import ConfigError
from pipelines.architecture import search as search_module
from pipelines.architecture.case import TABLE, NasCase
from pipelines.architecture.remote import _images
from pipelines.architecture.search import Found, search_best, stage_proxy
from pipelines.architecture.search_record import RECORD, SearchRecord
from pipelines.architecture.search_report import CSV, publish_search, search_sentences
from pipelines.console.signals import StopSignal
from pipelines.tracking.backend import open_client

SPACE = """
import os
import time
from pathlib import Path

from torch import nn

HERE = Path(__file__).parent


class Scaled(nn.Module):
    def __init__(self, num_features, num_classes, scale):
        super().__init__()
        self.linear, self.scale = nn.Linear(num_features, num_classes), scale

    def forward(self, images):
        return self.linear(images.flatten(1)) * self.scale


def scaled(scale):
    def made(channels, image_size, num_classes):
        return Scaled(channels * image_size[0] * image_size[1], num_classes, scale)

    return made


def deadly(channels, image_size, num_classes):
    if (HERE / "armed").exists():
        (HERE / "armed").unlink()
        os._exit(1)
    return scaled(2.0)(channels, image_size, num_classes)


def slow(channels, image_size, num_classes):
    if (HERE / "drowsy").exists():
        (HERE / "asleep").touch()
        time.sleep(600)
    return scaled(1.0)(channels, image_size, num_classes)


networks = [
    ("one", scaled(1.0), 100),
    ("deadly", deadly, 100),
    ("nan", scaled(float("nan")), 100),
    ("third", scaled(0.3), 100),
    ("slow", slow, 100),
]
"""


def nas_case(folder: Path, **changes: Any) -> NasCase:
    path = folder / "search_space.py"
    folder.mkdir(exist_ok=True)
    if not path.exists():
        path.write_text(SPACE)
    asked = {
        "mode": "search",
        "space": f"{path}:networks",
        "ladder": ("random:1", "random:2", "random:4"),
        "ipc": 2,
        "batch_train": 8,
        "search_trials": 5,
    }
    return digits_case(folder, **{**asked, **changes})


class StopWhenSeen(StopSignal):
    """Set as soon as the table has a row of a proxy."""

    def __init__(self, case: NasCase, proxy: str) -> None:
        super().__init__()
        self.case, self.proxy = case, proxy

    def is_set(self) -> bool:
        return any(row.proxy == self.proxy for row in self.case.table.rows)


class StopAtFile(StopSignal):
    """Set as soon as a file is there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def is_set(self) -> bool:
        return self.path.exists()


def stage_record(case: NasCase, place: int = 0) -> SearchRecord:
    """The record of a stage."""
    stage = case.ladder.stages[place]
    return SearchRecord(case, stage_proxy(case, stage), stage.epochs)


def reports(*scores: float) -> tuple[Report, ...]:
    return tuple(
        Report(e, Score(score, steps=3 * e, train_seconds=0.1 * e)) for e, score in enumerate(scores, 1)
    )


def test_record_comes_back_in_order_whatever_became_of_the_file_beside_the_table(tmp_path: Path) -> None:
    case = nas_case(tmp_path)
    record = stage_record(case)
    record.keep("third", reports(1.0, 2.0))
    record.fail("nan", "the network's outputs hold NaN")
    record.keep("one", reports(3.0))
    record.flush()
    again = stage_record(nas_case(tmp_path))
    assert list(again.curves) == ["third", "one"]
    assert again.curves == record.curves
    assert again.failed == ["nan"]
    assert again.rows() == record.rows()
    (tmp_path / "out" / RECORD).write_text("{")
    assert again.curves == stage_record(nas_case(tmp_path)).curves
    longer = stage_record(nas_case(tmp_path, ladder=("random:1", "random:2", "random:8")))
    assert longer.rows() == {}
    # One that was stopped where this ladder has no rung would stand for a network that did not pass one.
    other = stage_record(nas_case(tmp_path, ladder=("random:2", "random:4")))
    assert list(other.curves) == ["third"]


def test_stages_keep_their_networks_apart(tmp_path: Path) -> None:
    case = nas_case(tmp_path, ladder=("random:1", "random:4", "whole:1", "whole:2"))
    low, high = stage_record(case), stage_record(case, 1)
    low.keep("one", reports(1.0, 2.0, 3.0, 4.0))
    low.flush()
    high.keep("third", reports(70.0))
    high.flush()
    assert list(stage_record(case).curves) == ["one"]
    assert list(stage_record(case, 1).curves) == ["third"]
    assert stage_record(case).finished == {"one": 4.0}
    assert stage_record(case, 1).finished == {}
    assert stage_record(case).scores_at(1) == {"one": 1.0}
    order = json.loads((tmp_path / "out" / RECORD).read_text())["order"]
    assert order == {"random:4@search": ["one"], "whole:2@search": ["third"]}


def test_network_that_failed_and_then_was_trained_has_a_score(tmp_path: Path) -> None:
    record = stage_record(nas_case(tmp_path))
    record.fail("one", "its worker was lost")
    record.keep("one", reports(3.0, 4.0))
    record.flush()
    again = stage_record(nas_case(tmp_path))
    assert again.failed == record.failed == []
    assert [row.score for row in again.rows().values()] == [4.0]


def test_regret_of_the_pick_is_told_where_a_reference_knows_it(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("network,accuracy\na,70\na,72\nb,80\nfar,85\n")
    case = nas_case(tmp_path, networks=named_space(a=1, b=1, far=1, unknown=1), reference=str(truth))
    tried = [Tried("a", "finished", {"random:4": 60.0}, truth=71.0), Tried("b", "stopped", truth=80.0)]
    told = " ".join(search_sentences(case, Found(), tried, [tried[0].choice], None))
    assert told.startswith("Take a: 60.0 % of the validation images at random:4")
    assert "it reaches 71.00 %; it lacks 9.00 points to the best network that was tried, b" in told
    assert "and 14.00 points to the best of the 3 that the reference knows, far" in told
    assert "there is none to take" in search_sentences(case, Found(), tried, [], None)[0]


def test_sets_that_cost_more_than_the_budget_are_refused_before_a_network_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "_prepare_seconds", lambda case: 61.0)
    with pytest.raises(ConfigError, match="--budget-minutes 1: the sets of the ladder alone took"):
        search_best(nas_case(tmp_path, budget_minutes=1.0), StopSignal())


@pytest.mark.ray
@pytest.mark.timeout(500)
def test_networks_climb_from_scores_over_a_coreset_to_the_images_and_none_is_lost(
    ray_cluster: None, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {
        "space": "small",
        "sample": 8,
        "max_parameters": 50_000,
        "max_latency_ms": 1000.0,
        "ladder": ("synflow+naswot", "random:2", "whole:1", "whole:2"),
        "search_trials": 6,
        "batch_train": 32,
        "seeds": 1,
    }
    case = nas_case(tmp_path, **asked)
    assert all((c.parameters or 0) <= 50_000 for c in case.space.candidates)
    # Ended when the second stage has begun: another driver of the same command goes on.
    half = search_best(case, StopWhenSeen(case, "whole:2@search"))
    assert half.stopped
    found = search_best(nas_case(tmp_path, **asked), StopSignal())
    first, second = found.records
    assert set(first.curves) == set(list(found.order)[:6])
    assert set(second.curves) == set(list(case.best_first(first.finished))[:3])
    assert 1 <= len(second.finished) <= 3
    assert list(found.finalists(case)) == list(case.best_first(second.finished))
    # One worker, and no sampler that learns: the same search in one go.
    whole = search_best(nas_case(tmp_path / "again", **asked), StopSignal())
    assert whole.finalists(case) == found.finalists(case)
    assert set(found.latency_ms) == set(case.space.names)
    assert all(ms > 0 for ms in found.latency_ms.values())
    rows = from_parquet((tmp_path / "out" / TABLE).read_bytes(), where="table")
    assert len({row.network for row in rows if row.proxy == "random:2@search"}) == 6
    assert all(row.test_accuracy is None for row in rows)


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_search_survives_a_lost_worker_and_a_new_driver_goes_on(
    ray_cluster: None, tmp_path: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = nas_case(tmp_path, search_trials=4)
    (tmp_path / "armed").touch()
    first = search_best(case, StopSignal())
    assert not first.stopped
    assert len(first.records[0].rows()) == 4
    later = nas_case(tmp_path, search_trials=5, tracking_uri=mlflow_uri)
    scored = search_best(later, StopSignal())
    (record,) = scored.records
    assert {unit.network for unit in record.rows()} == {"one", "deadly", "nan", "third", "slow"}
    assert not (tmp_path / "armed").exists()
    for unit, row in first.records[0].rows().items():
        if row.status == "done":
            assert record.rows()[unit] == row
    assert record.failed == ["nan"]
    assert "NaN or infinity" in record.reasons["nan"]

    finished = [row for row in record.rows().values() if row.steps == 3 * 4]
    assert finished
    images = {name: _images(parts, "cpu") for name, parts in later.material.real.items()}
    for row in finished:
        exact = run_unit(
            Unit(row.network, "random:4", 0),
            later.material.named("random:4"),
            space=later.space,
            small=later.material.draws(),
            real=images,
            recipe=later.recipe,
            device=torch.device("cpu"),
        )
        assert row.score == exact.score
        assert row.steps == exact.steps
    rows = from_parquet((tmp_path / "out" / TABLE).read_bytes(), where="table")
    assert {row.proxy for row in rows} == {"random:4@search", "latency"}

    capsys.readouterr()
    with later.tracker("search") as tracker:
        assert publish_search(later, scored, None, tracker) == 1
    told = capsys.readouterr().out
    assert "The best 5 of 5 networks" in told
    assert "--mode rank" in told
    logged = open_client(mlflow_uri).get_run(tracker.run_id).data.metrics
    assert logged["search/trials"] == 4
    assert logged["search/failed"] == 1
    assert logged["search/best_score"] == max(row.score or 0.0 for row in finished)
    content = json.loads((tmp_path / "out" / RECORD).read_text())
    assert set(content["order"]["random:4@search"]) == {one["network"] for one in content["trials"]}
    assert content["pick"]["network"] in content["front"]
    assert b"<strong>Take " in (tmp_path / "out" / "report.html").read_bytes()
    assert (tmp_path / "out" / CSV).read_text().splitlines()[0].endswith(",random:1,random:2,random:4")


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_stopped_search_ends_within_seconds_and_keeps_what_it_has(ray_cluster: None, tmp_path: Path) -> None:
    case = nas_case(tmp_path)
    record = stage_record(case)
    record.keep("third", reports(1.0, 2.0))
    # What failed in an earlier run is tried first in the next.
    record.fail("slow", "its worker was lost")
    record.flush()
    (tmp_path / "drowsy").touch()
    scored = search_best(case, StopAtFile(tmp_path / "asleep"))
    assert time.time() - (tmp_path / "asleep").stat().st_mtime < 30
    assert scored.stopped
    assert {unit.network: row.status for unit, row in scored.records[0].rows().items()} == {
        "third": "done",
        "slow": "failed",
    }
    rows = from_parquet((tmp_path / "out" / TABLE).read_bytes(), where="table")
    assert [row.score for row in rows if row.network == "third" and row.steps == 6] == [2.0]
