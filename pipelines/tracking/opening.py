"""Which run a command records in: experiment, the run above it, and the run of an earlier driver."""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from atom.errors import ConfigError
from pipelines.tracking.backend import ARTIFACTS, as_value
from pipelines.tracking.uri import sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)


def parent_run(client: "MlflowClient") -> "Run | None":
    """The run that MLFLOW_RUN_ID names, which is to stand above this command's; None if it is not set.

    MLflow itself would go on in that run; here an output has a run of its own, and several may share the one above.

    Raises:
        ConfigError: there is no such run.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None
    run = _find_run(client, run_id)
    if run is None:
        raise ConfigError(
            f"MLFLOW_RUN_ID={run_id}: MLflow at {client.tracking_uri} has no such run to put this one below; unset it,"
            " or pass that run's server as --tracking-uri."
        )
    return run


def chosen_experiment(client: "MlflowClient", asked: str | None, *, above: "Run | None", command: str) -> str:
    """Id of the experiment: the one asked for, else that of the run above, else what the environment says as MLflow
    reads it (MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID), else the command's own.

    Raises:
        ConfigError: it was deleted.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if asked or (name and above is None):
        return experiment_id(client, asked or name or "")
    if above is not None:
        return above.info.experiment_id
    return client.get_experiment(number).experiment_id if number else experiment_id(client, command)


def experiment_id(client: "MlflowClient", name: str) -> str:
    """Id of an experiment, made if it does not exist.

    Beside a SQLite file its artifacts lie in a folder next to the file; a server decides for itself.

    Raises:
        ConfigError: it was deleted; to restore it would bring all its runs back.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_path(client.tracking_uri)
        location = None if database is None else (database.parent / ARTIFACTS / name).as_uri()
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Another command has made it in the meantime.
        found = client.get_experiment_by_name(name)
        assert found is not None, "it exists"
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"--experiment {name}: was deleted at MLflow, {client.tracking_uri}; pass another name, or bring it and its"
            f" runs back with `mlflow experiments restore --experiment-id {found.experiment_id}`."
        )
    return found.experiment_id


INTERRUPTED = "interrupted"
"""Tag of a run: how many of its drivers were killed before they could end it."""


def open_run(
    client: "MlflowClient",
    *,
    experiment: str | None,
    command: str,
    run_name: str,
    params: Mapping[str, object],
    resume_run_id: str | None,
) -> "tuple[Run, bool, dict[str, str]]":
    """The run of a command, whether it is that of an earlier driver, and tags for it; see `Tracker.start`.

    Raises:
        ConfigError: the experiment was deleted, or there is no run of the environment's MLFLOW_RUN_ID.
    """
    above = parent_run(client)
    tags = {}
    if above is not None and above.info.run_id != resume_run_id:
        tags["mlflow.parentRunId"] = above.info.run_id
    known = _find_run(client, resume_run_id) if resume_run_id else None
    if resume_run_id and known is None:
        logger.warning("The MLflow run %s of this output is gone; a new one is made.", resume_run_id)
    if known is not None and not _differs(known.data.params, params):
        if known.info.status == "RUNNING":
            tags[INTERRUPTED] = str(int(known.data.tags.get(INTERRUPTED, 0)) + 1)
        return known, True, tags
    if known is not None:
        tags["resumed_from"] = known.info.run_id
    chosen = chosen_experiment(client, experiment, above=above, command=command)
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
