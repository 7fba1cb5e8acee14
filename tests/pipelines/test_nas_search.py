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
from apps.nas.table import Row, from_parquet
from apps.nas.trial import Score, Unit, run_unit
from atom.errors import ConfigError
from pipelines.architecture import search as search_module
from pipelines.architecture.case import LATENCY, TABLE, NasCase
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


def test_the_table_is_a_cache_of_curves_and_no_search_of_its_own(tmp_path: Path) -> None:
    record = stage_record(nas_case(tmp_path))
    record.keep("third", reports(1.0, 2.0))
    record.fail("nan", "the network's outputs hold NaN")
    record.fail("one", "its worker was lost")
    record.keep("one", reports(3.0, 4.0, 5.0, 6.0))
    record._case.table.flush()
    assert (record.reasons.keys(), record.finished) == ({"nan"}, {"one": 6.0})
    assert record.scores_at(2) == {"third": 2.0, "one": 4.0}
    again = stage_record(nas_case(tmp_path))
    assert (again.curves, again.reasons, again.seconds) == ({}, {}, 0.0)
    assert again.known("third") == record.curves["third"]
    assert again.known("one") == record.curves["one"]
    assert again.known("nan") == ()
    # Of trainings to another end, or on other images, nothing is known.
    assert stage_record(nas_case(tmp_path, ladder=("random:1", "random:8"))).known("one") == ()
    other = nas_case(tmp_path, ladder=("random:4", "whole:4"))
    assert (stage_record(other).known("one"), stage_record(other, 1).known("one")) == (
        record.curves["one"],
        (),
    )


def test_a_curve_whose_first_looks_a_kill_lost_is_trained_again(tmp_path: Path) -> None:
    case = nas_case(tmp_path)
    record = stage_record(case)
    record.keep("one", reports(3.0, 4.0, 5.0))
    rows = [row for row in case.table.rows if row.steps != 3]
    case.table._rows = {(row.unit, row.key): row for row in rows}
    assert stage_record(case).known("one") == ()


def test_regret_of_the_pick_is_told_where_a_reference_knows_it(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("network,accuracy\na,70\na,72\nb,80\nfar,85\n")
    case = nas_case(tmp_path, networks=named_space(a=1, b=1, far=1, unknown=1), reference=str(truth))
    tried = [
        Tried("a", "finished", {"random:4": 60.0}, truth=71.0),
        Tried("b", "stopped", {"random:1": 9.0}, truth=80.0),
    ]
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


def found_of(case: NasCase, monkeypatch: pytest.MonkeyPatch, curves: dict[str, tuple[float, ...]]) -> Found:
    """A search whose stages train nothing but tell these curves, a second an epoch, in the order of the proposals."""

    def told(
        case: Any, record: Any, proposals: Any, stop: Any, *, share: Any = None, halve: bool = True
    ) -> None:
        number = 0
        while not isinstance(proposed := proposals.suggest(f"t{number}"), str):
            network = proposed["network"]
            scores = curves[network] if halve else (*curves[network], 1.0, 1.0, 1.0)
            scores = scores[: record.rungs[-1]]
            curve = tuple(
                Report(e, Score(score, steps=3 * e, train_seconds=float(e)))
                for e, score in enumerate(scores, 1)
            )
            record.keep(network, curve)
            proposals.on_trial_complete(f"t{number}", {"value": scores[-1]})
            number += 1

    def scored(case: Any, units: list[Unit], scores: Any, stop: Any, **_: Any) -> None:
        scores.rows = {
            unit: Row.of(unit, Score(len(unit.network), train_seconds=1.0), key="k") for unit in units
        }

    monkeypatch.setattr(search_module, "run_stage", told)
    monkeypatch.setattr(search_module, "score_units", scored)
    return search_best(case, StopSignal())


def named_case(folder: Path, number: int, **asked: Any) -> NasCase:
    networks = named_space(**{f"n{place:02}": 1 for place in range(number)})
    return nas_case(folder, networks=networks, sampler="grid", search_trials=None, **asked)


def test_a_budget_is_shared_by_the_stages_and_what_is_left_over_goes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = named_case(tmp_path, 50, ladder=("random:2", "whole:4"), budget_minutes=1.0)
    monkeypatch.setattr(search_module, "_prepare_seconds", lambda case: 20.0)
    curves = {name: (1.0, 2.0, 3.0, float(name[1:])) for name in case.space.names}

    found = found_of(case, monkeypatch, curves)
    low, high = found.records
    # 40 seconds are left, half of them below, where a training takes 2 seconds; above it takes 4.
    assert list(low.curves) == [f"n{place:02}" for place in range(10)]
    assert list(found.finalists(case)) == ["n04", "n03", "n02", "n01", "n00"]
    assert set(high.curves) == set(found.finalists(case))
    assert found.spent_s == 20 + 10 * 2 + 5 * 4 + 5


def test_scores_without_training_keep_within_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = named_case(tmp_path, 400, ladder=("synflow+naswot", "whole:4"), budget_minutes=10.0, seeds=1)
    curves = {name: (1.0, 2.0, 3.0, 4.0) for name in case.space.names}
    found = found_of(case, monkeypatch, curves)
    # Half of 600 seconds, at two seconds a network.
    assert len(found.order) == 150
    assert found.unscored == 250
    assert "scoring 150 of 400 networks, drawn at random" in capsys.readouterr().out


def test_somebody_reaches_the_top_though_asha_stopped_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = named_case(tmp_path, 3, ladder=("whole:1", "whole:2", "whole:4"))
    found = found_of(case, monkeypatch, {"n00": (9.0,), "n01": (5.0, 6.0), "n02": (4.0, 5.0)})
    assert list(found.finalists(case)) == ["n01"]


def test_one_that_is_too_slow_is_left_out_of_a_search_after_one_that_trained_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = {name: (1.0, 2.0, 3.0, float(name[1:])) for name in ("n00", "n01", "n02", "n03")}
    asked: dict[str, Any] = {"ladder": ("whole:4",)}
    wide = named_case(tmp_path, 4, **asked)
    assert next(iter(found_of(wide, monkeypatch, curves).finalists(wide))) == "n03"
    wide.table.flush()
    narrow = named_case(tmp_path, 4, max_latency_ms=2.0, **asked)
    slow = {"n00": 1.0, "n01": 2.0, "n02": 2.1, "n03": 9.0}

    def timed(case: Any, units: list[Unit], scores: Any, stop: Any, **_: Any) -> None:
        scores.rows = {unit: Row.of(unit, Score(slow[unit.network]), key="k") for unit in units}

    monkeypatch.setattr(search_module, "score_units", timed)
    found = search_best(narrow, StopSignal())
    assert found.too_slow == ["n02", "n03"]
    assert list(found.finalists(narrow)) == ["n01", "n00"]


def test_a_space_in_which_nothing_can_be_trained_is_refused_with_the_reason(tmp_path: Path) -> None:
    case = named_case(tmp_path, 2)
    case.problems = {"n00": "no such layer", "n01": "no such layer"}
    with pytest.raises(ConfigError, match="none of its 2 networks can be trained; 'n00': no such layer"):
        search_best(case, StopSignal())


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
    # A narrower search in the same output takes from the table what it would have trained itself, and no more.
    narrow = search_best(nas_case(tmp_path, **{**asked, "search_trials": 2}), StopSignal())
    assert list(narrow.records[0].curves) == list(found.order)[:2]
    assert len(narrow.records[1].curves) == 1
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
    assert len(first.records[0].curves) + len(first.records[0].reasons) == 4
    later = nas_case(tmp_path, search_trials=5, tracking_uri=mlflow_uri)
    scored = search_best(later, StopSignal())
    (record,) = scored.records
    assert {*record.curves, *record.reasons} == {"one", "deadly", "nan", "third", "slow"}
    assert not (tmp_path / "armed").exists()
    # Told again, to the second: nothing was trained anew that the table had, as far as it came.
    for network, curve in first.records[0].curves.items():
        assert record.curves[network][: len(curve)] == curve
    assert list(record.reasons) == ["nan"]
    assert "NaN or infinity" in record.reasons["nan"]

    assert record.finished
    images = {name: _images(parts, "cpu") for name, parts in later.material.real.items()}
    for network, score in record.finished.items():
        exact = run_unit(
            Unit(network, "random:4", 0),
            later.material.named("random:4"),
            space=later.space,
            small=later.material.draws(),
            real=images,
            recipe=later.recipe,
            device=torch.device("cpu"),
        )
        assert score == exact.score
        assert record.curves[network][-1].score.steps == exact.steps == 3 * 4
    rows = from_parquet((tmp_path / "out" / TABLE).read_bytes(), where="table")
    assert {row.proxy for row in rows} == {"random:4@search", LATENCY}

    capsys.readouterr()
    with later.tracker("search") as tracker:
        assert publish_search(later, scored, None, tracker) == 1
    told = capsys.readouterr().out
    assert "The best 5 of 5 networks" in told
    assert "--mode rank" in told
    logged = open_client(mlflow_uri).get_run(tracker.run_id).data.metrics
    assert logged["search/trials"] == 4
    assert logged["search/failed"] == 1
    assert logged["search/best_score"] == max(record.finished.values())
    content = json.loads((tmp_path / "out" / RECORD).read_text())
    assert set(content["order"]["random:4@search"]) == {one["network"] for one in content["trials"]}
    assert content["pick"]["network"] in content["front"]
    assert b"<strong>Take " in (tmp_path / "out" / "report.html").read_bytes()
    assert (tmp_path / "out" / CSV).read_text().splitlines()[0].endswith(",random:1,random:2,random:4")


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_stopped_search_ends_within_seconds_and_keeps_what_it_has(ray_cluster: None, tmp_path: Path) -> None:
    case = nas_case(tmp_path, sampler="grid")
    (tmp_path / "drowsy").touch()
    scored = search_best(case, StopAtFile(tmp_path / "asleep"))
    assert time.time() - (tmp_path / "asleep").stat().st_mtime < 30
    assert scored.stopped
    (record,) = scored.records
    rows = from_parquet((tmp_path / "out" / TABLE).read_bytes(), where="table")
    done = {row.network for row in rows if row.status == "done"}
    assert done == set(record.curves) <= {"one", "deadly", "third"}
    assert "slow" not in record.reasons
