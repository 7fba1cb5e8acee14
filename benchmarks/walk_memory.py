"""Memory of a gradient through a training against the number of its steps: walked back, unrolled, and in the methods.

python benchmarks/walk_memory.py --steps 5 10 20 40 80 --images 10 --out FILE

One process for each number of steps and way, so that each has a peak of its own; the ways take turns. The training is
that of rat-bptt, 32x32 pixels in three colours, ConvNet with three blocks; the judgement 100 random images. `rat-bptt`
and `mtt` are one iteration of the methods themselves, with the step on the images: of rat-bptt on 100 real images, of
mtt between two states of a network of random weights.
"""

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from atom import nets
from atom.device import describe_hardware
from atom.methods.lookup import find_method
from atom.methods.settings import DistillSettings
from atom.methods.unroll import SGD, FlatNetwork, Training
from atom.methods.unroll_reference import unrolled
from atom.resolve import resolve_settings
from atom.streams import stream

CLASSES = 10
ASKED = {
    "rat-bptt": {"batch_outer": 100},
    "mtt": {"num_experts": 1, "max_start_epoch": 1, "expert_epochs": 1, "max_loss": 1e9},
}
"""Settings of the methods; the number of steps is `inner_steps` and `syn_steps`."""


def measure_method(name: str, num_steps: int, num_images: int, width: int) -> tuple[float, float, float]:
    """The same of one iteration of a method; the norm is that of the images' way."""
    torch.set_num_threads(1)
    rng, size = stream(0, "benchmark/walk"), (3, 32, 32)
    network = f"convnet-w{width}-d3"
    asked = {**ASKED[name], "inner_steps" if name == "rat-bptt" else "syn_steps": num_steps}
    shape = {"channels": 3, "height": 32, "width": 32, "num_classes": CLASSES}
    settings = resolve_settings(
        DistillSettings.model_validate(
            {"method": name, "ipc": num_images // CLASSES, "network": network, "iterations": 2, **asked}
        ),
        device_kind="cpu",
        symbols=False,
        **shape,
    )
    method = find_method(name)(settings, device=torch.device("cpu"), **shape)
    real = {c: torch.from_numpy(rng.standard_normal((100, *size), "float32")) for c in range(CLASSES)}
    weights = FlatNetwork(nets.build(network, channels=3, image_size=size[1:], num_classes=CLASSES)).weights()
    # A second epoch a little way off, as an expert's is.
    way = torch.from_numpy(rng.standard_normal(len(weights), "float32")) * 0.01
    prepared = {"expert 0": {"epochs": torch.stack([weights, weights + way]).numpy()}}
    unit = tuple(range(CLASSES))
    state = method.start(unit, real, prepared=prepared)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    after = method.advance(state, 1, unit=unit, real=real, prepared=prepared)
    seconds = time.perf_counter() - begun
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return grown, seconds, float(np.linalg.norm(after.images - state.images))


def measure(way: str, num_steps: int, num_images: int, width: int) -> tuple[float, float, float]:
    """MiB by which the peak grew, seconds, and the norm of the gradient by the images, of one gradient."""
    if way in ASKED:
        return measure_method(way, num_steps, num_images, width)
    torch.set_num_threads(1)
    rng = stream(0, "benchmark/walk")
    net = nets.build(f"convnet-w{width}-d3", channels=3, image_size=(32, 32), num_classes=CLASSES).eval()
    nets.fill_weights(net, rng)
    names = [name for name, _ in net.named_parameters()]
    images = torch.from_numpy(rng.standard_normal((num_images, 3, 32, 32), "float32"))
    labels = torch.arange(num_images) % CLASSES
    test = torch.from_numpy(rng.standard_normal((100, 3, 32, 32), "float32"))
    test_labels = torch.arange(100) % CLASSES
    flat = FlatNetwork(net)

    def of_list(weights: list[Tensor], batch: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (batch,))

    # Buffers of the first call are no growth.
    cross_entropy(net(images), labels).backward()
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    if way == "unroll":
        _, found = unrolled(
            lambda weights, leaves, _: cross_entropy(of_list(list(weights), leaves["images"]), labels),
            lambda weights: cross_entropy(of_list(list(weights), test), test_labels),
            list(net.parameters()),
            {"images": images.requires_grad_()},
            rate=lambda *_: 0.01,
            steps=range(num_steps),
            optimizer="sgd",
        )
    else:
        training = Training(
            lambda weights, leaves, _: cross_entropy(flat(weights, leaves["images"]), labels),
            lambda *_: 0.01,
            SGD(),
        )
        leaves, steps = {"images": images}, range(num_steps)
        states = training.run((flat.weights(),), leaves, steps)
        last = states[-1][0].requires_grad_()
        (cotangent,) = torch.autograd.grad(cross_entropy(flat(last, test), test_labels), last)
        found = training.gradients(states, leaves, steps, cotangent)
    seconds = time.perf_counter() - begun
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return grown, seconds, float(found["images"].norm())


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 40, 80])
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument(
        "--most-unrolled", type=int, default=80, help="steps up to which the full unroll is measured"
    )
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    for num_steps in asked.steps:
        for way in ("walk", "unroll", *ASKED):
            if way == "unroll" and num_steps > asked.most_unrolled:
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                grown, seconds, norm = pool.apply(measure, (way, num_steps, asked.images, asked.width))
            rows.append(
                {
                    "way": way,
                    "steps": num_steps,
                    "mib": round(grown),
                    "seconds": round(seconds, 2),
                    "norm": norm,
                }
            )
            print(
                f"{way:<9}{num_steps:>4} steps {grown:>7.0f} MiB {seconds:>7.1f} s, norm {norm:.6g}",
                flush=True,
            )
    if asked.out is not None:
        record = {
            "images": asked.images,
            "width": asked.width,
            "hardware": describe_hardware(),
            "rows": rows,
        }
        asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
