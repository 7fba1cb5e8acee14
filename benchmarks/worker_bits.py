"""Every method by one, two and four workers: are the bits of the sets equal, and those of a rerun?

    python benchmarks/worker_bits.py --methods atom rat-bptt --out FILE

A Ray of four logical CPUs in this process, whatever the machine has; digits, a narrow network, few iterations. What
follows "--" goes to every pipelines/distill.py.
"""

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

from atom.device import describe_hardware
from atom.distilled import DistilledSet
from pipelines.distill import main as distill
from pipelines.workers.cluster import connect

ASKED = {
    "atom": [],
    "spatial": [],
    "channel": [],
    "dm": [],
    "dc": [],
    "dsa": ["--ipc", "2", "--outer-steps", "2", "--inner-epochs", "2"],
    "idc": ["--trained-networks", "4", "--training-passes", "2"],
    "rat-bptt": ["--inner-steps", "6", "--replicas", "4", "--lr-label", "0.05"],
    "mtt": [
        "--num-experts",
        "4",
        "--max-start-epoch",
        "2",
        "--replicas",
        "4",
        "--syn-steps",
        "6",
        "--max-loss",
        "9",
    ],
    "datm": [
        "--num-experts",
        "4",
        "--max-start-epoch",
        "2",
        "--replicas",
        "2",
        "--syn-steps",
        "6",
        "--max-loss",
        "9",
    ],
    "dd": ["--ipc", "2", "--distill-steps", "2", "--replicas", "4"],
}
"""Work for several workers: groups of classes, experts, or replicas of an iteration."""
COMMON = ["--network", "convnet-w8-d2", "--iterations", "6", "--checkpoint-every", "3", "--eval-seeds", "0"]


def digest(method: str, workers: int, further: list[str]) -> str:
    """Of images and soft labels of a new run; a rerun of the command finds it finished.

    Raises:
        RuntimeError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        command = ["--method", method, *COMMON, *ASKED[method], *further, "--num-actors", str(workers)]
        code = distill([*command, "--output", str(output)])
        if code:
            raise RuntimeError(f"{method} with {workers} workers ended with {code}")
        made = DistilledSet.load(output)
    sha = hashlib.sha256(made.images_NCHW.numpy().tobytes())
    if made.soft_labels is not None:
        sha.update(made.soft_labels.numpy().tobytes())
    return sha.hexdigest()[:16]


def main() -> int:
    """Run, compare, and write; returns 0 if all are equal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=[*ASKED], default=[*ASKED])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 2], help="one run each")
    parser.add_argument("--out", type=Path)
    parser.add_argument("further", nargs="*")
    asked = parser.parse_args()
    rows = []
    with connect(num_cpus=4):
        for method in asked.methods:
            found = [digest(method, workers, asked.further) for workers in asked.workers]
            rows.append({"method": method, "equal": len(set(found)) == 1, "sha256": sorted(set(found))})
            print(json.dumps(rows[-1]), flush=True)
    if asked.out is not None:
        record = {"hardware": describe_hardware(), "workers": asked.workers, "rows": rows}
        asked.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
