"""Ranking the same networks in packed trials and with one network a trial: wall time, and the share that is work.

    python benchmarks/pack_networks.py --networks 36 --repeats 3 --out benchmarks/results/pack_networks_cpu.json

All ways score the same units on scikit-learn's digits, on one private Ray cluster, and take turns, so that a busy
machine slows all of them. Their scores are compared and must be equal. Work is the time inside trainings and
scores; the rest is processes that start, fetch images and wait for Tune.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from apps.nas.packing import network_cost
from apps.nas.proxies import Proxy
from apps.nas.space import Space, load_space, sample
from apps.nas.trial import Recipe, Score, Unit
from atom import data
from atom.coreset import select_per_class
from atom.device import describe_hardware
from atom.preprocess import Preprocess
from atom.resolve import resolve_evaluation
from atom.settings import EvaluateSettings
from pipelines.architecture.remote import Shared
from pipelines.architecture.tuning import run_units
from pipelines.output.provenance import library_versions
from pipelines.workers.cluster import connect
from pipelines.workers.pool import Limits
from pipelines.workers.resources import ActorSize

WAYS: dict[str, dict[str, Any]] = {
    "packed, processes reused": {"packs_per_worker": 4, "reuse_actors": True},
    "one network a trial, processes reused": {"packs_per_worker": None, "reuse_actors": True},
    "one network a trial": {"packs_per_worker": None, "reuse_actors": False},
}


def problem(number: int, epochs: int) -> tuple[Space, Shared]:
    """Networks of the small space and ten random images a class to train them on."""
    real = data.load("digits", data_dir=Path("data")).hold_out(0.1)
    assert real.validation is not None
    preprocess = Preprocess.fit(real.train.images, zca=False, zca_eps=0.1)
    parts = {
        name: (preprocess.apply(part.images).numpy(), part.labels)
        for name, part in (("train", real.train), ("validation", real.validation), ("test", real.test))
    }
    labels_N = real.train.labels
    rows = select_per_class("random", np.zeros((len(labels_N), 1)), labels_N, ipc=10, num_classes=10, seed=0)
    small = {"random": {None: (parts["train"][0][rows], labels_N[rows])}}
    space = sample(load_space("small", channels=1, image_size=(8, 8), num_classes=10), number, seed=0)
    settings = resolve_evaluation(EvaluateSettings(epochs=epochs), device_kind="cpu", symbols=True)
    shared = Shared(
        proxies={"random": Proxy("random", "set", "main", 100)},
        space=space,
        recipe=Recipe(settings, whole_epochs=1, steps=1),
        device_kind="cpu",
        small=ray.put(small),
        real=ray.put({"main": parts}),
        timeout_s=600.0,
    )
    return space, shared


def one_run(
    space: Space, shared: Shared, workers: int, way: dict[str, Any]
) -> tuple[float, float, dict[str, float]]:
    """Wall time, share of it that is work, and the scores by network."""
    costs = {c.name: network_cost(c.multiply_adds, default=0.0) for c in space.candidates}
    scores: dict[str, float] = {}

    def keep(unit: Unit, score: Score) -> None:
        scores[unit.network] = score.score

    begun_s = time.perf_counter()
    outcome = run_units(
        [Unit(name, "random", 0) for name in space.names],
        shared,
        cost=lambda unit: costs[unit.network],
        size=ActorSize(workers, cpus=1, gpus=0),
        limits=Limits(),
        on_score=keep,
        on_tick=lambda: None,
        **way,
    )
    wall_s = time.perf_counter() - begun_s
    return wall_s, outcome.unit_seconds / (wall_s * workers), scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=int, default=36, help="networks to rank")
    parser.add_argument("--epochs", type=int, default=100, help="of each training")
    parser.add_argument("--workers", type=int, default=2, help="processes at once, one CPU each")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way; medians are reported")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    arguments = parser.parse_args()
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    first: dict[str, float] = {}
    with connect(num_cpus=arguments.workers):
        space, shared = problem(arguments.networks, arguments.epochs)
        for repeat in range(arguments.repeats):
            for name, way in WAYS.items():
                wall_s, share, scores = one_run(space, shared, arguments.workers, way)
                first = first or scores
                assert scores == first, f"{name}: scores differ"
                runs[name].append((wall_s, share))
                print(f"{repeat + 1}: {name}: {wall_s:.1f} s, {100 * share:.0f} % work", flush=True)
    medians = {
        name: {
            "wall_s": round(statistics.median(wall for wall, _ in own), 1),
            "work_share": round(statistics.median(share for _, share in own), 3),
            "runs_s": [round(wall, 1) for wall, _ in own],
        }
        for name, own in runs.items()
    }
    packed = medians["packed, processes reused"]["wall_s"]
    for name, own in medians.items():
        own["times_packed"] = round(own["wall_s"] / packed, 2)
        print(f"{name}: {own['wall_s']} s, {own['times_packed']} x, {100 * own['work_share']:.0f} % work")
    if arguments.out is not None:
        about = {
            "command": f"python benchmarks/pack_networks.py --networks {arguments.networks} --epochs"
            f" {arguments.epochs} --workers {arguments.workers} --repeats {arguments.repeats}",
            "hardware": describe_hardware(),
            "versions": library_versions(),
        }
        arguments.out.write_text(json.dumps({**about, "medians": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
