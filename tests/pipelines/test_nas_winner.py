"""The best networks trained on the whole set: which they are, what is delivered, and what a second driver repeats."""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tiny_search import digits_case, named_space

from apps.nas.proxies import WHOLE, Proxy
from apps.nas.table import Row
from apps.nas.trial import Images, Score, Unit, run_unit
from apps.nas.winner import load_winner
from atom.pixels import Pixels
from atom.train import accuracy
from pipelines.architecture import rank as rank_module
from pipelines.architecture import winner
from pipelines.architecture.case import NasCase
from pipelines.architecture.rank import rank
from pipelines.architecture.scores import Scores
from pipelines.architecture.scoring import Ranked
from pipelines.architecture.winner import Winners, ranked, retrain
from pipelines.console.signals import StopSignal
from pipelines.output.records import note_maker
from pipelines.tracking import Tracker

SPACE = """
def network(width):
    def made(*, channels, image_size, num_classes):
        from atom.nets import build

        return build(f"convnet-w{width}-d1", channels=channels, image_size=image_size, num_classes=num_classes)

    return made


def broken(*, channels, image_size, num_classes):
    raise ValueError("no such luck")


networks = [("narrow", network(4), 1000), ("wide", network(8), 2000), ("broken", broken, 10)]
"""


def scored(scores: Mapping[str, tuple[float, ...]], proxy: str = "parameters") -> Scores:
    rows = [
        Row.of(Unit(network, proxy, seed), Score(value), key="x")
        for network, values in scores.items()
        for seed, value in enumerate(values)
    ]
    return Scores(rows={row.unit: row for row in rows})


def nas_case(folder: Path, **changes: Any) -> NasCase:
    path = folder / "few_networks.py"
    if not path.exists():
        path.write_text(SPACE)
    asked = {
        "space": f"{path}:networks",
        "proxies": ("parameters",),
        "epochs": 1,
        "whole_epochs": 1,
        "batch_train": 32,
        "retrain": 2,
        "retrain_seeds": 2,
    }
    return digits_case(folder, num_actors=2, **{**asked, **changes})


def ranking_case(folder: Path, **changes: Any) -> NasCase:
    """A case whose networks have names and costs, and are never built."""
    networks = named_space(a=500, b=20, c=20, dear=10_000, unknown=None)
    return digits_case(folder, networks=networks, **{"proxies": ("random",), "retrain": 2, **changes})


def refuse_to_train(*arguments: object, **options: object) -> None:
    raise AssertionError("nothing was left to train")


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"a": (50.0, 70.0), "dear": (90.0, 10.0), "c": (65.0, 65.0)}, ["c", "a"]),
        ({"dear": (60.0,), "a": (60.0,), "b": (10.0,)}, ["a", "dear"]),
        ({"c": (60.0,), "b": (60.0,), "a": (60.0,)}, ["b", "c"]),
        ({"unknown": (60.0,), "dear": (60.0,)}, ["dear", "unknown"]),
        ({"b": (1.0,)}, ["b"]),
        ({}, []),
    ],
    ids=["by mean", "then cheaper", "then by name", "unknown cost last", "fewer than asked", "none"],
)
def test_best_networks_are_chosen_by_mean_then_cost_then_name(
    scores: dict[str, tuple[float, ...]], expected: list[str], tmp_path: Path
) -> None:
    assert list(ranked(ranking_case(tmp_path), scored(scores, "random")))[:2] == expected


def test_only_the_first_proxy_chooses(tmp_path: Path) -> None:
    other = scored({"dear": (99.0,)}, "herding")
    other.rows |= scored({"b": (1.0,)}, "random").rows
    assert ranked(ranking_case(tmp_path), other) == {"b": 1.0}


def test_network_that_failed_with_a_seed_is_not_chosen(tmp_path: Path) -> None:
    half = scored({"a": (90.0,), "b": (50.0, 50.0)}, "random")
    failure = Row.failure(Unit("a", "random", 1), "no", key="x")
    half.rows[failure.unit] = failure
    assert list(ranked(ranking_case(tmp_path), half)) == ["b"]


def test_networks_that_cannot_be_built_or_took_too_long_fail_without_a_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def too_long(units: list[Unit], *given: Any, **options: Any) -> Ranked:
        tried.extend(unit.network for unit in units)
        return Ranked(too_long={"wide": "not tried, since wide (random, seed 0) took longer than 10 s"})

    monkeypatch.setattr(rank_module, "run_units", too_long)
    monkeypatch.setattr(NasCase, "shared", lambda self, seconds=None: None)
    case = nas_case(tmp_path, proxies=("parameters", "whole"))
    failed = rank(case, StopSignal()).failed
    # Scores without training come first, those of the whole set after them.
    assert tried == ["narrow", "wide", "narrow", "narrow"]
    reasons = {row.network: row.reason for row in failed}
    assert reasons["wide"].startswith("not tried, since wide (random, seed 0) took longer than 10 s")
    assert "network 'broken': the function failed with ValueError: no such luck" in reasons["broken"]


def test_scores_of_an_earlier_version_of_the_code_are_said_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[int] = []

    def score(
        units: list[Unit], *given: Any, on_score: Callable[[Unit, Score], None], **options: Any
    ) -> Ranked:
        tried.append(len(units))
        for unit in units:
            on_score(unit, Score(1.0))
        return Ranked()

    monkeypatch.setattr(rank_module, "run_units", score)
    monkeypatch.setattr(NasCase, "shared", lambda self, seconds=None: None)
    for space in ("first", "second", "third"):
        # Another file stands for the next process, which would import the edited module anew.
        text = SPACE.replace("4", "widths.NARROW").replace("8", "widths.WIDE")
        widths = "widths_of_test" if space == "first" else "edited_widths_of_test"
        (tmp_path / f"{widths}.py").write_text("NARROW, WIDE = 4, 8  # edited\n")
        (tmp_path / f"{space}.py").write_text(f"import {widths} as widths\n{text}")
        case = nas_case(tmp_path, space=f"{tmp_path}/{space}.py:networks")
        rank(case, StopSignal())
        said = capsys.readouterr().out
        assert ("Note: 2 of the scores in this output are of other code" in said) == (space == "second")
    assert tried == [2, 2, 0]


def test_fewer_networks_than_asked_for_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert retrain(nas_case(tmp_path), {}, StopSignal()) == Winners()
    assert (
        "--retrain 2: 0 networks have a score for every seed, so no more are retrained"
        in capsys.readouterr().out
    )


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_the_best_network_is_delivered_and_a_second_call_trains_nothing(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As of many images: pixels in the store, whose trainings are those of preprocessed ones.
    monkeypatch.setattr("atom.data.mapped.MAPPED_BYTES", 1)
    case = nas_case(tmp_path)
    assert isinstance(case.material.real["main"]["train"][0], Pixels)
    scores = {"wide": 2.0, "narrow": 1.0}
    found = retrain(case, scores, StopSignal())
    assert not found.stopped
    assert not found.failed
    assert [(row["network"], row["n"], row["proxy score"]) for row in found.rows] == [
        ("wide", 2, 2.0),
        ("narrow", 2, 1.0),
    ]
    check_choice(case, found)
    check_delivery(case, found, monkeypatch)
    check_equal_to_reference(case)
    check_served(case)
    check_resume(case, found, scores, monkeypatch)


def check_choice(case: NasCase, found: Winners) -> None:
    """The winner has the best mean validation accuracy, its seed the best validation accuracy."""
    delivered = [row for row in found.rows if row["delivered"]]
    assert len(delivered) == 1
    assert delivered[0]["validation mean"] == max(row["validation mean"] for row in found.rows)
    described = json.loads(case.store.read_bytes("winner/winner.json"))
    own = [record for record in records(case) if record["network"] == delivered[0]["network"]]
    best = max(own, key=lambda record: record["score"])
    assert described["network"] == delivered[0]["network"]
    assert described["seed"] in {r["seed"] for r in own if r["score"] == best["score"]}
    assert described["validation_accuracy"]["delivered"] == best["score"]
    assert described["validation_accuracy"]["mean"] == delivered[0]["validation mean"]
    assert described["test_accuracy"]["n"] == 2
    assert described["training"]["epochs"] == 1
    assert described["data"]["fingerprint"] == case.real.train.fingerprint


def check_delivery(case: NasCase, found: Winners, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw images through the loaded preprocessing and network give the accuracies that are told."""
    assert found.directory == case.store.where("winner")
    names = ["README.md", "model.safetensors", "preprocess.safetensors", "winner.json"]
    assert sorted(path.name for path in Path(found.directory).iterdir()) == names
    monkeypatch.chdir(Path(case.space.spec.rpartition(":")[0]).parent)
    net, preprocess, described = load_winner(found.directory, trust_code=True)
    assert "/" not in described["space"]
    assert case.real.validation is not None
    for key, part in (("validation_accuracy", case.real.validation), ("test_accuracy", case.real.test)):
        labels_T = torch.from_numpy(part.labels)
        told = described[key]["delivered"]
        # Another memory layout sums in another order: an image on the edge may fall to the other side.
        slack = 100 / len(labels_T) + 1e-6
        assert accuracy(net, preprocess.apply(part.images), labels_T) == pytest.approx(told, abs=slack)


def check_served(case: NasCase) -> None:
    """The model for MLflow answers as the delivered network does."""
    tracker = Mock(spec=Tracker)
    winner.log_winner(case, tracker, StopSignal())
    model, at = tracker.log_model.call_args.args
    assert (at.name, model.classes) == ("nas-digits", case.real.train.class_names)
    net, preprocess, _ = load_winner(case.store.where("winner"), trust_code=True)
    images_NCHW = case.real.test.images[:3]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found_NK = torch.jit.load(io.BytesIO(model.script))(torch.from_numpy(images_NCHW))
        torch.testing.assert_close(found_NK, net(preprocess.apply(images_NCHW)).softmax(dim=1))


def check_equal_to_reference(case: NasCase) -> None:
    """A training is that of the reference of the same seed, bit for bit."""
    parts = {
        name: (torch.as_tensor(images[:]), torch.tensor(labels))
        for name, (images, labels) in case.material.real["main"].items()
    }
    for record in records(case):
        unit = Unit(record["network"], WHOLE, record["seed"])
        proxy = Proxy(WHOLE, "whole", "main", len(case.real.train.labels))
        given: dict[str, Any] = {"space": case.space, "recipe": case.recipe, "small": {}}
        score = run_unit(unit, proxy, real={"main": Images(**parts)}, device=torch.device("cpu"), **given)
        assert (score.score, score.test_accuracy) == (record["score"], record["test_accuracy"])


def check_resume(
    case: NasCase, found: Winners, scores: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records are taken up; what is damaged is trained again; what has changed gets records of its own."""
    before = {name: case.store.read_bytes(name) for name in case.store.list("winner")}
    real_tasks, trained = winner.run_tasks, []
    monkeypatch.setattr(winner, "run_tasks", refuse_to_train)
    # A driver of another commit that computed something here since, but none of these weights.
    monkeypatch.setenv("ATOM_GIT_COMMIT", "f" * 40)
    note_maker(case.store, case.size)
    assert retrain(case, scores, StopSignal()) == found
    assert {name: case.store.read_bytes(name) for name in case.store.list("winner")} == before

    def counting(function: Callable[..., Any], items: list[Unit], **options: Any) -> Any:
        trained.extend(items)
        return real_tasks(function, items, **options)

    monkeypatch.setattr(winner, "run_tasks", counting)
    weights = next(name for name in case.store.list("retrain") if name.endswith(".safetensors"))
    content = case.store.read_bytes(weights)
    case.store.write_bytes(weights, content[:-4] + b"abcd")
    again = retrain(case, scores, StopSignal())
    assert len(trained) == 1
    assert replace(again, seconds=found.seconds) == found
    assert case.store.read_bytes(weights) == content


def records(case: NasCase) -> list[dict[str, Any]]:
    names = [name for name in case.store.list("retrain") if name.endswith(".json")]
    return [json.loads(case.store.read_bytes(name)) for name in names]


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_network_that_cannot_be_built_is_told_and_the_others_go_on(ray_cluster: None, tmp_path: Path) -> None:
    case = nas_case(tmp_path, retrain_seeds=1)
    found = retrain(case, {"broken": 9.0, "narrow": 1.0}, StopSignal())
    assert [row["network"] for row in found.rows] == ["narrow"]
    assert found.rows[0]["test std"] is None
    assert found.rows[0]["delivered"]
    assert [(unit.network, unit.seed) for unit in found.failed] == [("broken", 0)]
    assert "no such luck" in next(iter(found.failed.values())).reason


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_a_signal_ends_it_without_delivering_and_nothing_chosen_delivers_nothing(
    ray_cluster: None, tmp_path: Path
) -> None:
    case, stop = nas_case(tmp_path), StopSignal()
    stop.set()
    found = retrain(case, {"narrow": 1.0}, stop)
    assert found.stopped
    assert (found.rows, found.directory) == ([], "")
    assert not case.store.exists("winner")
    assert retrain(case, {}, StopSignal()) == Winners()
