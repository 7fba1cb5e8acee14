"""What holding the scale of distilled images is worth, network by network: the same images before and after.

python benchmarks/scale_networks.py --dataset digits --ipc 1 --iterations 300 --out lines.jsonl

One distillation; its images as the last iteration leaves them ("before") and at the scale of real ones ("after"),
beside random and herding images of the same storage. Networks are trained on each and tested on the test images.
A JSON line a set and network, as they come. Needs torchvision, which the extra "test" brings.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hold_scale import Problem, coreset
from torch import nn

from atom.data import load
from atom.device import describe_hardware, resolve_device
from atom.errors import NotFiniteError
from atom.evaluate import evaluate
from atom.formation import decode, label_decoded
from atom.methods.matching_loop import Atom
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.resolve import resolve_evaluation, resolve_settings
from atom.scale import to_real_scale
from atom.settings import EvaluateSettings

OWN = f"{Path(__file__).resolve()}:"


def torchvision_resnet18(channels: int, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 as it is, but for the input channels: its stem divides the resolution by four."""
    from torchvision.models import resnet18

    net = resnet18(weights=None, num_classes=num_classes)
    net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return net


def torchvision_resnet18_small_stem(
    channels: int, image_size: tuple[int, int], num_classes: int
) -> nn.Module:
    """The same with the stem that users give it for small images."""
    from torchvision.models import resnet18

    net = resnet18(weights=None, num_classes=num_classes)
    net.conv1, net.maxpool = nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.Identity()
    return net


def prepare(arguments: argparse.Namespace) -> Problem:
    """Training images, preprocessed as the command does by default, and the test images."""
    real = load(arguments.dataset, data_dir=Path("data"), allow_download=False)
    preprocess = Preprocess.fit(real.train.images, zca=real.train.images.shape[1] == 3)
    test = preprocess.apply(real.test.images), real.test.labels
    white = preprocess.apply(real.train.images)
    return Problem(white, real.train.labels, test, preprocess, real.symbols, resolve_device(arguments.device))


def distilled(
    problem: Problem, arguments: argparse.Namespace, ipc: int, factor: int
) -> dict[str, np.ndarray]:
    """Images [K, I, C, H, W] before and after."""
    asked = DistillSettings(
        ipc=ipc,
        factor=factor,
        # One more than are done: only the last iteration puts the images to the scale of real ones.
        iterations=arguments.iterations + 1,
        network=arguments.network,
        zca="off",
        classes_per_group=5,
        threads_per_actor=arguments.threads,
    )
    settings = resolve_settings(
        asked, device_kind=problem.device.type, symbols=problem.symbols, **problem.shape
    )
    distiller = Atom(settings, device=problem.device, **problem.shape)
    parts = []
    for first in range(0, problem.num_classes, 5):
        group = tuple(range(first, min(first + 5, problem.num_classes)))
        real = {c: problem.of(c).to(problem.device) for c in group}
        state = distiller.start(group, real)
        parts.append(distiller.advance(state, arguments.iterations, unit=group, real=real).images)
    before = np.concatenate(parts)
    after = [
        to_real_scale(torch.from_numpy(images), problem.of(c), factor=factor).numpy()
        for c, images in enumerate(before)
    ]
    return {"before": before, "after": np.stack(after)}


def judge(
    stored: np.ndarray,
    problem: Problem,
    arguments: argparse.Namespace,
    factor: int,
    network: str,
    seeds: list[int],
) -> tuple[float, ...]:
    images_NCHW = torch.from_numpy(np.ascontiguousarray(stored.reshape(-1, *stored.shape[2:])))
    labels = torch.arange(problem.num_classes).repeat_interleave(len(images_NCHW) // problem.num_classes)
    settings = resolve_evaluation(
        EvaluateSettings(epochs=arguments.epochs), device_kind=problem.device.type, symbols=problem.symbols
    )

    try:
        return evaluate(
            decode(images_NCHW, factor),
            label_decoded(labels, factor),
            test_images=problem.held[0],
            test_labels=problem.held[1],
            network=network,
            num_classes=problem.num_classes,
            seeds=seeds,
            settings=settings,
            device=problem.device,
            threads=arguments.threads,
        ).accuracies
    except NotFiniteError as error:
        print(error, flush=True)
        return ()


def looks(stored: np.ndarray, problem: Problem, factor: int) -> dict[str, float]:
    training = decode(torch.from_numpy(stored.reshape(-1, *stored.shape[2:]).copy()), factor)
    pixels = problem.preprocess.invert(training)
    outside = ((pixels < -0.5 / 255) | (pixels > 1 + 0.5 / 255)).float().mean()
    return {"std": round(float(training.std()), 3), "outside_frac": round(float(outside), 3)}


def run(arguments: argparse.Namespace, problem: Problem, ipc: int, factor: int) -> None:
    began = time.monotonic()
    sets: dict[str, Any] = distilled(problem, arguments, ipc, factor)
    distil_s = round(time.monotonic() - began, 1)
    if factor == 1:
        # Random images are drawn anew for each training, so that their spread holds that of the draw.
        draws = [
            coreset("random", problem, ipc, seed, arguments.network) for seed in range(arguments.trainings)
        ]
        sets |= {"random": draws, "herding": coreset("herding", problem, ipc, 0, arguments.network)}
    for network in arguments.networks:
        for name, images in sets.items():
            began = time.monotonic()
            single = not isinstance(images, list)
            seeds = list(range(arguments.trainings))
            accuracies = (
                judge(images, problem, arguments, factor, network, seeds)
                if single
                else [
                    accuracy
                    for s, draw in zip(seeds, images, strict=True)
                    for accuracy in judge(draw, problem, arguments, 1, network, [s])
                ]
            )
            row = {
                "dataset": arguments.dataset.rpartition("/")[2],
                "ipc": ipc,
                "factor": factor,
                "set": name,
                "network": network.rpartition(":")[2],
                "accuracies": [round(a, 2) for a in accuracies],
                **looks(images if single else images[0], problem, factor),
                "iterations": arguments.iterations,
                "epochs": arguments.epochs,
                "distil_s": distil_s,
                "eval_s": round(time.monotonic() - began, 1),
            }
            print(json.dumps(row), flush=True)
            with arguments.out.open("a") as file:
                file.write(json.dumps({**row, "hardware": describe_hardware()}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--factor", type=int, nargs="+", default=[1])
    parser.add_argument("--network", default="convnet", help="that distils")
    parser.add_argument(
        "--networks",
        nargs="+",
        default=[
            "convnet",
            "convnet-batch",
            "convnet-nonorm",
            "resnet18-batch",
            "vgg11",
            "vit",
            f"{OWN}torchvision_resnet18",
            f"{OWN}torchvision_resnet18_small_stem",
        ],
    )
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--trainings", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    problem = prepare(arguments)
    for factor in arguments.factor:
        run(arguments, problem, arguments.ipc, factor)


if __name__ == "__main__":
    main()
