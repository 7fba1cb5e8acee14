"""Starting the command as a user would, and looking at what it leaves behind."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
RUN_S = 240


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, the Python of the tests first on the path, and no cluster or server set."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **changes}


def start(
    *arguments: object, env: Mapping[str, str] | None = None, script: str = "distill", cwd: Path = ROOT
) -> subprocess.Popen[str]:
    """`python pipelines/distill.py`, or another of the commands, with these arguments, begun."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "pipelines" / f"{script}.py"), *map(str, arguments)],
        cwd=cwd,
        env=dict(env or environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    *arguments: object, env: Mapping[str, str] | None = None, script: str = "distill", cwd: Path = ROOT
) -> tuple[int, list[str], str]:
    """Exit code, lines of standard output, and standard error of a finished command."""
    process = start(*arguments, env=env, script=script, cwd=cwd)
    try:
        stdout, stderr = process.communicate(timeout=RUN_S)
    except BaseException:
        process.kill()
        raise
    return process.returncode, stdout.splitlines(), stderr


def wait_for(condition: Callable[[], bool], *, limit_s: float = 90) -> None:
    """Wait until it holds.

    Raises:
        TimeoutError: it does not within the limit.
    """
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError("the condition never held")
        time.sleep(0.02)


def checkpointed(output: Path) -> int:
    """Iterations of the newest checkpoint in an output, 0 if there is none."""
    names = [path.name for path in (output / "checkpoints").glob("class_*.it*.safetensors")]
    return max((int(name.split(".")[1].removeprefix("it")) for name in names), default=0)


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes a command has started: its private Ray and the workers."""
    return psutil.Process(process.pid).children(recursive=True)


def kill_workers(process: subprocess.Popen[str], title: str, *, most: int | None = None) -> int:
    """SIGKILL to workers of a command's private Ray by what Ray calls them; how many there were, `most` or fewer."""
    killed = 0
    for worker in descendants(process):
        with suppress(psutil.NoSuchProcess):
            called = worker.cmdline()[:1]
            if called and called[0].startswith(f"ray::{title}") and killed != most:
                os.kill(worker.pid, signal.SIGKILL)
                killed += 1
    return killed


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that only waits to be reaped does not."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def fingerprints(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Checksums of all files by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }
