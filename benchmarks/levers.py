"""What each choice is worth alone: sets distilled with one lever moved, judged on training images put aside.

    python benchmarks/levers.py --dataset parquet:DIR --ipc 1 10 --network convnet-w32 --out FILE.jsonl

A lever is a line of `LEVERS`, or `--lever "name: --factor 2 --lr-schedule cosine"`: flags of atom-distill and of the
evaluation. Every set is one synthesis of a seed, trained on by a ConvNet with InstanceNorm and one with BatchNorm. With
--part test the test images judge, once, what was chosen. In one process, on one thread; lines that FILE has are not
computed again, so that two processes share the work by --share 0/2 and 1/2.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from atom import data, nets
from atom.device import describe_hardware
from atom.errors import ConfigError
from atom.evaluate import evaluate
from atom.formation import decode, label_decoded
from atom.methods.lookup import find_method
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.resolve import resolve_evaluation, resolve_settings
from atom.settings import EvaluateSettings

LEVERS = {
    "random images": "--method random",
    "herding images": "--method herding",
    "atom": "",
    "step size 0.2": "--lr-img 0.2",
    "falling step size": "--lr-schedule cosine",
    "less momentum": "--momentum-img 0",
    "fewer real images": "--batch-real 16",
    "start from herding": "--init herding",
    "p 1": "--power 1",
    "p 2": "--power 2",
    "lambda x 10": "--task-balance 0.1",
    "lambda x 100, step size 0.2": "--task-balance 1 --lr-img 0.2",
    "lambda / 10": "--task-balance 0.001",
    "spatial alone": "--method spatial",
    "channel alone": "--method channel",
    "means alone": "--method dm",
    "BatchNorm distils": "--network {network}-batch",
    "trained features": "--trained-networks 5 --training-passes 20",
    "and calibration": "--trained-networks 5 --training-passes 20 --calibration 1",
    "characteristic function": "--method dm --task-balance 0 --cf-weight 300",
    "covariance, factor 2": "--factor 2 --covariance-weight 50",
    "factor 2": "--factor 2",
    "factor 3": "--factor 3",
    "factor 2, falling": "--factor 2 --lr-schedule cosine",
    "factor 2, trained, calibrated": "--factor 2 --trained-networks 5 --training-passes 20 --calibration 1",
    "no whitening": "--zca off",
    "weaker whitening": "--zca-eps 1.6",
    "mean of the images": "--method {here}:Averaged",
    "batches by cluster": "--method {here}:Clustered",
    "BatchNorm frozen": "--method {here}:FrozenBatchNorm",
    "both norms": "--method {here}:Mixed",
    "depths 2 to 4": "--method {here}:MixedDepths",
    "trained on by IDC's rules": "--protocol idc --batch-train 256 --epochs {epochs}",
}


class Problem:
    """Real images, preprocessed once, and what sets of them are judged on."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        real = data.load(asked.dataset, data_dir=Path("data"))
        self.real = real.hold_out(asked.validation_frac, train_per_class=asked.train_per_class)
        channels, height, width = self.real.train.images.shape[1:]
        self.num_classes = self.real.train.num_classes
        self.shape = {"channels": channels, "height": height, "width": width}
        self.shape["num_classes"] = self.num_classes
        self.whitened: tuple[str, float] | None = None
        self.prepared: dict[str, Any] = {}

    def preprocess(self, settings: DistillSettings) -> None:
        """Bring the images where the settings want them, unless they are there."""
        if self.whitened == (settings.zca, settings.zca_eps):
            return
        self.whitened = settings.zca, settings.zca_eps
        self.prepared.clear()
        preprocess = Preprocess.fit(
            self.real.train.images, zca=settings.zca == "on", zca_eps=settings.zca_eps
        )
        train_NCHW = preprocess.apply(self.real.train.images)
        self.of_class = {c: train_NCHW[self.real.train.indices_of(c)] for c in range(self.num_classes)}
        judge = self.real.validation if self.asked.part == "validation" else self.real.test
        assert judge is not None
        self.judge = preprocess.apply(judge.images), torch.from_numpy(judge.labels)

    def settings(self, values: dict[str, Any]) -> DistillSettings:
        """Resolved, of the values by name and the defaults."""
        return resolve_settings(
            DistillSettings.model_validate({"network": self.asked.network, **values}),
            device_kind="cpu",
            symbols=self.real.symbols,
            **self.shape,
        )

    def images(self, settings: DistillSettings) -> torch.Tensor:
        """Stored images [K * I, C, H, W] of one synthesis."""
        kind = find_method(settings.method)
        made, found = kind(settings, device=torch.device("cpu"), **self.shape), {}
        key = f"{kind.preparations(settings)} {settings.seed}"
        if key not in self.prepared:
            self.prepared[key] = made.prepare_all(self.of_class)
        prepared = self.prepared[key]
        for unit in kind.units(settings, range(self.num_classes)):
            real = {c: self.of_class[c] for c in unit}
            state = made.start(unit, real, prepared=prepared)
            state = made.advance(state, settings.iterations or 0, unit=unit, real=real, prepared=prepared)
            if state.failures:
                raise ConfigError("; ".join(state.failures.values()))
            part = kind.result(settings, unit, state)
            found |= {c: part.images[row] for row, c in enumerate(unit)}
        return torch.from_numpy(np.concatenate([found[c] for c in sorted(found)]))

    def accuracies(
        self, stored_NCHW: torch.Tensor, settings: DistillSettings, network: str, judging: EvaluateSettings
    ) -> list[float]:
        """Of networks trained on the set, in percent."""
        labels = torch.arange(self.num_classes).repeat_interleave(settings.ipc)
        tested = evaluate(
            decode(stored_NCHW, settings.factor),
            label_decoded(labels, settings.factor),
            test_images=self.judge[0],
            test_labels=self.judge[1],
            network=network,
            num_classes=self.num_classes,
            seeds=range(self.asked.trainings),
            settings=resolve_evaluation(judging, device_kind="cpu", symbols=self.real.symbols),
            device=torch.device("cpu"),
            threads=1,
        )
        return list(tested.accuracies)


def values_of(flags: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the distillation and of the evaluation, by name, of flags as a shell has them."""
    words = shlex.split(flags)
    pairs = {n[2:].replace("-", "_"): v for n, v in zip(words[::2], words[1::2], strict=True)}
    judging = {name: pairs.pop(name) for name in list(pairs) if name in EvaluateSettings.model_fields}
    return pairs, judging


def conditions(asked: argparse.Namespace) -> dict[str, Any]:
    """What lines of one table have to have in common."""
    names = (
        "part",
        "network",
        "judges",
        "iterations",
        "batch_real",
        "epochs",
        "trainings",
        "train_per_class",
    )
    return {"dataset": asked.dataset.rpartition("/")[2], **{name: getattr(asked, name) for name in names}}


def lines_of(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """All that the file has."""
    return [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []


def measure(problem: Problem, name: str, ipc: int, seed: int) -> dict[str, Any]:
    """One line: one synthesis, and the trainings on it."""
    asked = problem.asked
    words = {"network": asked.network, "epochs": asked.epochs, "here": "benchmarks/lever_methods.py"}
    flags = asked.levers[name].format(**words)
    values, judging = values_of(flags)
    common = {"ipc": ipc, "seed": seed, "iterations": asked.iterations, "batch_real": asked.batch_real}
    unread = find_method(values.get("method", "atom")).unread
    settings = problem.settings({n: v for n, v in (common | values).items() if n not in unread})
    problem.preprocess(settings)
    begun = time.perf_counter()
    line = {"lever": name, "flags": flags, "ipc": ipc, "seed": seed, "of": conditions(asked)}
    try:
        stored_NCHW = problem.images(settings)
    except ConfigError as error:
        return line | {"failed": str(error)}
    line["distil_s"] = round(time.perf_counter() - begun)
    line["std"] = round(float(stored_NCHW.std()), 3)
    told = EvaluateSettings.model_validate({"epochs": asked.epochs} | judging)
    for network in asked.judges or (asked.network, nets.with_batch_norm(asked.network)):
        line[network] = [round(a, 2) for a in problem.accuracies(stored_NCHW, settings, network, told)]
    return line


def summary(lines: list[dict[str, Any]]) -> str:
    """A table by lever: mean ± standard deviation over syntheses and trainings; without those that failed."""
    lines = [line for line in lines if "failed" not in line]
    known = dict.fromkeys((line["lever"], line["ipc"]) for line in lines)
    rows = []
    for lever, ipc in known:
        own = [line for line in lines if (line["lever"], line["ipc"]) == (lever, ipc)]
        cells = [lever, f"ipc {ipc}", f"n {len(own)}", f"{fmean(line['distil_s'] for line in own):.0f} s"]
        for network in [name for name, value in own[0].items() if isinstance(value, list)]:
            found = [accuracy for line in own for accuracy in line[network]]
            spread = f" ± {stdev(found):.1f}" if len(found) > 1 else ""
            cells.append(f"{network} {fmean(found):.1f}{spread}")
        rows.append(" | ".join(cells))
    return "\n".join(rows)


def main() -> None:
    """Measure what is missing, and tell all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--train-per-class", type=int, default=None)
    parser.add_argument("--validation-frac", type=float, default=0.1)
    parser.add_argument("--part", choices=["validation", "test"], default="validation")
    parser.add_argument("--network", default="convnet-w32")
    parser.add_argument("--judges", nargs="+", default=[], help="default --network, and with BatchNorm")
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--syntheses", type=int, default=2)
    parser.add_argument("--trainings", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--batch-real", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--levers", nargs="+", default=[*LEVERS], help="names of LEVERS")
    parser.add_argument("--lever", action="append", default=[], help='another one, "name: flags"')
    parser.add_argument("--share", default="0/1")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    own = dict(text.split(": ", 1) if ": " in text else (text.rstrip(":"), "") for text in asked.lever)
    asked.levers = own if own else {name: LEVERS[name] for name in asked.levers}
    own_share, shares = map(int, asked.share.split("/"))
    work = [(n, i, s) for s in range(asked.syntheses) for i in asked.ipc for n in asked.levers]
    problem = None
    for number, (name, ipc, seed) in enumerate(work):
        known = [(x["lever"], x["ipc"], x["seed"]) for x in lines_of(asked) if x["of"] == conditions(asked)]
        if number % shares != own_share or (name, ipc, seed) in known:
            continue
        problem = problem or Problem(asked)
        line = measure(problem, name, ipc, seed)
        line |= {"hardware": describe_hardware(), "command": shlex.join(sys.argv)}
        with asked.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    print(summary([line for line in lines_of(asked) if line["of"] == conditions(asked)]))


if __name__ == "__main__":
    main()
