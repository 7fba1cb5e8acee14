"""Trainings as tasks: kept when finished, repeated when anything changed, failed one by one."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_digits import NETWORK, NUM_CLASSES, digits_set, white_digits

from atom import data
from atom.errors import ConfigError
from atom.pixels import Pixels
from atom.preprocess import Preprocess
from atom.resolve import resolve_evaluation
from atom.rivals import name_beside
from atom.settings import EvaluateSettings
from pipelines import evaluation
from pipelines.console.signals import StopSignal
from pipelines.evaluation import (
    Evaluation,
    Row,
    SmallSet,
    check_baselines,
    check_networks,
    evaluate_sets,
    judges,
    print_evaluation,
    remarks,
    row_dicts,
    statistics_images,
    table_rows,
    tables,
)
from pipelines.output.provenance import COMMIT_VARIABLE
from pipelines.output.records import log_accuracies
from pipelines.output.store import Store
from pipelines.tracking import Tracker
from pipelines.tracking.backend import open_client
from pipelines.workers.faults import Failure
from pipelines.workers.remote import Trial
from pipelines.workers.retries import Outcome
from pipelines.workers.tasks import ONE_CPU

FAST = resolve_evaluation(
    EvaluateSettings(epochs=2, batch_train=16, eval_precision="float32"), device_kind="cpu", symbols=True
)
NARROW = "convnet-w8-d1"


def some_images(count: int, *, skip: int = 0) -> tuple[np.ndarray, np.ndarray]:
    images, labels = white_digits()
    rows = np.concatenate([np.flatnonzero(labels == c)[skip : skip + count] for c in range(NUM_CLASSES)])
    return images[rows], labels[rows]


def two_sets() -> list[SmallSet]:
    return [
        SmallSet("atom", {None: some_images(1)}, stored_images=NUM_CLASSES),
        SmallSet("random", {s: some_images(1, skip=5 + s) for s in range(2)}, stored_images=NUM_CLASSES),
    ]


def judge(folder: Path, **changes: Any) -> Evaluation:
    options: dict[str, Any] = {
        "networks": [NARROW],
        "seeds": range(2),
        "num_classes": NUM_CLASSES,
        "settings": FAST,
        "identity": {"set": "x"},
        "device_kind": "cpu",
        "size": ONE_CPU,
    }
    sets, test = changes.pop("sets", two_sets()), changes.pop("test", some_images(6, skip=20))
    return evaluate_sets(sets, test, Store.open(str(folder)), **{**options, **changes})


def row(method: str, network: str, mean: float, n: int = 2, std: float | None = 1.25, failed: int = 0) -> Row:
    return Row(method, network, mean, std=std, n=n, epochs=2, stored_images=10, seconds=1.0, failed=failed)


@pytest.mark.ray
def test_pixels_in_the_store_are_tested_on_as_preprocessed_images(ray_cluster: None, tmp_path: Path) -> None:
    real = data.load("digits", data_dir=Path("unused")).test
    preprocess = Preprocess.fit(real.images, zca=False)
    found = [
        judge(tmp_path / name, seeds=[0], test=(images, real.labels)).rows
        for name, images in (
            ("pixels", Pixels(real.images, preprocess)),
            ("floats", preprocess.apply(real.images).numpy()),
        )
    ]
    assert [replace(row, seconds=0.0) for row in found[0]] == [replace(row, seconds=0.0) for row in found[1]]


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_finished_trainings_are_kept_and_only_new_ones_are_run(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = judge(tmp_path, seeds=[0])
    both = judge(tmp_path)
    assert [(r.method, r.network, r.n) for r in both.rows] == [("atom", NARROW, 2), ("random", NARROW, 2)]
    assert first.rows[0].n == 1
    assert first.rows[0].std is None
    assert row_dicts(first.rows)[0]["computed"] == {
        "compiled": False,
        "precision": "float32",
        "threads": 1,
    }
    records = sorted(path.name.rpartition("-")[0] + ".json" for path in tmp_path.rglob("*.json"))
    assert records == [f"{name}-{NARROW}-s{s}.json" for name in ("atom", "random") for s in range(2)]

    real_run_tasks = evaluation.run_tasks
    asked: list[Trial] = []

    def listen(function: Any, items: Any, **options: Any) -> Any:
        asked.extend(items)
        return real_run_tasks(function, items, **options)

    monkeypatch.setattr(evaluation, "run_tasks", listen)
    monkeypatch.setenv(COMMIT_VARIABLE, "later")
    assert judge(tmp_path).rows == both.rows
    assert both.rows[0].hardware
    assert len(both.rows[0].commits) == 1
    assert asked == []
    judge(tmp_path, seeds=[0], identity={"set": "y"}, sets=two_sets()[:1])
    judge(tmp_path, seeds=[0], settings=FAST.model_copy(update={"epochs": 1}), sets=two_sets()[:1])
    other_images = SmallSet("atom", {None: some_images(1, skip=9)}, stored_images=NUM_CLASSES)
    judge(tmp_path, seeds=[0], sets=[other_images])
    assert asked == [Trial("atom", NARROW, 0)] * 3


def test_trainings_on_a_large_set_are_not_measured_by_those_on_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: dict[Trial, Any] = {}

    def look(function: Any, items: Any, *, kind: Any, **options: Any) -> Outcome[Trial]:
        kinds.update({trial: kind(trial) for trial in items})
        return Outcome()

    monkeypatch.setattr(evaluation, "run_tasks", look)
    monkeypatch.setattr(evaluation.ray, "put", lambda value: value)
    judge(tmp_path)
    of = {name: {kinds[Trial(name, NARROW, seed)] for seed in range(2)} for name in ("atom", "random")}
    assert [len(found) for found in of.values()] == [1, 1]
    assert of["atom"] != of["random"]


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_uneven_classes_are_scored_and_results_of_before_are_still_read(
    ray_cluster: None, tmp_path: Path
) -> None:
    images, labels = some_images(6, skip=20)
    fewer = np.flatnonzero((labels != 3) | (np.arange(len(labels)) % 3 > 0))
    judged = judge(tmp_path, sets=two_sets()[:1], test=(images[fewer], labels[fewer]))
    (uneven,) = judged.rows
    assert uneven.balanced_mean != uneven.mean
    assert uneven.auc_mean is not None
    assert uneven.auc_low is not None
    assert 0 < uneven.auc_low < uneven.auc_mean < 1
    assert [title for title, *_ in tables(judged.rows, "t")] == [
        "t",
        "Balanced accuracy, %",
        "Area under the ROC curve [95 % interval over test images]",
    ]
    record = next(tmp_path.rglob("*-s0-*.json"))
    content = json.loads(record.read_text())
    del content["scores"]
    record.write_text(json.dumps(content))
    (older,) = judge(tmp_path, sets=two_sets()[:1], test=(images[fewer], labels[fewer])).rows
    assert (older.mean, older.std, older.n) == (uneven.mean, uneven.std, 2)
    assert older.balanced_mean is older.auc_mean is older.auc_low is None
    (even,) = judge(tmp_path / "even", sets=two_sets()[:1]).rows
    assert even.balanced_mean is even.auc_mean is None
    assert [title for title, *_ in tables([even], "t")] == ["t"]


def scored_row(**changes: Any) -> Row:
    scores: dict[str, Any] = {"balanced_mean": 45.5, "balanced_std": 2.25, "auc_mean": 0.8125, "auc_std": 0.0}
    return replace(row("atom", "a", 50.0), **{**scores, "auc_low": 0.75, "auc_high": 0.875, **changes})


def test_scores_have_a_table_each_where_a_row_has_them() -> None:
    plain = row("random", "a", 40.0)
    assert [lines for _, _, lines in tables([scored_row(), plain], "t")[1:]] == [
        [["atom", "10", "45.5 ± 2.2", "2"], ["random", "10", "", "2"]],
        [["atom", "10", "0.812 ± 0.000 [0.750, 0.875]", "2"], ["random", "10", "", "2"]],
    ]
    assert [title for title, *_ in tables([plain], "t")] == ["t"]
    single = scored_row(n=1, auc_high=None)
    assert tables([single], "t")[2][2] == [["atom", "10", "0.812", "1"]]


def test_scores_become_plain_values_where_they_are() -> None:
    (plain,) = row_dicts([scored_row()])
    assert plain["auc_std"] == 0.0
    assert plain["balanced_mean"] == 45.5
    assert not set(row_dicts([row("atom", "a", 50.0)])[0]) & set(evaluation.SCORED)


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_edited_network_is_trained_again(ray_cluster: None, tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    source = (
        "from atom.nets import build\n"
        "def net(channels, image_size, num_classes):\n"
        "    return build('convnet-w8-d{}', channels=channels, image_size=image_size, num_classes=num_classes)\n"
    )
    for depth in (1, 2):
        file.write_text(source.format(depth))
        judge(tmp_path / "out", networks=[f"{file}:net"], seeds=[0], sets=two_sets()[:1])
        # A later command is a process of its own, which has imported nothing yet.
        sys.modules["atom.nets.identity"]._identity.cache_clear()
        for name in [
            name for name, module in sys.modules.items() if getattr(module, "__file__", "") == str(file)
        ]:
            del sys.modules[name]
    assert len(list((tmp_path / "out" / "results").iterdir())) == 2


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_real_statistics_give_networks_with_batch_norm_a_second_row(
    ray_cluster: None, tmp_path: Path
) -> None:
    white, _ = white_digits()
    batch = f"{NARROW}-batch"
    strict = judge(tmp_path, networks=[batch, NARROW], seeds=[0])
    both = judge(tmp_path, networks=[batch, NARROW], seeds=[0], statistics_NCHW=statistics_images(white, 64))
    columns = [row.column for row in both.rows if row.method == "atom"]
    assert columns == [batch, f"{batch} (64 real)", NARROW]
    assert [row.mean for row in both.rows if not row.statistics_images] == [row.mean for row in strict.rows]
    said = remarks(both.rows, "atom")
    assert said[0].startswith(
        "(64 real): BatchNorm statistics re-estimated on 64 unlabelled real training images"
    )
    assert "statistics_images" not in row_dicts(strict.rows)[0]


def test_statistics_images_are_distinct_and_always_the_same() -> None:
    images = np.arange(50, dtype=np.float32).reshape(50, 1, 1, 1)
    chosen = statistics_images(images, 7)
    assert chosen is not None
    assert len(np.unique(chosen)) == 7
    assert np.array_equal(chosen, statistics_images(images, 7))
    assert statistics_images(images, 0) is None
    assert len(statistics_images(images, 99)) == 50


def test_a_set_is_judged_by_its_own_network_and_by_one_that_sees_scale() -> None:
    common = EvaluateSettings()
    assert judges(None, "convnet-w8", common) == ("convnet-w8", "convnet-w8-batch")
    assert judges(None, "vgg11-batch", common) == ("vgg11-batch",)
    assert judges(("vit",), "convnet", common) == ("vit",)
    assert judges((), "convnet", common) == ()
    datadam, idc = EvaluateSettings(protocol="datadam"), EvaluateSettings(protocol="idc")
    assert judges(None, "convnet-w8", datadam) == ("convnet-w8-batch",)
    assert judges(None, "convnet-w8", idc) == ("convnet-w8",)
    # One of a user's own, or without such a sibling, judges itself.
    assert judges(None, "mine.py:Net", datadam) == ("mine.py:Net",)
    assert judges(None, "vit", datadam) == ("vit",)


def test_remarks_name_the_networks_that_random_images_serve_better() -> None:
    rows = [
        row("atom", "a", 50.0),
        row("random", "a", 40.0),
        row("atom", "b", 11.9),
        row("random", "b", 14.1),
    ]
    assert remarks(rows, "atom") == [
        "Worse than random images for b (11.9 ± 1.2 against 14.1 ± 1.2): do not use this set for such networks."
    ]
    assert remarks(rows[:2], "atom") == []


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two of the sets atom, atom have one name"):
        judge(tmp_path, sets=[two_sets()[0], two_sets()[0]])


def test_a_saved_coreset_is_told_from_the_baseline_beside_it() -> None:
    saved = digits_set(method="random")
    assert name_beside(saved.method, ["random", "herding"]) == "set (random)"
    assert name_beside(saved.method, ["herding"]) == "random"


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_accuracies_do_not_depend_on_which_other_trainings_run(ray_cluster: None, tmp_path: Path) -> None:
    together = judge(tmp_path / "together", networks=[NARROW, NETWORK])
    alone = judge(tmp_path / "alone", networks=[NETWORK], sets=two_sets()[1:])
    accuracies = {(r.method, r.network): (r.mean, r.std) for r in together.rows}
    assert accuracies["random", NETWORK] == (alone.rows[0].mean, alone.rows[0].std)
    assert len(accuracies) == 4


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_training_that_fails_leaves_the_others_and_shows_in_the_table(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = some_images(1)
    broken = SmallSet("broken", {None: (np.full_like(images, np.nan), labels)}, stored_images=NUM_CLASSES)
    judged = judge(tmp_path, sets=[*two_sets(), broken], seeds=[0])
    assert [r.method for r in judged.rows] == ["atom", "random"]
    assert list(judged.failed) == [Trial("broken", NARROW, 0)]
    assert judged.failed[Trial("broken", NARROW, 0)].reason.startswith("ConfigError: ")
    print_evaluation(judged, title="Test accuracy")
    assert f"broken-{NARROW}-s0" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_a_training_that_diverges_is_a_failure_and_no_accuracy(ray_cluster: None, tmp_path: Path) -> None:
    hopeless = FAST.model_copy(update={"lr_net": 1e30})
    judged = judge(tmp_path, sets=two_sets()[:1], networks=[f"{NARROW}-nonorm"], settings=hopeless)
    assert judged.rows == []
    assert len(judged.failed) == 2
    assert all(one.reason.startswith("NotFiniteError") for one in judged.failed.values())


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_stopped_evaluation_keeps_what_is_done_and_goes_on_later(ray_cluster: None, tmp_path: Path) -> None:
    stop = StopSignal()
    stop.set()
    stopped = judge(tmp_path, stop=stop)
    assert stopped.stopped
    assert stopped.rows == []
    assert [r.n for r in judge(tmp_path).rows] == [2, 2]


@pytest.mark.ray
def test_garbled_record_of_a_training_counts_as_absent(ray_cluster: None, tmp_path: Path) -> None:
    whole = judge(tmp_path, seeds=[0], sets=two_sets()[:1])
    (record,) = tmp_path.rglob("*.json")
    for content in ("{", "[1]", "{}"):
        record.write_text(content)
        again = judge(tmp_path, seeds=[0], sets=two_sets()[:1])
        assert again.rows[0].mean == whole.rows[0].mean


def test_table_has_a_line_a_set_and_a_column_a_network() -> None:
    rows = [row("atom", "a", 50.04), row("atom", "b", 40.0), row("random", "a", 20.0, n=1, std=None)]
    columns, lines = table_rows(rows)
    assert columns == ["set", "images", "a", "b", "n"]
    assert lines == [
        ["atom", "10", "50.0 ± 1.2", "40.0 ± 1.2", "2"],
        ["random", "10", "20.0 (one training)", "failed", "1"],
    ]


def test_a_result_is_known_by_whether_its_training_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atom.evaluate.has_compiler", lambda: True)
    sets, trials = two_sets(), [Trial("atom", NARROW, 0), Trial("random", NARROW, 0)]
    test = some_images(6)[0]

    def names() -> tuple[frozenset[tuple[str, str]], dict[Trial, str]]:
        of_set = {small.name: FAST for small in sets}
        compiled = evaluation._compiled(sets, [NARROW], test.shape, NUM_CLASSES, of_set, "cpu")
        shape, starts = test.shape[1:], {("atom", NARROW): {}, ("random", NARROW): {}}
        return compiled, evaluation._record_names(
            sets, trials, {}, of_set, shape, NUM_CLASSES, None, compiled, starts
        )

    eager, of_eager = names()
    monkeypatch.setattr("atom.evaluate.COMPILE_WORTH_FLOP", 0.0)
    compiled, of_compiled = names()
    assert (eager, compiled) == (frozenset(), {("atom", NARROW), ("random", NARROW)})
    assert not set(of_eager.values()) & set(of_compiled.values())


def test_trainings_that_failed_show_beside_the_accuracy_of_the_others() -> None:
    some = row("atom", "a", 50.04, failed=3)
    assert table_rows([some])[1] == [["atom", "10", "50.0 ± 1.2 (3 of 5 failed)", "2"]]
    assert row_dicts([some])[0]["failed"] == 3


def test_mlflow_gets_no_spread_of_a_single_training(mlflow_uri: str) -> None:
    judged = Evaluation(
        [row("atom", "a", 50.0, n=1, std=None), row("random", "a", 40.0), scored_row(network="b")]
    )
    with Tracker.start(
        tracking_uri=mlflow_uri, experiment="x", command="x", run_name="x", params={}, system_metrics=False
    ) as tracker:
        log_accuracies(tracker, judged, own="atom", title="t")
    assert open_client(mlflow_uri).get_run(tracker.run_id).data.metrics == {
        "eval/a/acc_mean": 50.0,
        "eval/a/random/acc_mean": 40.0,
        "eval/a/random/acc_std": 1.25,
        "eval/b/acc_mean": 50.0,
        "eval/b/acc_std": 1.25,
        "eval/b/balanced_mean": 45.5,
        "eval/b/balanced_std": 2.25,
        "eval/b/auc_mean": 0.8125,
        "eval/b/auc_std": 0.0,
        "eval/b/auc_low": 0.75,
        "eval/b/auc_high": 0.875,
    }


def test_rows_become_plain_values() -> None:
    (plain,) = row_dicts([row("atom", "a", 50.0)])
    assert plain == {
        "method": "atom",
        "network": "a",
        "mean": 50.0,
        "std": 1.25,
        "n": 2,
        "epochs": 2,
        "stored_images": 10,
        "seconds": 1.0,
    }


def test_evaluation_in_which_all_failed_prints_the_reasons_only(capsys: pytest.CaptureFixture[str]) -> None:
    failed = {Trial("atom", "a", 0): Failure("ValueError: no", "traceback")}
    print_evaluation(Evaluation(failed=failed), title="Test accuracy")
    printed = capsys.readouterr().out
    assert "ValueError: no" in printed
    assert "Test accuracy" not in printed


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"--baselines best: unknown coreset; known are random, herding, kcenter"
    ):
        check_baselines(["random", "best"])
    with pytest.raises(ConfigError, match=r"--baselines random random: one is there twice"):
        check_baselines(["random", "random"])
    real = data.load("digits", data_dir=Path("unused"))
    check_networks([NARROW], real, settings=EvaluateSettings())
    with pytest.raises(ConfigError, match="no-such-net"):
        check_networks([NARROW, "no-such-net"], real, settings=EvaluateSettings())
