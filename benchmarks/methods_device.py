"""Every method on one device: are the bits of two runs equal, how long is an iteration, how good does `mtt` become.

Without Ray: `atom` alone. Each method makes a few iterations twice, from nothing, and the digests of its states are
compared; then `mtt` runs on by its published settings for CIFAR-10 at one image a class, as far as the time allows, and
networks are trained on what it has at every mark. JSON lines, as they come.

    python benchmarks/methods_device.py --dataset cifar10 --device cuda --limit-s 400 --out methods.jsonl
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atom import data
from atom.device import describe_hardware, resolve_device
from atom.evaluate import evaluate
from atom.methods.lookup import find_method
from atom.methods.method import Method, Prepared, State, Unit
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.resolve import resolve_evaluation, resolve_settings
from atom.settings import EvaluateSettings

CHECKED: dict[str, dict[str, Any]] = {
    "atom": {},
    "dm": {},
    "atom, trained networks": {"trained_networks": 1, "training_passes": 2, "calibration": 0.1},
    "dm, more terms, ipc 2": {"ipc": 2, "cf_weight": 1.0, "cf_frequencies": 256, "covariance_weight": 1.0},
    "dc": {},
    "dsa": {},
    "dsa, ipc 2": {"ipc": 2, "outer_steps": 2, "inner_epochs": 2},
    "idc": {"trained_networks": 1, "training_passes": 2},
    "rat-bptt": {"inner_steps": 8, "window": 5},
    "rat-bptt, labels": {"inner_steps": 8, "lr_label": 0.01},
    "rat-bptt, replicas": {"inner_steps": 8, "replicas": 2},
    "dd": {"ipc": 2, "distill_steps": 2, "distill_epochs": 2},
    "mtt": {"num_experts": 1, "max_start_epoch": 1, "expert_epochs": 1, "syn_steps": 10, "max_loss": 9},
    "datm": {"num_experts": 1, "max_start_epoch": 1, "expert_epochs": 1, "syn_steps": 10, "max_loss": 9},
}
CHECKED_ON = 1000
"""Training images of a class for the comparison of bits: its experts see all in every epoch."""
PUBLISHED = {
    "method": "mtt",
    "syn_steps": 50,
    "expert_epochs": 2,
    "max_start_epoch": 2,
    "lr_img": 100.0,
    "lr_student": 0.01,
    "max_loss": 9.0,
    "lr_expert": 0.01,
    "batch_expert": 256,
}
"""Source: MTT's repository, CIFAR-10 at ipc 1. Its step size for the student's is 1e-7 on the step size itself; here it
is learned by its logarithm."""


class Problem:
    """Images of a source on a device, and methods over them."""

    def __init__(self, spec: str, device: torch.device, *, per_class: int | None) -> None:
        real = data.load(spec, data_dir=Path("data"))
        self.symbols, self.device = real.symbols, device
        self.num_classes = real.train.num_classes
        rows = [real.train.indices_of(c)[:per_class] for c in range(self.num_classes)]
        images = real.train.images
        self.channels, self.height, self.width = images.shape[1:]
        preprocess = Preprocess.fit(images, zca=self.channels == 3)
        self.real = {
            c: preprocess.apply(images[rows[c]]).to(device, torch.float32) for c in range(self.num_classes)
        }
        self.test = preprocess.apply(real.test.images).to(torch.float32), torch.from_numpy(real.test.labels)

    def method(self, **asked: Any) -> Method:
        """A method with resolved settings."""
        shape = {"channels": self.channels, "height": self.height, "width": self.width}
        settings = resolve_settings(
            DistillSettings.model_validate(asked),
            device_kind="cuda" if self.device.type == "cuda" else "cpu",
            num_classes=self.num_classes,
            symbols=self.symbols,
            **shape,
        )
        made = find_method(settings.method)
        return made(settings, num_classes=self.num_classes, device=self.device, **shape)

    def accuracy(self, images: np.ndarray, *, seeds: int, epochs: int, network: str) -> list[float]:
        """Test accuracies in percent of networks trained on images [K, I, C, H, W] by the common protocol."""
        kind = "cuda" if self.device.type == "cuda" else "cpu"
        settings = resolve_evaluation(EvaluateSettings(epochs=epochs), device_kind=kind, symbols=self.symbols)
        judged = evaluate(
            torch.from_numpy(images).flatten(0, 1),
            torch.arange(self.num_classes).repeat_interleave(images.shape[1]),
            test_images=self.test[0],
            test_labels=self.test[1],
            network=network,
            num_classes=self.num_classes,
            seeds=range(seeds),
            settings=settings,
            device=self.device,
            threads=1,
            compile="off",
        )
        return [round(accuracy, 2) for accuracy in judged.accuracies]


def digest(state: State) -> str:
    """Of all arrays."""
    sha = hashlib.sha256()
    for name in sorted(state.arrays):
        sha.update(np.ascontiguousarray(state.arrays[name]).tobytes())
    return sha.hexdigest()[:16]


def advanced(
    method: Method, state: State, until: int, *, unit: Unit, real: Mapping[int, Tensor], prepared: Prepared
) -> tuple[State, float]:
    """The state at iteration `until`, and the wall time of the way there."""
    if method.device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    state = method.advance(state, until, unit=unit, real=real, prepared=prepared)
    return state, time.perf_counter() - begun


def check(problem: Problem, name: str, asked: Mapping[str, Any], network: str) -> dict[str, Any]:
    """Two runs of a method in two ways to the same iteration: in one call, and cut into two."""
    kind, iterations = name.partition(",")[0], 4
    known = {"network": network, "compile": "off"} if kind in ("atom", "dm") else {"network": network}
    digests, unit = [], tuple(range(problem.num_classes))
    real = {c: images[:CHECKED_ON] for c, images in problem.real.items()}
    for cuts in ((iterations,), (1, iterations)):
        method = problem.method(method=kind, iterations=iterations, **known, **asked)
        prepared = method.prepare_all(real)
        units = method.units(method.settings, unit)[:1]
        state = method.start(units[0], real, prepared=prepared)
        for until in cuts:
            state, took_s = advanced(method, state, until, unit=units[0], real=real, prepared=prepared)
        digests.append(digest(state))
    return {
        "method": name,
        "settings": dict(asked),
        "classes": len(units[0]),
        "equal": digests[0] == digests[1],
        "sha256": digests[0],
        "ms": round(1000 * took_s / (iterations - 1), 1),
        "losses": [float(np.nanmean(row)) for row in state.losses],
    }


def train_mtt(
    problem: Problem, arguments: argparse.Namespace, write: Callable[[dict[str, Any]], None]
) -> None:
    """By the published settings until the time is over; networks are trained at every mark."""
    end_s = time.monotonic() + arguments.limit_s
    method = problem.method(
        **PUBLISHED, network=arguments.network, num_experts=arguments.experts, iterations=5000
    )
    begun = time.monotonic()
    prepared = method.prepare_all(problem.real)
    write({"method": "mtt", "experts": arguments.experts, "experts_s": round(time.monotonic() - begun, 1)})
    unit = tuple(range(problem.num_classes))
    state, spent_s, mark = method.start(unit, problem.real, prepared=prepared), 0.0, 0
    while True:
        over = time.monotonic() >= end_s or state.iteration >= 5000
        if over or state.iteration >= mark:
            mark += arguments.mark
            found = problem.accuracy(
                state.images, seeds=3, epochs=arguments.epochs, network=arguments.network
            )
            write(
                {
                    "method": "mtt",
                    "iteration": state.iteration,
                    "distill_s": round(spent_s, 1),
                    "accuracies": found,
                    "loss": float(np.nanmean(state.losses[-50:]))
                    if np.isfinite(state.losses[-50:]).any()
                    else None,
                    "lr_student": float(np.exp(state.arrays["log_rate"])),
                }
            )
        if over:
            return
        until = min(state.iteration + 10, mark)
        state, took_s = advanced(method, state, until, unit=unit, real=problem.real, prepared=prepared)
        spent_s += took_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--network", default="convnet")
    parser.add_argument("--per-class", type=int, help="training images of a class; default all")
    parser.add_argument("--experts", type=int, default=20, help="of mtt; published: 100")
    parser.add_argument("--limit-s", type=float, default=300.0, help="for mtt, experts included")
    parser.add_argument("--mark", type=int, default=1000, help="iterations between trainings on the images")
    parser.add_argument("--epochs", type=int, default=300, help="of these trainings")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    def write(line: dict[str, Any]) -> None:
        with arguments.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    device = resolve_device(arguments.device)
    write(
        {
            "hardware": describe_hardware(),
            "torch": torch.__version__,
            "arguments": {**vars(arguments), "out": ""},
        }
    )
    problem = Problem(arguments.dataset, device, per_class=arguments.per_class)
    for name, asked in CHECKED.items():
        try:
            write(check(problem, name, asked, arguments.network))
        except Exception as error:  # one method must not take the others' time on a lent machine with it
            write({"method": name, "error": f"{type(error).__name__}: {error}"})
    if arguments.limit_s > 0:
        train_mtt(problem, arguments, write)


if __name__ == "__main__":
    main()
