"""A distillation on two nodes of which one dies in the middle, against an undisturbed one on this machine.

    python benchmarks/two_nodes.py -- --iterations 300 --eval-seeds 1

What follows "--" goes to pipelines/distill.py, after --dataset digits --checkpoint-every 10. Both nodes are
processes of this machine (`ray.cluster_utils.Cluster`) with one CPU each, beside a head that has none. A node
is killed when every class has a checkpoint, so the worker on that node dies at its work.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SET = Path("set") / "distilled.safetensors"
LIMIT_S, NUM_CLASSES = 1800.0, 10
NODE = {"num_cpus": 1, "object_store_memory": 150 * 2**20}


def main() -> int:
    """Run both, compare, and return 0 if the sets are identical."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=None, help="where outputs go; default a temporary one")
    parser.add_argument("command", nargs="*", help="flags for pipelines/distill.py, after --")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="two-nodes-"))
    # Read by Ray at its import: the nodes are local, short-lived and know no token.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ.pop("RAY_ADDRESS", None)

    alone = start(arguments.command, folder / "alone", {})
    if alone.wait(timeout=LIMIT_S) != 0:
        print("the undisturbed run failed, see its output above")
        return 1
    if not run_and_kill(arguments.command, folder / "two-nodes"):
        return 1
    same = (folder / "alone" / SET).read_bytes() == (folder / "two-nodes" / SET).read_bytes()
    print(f"{'identical' if same else 'DIFFERENT'}: {folder / 'alone' / SET}, {folder / 'two-nodes' / SET}")
    return 0 if same else 1


def start(command: list[str], output: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """`pipelines/distill.py` with these flags, begun."""
    fixed = ["--dataset", "digits", "--checkpoint-every", "10", "--output", str(output)]
    return subprocess.Popen(
        [sys.executable, "pipelines/distill.py", *fixed, *command], cwd=ROOT, env=os.environ | environment
    )


def begun_classes(output: Path) -> set[str]:
    """Classes that have a checkpoint."""
    return {path.name.split(".")[0] for path in output.glob("checkpoints/class_*")}


def run_and_kill(command: list[str], output: Path) -> bool:
    """Run on two nodes, kill one when both groups of classes are in work; says whether the run ended well."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(**NODE) for _ in range(2)]
        print(f"two nodes of 1 CPU at {cluster.address}", flush=True)
        begun = time.monotonic()
        run = start(command, output, {"RAY_ADDRESS": cluster.address})
        while run.poll() is None and len(begun_classes(output)) < NUM_CLASSES:
            if time.monotonic() - begun > LIMIT_S:
                run.kill()
            time.sleep(0.05)
        if run.poll() is not None:
            print("the run ended before a node could be killed; pass more --iterations")
            return False
        cluster.remove_node(nodes[0], allow_graceful=False)
        print(f"one node killed after {time.monotonic() - begun:.1f} s, at work on both groups", flush=True)
        code = run.wait(timeout=LIMIT_S)
        print(f"the run ended with exit code {code} after {time.monotonic() - begun:.1f} s", flush=True)
        return code == 0
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main())
