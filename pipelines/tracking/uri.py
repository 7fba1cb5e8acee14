"""Whether a tracking URI can work at all, told before MLflow is imported and tries for minutes."""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from atom.errors import ConfigError

_CONNECT_S = 10.0


def checked_uri(uri: str) -> str:
    """The URI, a SQLite path made absolute and its folder made.

    Raises:
        ConfigError: MLflow's file store, a relative path inside a Ray job, or a server that does not answer.
    """
    scheme = uri.partition(":")[0].lower() if ":" in uri else ""
    if scheme in ("", "file") and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() != "true":
        raise ConfigError(
            f"--tracking-uri {uri}: MLflow no longer keeps records in plain folders; pass "
            "sqlite:////absolute/path/mlflow.db or a server's URL."
        )
    if scheme in ("http", "https"):
        _check_server(uri)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.is_absolute() and os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
            raise ConfigError(
                f"--tracking-uri {uri}: is relative, and the folder of a Ray job is deleted after it; pass "
                "sqlite:////absolute/path/mlflow.db or a server's URL."
            )
        try:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--tracking-uri {uri}: its folder cannot be made ({error.strerror}); pass another one."
            ) from error
        return f"sqlite:///{path.absolute()}"
    return uri


def _check_server(uri: str) -> None:
    """Knock, since a client's own tries on a silent host add up to minutes."""
    try:
        parts = urlsplit(uri)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_S):
            return
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"No MLflow server answers at --tracking-uri {uri} ({error}); start it with `mlflow server`, "
            "correct the address, or leave it out to keep the records in the output directory."
        ) from error
