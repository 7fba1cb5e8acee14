"""Which program made a result: the git commit of this checkout, the Ray job it ran in, and how it was called."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from atom.redact import without_secrets

COMMIT_VARIABLE = "ATOM_GIT_COMMIT"
"""Environment variable that names the commit where there is no .git, as in the copy a Ray job runs from."""

_ROOT = Path(__file__).resolve().parent.parent
_GIT_S = 5.0


def git_commit() -> str | None:
    """Full hash of the commit this program is from, or None if it is not known."""
    if commit := os.environ.get(COMMIT_VARIABLE):
        return commit
    return _git("rev-parse", "HEAD") or None


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
    if not (_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=_GIT_S, check=True
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
