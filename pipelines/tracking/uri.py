"""Whether a tracking URI can work at all, told before MLflow is imported and tries for minutes."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from atom.errors import ConfigError

ANSWER_S = 3.0
"""How long a server that is known may take to say that it lives."""

_FIRST_ANSWER_S = 10.0
_SQLITE = re.compile(r"^sqlite(?:\+\w+)?:///(?P<path>[^?]*)(?P<query>\?.*)?$")


def sqlite_uri(path: Path) -> str:
    """URI of a SQLite file.

    In a URI ?, # and % have meanings of their own. Where a path has one of them the driver is named as well: for
    plain "sqlite:" MLflow makes the directory of the path as it is quoted.
    """
    text = str(path.absolute())
    if not set(text) & set("?#%"):
        return f"sqlite:///{text}"
    return f"sqlite+pysqlite:///{quote(text)}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite URI; None for other kinds, and for a database in memory."""
    match = _SQLITE.match(uri)
    path = unquote(match["path"]) if match else ""
    return None if path in ("", ":memory:") or path.startswith("file:") else Path(path)


def checked_uri(uri: str) -> str:
    """The URI, a SQLite path made absolute and its folder made.

    Raises:
        ConfigError: MLflow's file store, a relative path inside a Ray job, or a server that does not answer.
    """
    scheme = uri.partition(":")[0].lower()
    by_name = scheme in ("databricks", "databricks-uc", "uc")
    plain = ":" not in uri and not by_name
    if (plain or scheme == "file") and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() != "true":
        raise ConfigError(
            f"--tracking-uri {uri}: MLflow no longer keeps records in plain folders; pass "
            "sqlite:////absolute/path/mlflow.db or a server's URL."
        )
    if scheme in ("http", "https"):
        _check_server(uri)
    path = sqlite_path(uri)
    if path is None:
        return uri
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
    return sqlite_uri(path) + uri.partition("?")[1] + uri.partition("?")[2]


def trouble_at(uri: str, *, limit_s: float | None = None) -> str | None:
    """Why a server gives no answer at all within `limit_s` seconds; None if it does, or if it is no server's URL.

    Any answer will do, be it that the page does not exist or that a password is missing.
    """
    if not uri.lower().startswith(("http://", "https://")):
        return None
    import requests

    limit_s = ANSWER_S if limit_s is None else limit_s
    try:
        # Not verified: whether the certificate will do is for MLflow to say, by its own settings.
        requests.get(
            f"{uri.rstrip('/')}/health", timeout=limit_s, verify=False, allow_redirects=False, stream=True
        ).close()
    except requests.exceptions.ReadTimeout:
        return f"it takes the connection, but gave no answer within {limit_s:g} s"
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())[:200]
    return None


def _check_server(uri: str) -> None:
    """Knock, since a client's own tries on a silent host add up to minutes."""
    if trouble := trouble_at(uri, limit_s=_FIRST_ANSWER_S):
        raise ConfigError(
            f"No MLflow server answers at --tracking-uri {uri} ({trouble}); start it with `mlflow server`, "
            "correct the address, or leave it out to keep the records in the output directory."
        )
