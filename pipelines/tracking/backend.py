"""Where MLflow keeps its records: choice, checks, silence."""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from atom.errors import ConfigError
from atom.redact import without_secrets
from pipelines.output.store import Store
from pipelines.tracking.uri import checked_uri, sqlite_path, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

_PAIRS_A_BATCH = 100
VALUE_CHARS = 6000
_DIGEST_CHARS = 36
_DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
_ENVIRONMENT = {
    # MLflow's own limits are 120 s a try and 7 tries, longer than anybody waits for bookkeeping.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # It would put the lock file of whatever project one stands in into every model.
    "MLFLOW_UV_AUTO_DETECT": "false",
}


def default_tracking_uri(output: Path | None) -> str:
    """MLFLOW_TRACKING_URI if set, else a SQLite file in a local output directory.

    Raises:
        ConfigError: the output is remote, so that there is no place for the file.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if output is None:
        raise ConfigError(
            "The output is not on a local disk, so MLflow has no place for its database; pass --tracking-uri "
            "with a server's URL or sqlite:////absolute/path/mlflow.db."
        )
    return sqlite_uri(output / _DATABASE)


def open_client(uri: str) -> "MlflowClient":
    """Client of a tracking URI; a SQLite file is made if it does not exist, which takes some seconds.

    Raises:
        ConfigError: the URI is of a kind MLflow no longer takes, or nothing answers there.
    """
    uri = checked_uri(uri)
    _silence()
    with answering(uri), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        _make_database(uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn MLflow's trouble inside the block into one sentence.

    Raises:
        ConfigError: in place of the errors of MLflow, of its database, and of the network.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"MLflow at {uri} needs a package that is not installed ({error}); install it, or pass another "
            "--tracking-uri (or MLFLOW_TRACKING_URI), such as an MLflow server's URL."
        ) from error
    # requests' exceptions are OSErrors.
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = " ".join(str(error).split()).partition(" [SQL:")[0][:300]
        if "disk is full" in text:
            raise ConfigError(
                f"MLflow at {uri} cannot write its database: the disk is full; free some space, or pass another "
                "--output or --tracking-uri."
            ) from error
        raise ConfigError(
            f"MLflow at {uri} does not work: {text}; check --tracking-uri (or MLFLOW_TRACKING_URI), or "
            "leave it out to keep the records in the output directory."
        ) from error


def describe_run(
    client: "MlflowClient", run_id: str, *, params: Mapping[str, object], tags: Mapping[str, str]
) -> None:
    """Log parameters and tags, in batches and cut to the lengths MLflow takes."""
    from mlflow.entities import Param, RunTag

    all_params = [Param(key, as_value(value)) for key, value in params.items()]
    all_tags = [RunTag(key, as_value(value)) for key, value in tags.items()]
    for first in range(0, max(len(all_params), len(all_tags)), _PAIRS_A_BATCH):
        part = slice(first, first + _PAIRS_A_BATCH)
        client.log_batch(run_id, params=all_params[part], tags=all_tags[part])


def as_value(value: object) -> str:
    """A parameter's or tag's value as it is recorded: without passwords, and cut to the length MLflow takes."""
    return without_secrets(str(value))[:VALUE_CHARS]


def dataset_input(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    context: str,
    source: str,
    fingerprint: str | None,
) -> "DatasetInput":
    """MLflow's record of a set: name, digest, shapes; see `Tracker.log_dataset`."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.numpy_dataset import NumpyDataset
    from mlflow.entities import DatasetInput, InputTag

    digest = None if fingerprint is None else fingerprint[:_DIGEST_CHARS]
    # A source of kind "code" keeps the string as it is; other kinds try to resolve it as an address.
    origin = CodeDatasetSource({"source": without_secrets(source)})
    dataset = NumpyDataset(images, source=origin, targets=labels, name=name, digest=digest)
    return DatasetInput(dataset._to_mlflow_entity(), tags=[InputTag("mlflow.data.context", context)])


def fetch_artifact(
    uri: str, destination: Path, *, names: Sequence[str] = (), tracking_uri: str | None = None
) -> Path:
    """Local copy of an artifact, file or folder.

    Args:
        uri: such as "runs:/RUN_ID/set" or "mlflow-artifacts:/...".
        destination: directory that receives it, made if needed.
        names: files of the folder to fetch into `destination`, instead of all that the folder holds.
        tracking_uri: where the run is; default MLFLOW_TRACKING_URI.

    Raises:
        ConfigError: no tracking URI is known, it does not answer, or the artifact does not exist.
    """
    tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not tracking_uri:
        raise ConfigError(
            f"{uri} names an MLflow artifact, but not where MLflow is; pass --tracking-uri, such as "
            "sqlite:////path/of/the/output/mlflow.db or a server's URL."
        )
    client = open_client(tracking_uri)
    destination.mkdir(parents=True, exist_ok=True)
    with answering(f"{tracking_uri}, asked for {uri},"):
        from mlflow.artifacts import download_artifacts

        def download(artifact_uri: str) -> Path:
            where = str(destination)
            return Path(
                download_artifacts(
                    artifact_uri=artifact_uri, dst_path=where, tracking_uri=client.tracking_uri
                )
            )

        for name in names:
            download(f"{uri.rstrip('/')}/{name}").replace(destination / name)
        return destination if names else download(uri)


def _make_database(uri: str) -> None:
    """Make a SQLite file that does not exist, whole or not at all.

    MLflow makes its tables one by one, and refuses for ever a file in which it was interrupted.

    Raises:
        StoreError: it cannot be written.
    """
    path = sqlite_path(uri)
    if path is None or path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / _DATABASE
        SqlAlchemyStore(f"sqlite:///{draft}", (path.parent / ARTIFACTS).as_uri()).engine.dispose()
        # Another command may have made it meanwhile, and begun a run in it.
        Store.open(path.parent).write_new(path.name, draft.read_bytes())


def _silence() -> None:
    """Limits from the environment where the user set none, and no chatter below warnings."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401 - its import sets up the loggers that are quietened below

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # They print the tracebacks of errors that are raised as well, or that cost nothing but a figure.
    for name in ("mlflow.store.db.utils", "mlflow.system_metrics", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
