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
from pipelines.architecture.case import TABLE, NasCase
from pipelines.architecture.remote import _images
from pipelines.architecture.search import search_best
from pipelines.architecture.search_record import RECORD, SearchRecord
from pipelines.architecture.search_report import publish_search, search_sentences
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
    if not path.exists():
        path.write_text(SPACE)
    asked = {
        "mode": "search",
        "space": f"{path}:networks",
        "proxies": ("random",),
        "ipc": 2,
        "epochs": 4,
        "batch_train": 8,
        "grace_epochs": 1,
        "search_trials": 5,
    }
    return digits_case(folder, **{**asked, **changes})


class StopAtFile(StopSignal):
    """Set as soon as a file is there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def is_set(self) -> bool:
        return self.path.exists()


def reports(*scores: float) -> tuple[Report, ...]:
    return tuple(
        Report(e, Score(score, steps=3 * e, train_seconds=0.1 * e)) for e, score in enumerate(scores, 1)
    )


def test_record_comes_back_in_order_whatever_became_of_the_file_beside_the_table(tmp_path: Path) -> None:
    case = nas_case(tmp_path)
    record = SearchRecord(case, (1, 2, 4))
    record.keep("third", reports(1.0, 2.0))
    record.fail("nan", "the network's outputs hold NaN")
    record.keep("one", reports(3.0))
    record.flush()
    again = SearchRecord(nas_case(tmp_path), (1, 2, 4))
    assert list(again.curves) == ["third", "one"]
    assert again.curves == record.curves
    assert again.failed == ["nan"]
    assert again.rows() == record.rows()
    (tmp_path / "out" / RECORD).write_text("{")
    assert again.curves == SearchRecord(nas_case(tmp_path), (1, 2, 4)).curves
    other = SearchRecord(nas_case(tmp_path, epochs=8), (1, 2, 8))
    assert other.rows() == {}


def test_network_that_failed_and_then_was_trained_has_a_score(tmp_path: Path) -> None:
    record = SearchRecord(nas_case(tmp_path), (1, 2))
    record.fail("one", "its worker was lost")
    record.keep("one", reports(3.0, 4.0))
    record.flush()
    again = SearchRecord(nas_case(tmp_path), (1, 2))
    assert again.failed == record.failed == []
    assert [row.score for row in again.rows().values()] == [4.0]


def test_first_proxy_must_be_a_set_and_the_first_rung_within_the_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the first proxy is synflow"):
        search_best(nas_case(tmp_path, proxies=("synflow", "random")), StopSignal())
    with pytest.raises(ConfigError, match="--grace-epochs 9: a network is trained for 4 epochs"):
        search_best(nas_case(tmp_path, grace_epochs=9), StopSignal())


def test_regret_of_the_pick_is_told_where_a_reference_knows_it(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("network,accuracy\na,70\na,72\nb,80\nfar,85\n")
    case = nas_case(tmp_path, networks=named_space(a=1, b=1, far=1, unknown=1), reference=str(truth))
    tried = [Tried("a", "finished", 60.0, 4, truth=71.0), Tried("b", "stopped", 50.0, 2, truth=80.0)]
    told = " ".join(search_sentences(case, tried, retrained=False))
    assert "2 were tried on random: 1 to the end, 1 stopped early, 0 failed" in told
    assert "the pick reaches 71.00 %; it lacks 9.00 points to the best network that was tried, b" in told
    assert "and 14.00 points to the best of the 3 that the reference knows, far" in told
    assert "there is no pick" in search_sentences(case, tried[1:], retrained=True)[-1]


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_search_survives_a_lost_worker_and_a_new_driver_goes_on(
    ray_cluster: None, tmp_path: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = nas_case(tmp_path, search_trials=4)
    (tmp_path / "armed").touch()
    first = search_best(case, StopSignal())
    assert not first.stopped
    assert len(first.rows) == 4
    later = nas_case(tmp_path, search_trials=5, tracking_uri=mlflow_uri)
    scored = search_best(later, StopSignal())
    assert {unit.network for unit in scored.rows} == {"one", "deadly", "nan", "third", "slow"}
    assert not (tmp_path / "armed").exists()
    for unit, row in first.rows.items():
        if row.status == "done":
            assert scored.rows[unit] == row
    (failure,) = scored.failed
    assert failure.network == "nan"
    assert "NaN or infinity" in failure.reason

    finished = [row for row in scored.rows.values() if row.steps == 3 * 4]
    assert finished
    images = {name: _images(parts, "cpu") for name, parts in later.material.real.items()}
    for row in finished:
        exact = run_unit(
            Unit(row.network, "random", 0),
            later.primary,
            space=later.space,
            small=later.material.draws(),
            real=images,
            recipe=later.recipe,
            device=torch.device("cpu"),
        )
        assert row.score == exact.score
        assert row.steps == exact.steps
    rows = from_parquet((tmp_path / "out" / TABLE).read_bytes(), where="table")
    assert {row.proxy for row in rows} == {"random@search"}

    capsys.readouterr()
    with later.tracker("search") as tracker:
        assert publish_search(later, scored, None, tracker) == 1
    told = capsys.readouterr().out
    assert "The best 5 of 5 networks tried" in told
    assert "--mode rank" in told
    logged = open_client(mlflow_uri).get_run(tracker.run_id).data.metrics
    assert logged["search/trials"] == 5
    assert logged["search/failed"] == 1
    assert logged["search/best_score"] == max(row.score or 0.0 for row in finished)
    content = json.loads((tmp_path / "out" / RECORD).read_text())
    assert content["order"] == [one["network"] for one in content["trials"]]
    assert b"The pick is" in (tmp_path / "out" / "report.html").read_bytes()


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_stopped_search_ends_within_seconds_and_keeps_what_it_has(ray_cluster: None, tmp_path: Path) -> None:
    case = nas_case(tmp_path)
    record = SearchRecord(case, (1, 2, 3, 4))
    record.keep("third", reports(1.0, 2.0))
    # What failed in an earlier run is tried first in the next.
    record.fail("slow", "its worker was lost")
    record.flush()
    (tmp_path / "drowsy").touch()
    scored = search_best(case, StopAtFile(tmp_path / "asleep"))
    assert time.time() - (tmp_path / "asleep").stat().st_mtime < 30
    assert scored.stopped
    assert {unit.network: row.status for unit, row in scored.rows.items()} == {
        "third": "done",
        "slow": "failed",
    }
    rows = from_parquet((tmp_path / "out" / TABLE).read_bytes(), where="table")
    assert [row.score for row in rows if row.network == "third" and row.steps == 6] == [2.0]
