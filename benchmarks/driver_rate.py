"""Chunks a second that the driver keeps up with: workers that answer at once, real checkpoints, times and memory kept.

    python benchmarks/driver_rate.py --groups 1000 --seconds 20 --out FILE.json
    python benchmarks/driver_rate.py --groups 1000 --seconds 20 --tree ../before     # of another checkout

The workers are processes of Ray that compute nothing: they give the state that they are handed, some iterations later.
So a chunk costs what the driver does for it: send, fetch, store, note who made it and how long it took, show. Counted
is from the first chunk that was stored to the last one; what still waits to be stored when time is up is waited for.
"""

# K classes, I images a class, C channels, H height, W width, T iterations

import argparse
import io
import json
import os
import sys
import tempfile
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray

ROOT = Path(__file__).resolve().parents[1]
CHUNKS = 10
"""Of a group."""
IMAGE = (3, 32, 32)


class Stub:
    """A worker that computes nothing."""

    def advance(self, problem: Any, unit: Any, real: Any, state: Any, until: int, *further: Any) -> Any:
        """The state that it is handed, at iteration `until`."""
        from atom.methods.method import State
        from pipelines.workers.memory import Peak
        from pipelines.workers.remote import Done

        images = np.zeros((len(unit), 1, *IMAGE), np.float32)
        arrays = {"images": images, "momentum": images} if state is None else state.arrays
        losses = np.ones((until, len(unit)), np.float32)
        return Done(State(until, arrays, losses), Peak(0))

    @ray.method(concurrency_group="control")
    def progress(self) -> int:
        """Nothing is ever under way."""
        return 0


def measured(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Chunks, seconds and their ratio."""
    from atom.methods.settings import DistillSettings
    from atom.resolve import resolve_settings
    from pipelines.distill import note_spent
    from pipelines.distillation import distil_classes
    from pipelines.output.checkpoints import Checkpoints
    from pipelines.output.store import Store
    from pipelines.workers import works
    from pipelines.workers.remote import Problem
    from pipelines.workers.resources import ActorSize

    channels, height, width = IMAGE
    shape = {"channels": channels, "height": height, "width": width, "num_classes": asked.groups}
    wanted = DistillSettings(iterations=CHUNKS * asked.iterations, zca="off")
    settings = resolve_settings(wanted, device_kind="cpu", symbols=False, **shape)
    works.RemoteWorker = ray.remote(concurrency_groups={"control": 1})(Stub)
    store, size = Store.open(folder), ActorSize(asked.workers, cpus=1, gpus=0)
    stop, times = threading.Event(), []

    def spent(one: Any) -> None:
        times.append(time.monotonic())
        note_spent(SimpleNamespace(store=store, size=size), one)
        if times[-1] - times[0] > asked.seconds:
            stop.set()

    image = ray.put(np.zeros((4, *IMAGE), np.float32))
    units = [(class_id,) for class_id in range(asked.groups)]
    with redirect_stdout(io.StringIO()):
        outcome = distil_classes(
            Problem(settings, device_kind="cpu", **shape),
            units,
            dict.fromkeys(range(asked.groups), image),
            Checkpoints(store, "rate"),
            size=size,
            checkpoint_every=asked.iterations,
            on_spent=spent,
            stop=stop,
        )
    chunks, seconds = outcome.iterations_run // asked.iterations, time.monotonic() - times[0]
    return {"chunks": chunks, "seconds": round(seconds, 1), "chunks_per_s": round(chunks / seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, nargs="+", default=[1000], help="of one class each")
    parser.add_argument("--iterations", type=int, default=100, help="of a chunk")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20, help="how long, for each number of groups")
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout whose driver is measured")
    parser.add_argument("--scratch", type=Path, help="where checkpoints go; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    tree = str(asked.tree.resolve())
    sys.path.insert(0, tree)
    os.environ["PYTHONPATH"] = tree
    ray.init(num_cpus=asked.workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    rows = []
    for groups in asked.groups:
        with tempfile.TemporaryDirectory(dir=asked.scratch) as folder:
            row = measured(argparse.Namespace(**{**vars(asked), "groups": groups}), Path(folder))
        rows.append({"groups": groups, "workers": asked.workers, **row})
        print(json.dumps(rows[-1]), flush=True)
    if asked.out is not None:
        from atom.device import describe_hardware

        told = {"command": " ".join(sys.argv[1:]), "hardware": describe_hardware(), "rows": rows}
        asked.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
