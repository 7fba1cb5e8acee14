"""A run on two nodes of which one dies in the middle, against an undisturbed one on this machine.

    python benchmarks/two_nodes.py -- --iterations 300 --eval-seeds 1
    python benchmarks/two_nodes.py --script nas -- --proxies random early-steps --space small --sample 8
    python benchmarks/two_nodes.py --script search -- --space small --sample 8 --sampler random
    python benchmarks/two_nodes.py --script continual -- --orders 2 --learners gdumb er --epochs 100

What follows "--" goes to pipelines/distill.py, after --dataset digits --checkpoint-every 10, to pipelines/nas.py,
after --dataset digits (search: --mode search --ladder random:60 whole:8 --retrain 0), or to pipelines/continual.py,
after --dataset digits --steps 5 --checkpoint-every 10. Both nodes are processes of this machine
(`ray.cluster_utils.Cluster`) with one CPU each, beside a head that has none. A node is killed when every class has a
checkpoint, four scores or two networks of a search are in the table, or two cells have their second step behind them,
so the worker on that node dies at its work. Compared are the bytes of the sets, the tables of results without the
clock's columns, of a search the networks of its first stage with their first looks at the validation images (how far
each comes depends on which was first, with two workers), or both matrices of accuracies of all cells.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apps.nas.table import Row, from_parquet

ROOT = Path(__file__).resolve().parent.parent
SET = Path("set") / "distilled.safetensors"
LIMIT_S, NUM_CLASSES = 1800.0, 10
NODE = {"num_cpus": 1, "object_store_memory": 150 * 2**20}


def main() -> int:
    """Run both, compare, and return 0 if the results are identical."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=None, help="where outputs go; default a temporary one")
    parser.add_argument("--script", choices=tuple(JOBS), default="distill", help="which command")
    parser.add_argument("command", nargs="*", help="flags for the command, after --")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="two-nodes-"))
    # Read by Ray at its import: the nodes are local, short-lived and know no token.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ.pop("RAY_ADDRESS", None)

    job = JOBS[arguments.script]
    alone = start(job, arguments.command, folder / "alone", {})
    if alone.wait(timeout=LIMIT_S) != 0:
        print("the undisturbed run failed, see its output above")
        return 1
    if not run_and_kill(job, arguments.command, folder / "two-nodes"):
        return 1
    same = job.result(folder / "alone") == job.result(folder / "two-nodes")
    print(f"{'identical' if same else 'DIFFERENT'}: {folder / 'alone'}, {folder / 'two-nodes'}")
    return 0 if same else 1


@dataclass(frozen=True)
class Job:
    """One command: its fixed flags, when it is well under way, and what is compared."""

    script: str
    flags: tuple[str, ...]
    under_way: Callable[[Path], bool]
    result: Callable[[Path], object]


def all_classes_begun(output: Path) -> bool:
    """Whether every class has a checkpoint."""
    return len(list(output.glob("checkpoints/unit_*"))) == NUM_CLASSES


def rows_of(output: Path) -> list[Row]:
    """The table of results."""
    path = output / "results.parquet"
    return from_parquet(path.read_bytes(), where=str(path)) if path.exists() else []


def rows_without_times(output: Path) -> list[tuple[object, ...]]:
    """The table of results but for the clock's columns."""
    return [
        (row.network, row.proxy, row.seed, row.status, row.score, row.test_accuracy)
        for row in rows_of(output)
    ]


def first_looks(output: Path) -> dict[object, float | None]:
    """What each network of a search had when it was first looked at, in the first stage of the ladder."""
    found: dict[object, float | None] = {}
    rows = [row for row in rows_of(output) if row.proxy == "random:60@search"]
    for row in sorted(rows, key=lambda row: row.steps or 0):
        found.setdefault(row.network, row.score)
    return found


def rows_of_cells(output: Path) -> dict[str, list[tuple[list[float], list[float]]]]:
    """Both rows of accuracies of each finished step, by cell."""
    found: dict[str, list[tuple[list[float], list[float]]]] = {}
    for path in sorted(output.glob("cells/*/step*.json")):
        result = json.loads(path.read_text())["result"]
        found.setdefault(path.parent.name, []).append((result["class_row"], result["task_row"]))
    return found


def two_in_second_step(output: Path) -> bool:
    """Whether two cells have their second step behind them."""
    return len(list(output.glob("cells/*/step01-*.json"))) >= 2


JOBS = {
    "distill": Job(
        "distill", ("--checkpoint-every", "10"), all_classes_begun, lambda output: (output / SET).read_bytes()
    ),
    "nas": Job("nas", (), lambda output: len(rows_of(output)) >= 4, rows_without_times),
    "search": Job(
        "nas",
        ("--mode", "search", "--ladder", "random:60", "whole:8", "--retrain", "0"),
        lambda output: len(first_looks(output)) >= 2,
        first_looks,
    ),
    "continual": Job(
        "continual", ("--steps", "5", "--checkpoint-every", "10"), two_in_second_step, rows_of_cells
    ),
}


def start(job: Job, command: list[str], output: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """The command with these flags, begun."""
    fixed = ["--dataset", "digits", *job.flags, "--output", str(output)]
    return subprocess.Popen(
        [sys.executable, f"pipelines/{job.script}.py", *fixed, *command],
        cwd=ROOT,
        env=os.environ | environment,
    )


def run_and_kill(job: Job, command: list[str], output: Path) -> bool:
    """Run on two nodes, kill one when work is under way on both; says whether the run ended well."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(**NODE) for _ in range(2)]
        print(f"two nodes of 1 CPU at {cluster.address}", flush=True)
        begun = time.monotonic()
        run = start(job, command, output, {"RAY_ADDRESS": cluster.address})
        while run.poll() is None and not job.under_way(output):
            if time.monotonic() - begun > LIMIT_S:
                run.kill()
            time.sleep(0.05)
        if run.poll() is not None:
            print("the run ended before a node could be killed; pass more work")
            return False
        cluster.remove_node(nodes[0], allow_graceful=False)
        print(f"one node killed after {time.monotonic() - begun:.1f} s, at work", flush=True)
        code = run.wait(timeout=LIMIT_S)
        print(f"the run ended with exit code {code} after {time.monotonic() - begun:.1f} s", flush=True)
        return code == 0
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main())
