"""Starting the command as a user would, and looking at what it leaves behind.

With one worker, if the test does not ask for another number: each costs the import of torch, five seconds of a core.
None leaves it to the command.
"""

import contextlib
import hashlib
import importlib
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from unittest import mock

import psutil
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
RUN_S = 240
DATABASE = "mlflow.db"


tables: Path | None = None
"""An MLflow database to begin with, for outputs that have none: to make its tables takes a command seconds."""


def _give_tables(arguments: Sequence[object]) -> None:
    if tables is None or "--output" not in arguments or "--tracking-uri" in arguments:
        return
    output = Path(str(arguments[arguments.index("--output") + 1]))
    if not output.exists():
        output.mkdir(parents=True)
        shutil.copy(tables, output / DATABASE)


def _completed(arguments: Sequence[object], script: str, workers: int | None) -> list[str]:
    """With --num-actors, where neither the test has it nor the script is one whose sub-commands differ in it."""
    decided = workers is None or script == "learner" or {"--num-actors", "--help"} & {*map(str, arguments)}
    return [*map(str, arguments), *(() if decided else ("--num-actors", str(workers)))]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, the Python of the tests first on the path, and no cluster or server set."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **changes}


def start(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    script: str = "distill",
    cwd: Path = ROOT,
    workers: int | None = 1,
) -> subprocess.Popen[str]:
    """`python pipelines/distill.py`, or another of the commands, with these arguments, begun."""
    _give_tables(arguments)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "pipelines" / f"{script}.py"), *_completed(arguments, script, workers)],
        cwd=cwd,
        env=dict(env or environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    script: str = "distill",
    cwd: Path = ROOT,
    workers: int | None = 1,
) -> tuple[int, list[str], str]:
    """Exit code, lines of standard output, and standard error of a finished command."""
    process = start(*arguments, env=env, script=script, cwd=cwd, workers=workers)
    try:
        stdout, stderr = process.communicate(timeout=RUN_S)
    except BaseException:
        process.kill()
        raise
    return process.returncode, stdout.splitlines(), stderr


def run_here(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    script: str = "distill",
    workers: int | None = 1,
) -> tuple[int, list[str], str]:
    """The same of a command in this process, which must be connected to Ray: neither is started or imported anew.

    `env` is added to the environment.
    """
    _give_tables(arguments)
    main = importlib.import_module(f"pipelines.{script}").main
    printed, errors = io.StringIO(), io.StringIO()
    # A test's own handlers keep the command from setting up its log.
    log = logging.StreamHandler(errors)
    log.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log.setLevel(logging.WARNING)
    logging.getLogger().addHandler(log)
    try:
        with (
            mock.patch.dict(os.environ, env or {}),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(errors),
        ):
            os.environ.pop("MLFLOW_TRACKING_URI", None)
            code = main(_completed(arguments, script, workers))
    finally:
        logging.getLogger().removeHandler(log)
    return code, printed.getvalue().splitlines(), errors.getvalue()


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


def kill_when(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """SIGKILL to a command once the condition holds, which is to be before it ends by itself."""
    try:
        wait_for(lambda: condition() or process.poll() is not None, limit_s=180)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL


def checkpointed(output: Path) -> int:
    """Iterations of the newest checkpoint in an output, 0 if there is none."""
    return max(
        (iteration_of(path) for path in (output / "checkpoints").glob("unit_*.safetensors")), default=0
    )


def iteration_of(checkpoint: Path) -> int:
    """Iterations done in a checkpoint."""
    with safe_open(checkpoint, "np") as content:
        return int(content.metadata()["iteration"])


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
