"""What thousands of classes cost: sets of tiny images are made, distilled, measured, and deleted.

    python benchmarks/many_classes.py --classes 1000 5000 --out FILE.json
    python benchmarks/many_classes.py --classes 1000 --tree ../before     # of another checkout

A row a number of classes. Start-up is from the command to the first checkpoint, distilling from there to the last
class's, finishing from there to the end: the set, one training of a small network on it and one on random images.
Again is the same command once more, which finds all done.
Seconds of the driver are those of its processor, all threads; memory is as in large_set.py, sampled twice a second.
"""

# K classes, N images, H height, W width

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from large_set import ROOT, memory_of
from PIL import Image

SAMPLE_S = 0.5
CHUNKS = 2
"""Of a class."""


def make_set(file: Path, num_classes: int, num_images: int, side: int) -> None:
    """Noise around a grey of the class, in the layout of MedMNIST; one test image a class."""
    generator, arrays = np.random.default_rng(0), {}
    for part, count in (("train", num_images), ("val", 1), ("test", 1)):
        labels_N = np.repeat(np.arange(num_classes), count)
        noise_NHW = generator.integers(0, 64, (len(labels_N), side, side))
        arrays[f"{part}_images"] = (noise_NHW + (labels_N * 37 % 192)[:, None, None]).astype(np.uint8)
        arrays[f"{part}_labels"] = labels_N[:, None]
    np.savez(file, **arrays)


def command_of(asked: argparse.Namespace, place: Path) -> list[str]:
    """A short distillation, class by class."""
    options = {
        "dataset": f"npz:{place / 'set.npz'}",
        "data-dir": place / "data",
        "output": place / "out",
        "num-actors": asked.workers,
        "classes-per-group": 1,
        "iterations": 2 * CHUNKS,
        "checkpoint-every": 2,
        "network": "convnet-w8-d2",
        "batch-real": 4,
        "compile": "off",
        "eval-networks": "convnet-w8-d2",
        "eval-seeds": 1,
        "epochs": 1,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(asked.tree / "pipelines" / "distill.py"), *flags]


def measured(asked: argparse.Namespace, place: Path, num_classes: int) -> dict[str, Any]:
    """One row."""
    make_set(place / "set.npz", num_classes, asked.images, asked.side)
    environment = {**os.environ, "PYTHONPATH": str(asked.tree)}
    with (place / "log.txt").open("w") as log:
        running = subprocess.Popen(
            command_of(asked, place), cwd=asked.tree, env=environment, stdout=log, stderr=log
        )
        marks = dict(_watched(running, place / "out" / "checkpoints", num_classes))
    if running.returncode:
        print((place / "log.txt").read_text()[-2000:], file=sys.stderr)
        return {"classes": num_classes, "exit": running.returncode}
    begun_s = time.monotonic()
    subprocess.run(
        command_of(asked, place), cwd=asked.tree, env=environment, stdout=subprocess.DEVNULL, check=True
    )
    again_s = time.monotonic() - begun_s
    chunks, (cpu_s, distil_s) = CHUNKS * num_classes, (marks["last"][i] - marks["first"][i] for i in (1, 0))
    with Image.open(place / "out" / "set" / "sheet.png") as sheet:
        size = sheet.size
    keys = _metric_keys(place / "out" / "mlflow.db")
    return {
        "classes": num_classes,
        "start_s": round(marks["first"][0], 1),
        "distil_s": round(distil_s, 1),
        "chunks_per_s": round(chunks / distil_s, 1),
        "driver_ms_per_chunk": round(1000 * cpu_s / chunks, 1),
        "finish_s": round(marks["end"][0] - marks["last"][0], 1),
        "again_s": round(again_s, 1),
        "sheet_px": size,
        "sheet_mb": round((place / "out" / "set" / "sheet.png").stat().st_size / 1e6, 2),
        "set_mb": round(sum(p.stat().st_size for p in (place / "out" / "set").rglob("*.*")) / 1e6, 1),
        "mlflow_keys": len([key for key in keys if not key.startswith("system/")]),
        "driver_mib": round(marks["driver"][0]),
        "all_mib": round(marks["all"][0]),
    }


def _watched(
    running: subprocess.Popen[bytes], folder: Path, num_classes: int
) -> Iterator[tuple[str, tuple[float, float]]]:
    """When the first and the last class had a checkpoint, and the end, with the driver's processor time; peaks, MiB."""
    began_s, peaks, cpu_s = time.monotonic(), {"driver": 0, "all": 0}, 0.0
    left = [("first", 1), ("last", num_classes)]
    driver = psutil.Process(running.pid)
    while running.poll() is None:
        try:
            cpu_s = sum(driver.cpu_times()[:2])
            now = memory_of(driver)
        except psutil.Error:
            break
        stored = sum(name.startswith("unit_") for name in os.listdir(folder)) if folder.is_dir() else 0
        while left and stored >= left[0][1]:
            yield left.pop(0)[0], (time.monotonic() - began_s, cpu_s)
        peaks = {name: max(size, now.get(name, 0)) for name, size in peaks.items()}
        time.sleep(SAMPLE_S)
    running.wait()
    yield "end", (time.monotonic() - began_s, cpu_s)
    yield from ((name, (size / 2**20, 0.0)) for name, size in peaks.items())


def _metric_keys(database: Path) -> list[str]:
    with sqlite3.connect(database) as connection:
        return [key for (key,) in connection.execute("select distinct key from latest_metrics")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[1000])
    parser.add_argument("--images", type=int, default=4, help="of each class")
    parser.add_argument("--side", type=int, default=8, help="pixels")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout whose command is measured")
    parser.add_argument("--scratch", type=Path, help="where sets and outputs go; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    asked.tree, rows = asked.tree.resolve(), []
    for num_classes in asked.classes:
        with tempfile.TemporaryDirectory(dir=asked.scratch) as folder:
            rows.append(measured(asked, Path(folder), num_classes))
        print(json.dumps(rows[-1]), flush=True)
    if asked.out is not None:
        from atom.device import describe_hardware

        told = {"command": " ".join(sys.argv[1:]), "hardware": describe_hardware(), "rows": rows}
        asked.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
