"""Learning a stream: what is refused and left out, whole runs, ones killed through the shell, failing learners."""

import json
import re
import signal
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import RUN_S, fingerprints, iteration_of, kill_workers, run, run_here, start, wait_for

from apps.continual.lots import Lots
from apps.continual.results import ContinualResults
from apps.continual.stream import class_order, class_stream
from atom import data
from atom.data import RealData
from atom.errors import ConfigError
from atom.preprocess import Preprocess
from pipelines.console.commands import ContinualCommand
from pipelines.console.options import parse
from pipelines.continual import check_pictures, identity_of, main
from pipelines.incremental.case import ContinualCase
from pipelines.incremental.plan import Plan, check_names, plan, source_of
from pipelines.incremental.preprocessed import first_step
from pipelines.incremental.remote import training_seed
from pipelines.incremental.report import remarks
from pipelines.output.store import Store
from pipelines.tracking.backend import open_client
from pipelines.workers.resources import ActorSize

slow = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("ready_tables")]

NETWORK, ITERATIONS, STEPS = "convnet-w8-d2", 100, 3
# Every piece of work takes some tenths of a second: long enough to be killed in its midst.
TINY = (
    *("--dataset", "digits", "--steps", STEPS, "--orders", 1, "--budget", "4/class"),
    *("--network", NETWORK, "--distil-network", NETWORK, "--iterations", ITERATIONS, "--batch-real", 16),
    *("--checkpoint-every", 5, "--epochs", 60, "--step-epochs", 4, "--num-actors", 2),
)
GRID = ("--memories", "none", "random", "distilled", "--learners", "gdumb", "er", "der++")
CELLS = {
    "none-finetune-o0-s0",
    *(f"{memory}-{name}-o0-s0" for memory in ("random", "distilled") for name in ("gdumb", "er", "der++")),
}


@cache
def digits() -> RealData:
    return data.load("digits", data_dir=Path("unused"))


def planned(num_steps: int = 5, **asked: Any) -> Plan:
    return plan(ContinualCommand.of(**asked), digits(), num_steps=num_steps)


def case(folder: Path, **asked: Any) -> ContinualCase:
    command = ContinualCommand.of(**{"data_dir": folder / "data", **asked})
    decided = plan(command, digits(), num_steps=source_of(command)[1])
    store, size = Store.open(folder / "out"), ActorSize(1, cpus=1, gpus=0)
    return ContinualCase(command, decided, None, digits(), store, size, size, "cpu")


def pairs(decided: Plan) -> list[tuple[str, str]]:
    return list(dict.fromkeys((cell.memory, cell.learner) for cell in decided.cells))


@pytest.mark.parametrize(
    ("learners", "factor", "told"), [(("er",), 2, True), (("er",), 1, False), (("gdumb",), 2, False)]
)
def test_coarse_memories_beside_sharp_images_are_said(
    learners: tuple[str, ...], factor: int, told: bool
) -> None:
    notes = planned(learners=learners, factor=factor, memories=("distilled",), budget="2/class").notes
    assert (
        any("factor 2 are coarser than those of a step, and er may learn that" in note for note in notes)
        == told
    )


def test_no_pictures_are_not_promised_where_there_are_some(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    without = ContinualCommand.of(pictures=False)
    check_pictures(without, store)
    store.write_bytes("pictures/random-step0-abc.png", b"a picture")
    check_pictures(ContinualCommand(), store)
    with pytest.raises(ConfigError, match="--no-pictures: an earlier run left pictures in"):
        check_pictures(without, store)


def test_learners_without_memory_run_once() -> None:
    decided = planned(memories=("random", "herding"), learners=("er", "joint", "finetune"))
    assert pairs(decided) == [("random", "er"), ("herding", "er"), ("none", "joint"), ("none", "finetune")]
    assert any("joint" in note for note in decided.notes)


def test_replaying_nothing_is_finetune_and_gdumb_without_memory_is_left_out() -> None:
    decided = planned(memories=("none", "random"), learners=("gdumb", "er", "er-ace", "finetune"))
    without_memory = [pair for pair in pairs(decided) if pair[0] == "none"]
    assert without_memory == [("none", "finetune"), ("none", "er-ace")]
    assert any("gdumb trains on the memory alone" in note for note in decided.notes)


def test_cells_cover_orders_and_seeds() -> None:
    decided = planned(memories=("random",), orders=3, seeds=2)
    assert len(set(decided.cells)) == 6
    assert {(cell.order, cell.seed) for cell in decided.cells} == {(o, s) for o in range(3) for s in range(2)}


def test_every_class_order_has_trainings_of_its_own() -> None:
    decided = planned(memories=("distilled",), orders=5, seeds=3)
    assert len({training_seed(cell) for cell in decided.cells}) == len(decided.cells)


def test_shared_budgets_shrink_and_bytes_count_the_form_of_storage() -> None:
    decided = planned(budget="100 images", memories=("random", "distilled"))
    assert [decided.quota("random", 0, step) for step in range(5)] == [50, 25, 16, 12, 10]
    by_bytes = planned(budget="6kB", memories=("random", "distilled"), storage="float32")
    assert by_bytes.quota("random", 0, 4) == 6000 // 64 // 10
    assert by_bytes.quota("distilled", 0, 4) == 6000 // 256 // 10


def test_no_class_is_distilled_into_more_images_than_it_has() -> None:
    decided = planned(budget="1000 images", memories=("distilled",), factor=2)
    for class_id, number in enumerate(digits().train.per_class_counts()):
        assert decided.ipc("distilled", 0, 0, class_id) == number // 4
    assert decided.quota("distilled", 0, 0) == 500
    assert any("up to 500 distilled images of a class" in note for note in decided.notes)
    assert not planned(budget="20/class", memories=("distilled",)).notes


def test_steps_have_the_classes_that_were_asked_for_in_any_order() -> None:
    decided = planned(step_classes=(4, 1, 2, 3), order_seeds=(1993, 7), memories=("random",))
    assert {order: stream.order for order, stream in decided.streams.items()} == {
        seed: class_order(10, order_seed=seed) for seed in (1993, 7)
    }
    assert decided.step_sizes == (4, 1, 2, 3)
    assert [cell.order for cell in decided.cells] == [1993, 7]
    assert [decided.quota("random", 7, step) for step in range(4)] == [20] * 4
    assert source_of(ContinualCommand.of(dataset="digits", step_classes=(5, 5))) == ("digits", 2)


def test_a_class_order_is_given_by_names_labels_or_a_file(tmp_path: Path) -> None:
    names = tuple(reversed("0123456789"))
    path = tmp_path / "order.txt"
    path.write_text("\n".join(names) + "\n")
    for given in (names, (str(path),)):
        decided = planned(class_order=given)
        assert decided.streams[0].order == tuple(range(9, -1, -1))
        assert list(decided.streams) == [0]


def test_a_recipe_sets_steps_and_class_orders(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("step_classes: [4, 6]\norder-seeds: [1993]\norders: 3\n")
    decided = planned(**parse(ContinualCommand, ["--config", str(path)]).flat())
    assert (decided.step_sizes, list(decided.streams)) == ((4, 6), [1993])
    path.write_text("class_order: ['1', '0', '2', '3', '4', '5', '6', '7', '8', '9']\n")
    decided = planned(**parse(ContinualCommand, ["--config", str(path)]).flat())
    assert decided.streams[0].order[:2] == (1, 0)


def test_another_order_or_cut_of_the_classes_is_another_output() -> None:
    def identity(**asked: Any) -> dict[str, object]:
        command = ContinualCommand.of(**asked)
        return identity_of(command, digits(), plan(command, digits(), num_steps=5), device_kind="cpu")

    plain = identity()
    assert "step_classes" not in plain
    assert "class_order" not in plain
    assert plain == identity(step_classes=(2, 2, 2, 2, 2)) == identity(order_seeds=(1993,))
    assert identity(step_classes=(1, 3, 2, 2, 2)) != plain
    assert identity(class_order=tuple("9876543210")) != plain


def test_room_of_a_class_is_that_of_the_order_that_gives_it_most() -> None:
    asked = {"compress": True, "storage": "uint8", "budget": "40kB", "memories": ("random",)}
    decided = planned(order_seeds=(1993, 7), **asked)
    for class_id in range(10):
        arrived = [
            next(step for step, classes in enumerate(stream.steps) if class_id in classes)
            for stream in decided.streams.values()
        ]
        assert decided.largest_room("random", class_id) == 40_000 // (2 * (min(arrived) + 1))


def test_few_images_of_a_step_are_shown_as_often_as_many(tmp_path: Path) -> None:
    made = case(tmp_path, step_classes=(6, 2, 2), order_seeds=(3,))
    counts_K = digits().train.per_class_counts()
    for step, classes in enumerate(made.plan.streams[3].steps):
        epochs = made.learner_settings(3, step).step_epochs
        assert epochs == max(10, -(-12_800 // counts_K[list(classes)].sum()))
    assert case(tmp_path, step_epochs=7).learner_settings(0, 4).step_epochs == 7


def rare(images: int) -> RealData:
    """Digits, but of the second class so many images."""
    train = digits().train
    rows = [train.indices_of(c)[: images if c == 1 else None] for c in range(10)]
    return digits().with_images(train.subset(np.concatenate(rows)), digits().test)


def test_a_budget_above_a_rare_class_is_kept_to_and_said() -> None:
    asked = ContinualCommand.of(budget="20/class", memories=("random", "distilled"), factor=2, orders=2)
    decided = plan(asked, rare(8), num_steps=5)
    sizes = [decided.ipc("distilled", 1, decided.arrivals(c)[1], c) for c in range(10)]
    assert sizes == [20, 2] + 8 * [20]
    said = "the budget holds up to 20 {} images of a class; classes whose own images are enough for fewer keep these: "
    assert [note for note in decided.notes if note.startswith("the budget")] == [
        said.format("real") + "1 (8).",
        said.format("distilled") + "1 (2).",
    ]


def test_a_class_too_small_to_distil_one_image_is_refused_by_name() -> None:
    asked = ContinualCommand.of(budget="1/class", memories=("distilled",), factor=2)
    with pytest.raises(
        ConfigError, match="class '1' of digits has 3 training images, but one distilled image"
    ):
        plan(asked, rare(3), num_steps=5)
    assert plan(asked.changed(init="noise"), rare(3), num_steps=5).most[1] == 3


def test_compressed_distilled_images_are_counted_by_an_estimate_that_is_told() -> None:
    asked = {"memories": ("random", "distilled"), "storage": "uint8", "compress": True}
    by_class = planned(budget="640B/class", **asked)
    # No file of 8 x 8 pixels is shorter than they are.
    assert by_class.expected == (64,) * 10
    assert [by_class.ipc("distilled", 0, step, 0) for step in (0, 4)] == [10] * 2
    assert by_class.quota("random", 0, 4) > 10
    assert any("expected to take 64 to 64 bytes" in note for note in by_class.notes)
    images_class = planned(budget="12/class", **asked)
    assert (images_class.ipc("distilled", 0, 0, 0), images_class.expected, images_class.notes) == (12, (), ())
    assert planned(storage="float32", compress=True, memories=("random",)).compress


def test_bytes_of_the_whitening_are_said_under_the_table() -> None:
    results = ContinualResults("digits", 5, 10, (), (), steps={}, whitening_bytes=2 * 4 * 64**2)
    assert any("whitening, 0.0 MB (two 64 x 64 float32" in remark for remark in remarks(results))
    assert remarks(replace(results, whitening_bytes=0)) == []


def test_two_names_of_one_memory_are_run_once() -> None:
    decided = planned(memories=("distilled", "distilled-atom", "distilled-dm"), method="atom")
    assert decided.memories == ("distilled", "distilled-dm")
    assert any("distilled-atom is distilled" in note for note in decided.notes)
    assert planned(memories=("distilled-atom",), method="atom").memories == ("distilled-atom",)


def test_reservoir_of_a_budget_by_class_is_said_to_be_larger() -> None:
    assert any("reservoir holds 200 images" in n for n in planned(memories=("reservoir", "random")).notes)
    assert not planned(memories=("reservoir", "random"), budget="200 images").notes


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_steps": 11}, "10 classes"),
        ({"budget": "9 images"}, "10 images or more"),
        ({"memories": ("none",), "learners": ("gdumb",)}, "nothing to train on"),
        ({"memories": ("rehearsal",)}, "known are none, reservoir"),
        ({"learners": ("icarl",)}, "known are gdumb"),
        ({"memories": ("set",)}, "--set PATH"),
        ({"set": "somewhere"}, "add set to --memories"),
        ({"ipc": 3}, "'ipc' is not a setting of atom-continual"),
        ({"orders": 1993}, "for that of one seed pass --order-seeds 1993"),
        (
            {"init": "hering"},
            "memories start from one of real, noise, herding, kcenter; only atom-distill starts from",
        ),
        ({"order_seeds": (1, 1)}, "--order-seeds: names one twice"),
        ({"order_seeds": ()}, "--order-seeds: names none"),
        ({"order_seeds": (1,), "class_order": tuple("0123456789")}, "pass one"),
        ({"class_order": ()}, "--class-order: names none"),
        ({"class_order": ("0", "1")}, "names 2 of 10 classes, without '2', '3', '4', ..."),
        ({"class_order": (*"012345678", "nine")}, "has no class 'nine'"),
        ({"class_order": ("nowhere.txt",)}, "--class-order nowhere.txt: neither a class nor a file"),
        ({"step_classes": (5, 4)}, "these are 9 classes, but the source has 10"),
        ({"score_on": "validation"}, "--validation-frac"),
        ({"compress": True, "storage": "float32"}, "--storage uint8-scaled or uint8"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(**asked)


def test_names_are_checked_before_images_are_loaded() -> None:
    with pytest.raises(ConfigError, match="unknown"):
        check_names(ContinualCommand.of(dataset="folder:/nowhere", memories=("x",)))


def test_bad_input_ends_with_2_and_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    arguments = ["--dataset", "digits", "--steps", "11", "--output", str(output)]
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("ConfigError: --steps 11: the source has 10 classes")
    assert main(["--orders", "1993", "--output", str(output)]) == 2
    assert "--order-seeds 1993" in capsys.readouterr().err
    assert main(["--steps", "3", "--step-classes", "5", "5"]) == 2
    assert "leave --steps out" in capsys.readouterr().err
    assert main(["--dataset", "digits"]) == 2
    assert "pass --steps" in capsys.readouterr().err
    assert not output.exists()


def test_first_step_knows_its_own_classes_only() -> None:
    stream = planned().streams[0]
    known = first_step(Lots(digits()), stream)
    assert known.train.class_names == tuple(digits().train.class_names[c] for c in sorted(stream.steps[0]))
    assert len(known.train) == sum(digits().train.per_class_counts()[c] for c in stream.steps[0])


def cells_done(output: Path) -> list[int]:
    """How many cells have each step behind them."""
    return [len(list((output / "cells").glob(f"*/step{step:02d}-*.json"))) for step in range(STEPS)]


def distilled_so_far(output: Path, step: int) -> list[int]:
    """Iterations that each begun class of a step has on disk."""
    classes = class_stream(10, num_steps=STEPS, order_seed=0).steps[step]
    newest: dict[int, int] = {}
    for path in (output / "distilled").glob("*/checkpoints/unit_*.safetensors"):
        class_id = int(path.stem.removeprefix("unit_"))
        if class_id in classes:
            newest[class_id] = max(iteration_of(path), newest.get(class_id, 0))
    return list(newest.values())


def kill_driver(command: subprocess.Popen[str]) -> str:
    """SIGKILL to a command; returns what it had to say on standard error."""
    assert command.poll() is None, "it ended before it could be killed"
    command.kill()
    return command.communicate(timeout=RUN_S)[1]


def matrices(output: Path) -> dict[str, Any]:
    """Everything a run measured but for the clock."""
    results = json.loads((output / "results.json").read_text())
    return {
        "-".join(map(str, cell["cell"].values())): [
            {key: value for key, value in step.items() if key != "train_seconds"} for step in cell["steps"]
        ]
        for cell in results["cells"]
    }


@pytest.fixture(scope="module")
def whole(
    ready_tables: None, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """Output and lines of a run that nobody disturbs."""
    output = tmp_path_factory.mktemp("continual") / "out"
    code, lines, errors = run_here(*TINY, *GRID, "--output", output, script="continual")
    assert code == 0, errors
    return output, lines


def images_in(folder: Path) -> list[str]:
    """Files that hold a real image: one of the digits as they are stored or preprocessed, or any picture of pixels."""
    train = digits().train
    white = Preprocess.fit(train.images, zca=False).apply(train.images).numpy()
    rows = [row for c in range(10) for row in train.indices_of(c)[:60]]
    known = [image.tobytes() for images in (train.images, white) for image in images[rows]]
    pictures = (b"\x89PNG\r\n", b"\xff\xd8\xff\xe0", b"image/png", b"image/jpeg", b"WEBPVP8")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return [
        name for name, content in contents.items() if any(part in content for part in (*pictures, *known))
    ]


class TestWholeRun:
    pytestmark = slow

    def test_memories_of_real_images_show_them_in_pictures_report_and_mlflow(
        self, whole: tuple[Path, list[str]]
    ) -> None:
        found = images_in(whole[0])
        assert "report.html" in found
        assert any(name.startswith("pictures/random-step0") for name in found)
        assert any(re.match(r"mlartifacts/.*/memories/random-step0", name) for name in found)
        assert not [name for name in found if name.startswith(("distilled/", "cells/", "choices/"))]

    def test_ends_with_table_results_pictures_and_report(self, whole: tuple[Path, list[str]]) -> None:
        output, lines = whole
        assert lines[-1] == str(output / "report.html")
        assert "<html" in (output / "report.html").read_text()
        results = ContinualResults.from_dict(json.loads((output / "results.json").read_text()))
        assert {result.cell.name for result in results.cells} == CELLS
        assert all(result.complete and len(result.steps) == 3 for result in results.cells)
        assert {row.memory_images for row in results.summaries} == {0, 40}
        assert results.score_on == "test"
        assert {path.name.split("-step")[0] for path in (output / "pictures").iterdir()} == {
            "random",
            "distilled",
        }
        assert not list((output / "cells").glob("*/*.safetensors")), "states of complete cells are let go"

    def test_mlflow_holds_a_child_run_for_each_cell(self, whole: tuple[Path, list[str]]) -> None:
        output, _ = whole
        client = open_client(f"sqlite:///{output / 'mlflow.db'}")
        parent = client.get_run(json.loads((output / "mlflow_run.json").read_text())["run_id"])
        assert parent.info.status == "FINISHED"
        children = client.search_runs(
            [parent.info.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        )
        by_name = {child.info.run_name: child for child in children}
        assert set(by_name) >= CELLS
        history = client.get_metric_history(by_name["distilled-der++-o0-s0"].info.run_id, "acc_seen")
        assert [point.step for point in history] == [0, 1, 2]
        files = {file.path for file in client.list_artifacts(parent.info.run_id, "memories")}
        assert len(files) == 6

    def test_distillation_is_timed_beside_its_images(self, whole: tuple[Path, list[str]]) -> None:
        output, _ = whole
        (folder,) = (output / "distilled").iterdir()
        seconds = json.loads((folder / "times.json").read_text())["distill_worker_s"]
        results = json.loads((output / "results.json").read_text())
        assert results["distil_seconds"] == {"distilled": seconds}
        assert seconds > 0
        assert set(json.loads((output / "times.json").read_text())) == {"distil_wait_s", "learn_s"}

    def test_workers_and_drivers_killed_within_and_between_steps_change_no_accuracy(
        self, whole: tuple[Path, list[str]], tmp_path: Path
    ) -> None:
        output, of_all = tmp_path / "out", len(CELLS)
        asked = (*TINY, *GRID, "--output", output)

        first = start(*asked, script="continual")
        wait_for(lambda: distilled_so_far(output, 0) != [], limit_s=RUN_S)
        wait_for(lambda: kill_workers(first, "PoolWorker") > 0)
        wait_for(lambda: kill_workers(first, "run_cell_step", most=1) == 1, limit_s=RUN_S)
        wait_for(lambda: cells_done(output)[0] == of_all, limit_s=RUN_S)
        said = kill_driver(first)
        assert re.search(r"class \d+: .*; retry 1 of 3", said), "no worker was lost at a distillation"
        assert re.search(r"-o0-s0 step 0: .*; retry 1 of 3", said), "no worker was lost at a cell"
        assert cells_done(output) == [of_all, 0, 0]
        kept = fingerprints(output / "cells")

        second = start(*asked, script="continual")
        wait_for(lambda: distilled_so_far(output, 1) != [], limit_s=RUN_S)
        second.send_signal(signal.SIGTERM)
        _, errors = second.communicate(timeout=RUN_S)
        assert second.returncode == 130, errors
        assert cells_done(output) == [of_all, 0, 0]
        assert min(distilled_so_far(output, 1)) < ITERATIONS, "stopped too late to show anything"

        third = start(*asked, script="continual")
        wait_for(lambda: cells_done(output)[1] > 0, limit_s=RUN_S)
        kill_driver(third)
        assert 0 < cells_done(output)[1] < of_all, "killed too late to show anything"
        kept |= fingerprints(output / "cells")
        # As a driver leaves it that dies after the result of a step and before the state it came from is gone.
        finished = next((output / "cells").glob("*/step01-*.json"))
        stale = next(finished.parent.glob("step00-*.json")).with_suffix(".safetensors")
        stale.write_bytes(b"a state")

        code, _, errors = run(*asked, script="continual")
        assert code == 0, errors
        assert matrices(output) == matrices(whole[0])
        results = {name: digest for name, digest in kept.items() if name.endswith(".json")}
        assert results.items() <= fingerprints(output / "cells").items(), "a finished step was computed again"
        assert not list((output / "cells").glob("*/*.safetensors"))
        assert not list(output.rglob(".partial-*"))

    def test_cells_that_cannot_go_on_fail_alone(self, ray_cluster: None, tmp_path: Path) -> None:
        output = tmp_path / "out"
        asked = ("--steps", 2, "--memories", "reservoir", "distilled", "--learners", "gdumb", "er")
        diverging = ("--lr-replay", 1e30, "--lr-img", 1e30, "--no-pictures")
        code, lines, errors = run_here(*TINY, *asked, *diverging, "--output", output, script="continual")
        assert code == 1, errors
        shown = "\n".join(lines)
        assert "reservoir-er-o0-s0: NotFiniteError: step 0" in shown
        assert "has no distilled images: " in shown
        results = ContinualResults.from_dict(json.loads((output / "results.json").read_text()))
        complete = [result.cell.name for result in results.cells if result.complete]
        assert complete == ["reservoir-gdumb-o0-s0"]
        assert len(results.failures) == 3
        assert images_in(output) == []
