"""What a small last batch of every epoch costs a training on a small set: cut with a rest, and into even batches.

python benchmarks/last_batch.py --dataset fashionmnist:DIR --per-class 13 --batch 64 --out FILE

Random real images of each class, 130 of ten classes, make batches of 64, 64 and 2, as PyTorch's loaders cut them, or
of 44, 43 and 43, as `atom.batches.batches_of` does. The same images, initial weights and order, tested on all test
images.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from atom import train
from atom.batches import batches_of
from atom.data import load
from atom.device import describe_hardware, resolve_device
from atom.evaluate import evaluate
from atom.preprocess import Preprocess
from atom.settings import EvaluateSettings
from atom.streams import stream


def with_a_rest(order_N: np.ndarray, batch: int) -> list[np.ndarray]:
    """Whole batches and what is left."""
    return [order_N[start : start + batch] for start in range(0, len(order_N), batch)]


WAYS: dict[str, Callable[[np.ndarray, int], list[np.ndarray]]] = {"rest": with_a_rest, "even": batches_of}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--per-class", type=int, default=13)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=75)
    parser.add_argument("--networks", nargs="+", default=["convnet-w64-d3", "convnet-w64-d3-batch"])
    parser.add_argument("--draws", type=int, default=3, help="random sets, each trained on twice")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    begun_s, device = time.monotonic(), resolve_device(arguments.device)
    real = load(arguments.dataset, data_dir=Path("data"), allow_download=False)
    preprocess = Preprocess.fit(real.train.images, zca=False)
    test, test_labels = preprocess.apply(real.test.images), torch.from_numpy(real.test.labels)
    settings = EvaluateSettings(epochs=arguments.epochs, batch_train=arguments.batch)
    found: dict[str, dict[str, list[float]]] = {}
    for network in arguments.networks:
        found[network] = {way: [] for way in WAYS}
        for draw in range(arguments.draws):
            rows_N = np.concatenate(
                [
                    stream(draw, "benchmark/last-batch", class_id=c).choice(
                        real.train.indices_of(c), arguments.per_class, replace=False
                    )
                    for c in range(real.train.num_classes)
                ]
            )
            for way, cut in WAYS.items():
                train.batches_of = cut
                result = evaluate(
                    preprocess.apply(real.train.images[rows_N]),
                    torch.from_numpy(real.train.labels[rows_N]),
                    test_images=test,
                    test_labels=test_labels,
                    network=network,
                    num_classes=real.train.num_classes,
                    seeds=[0, 1],
                    settings=settings,
                    device=device,
                    threads=arguments.threads,
                    symbols=real.symbols,
                )
                found[network][way] += [round(float(accuracy), 2) for accuracy in result.accuracies]
                print(network, draw, way, result.accuracies, flush=True)
    sizes = {way: [len(rows) for rows in cut(rows_N, arguments.batch)] for way, cut in WAYS.items()}
    record = {
        "note": "Test accuracy, %, of trainings on random real images; mean, standard deviation, and each one.",
        "command": "python benchmarks/last_batch.py "
        + " ".join(
            f"--{name.replace('_', '-')} {value}"
            for name, value in {
                "dataset": f"{real.kind}:DIR" if ":" in real.spec else real.spec,
                "per_class": arguments.per_class,
                "batch": arguments.batch,
                "epochs": arguments.epochs,
                "draws": arguments.draws,
            }.items()
        ),
        "batches": sizes,
        "accuracy": {
            network: {
                way: {
                    "mean": round(statistics.mean(values), 2),
                    "std": round(statistics.stdev(values), 2),
                    "each": values,
                }
                for way, values in ways.items()
            }
            for network, ways in found.items()
        },
        "hardware": describe_hardware(),
        "wall_s": round(time.monotonic() - begun_s),
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
