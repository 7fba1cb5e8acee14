"""A learner month by month: memories at equal stored bytes beside all images at once, and beside atom-continual.

python benchmarks/learner_months.py --dataset fashionmnist:DIR --train-per-class 500 --months 6 2 2 --out FILE
python benchmarks/learner_months.py --dataset digits --months 2 2 2 2 2 --rows distilled stream --out FILE

For each seed the classes come in an order of their own, in months of so many. A row is a learner in a directory of its
own, `atom-learner init` with the first month and `add` with each further one, by commands in processes of their own,
judged on the test images of the classes known: `distilled`, `factor2` (the same with four images in the bytes of one),
`herding`, `random`; `joint` begins with all classes; `stream` is `atom-continual` with the distilled memory on the
same images, where all months are equal. What follows "--" goes to all of them. Lines that FILE has are not done again.
"""

# N images, C channels, H height, W width

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from atom import data
from atom.data import RealData
from atom.device import describe_hardware
from atom.streams import stream

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 3600
# A memory of real images has no form of distillation, and a learner none of the flags that the other has.
ROWS = {
    "distilled": ["--memory", "distilled"],
    "factor2": ["--memory", "distilled", "--factor", "2"],
    "herding": ["--memory", "herding"],
    "random": ["--memory", "random"],
    "joint": ["--memory", "random"],
}


def run(script: str, arguments: Sequence[object]) -> None:
    """A command in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    words = [sys.executable, str(ROOT / "pipelines" / f"{script}.py"), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: {done.stderr[-2000:]}")


def written(real: RealData, folder: Path, train_per_class: int | None, seed: int) -> Path:
    """The images in MedMNIST's layout, of each class so many, drawn by the seed."""
    rows = []
    for label in range(real.train.num_classes):
        own = stream(seed, "benchmark/learner-months", label).permutation(real.train.indices_of(label))
        rows.append(own[:train_per_class])
    kept = np.sort(np.concatenate(rows))
    parts = {"train": (real.train.images[kept], real.train.labels[kept])}
    parts["test"] = (real.test.images, real.test.labels)
    parts["val"] = tuple(part[:1] for part in parts["test"])  # not used
    arrays = {}
    for name, (images_NCHW, labels) in parts.items():
        images_NHWC = images_NCHW.transpose(0, 2, 3, 1)
        arrays[f"{name}_images"] = images_NHWC[..., 0] if images_NHWC.shape[-1] == 1 else images_NHWC
        arrays[f"{name}_labels"] = labels[:, None]
    path = folder / "images.npz"
    np.savez(path, **arrays)
    return path


def learned(
    row: str, path: Path, *, months: Sequence[Sequence[int]], asked: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Accuracies of a learner after each month, over the classes it knows, and what its memory holds."""
    directory = path.parent / row
    given = ["--data", f"npz:{path}", "--test", f"npz:{path}"]
    choices = [*ROWS[row], "--learner", asked.learner, "--budget", asked.budget, "--seed", seed]
    for number, classes in enumerate([[*chain(*months)]] if row == "joint" else months):
        words = [*given, "--classes", *classes]
        words += [*choices, *asked.flags] if number == 0 else ["--max-drop", 100]
        run("learner", ["add" if number else "init", directory, *words])
    versions = json.loads((directory / "learner.json").read_text())["versions"]
    memory = versions[-1]["memory"].values()
    return {
        "accuracies": [fmean(one["after"] for one in v["accuracies"].values()) for v in versions],
        "images": sum(one["images"] for one in memory),
        "bytes": sum(one["num_bytes"] for one in memory),
    }


def streamed(
    path: Path, *, months: Sequence[Sequence[int]], asked: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """The same of `atom-continual`, by what it says of each class."""
    output = path.parent / "stream"
    words = ["--dataset", f"npz:{path}", "--steps", len(months), "--class-order", *chain(*months)]
    words += ["--preprocess-on", "first-step", "--memories", "distilled", "--learners", asked.learner]
    run("continual", [*words, "--budget", asked.budget, "--seed", seed, "--output", output, *asked.flags])
    steps = json.loads((output / "results.json").read_text())["cells"][0]["steps"]
    return {
        "accuracies": [fmean(step["by_class"].values()) for step in steps],
        "images": steps[-1]["memory_images"],
        "bytes": steps[-1]["memory_bytes"],
    }


def measured(real: RealData, row: str, asked: argparse.Namespace, *, seed: int) -> dict[str, Any]:
    """What came of a row, and the seconds of its commands."""
    order = stream(seed, "benchmark/learner-months/order").permutation(real.train.num_classes)
    months = [sorted(map(int, part)) for part in np.split(order, np.cumsum(asked.months)[:-1])]
    with tempfile.TemporaryDirectory() as folder:
        path = written(real, Path(folder), asked.train_per_class, seed)
        begun = time.monotonic()
        if row == "stream":
            found = streamed(path, months=months, asked=asked, seed=seed)
        else:
            found = learned(row, path, months=months, asked=asked, seed=seed)
    return found | {"seconds": round(time.monotonic() - begun, 1)}


def key_of(asked: argparse.Namespace, row: str, seed: int) -> dict[str, Any]:
    """What a line is known by."""
    names = ("learner", "months", "train_per_class", "budget", "flags")
    told = {name: getattr(asked, name) for name in names}
    return {"row": row, "seed": seed, "dataset": asked.dataset.partition(":")[0], **told}


def main() -> None:
    """Measure, append each line to FILE as it comes, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--train-per-class", type=int, default=None, help="training images of each class")
    parser.add_argument("--months", type=int, nargs="+", default=[6, 2, 2], help="classes that each brings")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=[*ROWS, "stream"])
    parser.add_argument("--learner", default="er-ace")
    parser.add_argument("--budget", default="10/class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="JSON, a line a learner")
    parser.add_argument("flags", nargs="*", help="of init and atom-continual, after --")
    asked = parser.parse_args()
    real = data.load(asked.dataset, data_dir=Path("data"))
    done = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    for seed in asked.seeds:
        for row in asked.rows:
            key = key_of(asked, row, seed)
            if any(key.items() <= line.items() for line in done):
                continue
            line = key | measured(real, row, asked, seed=seed) | {"hardware": describe_hardware()}
            done.append(line)
            with asked.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    for row in asked.rows:
        keys = [key_of(asked, row, seed) for seed in asked.seeds]
        last = [line["accuracies"][-1] for line in done for key in keys if key.items() <= line.items()]
        print(f"{row}: {fmean(last):.1f} ± {stdev(last) if len(last) > 1 else 0:.1f}, n = {len(last)}")


if __name__ == "__main__":
    main()
