import contextlib
import logging
import math
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow_server import MlflowServer, silent_server

from atom.errors import ConfigError
from pipelines.output.provenance import COMMIT_VARIABLE, git_commit, run_tags
from pipelines.tracking import Tracker
from pipelines.tracking.backend import default_tracking_uri, fetch_artifact, open_client
from pipelines.tracking.tracker import finish
from pipelines.tracking.uri import checked_uri, sqlite_path, sqlite_uri

Start = Callable[..., Tracker]


@pytest.fixture
def start(mlflow_uri: str) -> Start:
    """Start a run in the test's own database."""

    def call(**options: Any) -> Tracker:
        chosen = {
            "tracking_uri": mlflow_uri,
            "experiment": None,
            "command": "distill",
            "run_name": "atom-digits-ipc1-s0",
            "params": {"atom.ipc": 1},
            "system_metrics": False,
        }
        return Tracker.start(**{**chosen, **options})

    return call


@pytest.fixture
def client(mlflow_uri: str) -> MlflowClient:
    return open_client(mlflow_uri)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    found = MlflowServer(tmp_path / "artifacts")
    yield found
    found.close()


@pytest.fixture(autouse=True)
def no_trouble(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Any:
    """A tracker hides MLflow's errors behind warnings, so a test without a `trouble` mark must have none."""
    yield
    if "trouble" not in request.node.name:
        warned = [r.getMessage() for r in caplog.records if r.name.startswith("pipelines")]
        assert warned == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_status_is_final_however_the_block_ends(
    start: Start, client: MlflowClient, error: BaseException | None, status: str
) -> None:
    def work() -> None:
        with tracker:
            tracker.log_metrics({"loss/total": 1.5}, step=3)
            if error is not None:
                raise error

    tracker = start()
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    finish()
    run = client.get_run(tracker.run_id)
    assert run.info.status == status
    assert run.info.end_time is not None
    assert run.data.metrics == {"loss/total": 1.5}
    assert run.data.tags.get("error") == (None if error is None else f"{type(error).__name__}: {error}")


def test_marked_status_wins_over_a_clean_exit(start: Start, client: MlflowClient) -> None:
    with start() as tracker:
        tracker.mark("KILLED", reason="SIGTERM")
    finish()
    run = client.get_run(tracker.run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags["error"] == "SIGTERM"


def test_run_of_other_parameters_is_not_continued(start: Start, client: MlflowClient) -> None:
    with start(params={"evaluate.epochs": 1, "cluster.num_actors": 1}) as first:
        pass
    with start(params={"evaluate.epochs": 10, "cluster.num_actors": 2}, resume_run_id=first.run_id) as second:
        assert second.run_id != first.run_id
    assert client.get_run(second.run_id).data.tags["resumed_from"] == first.run_id
    with start(params={"evaluate.epochs": 10, "cluster.num_actors": 8}, resume_run_id=second.run_id) as third:
        assert third.run_id == second.run_id


def test_a_run_keeps_the_commit_that_began_it_and_adds_later_ones(
    start: Start, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, "first")
    with start() as begun:
        pass
    for commit in ("first", "second", "third", "second"):
        monkeypatch.setenv(COMMIT_VARIABLE, commit)
        with start(resume_run_id=begun.run_id):
            pass
    tags = client.get_run(begun.run_id).data.tags
    assert tags["mlflow.source.git.commit"] == "first"
    assert tags["continued_by_commits"] == "second third"


def test_a_run_whose_driver_was_killed_is_marked_and_continued(start: Start, client: MlflowClient) -> None:
    begun = start()
    run_id = begun.run_id
    assert not begun.took_over
    for _ in range(2):
        again = start(resume_run_id=run_id)
        assert (again.run_id, again.took_over) == (run_id, True)
    with start(resume_run_id=run_id):
        pass
    assert client.get_run(run_id).data.tags["interrupted"] == "3"
    with start(resume_run_id=run_id):
        pass
    run = client.get_run(run_id)
    assert (run.data.tags["interrupted"], run.info.status) == ("3", "FINISHED")


def test_restarted_driver_continues_its_run(start: Start, client: MlflowClient) -> None:
    killed = start()
    killed.log_metrics({"loss/total": 3.0}, step=1)
    killed.mark("FAILED", reason="first try")
    killed.flush()
    with start(params={"atom.ipc": 1, "atom.seed": 7}, resume_run_id=killed.run_id) as tracker:
        assert client.get_run(tracker.run_id).info.status == "RUNNING"
        tracker.log_metrics({"loss/total": 2.0}, step=2)
    run = client.get_run(tracker.run_id)
    assert tracker.run_id == killed.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params == {"atom.ipc": "1", "atom.seed": "7"}
    assert "error" not in run.data.tags
    history = client.get_metric_history(tracker.run_id, "loss/total")
    assert [(point.step, point.value) for point in history] == [(1, 3.0), (2, 2.0)]


def test_run_that_is_gone_is_replaced_after_a_warning_trouble(
    start: Start, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    old = start()
    client.delete_run(old.run_id)
    with start(resume_run_id=old.run_id) as tracker:
        assert tracker.run_id != old.run_id
    with start(resume_run_id="0" * 32) as tracker:
        assert client.get_run(tracker.run_id).data.params == {"atom.ipc": "1"}
    assert "is gone; a new one is made" in caplog.text


def test_long_histories_and_many_parameters_are_logged_whole(start: Start, client: MlflowClient) -> None:
    params = {f"p.{number}": number for number in range(130)}
    params["long"] = "x" * 7000
    with start(params=params) as tracker:
        tracker.log_history(("loss/class_03", 1 / (step + 1), step) for step in range(2500))
    run = client.get_run(tracker.run_id)
    assert len(run.data.params) == 131
    assert len(run.data.params["long"]) == 6000
    assert len(client.get_metric_history(tracker.run_id, "loss/class_03")) == 2500


def test_children_are_shown_below_their_parent(start: Start, client: MlflowClient) -> None:
    with start() as parent, parent.child("trial-1", params={"width": 32}, tags={"kind": "trial"}) as child:
        child.log_metrics({"eval/acc_mean": 31.5})
    run = client.get_run(child.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.data.tags["kind"] == "trial"
    assert run.info.run_name == "trial-1"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"width": "32"}
    assert run.data.metrics == {"eval/acc_mean": 31.5}


def test_child_that_is_continued_loses_the_error_of_its_first_try(start: Start, client: MlflowClient) -> None:
    with start() as parent:
        with parent.child("cell") as child:
            child.mark("FAILED", reason="its worker died")
        parent.flush()
        assert client.get_run(child.run_id).data.tags["error"] == "its worker died"
        with parent.child("cell") as again:
            pass
    run = client.get_run(child.run_id)
    assert again.run_id == child.run_id
    assert (run.info.status, run.data.tags.get("error")) == ("FINISHED", None)


def test_datasets_note_and_artifacts_are_recorded(
    start: Start, client: MlflowClient, mlflow_uri: str, tmp_path: Path
) -> None:
    images = np.zeros((6, 3, 5, 4), dtype=np.uint8)
    with start() as tracker:
        tracker.log_dataset(
            "cifar10", images, np.arange(6), context="real", source="parquet:/data", fingerprint="f" * 64
        )
        tracker.log_dataset("tiny", images.astype(np.float32), np.arange(6), context="distilled", source="x")
        tracker.set_note("# Result")
        tracker.log_artifacts(lambda folder: (folder / "README.md").write_text("card"), path="set")
        tracker.log_dict({"ipc": 1}, "config.yaml")
        tracker.log_text("fine", "report.md")
    run = client.get_run(tracker.run_id)
    inputs = {each.dataset.name: each for each in run.inputs.dataset_inputs}
    assert inputs["cifar10"].dataset.digest == "f" * 36
    assert '"features_shape": [6, 3, 5, 4]' in inputs["cifar10"].dataset.profile
    assert {name: each.tags[0].value for name, each in inputs.items()} == {
        "cifar10": "real",
        "tiny": "distilled",
    }
    assert run.data.tags["mlflow.note.content"] == "# Result"
    assert {each.path for each in client.list_artifacts(tracker.run_id)} == {
        "config.yaml",
        "report.md",
        "set",
    }
    fetched = fetch_artifact(f"runs:/{tracker.run_id}/set", tmp_path / "got", tracking_uri=mlflow_uri)
    assert (fetched / "README.md").read_text() == "card"
    assert (tmp_path / "mlartifacts" / "distill").is_dir()


def test_a_note_that_mlflow_would_cut_anywhere_ends_with_a_whole_line_and_a_word(
    start: Start, client: MlflowClient
) -> None:
    lines = [f"row {number} of a long table" for number in range(1000)]
    with start() as tracker:
        tracker.set_note("\n".join(["```", *lines, "```", "best"]))
    note = client.get_run(tracker.run_id).data.tags["mlflow.note.content"]
    assert len(note) <= 8000
    assert note.endswith("of a long table\n```\n\nThere is more in the artifacts.")


def test_figures_are_stored(start: Start, client: MlflowClient) -> None:
    from matplotlib.figure import Figure

    with start() as tracker:
        tracker.log_figure(Figure(), "curve.png")
    assert [each.path for each in client.list_artifacts(tracker.run_id)] == ["curve.png"]


def test_record_that_cannot_be_prepared_is_a_warning_and_is_counted_trouble(
    start: Start, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from matplotlib.figure import Figure

    def broken(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("pipelines.tracking.tracker.dataset_input", broken)
    with start() as tracker:
        tracker.log_dataset("digits", np.zeros((1, 1, 2, 2)), np.zeros(1), context="real", source="digits")
        tracker.log_dict({"value": object()}, "results.json")
        tracker.log_figure(Figure(), "plots/search.nonsense")
        tracker.log_metrics({"loss/total": "much"})  # pyrefly: ignore[bad-argument-type]
        tracker.log_metrics({"loss/total": 1.5})
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss/total": 1.5}
    assert "Could not log the dataset with MLflow: the disk is full. The work goes on." in caplog.text
    assert "4 other records (could not convert string to float: 'much') of this run" in caplog.text


def test_missing_artifact_is_explained(start: Start, mlflow_uri: str, tmp_path: Path) -> None:
    with start() as tracker:
        pass
    uri = f"runs:/{tracker.run_id}/nothing"
    with pytest.raises(ConfigError, match=f"asked for {uri}"):
        fetch_artifact(uri, tmp_path / "got", tracking_uri=mlflow_uri)


def test_artifact_without_a_tracking_uri_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"not where MLflow is; pass --tracking-uri"):
        fetch_artifact("runs:/abc/set", tmp_path)


def test_mlflow_that_dies_costs_no_work_and_gets_its_metrics_later_trouble(
    start: Start, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("connection refused")

    with start() as tracker:
        with monkeypatch.context() as patch:
            for name in ("log_batch", "log_artifacts", "set_tag", "create_run", "log_inputs"):
                patch.setattr(tracker._client, name, refuse)
            for step in range(5):
                tracker.log_metrics({"loss/total": float(step)}, step=step)
            tracker.set_note("lost")
            tracker.log_artifacts(lambda folder: None)
            with tracker.child("lost") as child:
                child.log_metrics({"a": 1.0})
            tracker.flush()
        assert caplog.text.count("The work goes on.") == 1
    assert len(client.get_metric_history(tracker.run_id, "loss/total")) == 5
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_system_figures_are_sampled(
    start: Start, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with start(system_metrics=True) as tracker:
        tracker.flush()
        for _ in range(100):
            tracker._monitor._shutdown_event.wait(0.1)
            tracker._monitor.mlflow_logger.flush()
            if "system/cpu_utilization_percentage" in client.get_run(tracker.run_id).data.metrics:
                break
    assert "system/cpu_utilization_percentage" in client.get_run(tracker.run_id).data.metrics
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "MLflow no longer keeps records in plain folders; pass sqlite:////absolute"),
        ("file:///tmp/mlruns", "MLflow no longer keeps records in plain folders"),
        ("http://127.0.0.1:{port}", "No MLflow server answers at --tracking-uri http://127"),
        ("http://no-such-host.invalid", "No MLflow server answers"),
        ("nonsense://x", "MLflow at nonsense://x does not work"),
        ("sqlite:////proc/none/mlflow.db", "its folder cannot be made"),
        (
            "postgresql://alice:s3cret@127.0.0.1/db",
            r"MLflow at postgresql://\*\*\*@127.* needs a package .*psycopg",
        ),
        ("databricks", "MLflow at databricks does not work"),
    ],
)
def test_useless_tracking_uri_is_refused_at_once(uri: str, message: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        uri = uri.format(port=listener.getsockname()[1])
        with pytest.raises(ConfigError, match=message):
            open_client(uri)


def test_server_that_takes_connections_and_never_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.uri._FIRST_ANSWER_S", 0.1)
    with (
        silent_server() as uri,
        pytest.raises(ConfigError, match=r"No MLflow server answers .*gave no answer within"),
    ):
        open_client(uri)


def test_database_that_is_garbage_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match=r"mlflow\.db does not work: .*not a database"):
        open_client(f"sqlite:///{path}")


def test_database_interrupted_in_the_making_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._upgrade_db", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_client(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert list(tmp_path.iterdir()) == []
    assert open_client(f"sqlite:///{tmp_path / 'mlflow.db'}").search_experiments()


def test_relative_database_is_refused_inside_a_ray_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="is relative, and the folder of a Ray job is deleted"):
        open_client("sqlite:///mlflow.db")


def test_default_database_lies_in_the_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(ConfigError, match="The output is not on a local disk"):
        default_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert default_tracking_uri(None) == "http://server"


def test_tags_name_commit_and_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, "abc123")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    assert git_commit() == "abc123"
    tags = run_tags()
    assert tags["mlflow.source.git.commit"] == "abc123"
    assert tags["ray.submission_id"] == "raysubmit_1"


def test_mlflow_keeps_quiet(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    with start() as tracker:
        tracker.log_text("a", "a.txt")
    out, err = capfd.readouterr()
    assert out + err == ""
    assert logging.getLogger("alembic").level == logging.WARNING


def test_calls_return_while_the_server_hangs_and_everything_arrives_when_it_is_back(
    start: Start, server: MlflowServer
) -> None:
    with start(tracking_uri=server.uri) as tracker:
        server.lively.clear()
        for step in range(5):
            tracker.log_metrics({"loss/total": float(step)}, step=step)
        tracker.set_note("# Result")
        tracker.log_text("fine", "report.md")
        with tracker.child("cell") as child:
            child.log_metrics({"acc": 31.5})
            child.mark("FAILED", reason="its worker died")
        run = server.runs[tracker.run_id]
        assert run["data"]["metrics"] == []
        server.lively.set()
    assert [point["step"] for point in run["data"]["metrics"]] == list(range(5))
    assert {"key": "mlflow.note.content", "value": "# Result"} in run["data"]["tags"]
    assert (server.folder / tracker.run_id / "report.md").read_text() == "fine"
    assert run["info"]["status"] == "FINISHED"
    below = server.runs[child.run_id]
    assert below["info"]["status"] == "FAILED"
    assert {"key": "mlflow.parentRunId", "value": tracker.run_id} in below["data"]["tags"]


@pytest.mark.parametrize(("error", "number"), [(None, 2), (KeyboardInterrupt(), 3)])
def test_end_against_a_server_that_hangs_says_what_is_missing_trouble(
    start: Start,
    server: MlflowServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException | None,
    number: int,
) -> None:
    monkeypatch.setattr("pipelines.tracking.sender.PATIENCE_S", 0.1)
    monkeypatch.setattr("pipelines.tracking.tracker._STOP_S", 0.1)
    monkeypatch.setattr("pipelines.tracking.uri.ANSWER_S", 0.1)
    tracker = start(tracking_uri=server.uri)
    with contextlib.suppress(KeyboardInterrupt), tracker:
        server.lively.clear()
        tracker.log_metrics({"loss/total": 1.0, "loss/class_00": 2.0})
        tracker.set_note("# Result")
        if error is not None:
            raise error
    finish()
    assert f"2 metric values and {number} other records" in caplog.text
    assert "did not reach MLflow at http://127" in caplog.text
    assert "The same command records them" in caplog.text


def test_points_a_continued_run_holds_are_not_sent_again(start: Start, client: MlflowClient) -> None:
    def record(tracker: Tracker, *, last: float) -> None:
        with tracker, tracker.child("cell", params={"learner": "er"}) as child:
            child.log_history([("acc", 10.0, 0), ("acc", math.nan, 1)])
            child.log_metrics({"time/train_s": last})
        runs.append((tracker.run_id, child.run_id))

    runs: list[tuple[str, str]] = []
    record(start(), last=1.0)
    record(start(resume_run_id=runs[0][0]), last=1.0)
    record(start(resume_run_id=runs[0][0]), last=2.0)
    assert len(set(runs)) == 1
    child_id = runs[0][1]
    assert [point.step for point in client.get_metric_history(child_id, "acc")] == [0, 1]
    assert [point.value for point in client.get_metric_history(child_id, "time/train_s")] == [1.0, 2.0]


def test_experiment_that_another_command_makes_meanwhile_is_taken(
    start: Start, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = client.create_experiment("distill")
    look_up, looked = MlflowClient.get_experiment_by_name, []

    def too_early(self: MlflowClient, name: str) -> Any:
        looked.append(name)
        return None if len(looked) == 1 else look_up(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", too_early)
    with start() as tracker:
        pass
    assert client.get_run(tracker.run_id).info.experiment_id == made


def test_deleted_experiment_stays_deleted(start: Start, client: MlflowClient) -> None:
    made = client.create_experiment("distill")
    client.delete_experiment(made)
    with pytest.raises(
        ConfigError, match=rf"--experiment distill: was deleted .* restore --experiment-id {made}"
    ):
        start()
    assert client.get_experiment(made).lifecycle_stage == "deleted"


def test_experiment_and_parent_of_the_environment_are_taken(
    start: Start, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "sweep")
    with start() as named, start(experiment="mine") as asked:
        pass
    above = client.create_run(client.create_experiment("other"))
    monkeypatch.setenv("MLFLOW_RUN_ID", above.info.run_id)
    with start() as below:
        pass
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.delenv("MLFLOW_RUN_ID")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", above.info.experiment_id)
    with start() as numbered:
        pass
    runs = [client.get_run(tracker.run_id) for tracker in (named, asked, below, numbered)]
    names = [client.get_experiment(run.info.experiment_id).name for run in runs]
    assert names == ["sweep", "mine", "other", "other"]
    parents = [run.data.tags.get("mlflow.parentRunId") for run in runs]
    assert parents == [None, None, above.info.run_id, None]


def test_parent_of_the_environment_that_is_not_there_is_explained(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(
        ConfigError, match=r"MLFLOW_RUN_ID=000.*has no such run to put this one below; unset it"
    ):
        start()


@pytest.mark.parametrize("name", ["a?b", "50% of #3"])
def test_output_with_any_sign_in_its_path_holds_its_own_records(
    mlflow_template: Path, tmp_path: Path, start: Start, name: str
) -> None:
    output = tmp_path / name
    output.mkdir()
    shutil.copy(mlflow_template, output / "mlflow.db")
    uri = default_tracking_uri(output)
    with start(tracking_uri=uri) as tracker:
        tracker.log_text("fine", "report.md")
    fetched = fetch_artifact(f"runs:/{tracker.run_id}/report.md", tmp_path / "got", tracking_uri=uri)
    assert fetched.read_text() == "fine"
    assert {path.name for path in tmp_path.iterdir()} == {name, "got", "mlflow.db"}
    assert {path.name for path in output.iterdir()} == {"mlflow.db", "mlartifacts"}


def test_query_of_a_database_is_no_part_of_its_path(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mlflow.db"
    assert checked_uri(f"sqlite:///{path}?timeout=5") == f"sqlite:///{path}?timeout=5"
    assert sqlite_path(f"sqlite:///{path}?timeout=5") == path
    assert sqlite_path(sqlite_uri(tmp_path / "a?b%20#.db")) == tmp_path / "a?b%20#.db"


def test_nothing_that_is_recorded_holds_a_password(
    start: Start, client: MlflowClient, tmp_path: Path
) -> None:
    secret = "s3://KEY:SECRET@bucket/set"
    with start(params={"set.path": secret}, tags={"origin": secret}) as tracker:
        tracker.log_dataset("set", np.zeros((1, 1, 2, 2)), np.zeros(1), context="distilled", source=secret)
        tracker.log_text(f"<a href='{secret}'>", "report.html")
        tracker.log_dict({"facts": {"command": f"atom-nas --set {secret}"}}, "verdict.json")
        tracker.set_note(secret)
        tracker.mark("FAILED", reason=f"cannot read {secret}")
    run = client.get_run(tracker.run_id)
    assert run.data.params["set.path"] == "s3://***@bucket/set"
    assert "SECRET" not in str(run.to_dictionary())
    texts = [path.read_text() for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    assert len(texts) == 2
    assert not [text for text in texts if "SECRET" in text]
