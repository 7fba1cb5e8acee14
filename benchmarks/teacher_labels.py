"""What a teacher's labels are worth for random, herding, k-center and distilled images; the epoch chosen honestly.

python benchmarks/teacher_labels.py --dataset digits --ipc 1 --out FILE

One teacher is trained on the real training images, less a validation part, and kept after every epoch. For random real
images, each epoch's labels are judged on the validation images; the best one labels all sets, which are then judged on
the test images, with hard labels and with the teacher's. In one process, on one thread.
"""

# K classes, I stored images per class, N images, C channels, H height, W width

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from atom import data
from atom.device import describe_hardware
from atom.evaluate import evaluate
from atom.methods.experts import train
from atom.methods.lookup import find_method
from atom.methods.settings import DistillSettings
from atom.methods.teacher_settings import TeacherSettings
from atom.methods.teachers import soft_labels, teachers
from atom.preprocess import Preprocess
from atom.resolve import resolve_evaluation, resolve_settings
from atom.settings import EvaluateSettings

CPU = torch.device("cpu")


class Problem:
    """Real images, preprocessed, and how networks are trained on small sets."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        real = data.load(asked.dataset, data_dir=Path("data"))
        self.real = real.hold_out(asked.validation_frac, train_per_class=asked.train_per_class)
        channels, height, width = self.real.train.images.shape[1:]
        self.shape = {
            "channels": channels,
            "height": height,
            "width": width,
            "num_classes": self.real.train.num_classes,
        }
        self.settings = self.resolved("atom", seed=0)
        preprocess = Preprocess.fit(
            self.real.train.images, zca=self.settings.zca == "on", zca_eps=self.settings.zca_eps
        )
        train_NCHW = preprocess.apply(self.real.train.images)
        self.of_class = {
            c: train_NCHW[self.real.train.indices_of(c)] for c in range(self.shape["num_classes"])
        }
        assert self.real.validation is not None
        self.parts = {
            name: (preprocess.apply(part.images), torch.from_numpy(part.labels))
            for name, part in (("validation", self.real.validation), ("test", self.real.test))
        }
        self.evaluation = resolve_evaluation(
            EvaluateSettings(epochs=asked.epochs), device_kind="cpu", symbols=self.real.symbols
        )

    def resolved(self, method: str, *, seed: int) -> DistillSettings:
        """Settings of a method; seeds draw random images anew."""
        values: dict[str, Any] = {"method": method, "ipc": self.asked.ipc, "seed": seed}
        values["network"] = self.asked.network
        if method == "atom":
            values |= {"iterations": self.asked.iterations, "batch_real": 64}
        return resolve_settings(
            DistillSettings.model_validate(values), device_kind="cpu", symbols=self.real.symbols, **self.shape
        )

    def images(self, method: str, *, seed: int) -> torch.Tensor:
        """Stored images [K * I, C, H, W] of a method."""
        settings, kind = self.resolved(method, seed=seed), find_method(method)
        made, found = kind(settings, device=CPU, **self.shape), {}
        for unit in kind.units(settings, range(self.shape["num_classes"])):
            real = {c: self.of_class[c] for c in unit}
            state = made.start(unit, real)
            state = made.advance(state, settings.iterations or 0, unit=unit, real=real)
            part = kind.result(settings, unit, state)
            found |= {c: part.images[row] for row, c in enumerate(unit)}
        return torch.from_numpy(np.concatenate([found[c] for c in sorted(found)]))

    def accuracies(
        self, images_NCHW: torch.Tensor, targets: torch.Tensor, part: str, seeds: Sequence[int]
    ) -> list[float]:
        """Of networks of these seeds, trained on the images and tested on a part, in percent."""
        tested = evaluate(
            images_NCHW,
            targets,
            test_images=self.parts[part][0],
            test_labels=self.parts[part][1],
            network=self.asked.network,
            num_classes=self.shape["num_classes"],
            seeds=list(seeds),
            settings=self.evaluation,
            device=CPU,
            threads=1,
            compile="off",
        )
        return list(tested.accuracies)


def spread(accuracies: Sequence[float]) -> str:
    """Mean and standard deviation."""
    several = f" ± {stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    return f"{fmean(accuracies):.1f}{several}"


def lines(problem: Problem) -> Iterator[dict[str, Any]]:
    """A line an epoch that was tried, then one a set and kind of labels, as they come."""
    asked, seeds = problem.asked, range(problem.asked.trainings)
    num_classes = problem.shape["num_classes"]
    begun = time.perf_counter()
    (teacher,) = teachers(
        TeacherSettings(
            teacher_epoch=max(asked.teacher_epochs),
            lr_teacher=asked.lr_teacher,
            batch_teacher=asked.batch_teacher,
        ),
        problem.settings,
    )
    if asked.teacher is not None and asked.teacher.exists():
        weights_EP = np.load(asked.teacher)
    else:
        weights_EP = train(teacher, problem.of_class, num_classes=num_classes, device=CPU)["epochs"]
        if asked.teacher is not None:
            np.save(asked.teacher, weights_EP)
    yield {"what": "teacher", "seconds": round(time.perf_counter() - begun, 1), **vars(teacher.recipe)}

    def said(images_NCHW: torch.Tensor, epoch: int) -> torch.Tensor:
        known = {
            "network": asked.network,
            "num_classes": num_classes,
            "factor": 1,
            "device": CPU,
            "threads": 1,
        }
        return soft_labels(images_NCHW, [weights_EP[epoch]], **known)

    # A draw a training, as in every table of random images.
    draws = [problem.images("random", seed=seed) for seed in seeds]
    hard = torch.arange(num_classes).repeat_interleave(asked.ipc)
    chosen, best = 0, 0.0
    for epoch in asked.teacher_epochs:
        answers = [said(problem.parts["validation"][0], epoch).argmax(1)]
        right = float((answers[0] == problem.parts["validation"][1]).float().mean()) * 100
        found = [
            problem.accuracies(images, said(images, epoch), "validation", [seed])[0]
            for seed, images in zip(seeds, draws, strict=True)
        ]
        if fmean(found) > best:
            chosen, best = epoch, fmean(found)
        yield {"what": "epoch", "epoch": epoch, "teacher": round(right, 1), "validation": spread(found)}
    yield {"what": "chosen", "epoch": chosen}
    for method in asked.methods:
        begun = time.perf_counter()
        sets = draws if method == "random" else [problem.images(method, seed=0)] * len(seeds)
        made_s = time.perf_counter() - begun
        for labels in ("hard", "teacher"):
            begun = time.perf_counter()
            found = [
                problem.accuracies(
                    images, hard if labels == "hard" else said(images, chosen), "test", [seed]
                )[0]
                for seed, images in zip(seeds, sets, strict=True)
            ]
            yield {
                "what": "set",
                "method": method,
                "labels": labels,
                "test": spread(found),
                "n": len(found),
                "made_s": round(made_s, 1),
                "judged_s": round(time.perf_counter() - begun, 1),
            }


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--train-per-class", type=int, default=None)
    parser.add_argument("--validation-frac", type=float, default=0.05)
    parser.add_argument("--network", default="convnet-w32-d3")
    parser.add_argument("--methods", nargs="+", default=["random", "herding", "kcenter", "atom"])
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--trainings", type=int, default=3)
    parser.add_argument("--teacher-epochs", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--lr-teacher", type=float, default=0.05)
    parser.add_argument("--batch-teacher", type=int, default=64)
    parser.add_argument(
        "--teacher", type=Path, default=None, help="file to keep the teacher in for other --ipc"
    )
    parser.add_argument("--out", type=Path, default=None)
    asked, found, begun = parser.parse_args(), [], time.perf_counter()
    for line in lines(Problem(asked)):
        print(json.dumps(line), flush=True)
        found.append(line)
    if asked.out is not None:
        facts = {"hardware": describe_hardware(), "wall_s": round(time.perf_counter() - begun)}
        command = f"python benchmarks/teacher_labels.py {shlex.join(sys.argv[1:])}"
        rows = ",\n  ".join(json.dumps(line) for line in found)
        asked.out.write_text(
            f'{{"command": {json.dumps(command)}, "facts": {json.dumps(facts)}, "lines": [\n  {rows}]}}\n'
        )


if __name__ == "__main__":
    main()
