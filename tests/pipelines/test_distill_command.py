"""The whole command: what it leaves behind, and through the shell what survives every way of ending it."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from command_runs import (
    RUN_S,
    alive,
    checkpointed,
    descendants,
    environment,
    fingerprints,
    run,
    run_here,
    start,
    wait_for,
)
from mlflow_server import MlflowServer
from tiny_digits import NETWORK, digits_set, white_digits

from atom.distilled import DistilledSet
from atom.methods.matching_loop import Atom
from atom.methods.settings import DistillSettings
from pipelines.tracking.backend import open_client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = ("--dataset", "digits", "--network", NETWORK, "--batch-real", 8)
MLFLOW_EVERY_S = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1"}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, traps: Path) -> tuple[Path, tuple[int, list[str], str]]:
    """Output and result of the first command anybody runs, wherever they are."""
    output = tmp_path_factory.mktemp("smoke") / "out"
    env = environment(**MLFLOW_EVERY_S)
    command = ("--dataset", "digits", "--smoke", "--output", output)
    return output, run(*command, env=env, cwd=traps, workers=None)


def run_id_of(output: Path) -> str:
    return json.loads((output / "mlflow_run.json").read_text())["run_id"]


def without_ray(distilled: DistilledSet) -> np.ndarray:
    """The images that the recorded settings give in this process, [N, C, H, W]."""
    import torch

    settings = DistillSettings.model_validate({k: v for k, v in distilled.settings.items() if k != "device"})
    images, labels = white_digits()
    distiller = Atom(settings, channels=1, height=8, width=8, num_classes=10, device=torch.device("cpu"))
    assert settings.iterations is not None
    groups = []
    for group in Atom.units(settings, range(10)):
        real = {c: torch.from_numpy(images[labels == c]) for c in group}
        first = distiller.start(group, real)
        state = distiller.advance(first, settings.iterations, unit=group, real=real)
        groups.append(state.images.reshape(-1, *state.images.shape[2:]))
    return np.concatenate(groups)


def test_first_command_ends_with_the_path_of_a_set_that_loads(
    smoke: tuple[Path, tuple[int, list[str], str]],
) -> None:
    output, (code, lines, errors) = smoke
    assert (code, errors) == (0, "")
    assert lines[0].startswith("atom-distill ")
    assert lines[-1] == str(output / "set")
    distilled = DistilledSet.load(lines[-1])
    assert distilled.images_NCHW.shape == (10, 1, 8, 8)
    assert [(row["network"], row["method"]) for row in distilled.results] == [
        (network, method)
        for network in ("convnet", "convnet-batch")
        for method in ("atom", "random", "herding", "kcenter")
    ]
    assert not list(output.rglob(".partial-*"))


@pytest.mark.parametrize(
    ("method", "said"), [("dm", "s an iteration of a unit ("), ("mtt", "time: not told, mtt")]
)
def test_a_dry_run_tells_the_plan_and_leaves_nothing(
    ray_cluster: None, tmp_path: Path, method: str, said: str
) -> None:
    small = ("--dataset", "digits", "--network", "convnet-w4-d1", "--iterations", 3)
    code, lines, errors = run_here(*small, "--method", method, "--dry-run", "--output", tmp_path / "out")
    assert code == 0, errors
    shown = "\n".join(lines)
    units = "1 unit of 10" if method == "mtt" else "10 units of 1"
    assert f"plan: 10 classes in {units}, 3 iterations each" in shown
    assert "memory to distil, at least: " in shown
    assert said in shown
    assert lines[-1] == "the output was left alone; leave out --dry-run to begin"
    # The tables of MLflow are the test's own.
    assert {path.name for path in tmp_path.glob("out/*")} <= {"mlflow.db"}


def test_mlflow_run_is_finished_and_complete(smoke: tuple[Path, tuple[int, list[str], str]]) -> None:
    output, _ = smoke
    client = open_client(f"sqlite:///{output / 'mlflow.db'}")
    recorded = client.get_run(run_id_of(output))
    assert recorded.info.status == "FINISHED"
    assert recorded.info.run_name == "atom-digits-ipc1-s0"
    assert recorded.data.params["distill.iterations"] == "4"
    assert recorded.data.params["data.spec"] == "digits"
    metrics = recorded.data.metrics
    assert {"loss/total", *(f"loss/class_{c:02d}" for c in range(10))} <= set(metrics)
    assert {"eval/convnet/acc_mean", "eval/convnet/random/acc_mean", "time/distill_s"} <= set(metrics)
    assert {"eval/convnet-batch/acc_mean", "eval/convnet-batch/random/acc_mean"} <= set(metrics)
    assert len(client.get_metric_history(recorded.info.run_id, "loss/class_03")) == 4
    assert any(name.startswith("system/") for name in metrics)
    inputs = {i.tags[0].value: i.dataset.name for i in recorded.inputs.dataset_inputs}
    assert inputs == {"real": "digits", "distilled": "atom-ipc1"}
    stored = {item.path for item in client.list_artifacts(recorded.info.run_id, "set")}
    assert {"set/distilled.safetensors", "set/set.json", "set/sheet.png", "set/README.md"} <= stored


def test_rerun_keeps_bits_and_run_and_other_settings_are_refused(
    smoke: tuple[Path, tuple[int, list[str], str]], ray_cluster: None
) -> None:
    output, (_, first_lines, _) = smoke
    # The lock names its last holder.
    volatile = ("mlflow.db", ".lock")
    before, run_id = fingerprints(output, without=volatile), run_id_of(output)
    written = {path: path.stat().st_mtime_ns for path in (output / "set").rglob("*")}
    # Another program, on other workers, that computes nothing.
    env = {"ATOM_GIT_COMMIT": "f" * 40}
    command = ("--dataset", "digits", "--smoke", "--output", output, "--num-actors", 1)
    # The second one judges nothing either, and keeps the accuracies that stand.
    for more in ((), ("--eval-seeds", 0)):
        code, lines, _ = run_here(*command, *more, env=env)
        assert (code, lines[-1]) == (0, first_lines[-1])
    assert {path: path.stat().st_mtime_ns for path in (output / "set").rglob("*")} == written
    after = fingerprints(output, without=volatile)
    assert {name: after[name] for name in before} == before
    assert run_id_of(output) == run_id

    untouched = fingerprints(output, without=(".lock",))
    code, _, errors = run_here(
        "--dataset", "digits", "--smoke", "--output", output, "--seed", 1, "--classes-per-group", 4
    )
    assert code == 2
    assert errors.startswith(f"StoreError: The output {output} belongs to other settings: ")
    assert "seed (received 1, stored 0)" in errors
    assert "classes_per_group (received 4, stored 1)" in errors
    assert errors.count("\n") == 1
    assert fingerprints(output, without=(".lock",)) == untouched


def test_a_set_is_a_start_and_its_digest_a_part_of_the_identity(ray_cluster: None, tmp_path: Path) -> None:
    before, output = digits_set(), tmp_path / "out"
    command = ("--dataset", "digits", "--ipc", 2, "--iterations", 0, "--eval-seeds", 0, "--output", output)
    code, lines, errors = run_here(*command, "--init", before.save(tmp_path / "earlier"))
    assert (code, errors) == (0, "")
    begun = DistilledSet.load(lines[-1])
    assert np.array_equal(begun.images_NCHW.numpy(), before.images_NCHW.numpy())
    assert begun.settings["init"].startswith("set:")
    assert str(tmp_path) not in (output / "set" / "set.json").read_text()
    code, _, errors = run_here(*command)
    assert code == 2
    assert f'init (received "real", stored "{begun.settings["init"]}")' in errors


def test_killed_and_stopped_command_ends_with_the_set_of_an_uninterrupted_one(
    ray_cluster: None, tmp_path: Path, mlflow_uri: str
) -> None:
    output = tmp_path / "out"
    command = (*SMALL, "--iterations", 300, "--checkpoint-every", 10, "--eval-seeds", 0)
    command = (*command, "--tracking-uri", mlflow_uri, "--output", output)
    client = open_client(mlflow_uri)

    killed = start(*command)
    wait_for(lambda: checkpointed(output) > 0 or killed.poll() is not None)
    left_over = descendants(killed)
    assert any(process.name() == "raylet" for process in left_over)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(timeout=30) == -signal.SIGKILL
    assert 0 < checkpointed(output) < 300
    run_id = run_id_of(output)
    assert client.get_run(run_id).info.status == "RUNNING"

    stood_at = checkpointed(output)
    stopped = start(*command)
    wait_for(lambda: checkpointed(output) > stood_at or stopped.poll() is not None)
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate(timeout=RUN_S)
    assert stopped.returncode == 130, errors
    assert errors == "Stopped. The same command goes on from the last checkpoint.\n"
    assert stood_at < checkpointed(output) < 300
    recorded = client.get_run(run_id)
    assert (recorded.info.status, recorded.data.tags["error"]) == ("KILLED", "stopped by SIGTERM")
    assert not (output / "set").exists()

    code, lines, _ = run_here(*command)
    assert code == 0
    distilled = DistilledSet.load(lines[-1])
    assert np.array_equal(distilled.images_NCHW.numpy(), without_ray(distilled))
    recorded = client.get_run(run_id)
    assert recorded.info.status == "FINISHED"
    assert "error" not in recorded.data.tags
    assert run_id_of(output) == run_id
    assert not list(output.rglob(".partial-*"))
    # A private cluster dies with its driver; two agents of Ray's own notice after half a minute.
    wait_for(lambda: not alive(left_over))


def test_mlflow_that_hangs_holds_up_neither_chunks_nor_ctrl_c(tmp_path: Path) -> None:
    output, server = tmp_path / "out", MlflowServer(tmp_path / "artifacts")
    command = start(
        *(*SMALL, "--iterations", 300, "--checkpoint-every", 10, "--eval-seeds", 0),
        *("--tracking-uri", server.uri, "--output", output),
    )
    wait_for(lambda: checkpointed(output) > 0 or command.poll() is not None)
    server.lively.clear()
    stood_at = checkpointed(output)
    wait_for(lambda: checkpointed(output) > stood_at + 50)
    command.send_signal(signal.SIGINT)
    _, errors = command.communicate(timeout=60)
    server.close()
    assert command.returncode == 130
    assert errors.startswith("Stopped. The same command goes on from the last checkpoint.\nWARNING: ")
    assert f"did not reach MLflow at {server.uri}. The same command records them" in errors
