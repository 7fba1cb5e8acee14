"""Which run a command records in: the experiment, and the run of an earlier driver."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.tracking.backend import ARTIFACTS, as_value
from pipelines.tracking.uri import sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)


def experiment_id(client: "MlflowClient", name: str) -> str:
    """Id of an experiment, made if it does not exist.

    Beside a SQLite file its artifacts lie in a folder next to the file; a server decides for itself.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return found.experiment_id
    database = sqlite_path(client.tracking_uri)
    location = None if database is None else (database.parent / ARTIFACTS / name).as_uri()
    return client.create_experiment(name, artifact_location=location)


def open_run(
    client: "MlflowClient",
    *,
    experiment: str | None,
    command: str,
    run_name: str,
    params: Mapping[str, object],
    resume_run_id: str | None,
) -> "tuple[Run, bool, dict[str, str]]":
    """The run of a command, whether it is that of an earlier driver, and tags for it; see `Tracker.start`."""
    known = _find_run(client, resume_run_id) if resume_run_id else None
    if resume_run_id and known is None:
        logger.warning("The MLflow run %s of this output is gone; a new one is made.", resume_run_id)
    if known is not None and not _differs(known.data.params, params):
        return known, True, {}
    tags = {} if known is None else {"resumed_from": known.info.run_id}
    chosen = experiment_id(client, experiment or command)
    return client.create_run(chosen, run_name=run_name), False, tags


def child_run(client: "MlflowClient", experiment: str, above: str, run_name: str) -> "Run | None":
    """The run of this name below another one, or None."""
    found = client.search_runs([experiment], filter_string=f"tags.`mlflow.parentRunId` = '{above}'")
    return next((run for run in found if run.info.run_name == run_name), None)


def take_up(client: "MlflowClient", run: "Run") -> None:
    """Let an earlier driver's run be under way again."""
    client.update_run(run.info.run_id, status="RUNNING")
    if "error" in run.data.tags:
        client.delete_tag(run.info.run_id, "error")


def _find_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """The run of this id, or None if there is none or it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _differs(known: Mapping[str, str], params: Mapping[str, object]) -> bool:
    """Whether a run was started with other values of what may change its results."""
    return any(
        key in known and known[key] != as_value(value)
        for key, value in params.items()
        if not key.startswith("cluster.")
    )
