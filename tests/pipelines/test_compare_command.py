"""Several methods in one command: what is asked for, what one may not take with it, and the same sets in the end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_runs import kill_when, run_here, start
from tiny_digits import NETWORK, NUM_CLASSES

from atom import data
from atom.distilled import DistilledSet
from atom.errors import ConfigError
from atom.methods.method import Unit
from atom.methods.teachers import own_teachers
from pipelines.comparison import tables
from pipelines.comparison.asked import asked_sets, unread_notes
from pipelines.comparison.case import decided
from pipelines.comparison.labels import notes_on_rivals
from pipelines.comparison.run import useful_workers
from pipelines.comparison.tables import ExpertTimes
from pipelines.console.commands import CompareCommand, DistillCommand
from pipelines.console.options import parse
from pipelines.distillation import Distilling
from pipelines.output.provenance import COMMIT_VARIABLE
from pipelines.output.store import Store
from pipelines.tracking.backend import open_client
from pipelines.workers.memory import Peak
from pipelines.workers.remote import Done
from pipelines.workers.works import Spent

SECTIONS = """
methods: [dm, mtt]
ipc: [1, 10]
iterations: 20
settings:
  mtt:
    num-experts: 2
    iterations: 5
    lr_img: 1e-1
"""


def test_settings_for_all_and_for_one_come_from_flags_or_a_file(tmp_path: Path) -> None:
    config = tmp_path / "compare.yaml"
    config.write_text(SECTIONS)
    found = asked_sets(parse(CompareCommand, ["--config", str(config), "--batch-real", "16"]))
    assert [(one.label, one.settings.ipc) for one in found] == [
        ("dm", 1),
        ("mtt", 1),
        ("dm", 10),
        ("mtt", 10),
    ]
    assert [one.settings.iterations for one in found] == [20, 5, 20, 5]
    assert (found[0].settings.batch_real, found[1].settings.lr_img) == (16, 0.1)
    assert found[1].settings.options.model_dump()["num_experts"] == 2
    by_flags = ["--methods", "dm", "mtt", "--ipc", "1", "10", "--iterations", "20", "--batch-real", "16"]
    by_flags += ["--settings", "mtt.num_experts=2", "mtt.iterations=5", "mtt.lr_img=0.1"]
    assert asked_sets(parse(CompareCommand, by_flags)) == found


def test_what_some_methods_do_not_read_is_left_out_and_told() -> None:
    command = CompareCommand.of(methods=("dm", "mtt"), batch_real=16)
    assert [one.settings.batch_real for one in asked_sets(command)] == [16, 128]
    assert unread_notes(command) == ["--batch-real means nothing to mtt."]


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        (
            {"methods": ("rat-bptt", "dd"), "settings": ("dd.lr_label=1", "rat-bptt.lr_label=1")},
            "rat-bptt, dd",
        ),
        ({"methods": ("rat-bptt", "datm"), "settings": ("rat-bptt.lr_label=1",)}, ""),
        ({"methods": ("dd",), "settings": ("dd.lr_label=1",), "teacher_epoch": 1}, ""),
        ({"methods": ("dd",)}, ""),
    ],
    ids=["no experts", "experts", "a teacher", "none learned"],
)
def test_learned_labels_without_a_rival_are_noted(given: dict[str, Any], noted: str) -> None:
    real = data.load("digits", data_dir=Path("unused"))
    command = CompareCommand.of(network=NETWORK, **given)
    asked, _ = decided(asked_sets(command), real, "cpu", whitenable=True)
    notes = notes_on_rivals(command, asked, symbols=True)
    assert [note.partition(" are learned")[0] for note in notes] == [f"the labels of {noted}"] * bool(noted)


def test_a_set_of_another_factor_is_called_by_it() -> None:
    command = CompareCommand.of(methods=("dm", "idc"), settings=("idc.factor=2",))
    assert [one.label for one in asked_sets(command)] == ["dm", "idc f2"]


def test_a_smoke_run_shrinks_what_each_method_reads_and_refuses_nothing_that_was_not_given() -> None:
    given = {"methods": ("mtt", "idc"), "settings": ("idc.iterations=2",), "smoke": True}
    command = CompareCommand.of(**given, teacher_epoch=20, num_teachers=4).shrunk()
    mtt, idc = (one.settings for one in asked_sets(command))
    assert mtt == DistillCommand.of(method="mtt", smoke=True).shrunk().distill
    assert (idc.iterations, idc.batch_real) == (2, 16)
    assert idc.options == DistillCommand.of(method="idc", smoke=True).shrunk().distill.options
    assert (command.teacher.teacher_epoch, command.teacher.num_teachers) == (2, 2)
    assert unread_notes(command) == []
    # Nobody gave --batch-real, which mtt alone would have to refuse.
    assert asked_sets(CompareCommand.of(methods=("mtt",), smoke=True).shrunk())[0].settings == mtt


def test_a_method_that_refuses_the_network_leaves_the_others_in_peace() -> None:
    real = data.load("digits", data_dir=Path("unused"))
    asked = asked_sets(CompareCommand.of(methods=("dm", "mtt"), network=f"{NETWORK}-batch"))
    left, refused = decided(asked, real, "cpu", whitenable=True)
    assert [one.label for one in left] == ["dm"]
    assert left[0].settings.iterations == 300
    assert [one.label for one in refused] == ["mtt"]
    assert "BatchNorm" in refused[0].reason
    assert refused[0].note.startswith("mtt, ipc 1 is left out: --network convnet-w8-d2-batch")
    # Without a value of its own it would be refused as well.
    own = asked_sets(
        CompareCommand.of(methods=("dm", "mtt"), network=f"{NETWORK}-batch", settings=("mtt.syn_steps=3",))
    )
    assert decided(own, real, "cpu", whitenable=True)[1] == refused
    with pytest.raises(ConfigError, match=r"no method can distil this; the first says: .*BatchNorm"):
        decided(asked[1:], real, "cpu", whitenable=True)


def test_as_many_workers_are_of_use_as_there_are_experts_and_teachers_each_counted_once() -> None:
    real = data.load("digits", data_dir=Path("unused"))
    settings = ("mtt.num_experts=60", "datm.num_experts=40")
    command = CompareCommand.of(methods=("mtt", "datm", "dm"), settings=settings, network=NETWORK)
    left, _ = decided(asked_sets(command), real, "cpu", whitenable=True)
    teachers = [replace(one, recipe=replace(one.recipe, rate=1.0)) for one in own_teachers(left[1].settings)]
    assert useful_workers(left, 10, 1, own_teachers(left[1].settings)) == 60
    assert useful_workers(left, 10, 1, teachers) == 60 + 40
    # One unit each of mtt and datm, ten of dm, and twenty trainings of each row.
    assert useful_workers(left, 10, 20, ()) == 12 + 20 * 6


def test_times_of_experts_add_up_and_those_of_elsewhere_are_unknown(tmp_path: Path) -> None:
    for epochs, seconds in enumerate((2.0, 3.0)):
        times = ExpertTimes(Store.open(tmp_path))
        times.begin("a", epochs)
        times.add("a", Spent("item", 1.0, seconds, Peak(int(seconds))), epochs=epochs + 1)
    times.begin("b", 0)
    times.add("b", Spent("item", 1.0, 4.0, Peak(1, 7)), epochs=1)
    assert (times.seconds(["a"]), times.seconds(["a", "b"]), times.seconds([])) == (5.0, 9.0, 0.0)
    assert times.seconds(["a", "elsewhere"]) is None
    assert times.peak(["a", "b", "elsewhere"]) == Peak(3, 7)
    assert times.peak(["elsewhere"]) is None


def test_a_comparison_without_a_network_that_judges_is_refused() -> None:
    with pytest.raises(ConfigError, match="--eval-networks: there would be nothing to compare"):
        asked_sets(CompareCommand.of(methods=("dm",), eval_networks=()))


def test_published_numbers_do_not_stand_beside_any_images_in_a_folder_of_that_name() -> None:
    real = data.load("digits", data_dir=Path("unused"))
    command = CompareCommand.of(methods=("mtt",), ipc=(10,))
    for spec, shown in (("cifar10", ["convnet"]), ("folder:/anywhere/cifar10", [])):
        named = replace(real, name="cifar10", spec=spec)
        comparison: Any = SimpleNamespace(command=command, real=named, networks=["convnet"])
        assert list(tables._published(comparison, "mtt", 10, 1, "convnet")) == shown
    named = replace(real, name="imagenette", spec="imagenette:/anywhere")
    for size, shown in ((None, ["convnet"]), (128, ["convnet"]), (64, [])):
        resized = CompareCommand.of(methods=("mtt",), ipc=(10,), image_size=size)
        comparison = SimpleNamespace(command=resized, real=named, networks=["convnet"])
        assert list(tables._published(comparison, "mtt", 10, 1, "convnet")) == shown


FAULTY = """
from dataclasses import replace

from atom.methods.registry import class_of

Real = class_of("random")


class Raises(Real):
    @classmethod
    def result(cls, settings, unit, state):
        raise RuntimeError("no luck")


class Blank(Real):
    @classmethod
    def result(cls, settings, unit, state):
        part = super().result(settings, unit, state)
        return replace(part, images=part.images * float("nan"))
"""


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster", "ready_tables")
def test_a_method_whose_result_is_none_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    faulty = [f"{tmp_path / 'faulty.py'}:{name}" for name in ("Raises", "Blank")]
    command: list[object] = ["--methods", "dm", *faulty, "--iterations", 1, "--network", NETWORK]
    # The network that is asked for twice judges once.
    command += ["--eval-networks", NETWORK, NETWORK, "--eval-seeds", 1, "--epochs", 1]
    code, lines, _ = run_here(*command, "--output", tmp_path / "out", script="compare")
    assert code == 1
    rows = {row["method"]: row for row in json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]}
    assert set(rows["dm"]["networks"]) == {NETWORK}
    assert rows["Raises"]["reason"] == "RuntimeError: no luck"
    assert "640 of 640 values of images are NaN" in rows["Blank"]["reason"]
    assert lines[-1] == str(tmp_path / "out" / "report.html")
    assert not (tmp_path / "out" / "Blank-digits-ipc1-s0" / "set").exists()


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster", "ready_tables")
def test_a_comparison_whose_teacher_fails_says_so_and_ends_with_1(tmp_path: Path) -> None:
    command: list[object] = ["--methods", "dm", "--iterations", 1, "--network", NETWORK, "--eval-seeds", 1]
    command += ["--epochs", 1, "--teacher-epoch", 1, "--lr-teacher", 1e30, "--output", tmp_path]
    code, lines, _ = run_here(*command, script="compare")
    assert code == 1
    assert any(line.startswith("labels of random images, by teachers after epoch 1") for line in lines)
    rows = {row["method"]: row for row in json.loads((tmp_path / "compare.json").read_text())["rows"]}
    assert "reason" in rows["random + teacher labels"]


@pytest.mark.parametrize("known", [None, 2], ids=["elsewhere", "after a kill"])
def test_the_time_of_an_expert_that_was_trained_elsewhere_in_part_is_unknown(
    known: int | None, tmp_path: Path
) -> None:
    times, spent = ExpertTimes(Store.open(tmp_path)), Spent("item", 1.0, 2.0, Peak(1))
    if known:
        times.add("a", spent, epochs=known)
    times.begin("a", 3)
    times.add("a", spent, epochs=4)
    assert times.seconds(["a"]) is None
    times.begin("a", 4)
    times.add("a", spent, epochs=5)
    assert times.seconds(["a"]) is None
    # Deleted, and trained anew: once, not twice.
    for _ in range(2):
        times.begin("a", 0)
        times.add("a", spent, epochs=5)
        assert times.seconds(["a"]) == 2.0


class KilledError(Exception):
    """The driver is gone."""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster", "ready_tables")
def test_a_comparison_that_was_killed_goes_on_and_has_the_sets_of_each_method_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: list[object] = ["--dataset", "digits", "--network", NETWORK, "--iterations", 4]
    common += ["--checkpoint-every", 2, "--classes-per-group", 5]
    experts = {"num_experts": 2, "max_start_epoch": 1, "expert_epochs": 1, "syn_steps": 2, "max_loss": 9}
    output = tmp_path / "out"
    command: list[object] = ["--methods", "dm", "datm", "--output", output, *common]
    command += ["--settings", *(f"datm.{name}={value}" for name, value in experts.items())]
    command += ["--eval-networks", NETWORK, f"{NETWORK}-batch", "--eval-seeds", 2, "--epochs", 2]
    finish, saved = Distilling.finish, []

    def killed(self: Distilling, unit: Unit, value: Done) -> bool:
        more = finish(self, unit, value)
        saved.append(unit)
        # Not before datm has begun, which waits for its experts.
        if saved.count(tuple(range(NUM_CLASSES))) == 1:
            raise KilledError
        return more

    monkeypatch.setattr(Distilling, "finish", killed)
    with pytest.raises(KilledError):
        run_here(*command, script="compare", env={COMMIT_VARIABLE: "first"}, workers=2)
    monkeypatch.setattr(Distilling, "finish", lambda *given: (saved.append(given[1]), finish(*given))[1])
    code, lines, errors = run_here(*command, script="compare", env={COMMIT_VARIABLE: "second"}, workers=2)
    assert (code, errors) == (0, ""), lines
    # Of two groups and one joint unit, two chunks each; none twice.
    assert len(saved) == 6
    monkeypatch.setattr(Distilling, "finish", finish)
    check_outcome(output, lines)

    options = [text for name, value in experts.items() for text in (f"--{name.replace('_', '-')}", value)]
    for method, own in (("dm", []), ("datm", options)):
        alone: list[object] = ["--method", method, "--output", tmp_path / method, *common, *own]
        if method == "datm":
            alone = [text for text in alone if text not in ("--classes-per-group", 5)]
        code, lines, errors = run_here(*alone, "--eval-seeds", 0)
        assert (code, errors) == (0, "")
        expected = DistilledSet.load(lines[-1])
        found = DistilledSet.load(output / f"{method}-digits-ipc1-s0" / "set")
        assert np.array_equal(found.images_NCHW.numpy(), expected.images_NCHW.numpy())
        assert {row["method"] for row in found.results} >= {method, "random", "herding", "kcenter"}

    # Nothing is left to be done, also where the experts were deleted, who are told of all the same.
    monkeypatch.setattr("pipelines.workers.works.RemoteWorker", None)
    shutil.rmtree(output / "experts")
    told = (output / "datm-digits-ipc1-s0" / "set" / "set.json").read_bytes()
    assert json.loads(told)["earlier_programs"][0]["git_commit"] == "first"
    before = json.loads((output / "compare.json").read_text())["rows"]
    code, _, errors = run_here(*command, script="compare")
    assert (code, errors) == (0, "")
    assert json.loads((output / "compare.json").read_text())["rows"] == before
    assert (output / "datm-digits-ipc1-s0" / "set" / "set.json").read_bytes() == told


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster", "ready_tables")
def test_a_comparison_killed_while_it_judges_distils_nothing_again(tmp_path: Path) -> None:
    command: list[object] = ["--methods", "dm", "--network", NETWORK, "--iterations", 2, "--eval-seeds", 8]
    command += ["--eval-networks", NETWORK, "--epochs", 50, "--num-actors", 1, "--output", tmp_path]
    kill_when(lambda: any(tmp_path.glob("dm-*/set/set.json")), start(*command, script="compare"))
    assert not (tmp_path / "compare.json").exists()
    checkpoints = {path: path.stat().st_mtime_ns for path in tmp_path.glob("dm-*/checkpoints/unit_*")}
    assert len(checkpoints) > 0
    code, _, errors = run_here(*command, script="compare")
    assert (code, errors) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in checkpoints} == checkpoints
    rows = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert [len(row["networks"][NETWORK]["by_seed"]) for row in rows] == [8] * 4


def check_outcome(output: Path, lines: list[str]) -> None:
    assert lines[-1] == str(output / "report.html")
    rows = {row["method"]: row for row in json.loads((output / "compare.json").read_text())["rows"]}
    real = ["random", "herding", "kcenter", "random + teacher labels"]
    assert list(rows) == [*real, "dm", "datm", "datm (own training)"]
    for name, row in rows.items():
        judged: dict[str, Any] = row["networks"]
        assert set(judged) == {NETWORK, f"{NETWORK}-batch"}
        assert all(set(one["by_seed"]) == {"0", "1"} for one in judged.values())
        assert ("minus_random" in judged[NETWORK]) == (name != "random")
        assert row["cost"]["evaluate_s"] > 0
    assert rows["random"]["cost"]["distil_s"] == 0
    assert rows["datm"]["cost"]["distil_s"] > 0
    assert rows["datm"]["cost"]["peak_bytes"] > 10**8
    assert rows["dm"]["cost"]["stored_bytes"] == 4 * rows["random"]["cost"]["stored_bytes"] == 4 * 640
    # The experts of datm label real images.
    assert 0 < rows["random + teacher labels"]["cost"]["distil_s"] < rows["datm"]["cost"]["distil_s"]
    assert any(line.startswith("(+ teacher labels): random real images") for line in lines)
    report = (output / "report.html").read_text()
    assert "One image a class" in report
    assert "no published number for this setting" in report
    client = open_client(f"sqlite:///{output / 'mlflow.db'}")
    parent = json.loads((output / "mlflow_run.json").read_text())["run_id"]
    recorded = client.get_run(parent)
    assert recorded.info.status == "FINISHED"
    below = client.search_runs(
        [recorded.info.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{parent}'"
    )
    by_name = {run.info.run_name: run for run in below}
    assert {"dm-digits-ipc1-s0", "datm-digits-ipc1-s0", "random-ipc1", "herding-ipc1", "kcenter-ipc1"} <= {
        *by_name
    }
    assert {run.info.status for run in below} == {"FINISHED"}
    metrics = by_name["dm-digits-ipc1-s0"].data.metrics
    assert {"loss/total", f"eval/{NETWORK}/acc_mean", "time/distill_worker_s", "cost/peak_bytes"} <= set(
        metrics
    )
