"""Streams that are not class-incremental: what memories keep, what is the same as ever, and whole runs."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import run_here
from PIL import Image

from apps.continual.budget import apportion
from apps.continual.results import ContinualResults
from atom.data import RealData, load
from pipelines.console.commands import ContinualCommand
from pipelines.continual import identity_of
from pipelines.incremental.case import ContinualCase
from pipelines.incremental.distillation import Distiller
from pipelines.incremental.memories import Memories
from pipelines.incremental.plan import plan, source_of
from pipelines.incremental.protocol import lots_of
from pipelines.incremental.trainings import Trainings
from pipelines.output.ownership import settings_hash
from pipelines.output.store import Store
from pipelines.workers.resources import ActorSize

GOLDEN = Path(__file__).parents[1] / "golden" / "continual_keys.json"
NETWORK = "convnet-w8-d2"
TINY = (
    *("--budget", "4/class", "--network", NETWORK, "--distil-network", NETWORK, "--iterations", 4),
    *("--batch-real", 8, "--epochs", 4, "--orders", 1, "--num-actors", 2),
    *("--eval-precision", "float32"),
)


@pytest.fixture(scope="module")
def digits() -> RealData:
    return load("digits", data_dir=Path("unused"))


def case(folder: Path, real: RealData, **asked: Any) -> ContinualCase:
    command = ContinualCommand.of(network=NETWORK, distil_network=NETWORK, **asked)
    num_steps = source_of(command)[1]
    lots = lots_of(command, real, num_steps=num_steps)
    decided = plan(command, lots.real, num_steps=num_steps, lots=lots)
    size = ActorSize(1, cpus=1, gpus=0)
    return ContinualCase(command, decided, None, lots.real, Store.open(folder / "out"), size, size, "cpu")


def keys(made: ContinualCase) -> dict[str, list[str]]:
    """By what the results of a case are known: names of files, digests of settings."""
    memories = Memories(made, Distiller(made))
    found = {cell.name: names for cell, names in Trainings(made, memories)._names.items()}
    steps = range(made.plan.num_steps)
    recipes = {recipe for step in steps for recipe in memories._distiller.recipes(step)}
    return {
        **found,
        "choices": [memories.selections._name(one) for one in memories.selections._selections()],
        "distilled": sorted(settings_hash(memories._distiller.identity(recipe)) for recipe in recipes),
        "identity": [settings_hash(identity_of(made.command, made.real, made.plan, device_kind="cpu"))],
        "pictures": [memories.picture_name(memory, step) for memory in made.plan.memories for step in steps],
    }


def test_results_of_streams_whose_lots_are_classes_are_found_as_before_there_were_lots(
    tmp_path: Path, digits: RealData
) -> None:
    """The golden keys are of commit 49518ad, which knew classes only. Settings that decide results change them."""
    made = case(
        tmp_path,
        digits,
        dataset="digits",
        steps=3,
        memories=("reservoir", "random", "herding", "distilled"),
        learners=("gdumb", "er", "er-ace", "der++", "finetune", "joint"),
        orders=2,
        budget="60 images",
        # What this machine would choose is part of the keys.
        precision="float32",
        compile="off",
        eval_precision="float32",
    )
    assert keys(made) == json.loads(GOLDEN.read_text())


PROTOCOLS: list[dict[str, Any]] = [
    {"looks": ("plain", "invert")},
    {"blurred": 0.2},
    {"blurred": 0.3},
    {"return_after": 2},
    {"return_after": 3},
]


def test_protocols_share_no_results(tmp_path: Path, digits: RealData) -> None:
    asked = {"memories": ("random", "herding", "distilled", "reservoir"), "learners": ("er",), "orders": 1}
    found = [keys(case(tmp_path, digits, **asked, **protocol)) for protocol in ({}, *PROTOCOLS[:-1])]
    for one, other in itertools.combinations(found, 2):
        for name in ("choices", "distilled", "identity", "random-er-o0-s0"):
            assert not set(one[name]) & set(other[name]), name


def test_one_pass_is_another_training_of_those_that_go_on_alone(tmp_path: Path, digits: RealData) -> None:
    asked = {"memories": ("random",), "learners": ("gdumb", "er", "joint"), "orders": 1}
    usual, online = (keys(case(tmp_path, digits, online=online, **asked)) for online in (False, True))
    assert {name for name in usual if usual[name] != online[name]} == {"random-er-o0-s0"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("budget", ["7/class", "60 images"])
def test_a_class_that_comes_in_lots_keeps_no_more_and_gets_nothing_back(
    budget: str, protocol: dict[str, Any], tmp_path: Path, digits: RealData
) -> None:
    decided = case(tmp_path, digits, memories=("random", "distilled"), budget=budget, **protocol).plan
    for order, stream in decided.streams.items():
        before: dict[int, int] = {}
        for step in range(stream.num_steps):
            kept, quota = decided.kept("random", order, step), decided.quota("random", order, step)
            of_class = [sum(n for lot, n in kept.items() if lot % 10 == c) for c in range(10)]
            assert max(of_class) == quota
            assert all(kept[lot] <= number for lot, number in before.items())
            before = kept
        by_class = {c: [lot for lot in kept if lot % 10 == c] for c in range(10)}
        for lots in by_class.values():
            counts = [decided.counts[lot] for lot in lots]
            assert [kept[lot] for lot in lots] == apportion(quota, counts, counts)


def write_sessions(root: Path, real: RealData, number: int) -> None:
    """Three sessions of digits as PNG files; the last one lacks class 9, and is inverted."""
    for session in range(3):
        for class_id in range(10 - session // 2):
            rows = real.train.indices_of(class_id)[session * number :][:number]
            folder = root / f"2{session}" / str(class_id)
            folder.mkdir(parents=True)
            for row in rows:
                pixels = real.train.images[row, 0]
                Image.fromarray(255 - pixels if session == 2 else pixels).save(folder / f"{row}.png")


def results_of(output: Path) -> ContinualResults:
    return ContinualResults.from_dict(json.loads((output / "results.json").read_text()))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ready_tables", "ray_cluster")
class TestRuns:
    def test_sessions_from_a_folder_in_one_pass(self, digits: RealData, tmp_path: Path) -> None:
        write_sessions(tmp_path / "shop", digits, 20)
        arguments = (
            *TINY,
            *("--dataset", f"sessions:{tmp_path / 'shop'}", "--data-dir", tmp_path / "data", "--online"),
            *("--memories", "reservoir", "random", "--learners", "er", "der++", "gdumb"),
        )
        code, lines, errors = run_here(*arguments, "--output", tmp_path / "out", script="continual")
        assert code == 0, errors
        results = results_of(tmp_path / "out")
        assert results.protocol == "domain-incremental, online"
        assert results.steps == {0: (("20",), ("21",), ("22",))}
        assert (results.num_steps, results.num_classes) == (3, 10)
        assert sum(results.class_images.values()) == 29 * 6
        for cell in results.cells:
            last = cell.steps[-1]
            assert (len(last.class_row), last.memory_images) == (3, 40)
            # 60 test images of the first two sessions, 54 of the last.
            assert last.accuracy_on_seen == pytest.approx(np.average(last.class_row, weights=(60, 60, 54)))
            assert last.task_row[:2] == last.class_row[:2]
        page = (tmp_path / "out" / "report.html").read_text()
        assert "domain-incremental, online: every step brings all classes in one look or session" in page
        assert "Accuracy step by step" in page
        assert any("in 3 steps of all classes, 20, 21 and 22 in one pass" in line for line in lines)

    def test_classes_come_back_under_a_distilled_memory(self, tmp_path: Path) -> None:
        arguments = (
            *TINY,
            *("--dataset", "digits", "--steps", 2, "--return-after", 1, "--train-per-class", 20),
            *("--memories", "distilled", "herding", "--learners", "gdumb", "der++", "--step-epochs", 2),
            *("--output", tmp_path / "out"),
        )
        code, _, errors = run_here(*arguments, script="continual")
        assert code == 0, errors
        results = results_of(tmp_path / "out")
        (steps,) = results.steps.values()
        assert [len(step) for step in steps] == [5, 10, 5]
        assert steps[2] == tuple(f"{name} (part 2)" for name in steps[1][:5])
        for cell in results.cells:
            sizes = [step.memory_images for step in cell.steps]
            assert sizes == [20, 40, 40]
            assert set(cell.steps[0].by_class) == set(steps[0])
            assert len(cell.steps[-1].by_class) == 10
            mean = np.average(
                list(cell.steps[-1].by_class.values()), weights=list(_weights(cell.steps[-1], results))
            )
            assert cell.steps[-1].accuracy_on_seen == pytest.approx(mean)
        folders = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "out" / "distilled").iterdir()}
        assert folders == {"atom-ipc4", "atom-ipc2-part1"}


def _weights(step: Any, results: ContinualResults) -> list[int]:
    return [results.class_images[name] for name in step.by_class]
