"""The driver killed with SIGKILL many times at random moments and restarted with the same command, bit for bit.

    python benchmarks/kill_driver.py --kills 10 -- --iterations 200 --eval-seeds 0

What follows "--" goes to pipelines/distill.py, after --dataset digits --checkpoint-every 10. First an undisturbed
run, for which the moments are drawn: every second kill falls into the start-up (imports, Ray, MLflow, first
workers), the others into the work, after a random part of what is left, so that the whole comes to an end.
The last start is left alone. At the end, every process of the killed drivers must be gone: the private Ray dies
with its driver, except two agents of Ray's own, which notice after half a minute.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from safetensors import safe_open

from atom.device import describe_hardware
from atom.streams import stream

ROOT = Path(__file__).resolve().parent.parent
SET = Path("set") / "distilled.safetensors"
LIMIT_S, ORPHAN_S = 3600.0, 90.0


@dataclass(frozen=True)
class Timing:
    """An undisturbed run: seconds to its first checkpoint and from there to the end, iterations of all classes."""

    startup_s: float
    work_s: float
    iterations: int


@dataclass(frozen=True)
class Moment:
    """When to kill: in the work, `delay_s` after that many new iterations are stored; else after the start."""

    phase: str
    delay_s: float
    iterations: int


def main() -> int:
    """Run, kill, compare; returns 0 if the sets are identical, every kill was dealt, and nothing is left over."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10, help="how often the driver is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, default=None, help="where outputs go; default a temporary one")
    parser.add_argument("command", nargs="*", help="flags for pipelines/distill.py, after --")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kill-driver-"))
    print(f"{describe_hardware()}; outputs in {folder}", flush=True)

    timing = undisturbed(arguments.command, folder / "undisturbed")
    if timing is None:
        print("the undisturbed run failed, see above")
        return 1
    print(
        f"undisturbed: {timing.startup_s:.1f} s to the first checkpoint, {timing.work_s:.1f} s of work after it"
    )
    rng = stream(arguments.seed, "benchmark/kill-driver")
    output, orphans = folder / "killed", list[psutil.Process]()
    for number in range(1, arguments.kills + 1):
        remaining, kills_left = timing.iterations - progress(output), arguments.kills - number + 1
        moment = draw_moment(rng, timing, left=remaining, kills_left=kills_left, startup=number % 2 == 1)
        family = kill_once(arguments.command, output, moment, f"kill {number:2d} of {arguments.kills}")
        if family is None:
            return 1
        orphans += family
    code = start(arguments.command, output).wait(timeout=LIMIT_S)
    same = code == 0 and (folder / "undisturbed" / SET).read_bytes() == (output / SET).read_bytes()
    litter = [str(path.relative_to(output)) for path in output.rglob(".partial-*")]
    print(f"last start: exit code {code}; temporary files left: {', '.join(litter) or 'none'}")
    left = outlived(orphans)
    print(
        f"of {len(orphans)} processes of the killed drivers {len(left)} are left {', '.join(left)}".rstrip()
    )
    print(f"{'identical' if same else 'DIFFERENT'} after {arguments.kills} kills: {output / SET}")
    return 0 if same and not left and not litter else 1


def start(command: list[str], output: Path) -> subprocess.Popen[bytes]:
    """`pipelines/distill.py` with these flags, begun, its output in a file beside the results."""
    output.parent.mkdir(parents=True, exist_ok=True)
    fixed = ["--dataset", "digits", "--checkpoint-every", "10", "--output", str(output)]
    with open(output.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "pipelines/distill.py", *fixed, *command], cwd=ROOT, stdout=log, stderr=log
        )


def undisturbed(command: list[str], output: Path) -> Timing | None:
    """Run to the end; None if that fails."""
    begun = time.monotonic()
    process = start(command, output)
    wait_until(lambda: process.poll() is not None or progress(output) > 0)
    first = time.monotonic()
    if process.wait(timeout=LIMIT_S) != 0:
        print(output.with_suffix(".log").read_text())
        return None
    return Timing(first - begun, time.monotonic() - first, progress(output))


def draw_moment(
    rng: np.random.Generator, timing: Timing, *, left: int, kills_left: int, startup: bool
) -> Moment:
    """A random moment that leaves work for the kills to come, whatever else the machine is doing.

    Args:
        rng: where it comes from.
        timing: of the undisturbed run.
        left: iterations to do yet, summed over classes.
        kills_left: this one included.
        startup: which phase.
    """
    if startup:
        return Moment("start-up", float(rng.uniform(0, timing.startup_s)), 1)
    fraction = float(rng.uniform(0, 1 / (kills_left // 2 + 1)))
    # Up to half a second on top, else every kill would follow a checkpoint at once.
    return Moment("work", float(rng.uniform(0, 0.5)), max(1, int(left * fraction)))


def kill_once(command: list[str], output: Path, moment: Moment, title: str) -> list[psutil.Process] | None:
    """Start the command and kill it at the moment; its own processes, or None if it ended before."""
    goal = progress(output) + moment.iterations
    begun = time.monotonic()
    process = start(command, output)
    if moment.phase == "work":
        wait_until(lambda: process.poll() is not None or progress(output) >= goal)
    end = time.monotonic() + moment.delay_s
    # A start-up ends with the first new checkpoint.
    early = (lambda: progress(output) >= goal) if moment.phase == "start-up" else (lambda: False)
    wait_until(lambda: process.poll() is not None or time.monotonic() >= end or early())
    if process.poll() is not None:
        print(f"{title}: the run ended before, with exit code {process.returncode}; pass more --iterations")
        return None
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    print(
        f"{title}: {moment.phase}, {time.monotonic() - begun:.1f} s after the start, with {len(family)} processes;"
        f" checkpoints hold {progress(output)} iterations of classes",
        flush=True,
    )
    return family


def outlived(orphans: list[psutil.Process]) -> list[str]:
    """Names of the processes that do not end within the limit."""
    end = time.monotonic() + ORPHAN_S
    while (left := [p for p in orphans if alive(p)]) and time.monotonic() < end:
        time.sleep(0.2)
    return [p.name() for p in left]


def alive(process: psutil.Process) -> bool:
    """Whether it still computes; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def progress(output: Path) -> int:
    """Iterations in the checkpoints, summed over the files."""
    done = 0
    for path in (output / "checkpoints").glob("unit_*"):
        with safe_open(path, "np") as content:
            done += int(content.metadata()["iteration"])
    return done


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait, at most an hour.

    Raises:
        TimeoutError: it never held.
    """
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing happened within {LIMIT_S:g} s")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
