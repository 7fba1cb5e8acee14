"""Ways to hold the scale of distilled images, side by side on a validation part of the training images.

python benchmarks/hold_scale.py --dataset digits --ipc 1 --factor 1 --out lines.jsonl

Networks with InstanceNorm cannot see how large the numbers of an image are, so nothing in the objective holds them.
Each way distils with the project's own loop, one iteration a call, and acts between iterations or at the end; the
ways that lost live here alone. Networks with InstanceNorm, with BatchNorm and without norm are trained on each
result, and tested on validation images, never on test images. A JSON line a way and seed, as they come.
"""

# G classes, I images a class, C channels, H height, W width

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atom.coreset import select_per_class
from atom.data import load
from atom.device import describe_hardware, resolve_device
from atom.embedding import embed
from atom.errors import ConfigError, NotFiniteError
from atom.evaluate import evaluate
from atom.formation import decode, label_decoded
from atom.methods.matching_loop import Atom
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.resolve import resolve_evaluation, resolve_settings
from atom.scale import to_real_scale
from atom.settings import EvaluateSettings
from atom.streams import stream

CONTEXT = 256
"""Real images of all classes whose statistics a frozen BatchNorm takes."""

# Images [G, I, C, H, W] after an iteration and before it, and what is known of the scale, to other images.
Act = Callable[[np.ndarray, np.ndarray, "Scale"], np.ndarray]


@dataclass(frozen=True)
class Scale:
    """What is known of the scale: images at the start, real images by class, all in preprocessed space."""

    start: np.ndarray
    start_GI: np.ndarray
    real_G: np.ndarray
    mean_GC: np.ndarray
    deviation_G: np.ndarray
    loud_G2: np.ndarray
    real: list[Tensor]
    factor: int
    box: tuple[float, float]


@dataclass(frozen=True)
class Way:
    """Networks that take turns over the iterations, what happens after each, and the step size."""

    networks: Sequence[str] = ("instance",)
    after: Act | None = None
    lr: float = 1.0
    falls: bool = False


def rms(images: np.ndarray) -> np.ndarray:
    """[G, I], root mean square of each image."""
    return np.sqrt((images.astype(np.float64) ** 2).mean(axis=(2, 3, 4)))


def times(images: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Images times a number each."""
    return (images * np.broadcast_to(factors, images.shape[:2])[..., None, None, None]).astype(np.float32)


def tiles(images: np.ndarray, factor: int) -> np.ndarray:
    """[G, I, C, H, factor**2 * W]: the decoded images of each stored one, side by side."""
    flat = decode(torch.from_numpy(images.reshape(-1, *images.shape[2:]).copy()), factor).numpy()
    return np.concatenate(
        list(np.moveaxis(flat.reshape(*images.shape[:2], factor**2, *images.shape[2:]), 2, 0)), axis=-1
    )


def to_start(images: np.ndarray, _before: np.ndarray, scale: Scale) -> np.ndarray:
    return times(images, scale.start_GI / rms(images))


def into_range(images: np.ndarray, _before: np.ndarray, scale: Scale) -> np.ndarray:
    own = rms(images)
    return times(images, np.clip(own, scale.start_GI / 1.5, scale.start_GI * 1.5) / own)


def penalty(images: np.ndarray, _before: np.ndarray, scale: Scale) -> np.ndarray:
    """The gradient step of 1/2 (r / r0 - 1)**2 along the image, weight 0.1, apart from the momentum."""
    ratio = rms(images) / scale.start_GI
    return times(images, 1 - np.minimum(0.1 * (ratio - 1) / ratio, 0.5))


def small_steps(images: np.ndarray, before: np.ndarray, scale: Scale) -> np.ndarray:
    """No step longer than two hundredths of the image it started from."""
    step = images - before
    return before + times(step, np.minimum(1.0, 0.02 * scale.start_GI / np.maximum(rms(step), 1e-12)))


def small_steps_on_sphere(images: np.ndarray, before: np.ndarray, scale: Scale) -> np.ndarray:
    return to_start(small_steps(images, before, scale), before, scale)


def into_box(images: np.ndarray, _before: np.ndarray, scale: Scale) -> np.ndarray:
    return images.clip(*scale.box)


LOOPS: dict[str, Way] = {
    "free": Way(),
    "free-lr0.1": Way(lr=0.1),
    "project-start": Way(after=to_start),
    "project-start-lr0.1": Way(after=to_start, lr=0.1),
    "project-start-lr0.01": Way(after=to_start, lr=0.01),
    "project-start-falling": Way(after=to_start, falls=True),
    "project-range": Way(after=into_range),
    "penalty": Way(after=penalty),
    "clip-update": Way(after=small_steps),
    "clip-update-project-start": Way(after=small_steps_on_sphere),
    "clip-values": Way(after=into_box),
    "group": Way(networks=("group",)),
    # At 1.0 nothing normalises what a step does to the embedding, and the images diverge.
    "frozen-batch-lr0.1": Way(networks=("frozen",), lr=0.1),
    "mixed-1:1-lr0.1": Way(networks=("instance", "frozen"), lr=0.1),
    "mixed-3:1-lr0.1": Way(networks=("instance", "instance", "instance", "frozen"), lr=0.1),
}


def centred(images: np.ndarray, mean: np.ndarray, deviation: np.ndarray, factor: int) -> np.ndarray:
    """Each channel's mean as given, and deviations from it whose root mean square, decoded, is as given."""
    around = images - images.mean(axis=(3, 4), keepdims=True)
    return (mean + times(around, deviation / rms(tiles(around, factor)))).astype(np.float32)


def publish(images: np.ndarray, scale: Scale) -> dict[str, np.ndarray]:
    """The finished images, rescaled in every way that needs no other optimisation."""
    own, whole = rms(images), float(np.sqrt((images.astype(np.float64) ** 2).mean()))
    real = float(np.sqrt((scale.real_G**2).mean()))
    of_class = np.sqrt((own**2).mean(axis=1, keepdims=True))
    mean0 = scale.start.mean(axis=(3, 4), keepdims=True)
    around0 = tiles(scale.start - mean0, scale.factor)
    made = {
        "set": times(images, np.full(images.shape[:2], real / whole)),
        "class": times(images, scale.real_G[:, None] / of_class),
        "image": times(images, scale.real_G[:, None] / own),
        "image-start": times(images, scale.start_GI / own),
        "image-start-centred": centred(images, mean0, rms(around0), scale.factor),
        "image-centred": centred(
            images, scale.mean_GC[:, None, :, None, None], scale.deviation_G[:, None], scale.factor
        ),
    }
    seen = rms(tiles(images, scale.factor))
    of_class = np.sqrt((seen**2).mean(axis=1, keepdims=True))
    made["class-decoded"] = times(images, scale.real_G[:, None] / of_class)
    made["image-decoded"] = times(images, scale.real_G[:, None] / seen)
    for name, column in (("loud", 0), ("loudest", 1)):
        made[f"at-most-{name}-decoded"] = times(images, np.minimum(1, scale.loud_G2[:, column, None] / seen))
    made["to_real_scale"] = np.stack(
        [
            to_real_scale(torch.from_numpy(own), real, factor=scale.factor).numpy()
            for own, real in zip(images, scale.real, strict=True)
        ]
    )
    return made


class FrozenBatchDistiller(Atom):
    """BatchNorm with the statistics of a batch of real images of all classes: classes stay independent."""

    context_NCHW: Tensor
    steps = 0

    def __init__(self, settings: DistillSettings, *, device: torch.device, **shape: int) -> None:
        super().__init__(settings, device=device, **shape)
        self.net.eval()
        self.net.mixes_batch = False

    def _targets(self, *arguments: Any) -> list[Tensor]:
        norms = [m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.train()
            norm.momentum = None
        self.steps += 1
        rng = stream(self.settings.seed, "benchmark/context", self.steps)
        rows = torch.from_numpy(rng.choice(len(self.context_NCHW), CONTEXT, replace=False))
        with torch.no_grad():
            self.net.blocks(self.context_NCHW[rows.to(self.context_NCHW.device)])
        for norm in norms:
            norm.eval()
        return super()._targets(*arguments)


@dataclass(frozen=True, eq=False)
class Problem:
    """One data set, ready."""

    white_NCHW: Tensor
    labels_N: np.ndarray
    held: tuple[Tensor, np.ndarray]
    preprocess: Preprocess
    symbols: bool
    device: torch.device

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.labels_N.max()) + 1

    @property
    def shape(self) -> dict[str, int]:
        """As `Atom` takes it."""
        channels, height, width = self.white_NCHW.shape[1:]
        return {"channels": channels, "height": height, "width": width, "num_classes": self.num_classes}

    def of(self, class_id: int) -> Tensor:
        """The training images of a class."""
        return self.white_NCHW[torch.from_numpy(self.labels_N == class_id)]


def prepare(arguments: argparse.Namespace) -> Problem:
    real = load(arguments.dataset, data_dir=Path("data"), allow_download=False)
    real = real.hold_out(arguments.validation_frac, train_per_class=arguments.train_per_class)
    assert real.validation is not None
    preprocess = Preprocess.fit(real.train.images, zca=real.train.images.shape[1] == 3)
    held = preprocess.apply(real.validation.images), real.validation.labels
    white = preprocess.apply(real.train.images)
    return Problem(white, real.train.labels, held, preprocess, real.symbols, resolve_device(arguments.device))


MADE: dict[Any, Atom] = {}


def distiller(kind: str, settings: DistillSettings, problem: Problem, lr: float) -> Atom:
    """One for each kind of network, kept between ways: compiling takes longer than distilling."""
    norm = "batch" if kind == "frozen" else kind
    chosen = settings.model_copy(update={"network": f"{settings.network}-{norm}"})
    key = (kind, chosen.model_dump_json(), *problem.shape.values())
    if key not in MADE:
        make = FrozenBatchDistiller if kind == "frozen" else Atom
        MADE[key] = make(chosen, device=problem.device, **problem.shape)
    made = MADE[key]
    made.settings = chosen.model_copy(update={"lr_img": lr})
    if isinstance(made, FrozenBatchDistiller):
        made.context_NCHW, made.steps = problem.white_NCHW.to(problem.device), 0
    return made


def distil(way: Way, settings: DistillSettings, problem: Problem) -> tuple[np.ndarray, Scale]:
    """Images [G, I, C, H, W] of all classes, and the scale they had."""
    group = tuple(range(problem.num_classes))
    real = {c: problem.of(c).to(problem.device) for c in group}
    kinds = {kind: distiller(kind, settings, problem, way.lr) for kind in dict.fromkeys(way.networks)}
    state = kinds[way.networks[0]].start(group, real)
    scale = measure(state.images, problem, settings.factor)
    assert settings.iterations is not None
    iterations = settings.iterations - 1
    if way.after is None and len(kinds) == 1 and not way.falls:
        made = kinds[way.networks[0]]
        return made.advance(state, iterations, unit=group, real=real).images, scale
    for iteration in range(iterations):
        before, made = state.images, kinds[way.networks[iteration % len(way.networks)]]
        if way.falls:
            lr = way.lr * 0.5 * (1 + np.cos(np.pi * iteration / iterations))
            made.settings = made.settings.model_copy(update={"lr_img": float(lr)})
        state = made.advance(state, iteration + 1, unit=group, real=real)
        if way.after is not None:
            state = replace(state, images=np.ascontiguousarray(way.after(state.images, before, scale)))
    return state.images, scale


def measure(start: np.ndarray, problem: Problem, factor: int) -> Scale:
    classes = [problem.of(c).double() for c in range(problem.num_classes)]
    some = problem.white_NCHW.flatten()[:: max(1, problem.white_NCHW.numel() // 10**6)]
    low, high = torch.quantile(some, torch.tensor([0.0005, 0.9995])).tolist()
    return Scale(
        start,
        rms(start),
        real_G=np.array([float(x.square().mean().sqrt()) for x in classes]),
        mean_GC=np.stack([x.mean((0, 2, 3)).numpy() for x in classes]),
        deviation_G=np.array(
            [float((x - x.mean((2, 3), keepdim=True)).square().mean().sqrt()) for x in classes]
        ),
        loud_G2=np.array(
            [np.quantile(x.square().mean((1, 2, 3)).sqrt().numpy(), [0.95, 1.0]) for x in classes]
        ),
        real=classes,
        factor=factor,
        box=(low, high),
    )


def judge(stored: np.ndarray, problem: Problem, arguments: argparse.Namespace, factor: int) -> dict[str, Any]:
    """Accuracies by network, and what the images look like."""
    images_NCHW = torch.from_numpy(stored.reshape(-1, *stored.shape[2:]))
    labels = torch.arange(problem.num_classes).repeat_interleave(len(images_NCHW) // problem.num_classes)
    training, labels = decode(images_NCHW, factor), label_decoded(labels, factor)
    pixels = problem.preprocess.invert(training)
    row: dict[str, Any] = {
        "std": round(float(training.std()), 3),
        "outside_frac": round(float(((pixels < 0) | (pixels > 1)).float().mean()), 3),
    }
    for name in arguments.eval_networks:
        # At the scale of real images no network without norm gets going in 300 steps, whatever it is trained on.
        epochs = arguments.epochs * (3 if name.endswith("nonorm") else 1)
        settings = resolve_evaluation(
            EvaluateSettings(epochs=epochs), device_kind=problem.device.type, symbols=problem.symbols
        )
        try:
            result = evaluate(
                training,
                labels,
                test_images=problem.held[0],
                test_labels=problem.held[1],
                network=name,
                num_classes=problem.num_classes,
                seeds=range(arguments.trainings),
                settings=settings,
                device=problem.device,
                threads=arguments.threads,
            )
        except NotFiniteError as error:
            print(error, flush=True)
            row[name] = []
        else:
            row[name] = [round(a, 2) for a in result.accuracies]
    return row


def coreset(method: str, problem: Problem, ipc: int, seed: int, network: str) -> np.ndarray:
    """Real images [G, I, C, H, W]."""
    features = np.zeros((len(problem.labels_N), 1), dtype=np.float32)
    if method != "random":
        embedded = embed(
            problem.white_NCHW, network, num_classes=problem.num_classes, seed=seed, device=problem.device
        )
        features = embedded.numpy()
    rows = select_per_class(
        method, features, problem.labels_N, ipc=ipc, num_classes=problem.num_classes, seed=seed
    )
    images = problem.white_NCHW[torch.from_numpy(rows)]
    return images.reshape(problem.num_classes, ipc, *images.shape[1:]).numpy()


def run(
    arguments: argparse.Namespace, problem: Problem, network: str, ipc: int, factor: int, seed: int
) -> None:
    """All ways of one number of images and one factor."""
    place = {"dataset": arguments.dataset.rpartition("/")[2], "ipc": ipc, "factor": factor, "seed": seed}

    def note(way: str, **row: Any) -> None:
        line = {**place, "way": way, **row, "hardware": describe_hardware()}
        with arguments.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({**place, "way": way, **row}), flush=True)

    if factor == 1:
        for name in ("random", "herding"):
            note(name, **judge(coreset(name, problem, ipc, seed, network), problem, arguments, 1))
    asked = DistillSettings(
        ipc=ipc,
        factor=factor,
        # One more than are done: the last iteration would put the images to the scale of real ones.
        iterations=arguments.iterations + 1,
        seed=seed,
        batch_real=arguments.batch_real,
        network=network,
        zca="off",
        threads_per_actor=arguments.threads,
        classes_per_group=problem.num_classes,
    )
    settings = resolve_settings(
        asked, device_kind=problem.device.type, symbols=problem.symbols, **problem.shape
    )
    for name in arguments.ways:
        began = time.monotonic()
        try:
            images, scale = distil(LOOPS[name], settings, problem)
        except ConfigError as error:
            note(name, diverged=str(error))
            continue
        seconds, made = round(time.monotonic() - began, 1), publish(images, scale)
        if name != "free":
            made = {"to_real_scale": made["to_real_scale"]} if LOOPS[name].after is None else {}
        elif arguments.published:
            made = {kind: made[kind] for kind in arguments.published}
        note(name, distil_s=seconds, **judge(images, problem, arguments, factor))
        for kind, rescaled in made.items():
            note(f"{name}, published by {kind}", **judge(rescaled, problem, arguments, factor))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--ipc", type=int, nargs="+", default=[1])
    parser.add_argument("--factor", type=int, nargs="+", default=[1])
    parser.add_argument("--width", type=int, default=32, help="of the ConvNets that distil and judge")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--batch-real", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--trainings", type=int, default=2, help="of each network on each set")
    parser.add_argument("--seeds", type=int, default=1, help="syntheses of each way")
    parser.add_argument("--validation-frac", type=float, default=0.2)
    parser.add_argument("--train-per-class", type=int, default=None)
    parser.add_argument("--ways", nargs="+", default=list(LOOPS), choices=list(LOOPS))
    parser.add_argument("--published", nargs="+", default=[], help="of `free`; default every kind")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    network = f"convnet-w{arguments.width}"
    arguments.eval_networks = [network, f"{network}-batch", f"{network}-nonorm"]
    torch.set_num_threads(arguments.threads)
    problem = prepare(arguments)
    for ipc in arguments.ipc:
        for factor in arguments.factor:
            for seed in range(arguments.seeds):
                run(arguments, problem, network, ipc, factor, seed)


if __name__ == "__main__":
    main()
