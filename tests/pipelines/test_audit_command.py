"""The audit command: who is a member, what it leaves behind, and that finished trainings are kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_runs import kill_when, run_here, start
from tiny_digits import digits_set

from atom import data
from atom.data import RealData
from atom.distilled import DistilledSet, describe_source
from atom.errors import ConfigError
from pipelines.distill import publish, standing
from pipelines.membership.parts import find_parts
from pipelines.output.provenance import COMMIT_VARIABLE
from pipelines.output.store import Store
from pipelines.tracking.backend import open_client

NARROW = "convnet-w8-d1"


def digits() -> RealData:
    return data.load("digits", data_dir=Path("unused"))


def made_of(real: RealData) -> DistilledSet:
    """A set that says it was made from these."""
    return digits_set(source=describe_source(real))


def pixels(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.mark.parametrize(
    "put_aside",
    [{"validation_frac": 0.5}, {"validation_frac": 0.13}, {"validation_frac": 0, "train_per_class": 20}],
    ids=str,
)
def test_members_are_the_images_that_the_set_was_made_from_and_the_others_of_the_source_are_not(
    put_aside: dict[str, Any],
) -> None:
    whole = digits()
    seen = whole.hold_out(**put_aside)
    parts = find_parts(made_of(seen), whole, "here")
    assert parts.members.fingerprint == seen.train.fingerprint
    assert parts.held_out
    assert not parts.caveat
    assert pixels(parts.members.images) | pixels(parts.non_members.images) == pixels(whole.train.images)
    assert not pixels(parts.members.images) & pixels(parts.non_members.images)


def test_test_images_are_the_non_members_where_nothing_was_held_out() -> None:
    whole = digits()
    parts = find_parts(made_of(whole), whole, "here")
    assert not parts.held_out
    assert pixels(parts.non_members.images) == pixels(whole.test.images)
    assert "reads as membership" in parts.caveat


def test_a_copy_of_a_member_is_no_non_member() -> None:
    whole = digits()
    twice = replace(whole, test=whole.train.subset([*range(200)]))
    with pytest.raises(ConfigError, match=r"has no image that the set was not made from"):
        find_parts(made_of(whole), twice, "here")


@pytest.mark.parametrize(
    "source",
    [
        {"fingerprint": "other"},
        {"num_train": 3},
        {"num_train": None},
        {"num_validation": 10**6},
        {"started_from": [{"fingerprint": "other"}]},
    ],
    ids=str,
)
def test_a_set_of_other_images_is_refused(source: dict[str, Any]) -> None:
    whole = digits()
    made = digits_set(source=describe_source(whole) | source)
    with pytest.raises(
        ConfigError, match="--set here: was made from other training images than --dataset dig"
    ):
        find_parts(made, whole, "here")


def test_distilling_again_keeps_accuracies_and_audit_of_the_set_that_stands(tmp_path: Path) -> None:
    told = {"results": ({"network": NARROW, "mean": 90.0},), "audit": {"findings": []}}
    digits_set(**told).save(tmp_path / "set")
    assert standing(Store.open(tmp_path)) == told | {"results": [*told["results"]]}
    assert standing(Store.open(tmp_path / "nothing")) == {"results": (), "audit": {}}


def test_publishing_keeps_an_audit_that_came_meanwhile(tmp_path: Path) -> None:
    real, audit = digits(), {"findings": []}
    assembled = made_of(real)
    digits_set(audit=audit).save(tmp_path / "set")
    publish(SimpleNamespace(store=Store.open(tmp_path), real=real), assembled)  # pyrefly: ignore
    assert DistilledSet.load(tmp_path / "set").audit == audit
    assert DistilledSet.load(tmp_path / "set").source == assembled.source


def loads_first(first: DistilledSet) -> Callable[[Path], DistilledSet]:
    """`DistilledSet.load` that gives this set at first, as it stood when a command began."""
    load, given = DistilledSet.load, [first]
    return lambda path: given.pop() if given else load(path)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_command_tells_what_a_set_gives_away_and_the_card_keeps_it(
    ray_cluster: None, tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = digits().hold_out(0.5)
    made = tmp_path / "run" / "set"
    made_of(seen).save(made)
    before = DistilledSet.load(made)
    arguments = (
        *("--set", tmp_path / "run", "--network", NARROW, "--epochs", 2, "--eval-seeds", 2),
        *("--audit-images", 200, "--baselines", "random", "--output", tmp_path / "out"),
        *("--tracking-uri", mlflow_uri, "--num-actors", 2),
    )
    code, lines, errors = run_here(*arguments, script="audit")
    assert (code, errors) == (0, "")
    assert lines[-1] == str(tmp_path / "out" / "audit.json")
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert found["non_members"] == "held-out training images"
    # The set is called "random" too, so tables say which it is.
    assert found["trainings"] == {"set (random)": 2, "random": 2}
    rows = {(row["set"], row["members"], row["attack"]): row for row in found["findings"]}
    attacks = ("pixels", "features", "loss")
    assert set(rows) == {
        (name, members, attack)
        for name, members in (
            ("set (random)", "it was made from"),
            ("set (random)", "in the set"),
            ("random", "it was made from"),
            ("random", "in the set"),
        )
        for attack in attacks
    }
    assert rows["random", "in the set", "pixels"]["advantage"]["value"] == 1.0
    assert rows["random", "it was made from", "loss"]["num_members"] == 200
    assert found["copies"]["random"]["num_near"] == 20
    client = open_client(mlflow_uri)
    run_id = json.loads((tmp_path / "out" / "mlflow_run.json").read_text())["run_id"]
    metrics = client.get_run(run_id).data.metrics
    assert metrics["audit/random/in_set/pixels/auc"] == 1.0
    bounds = [metrics[f"audit/random/made_from/loss/advantage{end}"] for end in ("_low", "", "_high")]
    assert bounds == sorted(set(bounds))

    after = DistilledSet.load(made)
    assert after.audit["findings"] == found["findings"]
    assert (after.images_NCHW == before.images_NCHW).all()
    assert "## What it gives away" in (made / "README.md").read_text()

    kept = sorted((tmp_path / "out" / "losses").iterdir())
    assert len(kept) == 4
    kept[0].write_bytes(b"damaged")
    times = [path.stat().st_mtime_ns for path in kept]
    later = "another commit"
    # Another command judged the set meanwhile, as atom-distill does.
    judged = ({"method": "random", "network": NARROW, "mean": 50.0},)
    replace(after, results=judged).save(made)
    monkeypatch.setattr("atom.distilled.DistilledSet.load", loads_first(after))
    code, _, errors = run_here(*arguments, script="audit", env={COMMIT_VARIABLE: later})
    assert (code, errors) == (0, "")
    monkeypatch.undo()
    assert DistilledSet.load(made).results == judged
    told = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert told["git_commit"] == later
    assert [one["git_commit"] for one in told["earlier_programs"]] == [found["git_commit"]]
    assert [path.stat().st_mtime_ns > old for path, old in zip(kept, times, strict=True)] == [
        True,
        False,
        False,
        False,
    ]
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["findings"] == found["findings"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster", "ready_tables")
def test_an_audit_killed_while_it_trains_finds_what_an_undisturbed_one_finds(tmp_path: Path) -> None:
    made, output, undisturbed = tmp_path / "run" / "set", tmp_path / "out", tmp_path / "undisturbed"
    made_of(digits().hold_out(0.5)).save(made)
    bare = (made / "set.json").read_bytes()
    command: list[object] = ["--set", tmp_path / "run", "--network", NARROW, "--epochs", 10]
    command += ["--eval-seeds", 3, "--audit-images", 200, "--baselines", "random", "--num-actors", 1]
    kill_when(lambda: any(output.glob("losses/[!.]*")), start(*command, "--output", output, script="audit"))
    assert not (output / "audit.json").exists()
    assert (made / "set.json").read_bytes() == bare
    # Not what is being written: that begins with a dot.
    kept = {path: path.stat().st_mtime_ns for path in output.glob("losses/[!.]*")}
    assert 0 < len(kept) < 6
    for place in (output, undisturbed):
        code, _, errors = run_here(*command, "--output", place, script="audit")
        assert (code, errors) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    resumed, whole = (json.loads((place / "audit.json").read_text()) for place in (output, undisturbed))
    assert resumed["findings"] == whole["findings"]
