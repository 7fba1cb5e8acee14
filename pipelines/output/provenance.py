"""Which program made a result: the git commit of this checkout, its libraries, the Ray job, and how it was called.

A result is found again by later drivers, of other commits and other libraries. So what made it is kept with it when
it is computed, and never asked for when it is reported.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from atom.redact import without_secrets
from pipelines import ROOT

COMMIT_VARIABLE = "ATOM_GIT_COMMIT"
"""Environment variable that names the commit where there is no .git, as in the copy a Ray job runs from."""

_LIBRARIES = ("torch", "numpy", "scipy", "ray", "mlflow", "safetensors")
_COMMIT_TAG, _LATER_COMMITS_TAG = "mlflow.source.git.commit", "continued_by_commits"

_GIT_S = 5.0


def git_commit() -> str | None:
    """Full hash of the commit this program is from, or None if it is not known."""
    if commit := os.environ.get(COMMIT_VARIABLE):
        return commit
    return _checkout()


@cache
def _checkout() -> str | None:
    """Asked once: what runs is what was there then, and an answer takes a process of its own."""
    return _git("rev-parse", "HEAD") or None


def project_version() -> str:
    """Version of the installed package; in a copy that is not installed, "unknown"."""
    try:
        return version("atom-distill")
    except PackageNotFoundError:
        return "unknown"


@cache
def library_versions() -> Mapping[str, str]:
    """Versions of this project, Python and the libraries that compute; read once, which takes 20 ms a library."""
    return {
        "atom-distill": project_version(),
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def program() -> dict[str, Any]:
    """What computes now, to be kept with what it computes: its commit, None if not known, and its libraries."""
    return {"git_commit": git_commit(), "versions": dict(library_versions())}


UNKNOWN_PROGRAM: dict[str, Any] = {"git_commit": None, "versions": {}}
"""What computed a result that does not say."""


def distinct(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each record once, in order of appearance."""
    found: list[dict[str, Any]] = []
    for one in records:
        if one not in found:
            found.append(dict(one))
    return found


def continued_tags(known: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Tags for a run that another driver goes on with: those it began with stay, and a new commit is added."""
    commit, later = now.get(_COMMIT_TAG), known.get(_LATER_COMMITS_TAG, "").split()
    added = {name: value for name, value in now.items() if name not in known}
    if commit and _COMMIT_TAG in known and commit not in (known[_COMMIT_TAG], *later):
        added[_LATER_COMMITS_TAG] = " ".join([*later, commit])
    return added


def run_tags() -> dict[str, str]:
    """Tags for an MLflow run: the command, the commit if known, and the Ray job if this is one."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    if commit := git_commit():
        tags["mlflow.source.git.commit"] = commit
        changes = _git("status", "--porcelain", "--untracked-files=no")
        if changes is not None:
            tags["mlflow.source.git.dirty"] = str(bool(changes)).lower()
    # Ray is looked up, not imported: without a connection there is no job to name.
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        tags["ray.job_id"] = ray.get_runtime_context().get_job_id()
    submission = _submission_id()
    return tags | ({"ray.submission_id": submission} if submission else {})


def command_line(prog: str) -> str:
    """The command as it was given, to be shown and repeated; without the passwords in it."""
    return without_secrets(shlex.join([prog, *sys.argv[1:]]))


def _git(*arguments: str) -> str | None:
    # An installed copy may lie inside somebody else's repository, so .git must be our own.
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=_GIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _submission_id() -> str | None:
    try:
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        return None
    return config.get("metadata", {}).get("job_submission_id")
