"""Rankings: a whole run, the same run after kills through the shell, a user's own space with broken networks."""

import json
import signal
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
from command_runs import RUN_S, kill_when, kill_workers, run, run_here, start, wait_for

from apps.nas.reference import read_reference
from apps.nas.table import Row, from_parquet
from pipelines.tracking.backend import open_client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("ready_tables")]

RANK = (
    "--proxies",
    *("random", "early-steps", "parameters", "naswot"),
    # Every training takes some tenths of a second: long enough for a command to be killed between them.
    *("--space", "small", "--sample", 5, "--epochs", 40, "--whole-epochs", 6, "--ipc", 2),
    *("--reference", "whole", "--resamples", 200),
)
BROKEN_SPACE = """
import torch
from torch import nn


def linear(channels, image_size, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size[0] * image_size[1], num_classes))


def raising(channels, image_size, num_classes):
    raise RuntimeError("no such layer")


def wrong_size(channels, image_size, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))


class Broken(nn.Module):
    def __init__(self, num_features, num_classes):
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)

    def forward(self, images):
        return self.linear(images.flatten(1)) * float("nan")


def broken(channels, image_size, num_classes):
    return Broken(channels * image_size[0] * image_size[1], num_classes)


networks = [
    ("linear", linear, 640),
    ("conv", "convnet-w8-d1", None),
    ("raises", raising, None),
    ("wrong-size", wrong_size, None),
    ("nan", broken, None),
]
"""


def rows_of(output: Path) -> list[Row]:
    path = output / "results.parquet"
    return from_parquet(path.read_bytes(), where=str(path)) if path.exists() else []


def without_times(output: Path) -> list[tuple[object, ...]]:
    """The table but for the clock's columns."""
    return [
        (r.network, r.proxy, r.seed, r.status, r.score, r.test_accuracy, r.steps, r.key)
        for r in rows_of(output)
    ]


@pytest.fixture(scope="module")
def whole(
    ready_tables: None, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """Output and lines of a run that nobody disturbs."""
    output = tmp_path_factory.mktemp("nas") / "out"
    code, lines, errors = run_here(*RANK, "--output", output, script="nas")
    assert code == 0, errors
    return output, lines


def test_a_ranking_ends_with_table_verdict_and_report(whole: tuple[Path, list[str]]) -> None:
    output, lines = whole
    assert lines[-1] == str(output / "report.html")
    assert "<html" in (output / "report.html").read_text()
    verdict = json.loads((output / "verdict.json").read_text())
    assert read_reference(output / "reference.csv").keys() == verdict["truth"].keys()
    assert [proxy["name"] for proxy in verdict["proxies"]] == [
        "random",
        "early-steps",
        "parameters",
        "naswot",
    ]
    assert verdict["ceiling"]["num_seeds"] == 2
    assert len(rows_of(output)) == 5 * (2 + 2 + 1 + 2 + 2)
    assert set(pq.read_table(output / "results.parquet")["status"].to_pylist()) == {"done"}


def test_mlflow_holds_the_verdict_and_a_child_run_for_each_proxy(whole: tuple[Path, list[str]]) -> None:
    output, _ = whole
    client = open_client(f"sqlite:///{output / 'mlflow.db'}")
    parent = client.get_run(json.loads((output / "mlflow_run.json").read_text())["run_id"])
    assert parent.info.status == "FINISHED"
    children = client.search_runs(
        [parent.info.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    names = {child.info.run_name: child for child in children}
    assert set(names) == {"random", "early-steps", "parameters", "naswot", "whole"}
    assert {child.info.status for child in children} == {"FINISHED"}
    assert "kendall/all" in names["random"].data.metrics
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "results.parquet", "reference.csv", "verdict.json", "plots"} <= files


def test_lost_workers_lost_drivers_and_another_number_of_workers_leave_the_same_table(
    whole: tuple[Path, list[str]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = start(*RANK, "--output", output, script="nas", workers=2)
    wait_for(lambda: len(rows_of(output)) >= 3, limit_s=RUN_S)
    wait_for(lambda: kill_workers(first, "ScoreWorker", most=1) == 1)
    known = len(rows_of(output))
    wait_for(lambda: len(rows_of(output)) > known, limit_s=RUN_S)
    first.kill()
    first.communicate(timeout=RUN_S)
    left = len(rows_of(output))

    second = start(*RANK, "--output", output, script="nas")
    wait_for(lambda: len(rows_of(output)) > left or second.poll() is not None, limit_s=RUN_S)
    second.send_signal(signal.SIGTERM)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 130, errors
    client = open_client(f"sqlite:///{output / 'mlflow.db'}")
    run_id = json.loads((output / "mlflow_run.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "KILLED"
    assert left < len(rows_of(output)) < len(rows_of(whole[0])), "ended too late to show anything"

    code, lines, errors = run(*RANK, "--output", output, script="nas")
    assert code == 0, errors
    assert any("scoring" in line or "reference" in line for line in lines)
    assert without_times(output) == without_times(whole[0])
    assert client.get_run(run_id).info.status == "FINISHED"


def test_broken_networks_are_reported_and_the_others_ranked(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "broken_space.py").write_text(BROKEN_SPACE)
    output = tmp_path / "out"
    code, lines, errors = run_here(
        *("--space", f"{tmp_path / 'broken_space.py'}:networks", "--proxies", "random", "parameters"),
        *("--epochs", 2, "--ipc", 1, "--seeds", 1, "--output", output),
        script="nas",
    )
    assert code == 1, errors
    shown = "\n".join(lines)
    assert (
        "raises (random, parameters): network 'raises': the function failed with RuntimeError: no such layer"
        in shown
    )
    assert (
        "wrong-size (random, parameters): network 'wrong-size': failed on images of shape (2, 1, 8, 8)"
        in shown
    )
    assert "nan (random): the network's outputs hold NaN or infinity" in shown
    assert "The best 2 of 2 networks by random" in shown
    assert "no such layer" in (output / "report.html").read_text()


HARMFUL_SPACE = """
import os
import signal
import sys
import time

import torch
from torch import nn

from blocks import WIDTH


class Sound(nn.Module):
    def __init__(self, num_features, num_classes, width):
        super().__init__()
        self.hidden, self.linear = nn.Linear(num_features, width), nn.Linear(width, num_classes)

    def forward(self, images):
        return self.linear(torch.relu(self.hidden(images.flatten(1))))


class Harmful(Sound):
    harm = None

    def forward(self, images):
        if self.training and len(images) > 2:
            self.harm()
        return super().forward(images)


def of(kind, width=12):
    def make(channels, image_size, num_classes):
        return kind(channels * image_size[0] * image_size[1], num_classes, width)

    return make


class KilledForMemory(Harmful):
    def harm(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(Harmful):
    def harm(self):
        time.sleep(600)


class GradientsOff(Harmful):
    def harm(self):
        torch.set_grad_enabled(False)


class NotANumber(Sound):
    def forward(self, images):
        return super().forward(images) * float("nan")


def exits(channels, image_size, num_classes):
    sys.exit(0)


networks = [
    ("exits", exits, None),
    ("first", of(Sound), None),
    ("edited", of(Sound, WIDTH), None),
    ("grad-off", of(GradientsOff), None),
    ("killed", of(KilledForMemory), None),
    ("hangs", of(Hangs), None),
    ("nan", of(NotANumber), None),
    ("genotype-" + "sep_conv_3x3+" * 20, of(Sound, 10), None),
]
"""


def trials_of(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "search.json").read_text())["trials"]


def test_a_search_goes_on_around_what_harms_it_and_an_edit_of_an_imported_file_counts(
    ray_cluster: None, tmp_path: Path
) -> None:
    space, blocks, output = tmp_path / "harmful_space.py", tmp_path / "blocks.py", tmp_path / "out"
    space.write_text(HARMFUL_SPACE)
    blocks.write_text("WIDTH = 8\n")
    command = (
        *("--mode", "search", "--space", f"{space}:networks", "--ladder", "random:2", "whole:2", "--ipc", 2),
        *("--sampler", "grid", "--reduction-factor", 4, "--retrain", 1, "--retrain-seeds", 1),
        *("--whole-epochs", 1, "--timeout-s", 60, "--max-retries", 0, "--output", output),
    )
    code, lines, errors = run_here(*command, script="nas", workers=2)
    assert code == 1, errors
    reasons = {trial["network"]: trial["reason"] for trial in trials_of(output)}
    for network, reason in {
        "exits": "it called exit(0)",
        "grad-off": "does not require grad",
        "killed": "killed, probably for memory",
        "hangs": "took longer than 60 s",
        "nan": "hold NaN or infinity",
    }.items():
        assert reason in reasons[network]
        assert any(network in line for line in lines[lines.index("Failed") :])

    def keys() -> dict[str, set[str]]:
        """Of each network's looks on random images; the code that it is of decides them."""
        found: dict[str, set[str]] = {}
        for row in rows_of(output):
            if row.proxy == "random:2@search" and row.status == "done":
                found.setdefault(row.network, set()).add(row.key)
        return found

    before = keys()
    assert sorted(name.partition("-")[0] for name in before) == ["edited", "first", "genotype"]
    blocks.write_text("WIDTH = 64\n")
    # As a user would, in a process of its own: one that has imported a module keeps it.
    code, _, errors = run(*command, "--search-trials", 3, script="nas")
    assert code == 1, errors
    assert all(keys()[name] > before[name] for name in ("first", "edited"))
    parameters = {trial["network"]: trial["parameters"] for trial in trials_of(output)}
    assert parameters["edited"] == 64 * 64 + 64 + 64 * 10 + 10


OWN_PROXY = """
def smallness(net, images, labels):
    return -float(sum(parameter.numel() for parameter in net.parameters()))
"""
CLIMB = (
    *("--mode", "search", "--space", "small", "--sample", 6, "--search-trials", 4, "--ipc", 2),
    *("--batch-train", 32, "--seeds", 1, "--retrain-seeds", 2, "--whole-epochs", 2),
)


def test_a_search_says_which_network_to_take_to_people_and_programs(
    ready_tables: None, ray_cluster: None, tmp_path: Path
) -> None:
    own, output = tmp_path / "own.py", tmp_path / "out"
    own.write_text(OWN_PROXY)
    ladder = ("--ladder", f"{own}:smallness+naswot", "random:3", "whole:1", "whole:2", "--retrain", 2)
    storage = f"sqlite:///{tmp_path}/study.db"
    code, lines, errors = run_here(
        *(*CLIMB, *ladder, "--json", "--optuna-storage", storage, "--output", output), script="nas"
    )
    assert code == 0, errors
    told = json.loads(lines[-1])
    assert lines[-2] == told["report"] == str(output / "report.html")
    assert told["winner"] == str(output / "winner")
    assert told["decided_by"] == "whole:2"
    (take,) = [line for line in lines if line.startswith("Take ")]
    assert take.startswith(f"Take {told['network']}: ")
    page = (output / "report.html").read_text()
    assert f"<strong>Take {told['network']}: " in page
    content = json.loads((output / "search.json").read_text())
    assert content["ladder"].split()[1:] == ["random:3", "whole:1", "whole:2"]
    assert content["rungs"][0]["networks"] == 6
    assert [rung["networks"] for rung in content["rungs"][1:3]] == [4, 2]
    study = optuna.load_study(study_name=None, storage=storage)
    assert len(study.trials) == 4
    # The same command again trains nothing, and says the same.
    again, repeated, errors = run_here(
        *(*CLIMB, *ladder, "--json", "--optuna-storage", storage, "--output", output), script="nas"
    )
    assert again == 0, errors
    assert json.loads(repeated[-1]) == told
    assert len(optuna.load_study(study_name=None, storage=storage).trials) == 4


def test_a_search_whose_worker_and_driver_are_killed_at_every_rung_ends_with_the_same_pick(
    tmp_path: Path,
) -> None:
    command = (
        *CLIMB,
        *("--ladder", "random:60", "whole:16", "--retrain", 0, "--sampler", "random"),
    )
    code, _, errors = run(*command, "--output", tmp_path / "whole", script="nas")
    assert code == 0, errors
    out = tmp_path / "killed"

    def looks(proxy: str) -> int:
        return len({row.network for row in rows_of(out) if row.proxy == proxy})

    # In each stage first a worker in the middle of a training, then the driver.
    for proxy, networks in (("random:60@search", 2), ("whole:16@search", 1)):
        begun = start(*command, "--output", out, script="nas")
        wait_for(lambda proxy=proxy: looks(proxy) >= 1, limit_s=RUN_S)
        wait_for(lambda begun=begun: kill_workers(begun, "SearchTrial", most=1) == 1, limit_s=RUN_S)
        kill_when(lambda proxy=proxy, least=networks: looks(proxy) >= least, begun)
        assert proxy.startswith("whole") or not looks("whole:16@search")
    code, _, errors = run(*command, "--output", out, script="nas")
    assert code == 0, errors
    expected, found = (json.loads((path / "search.json").read_text()) for path in (tmp_path / "whole", out))
    assert found["order"] == expected["order"]
    assert [choice["network"] for choice in found["choices"]] == [c["network"] for c in expected["choices"]]
    assert [choice["validation"] for choice in found["choices"]] == [
        c["validation"] for c in expected["choices"]
    ]
