"""Tiny problems for the tests of the distillation loop; run as a program, it rewrites the golden loss curve."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from atom.data import load
from atom.methods.lookup import find_method
from atom.methods.matching_loop import Matching
from atom.methods.method import State
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.settings import DEFAULT_DSA
from atom.streams import stream

GOLDEN = Path(__file__).parents[1] / "golden" / "loss_curve.json"
CPU = torch.device("cpu")
CHANNELS, HEIGHT, WIDTH = 2, 6, 4
SIZES = (9, 7, 12, 8)
"""Real images of each class."""


def there(leaf: Tensor, unit: Sequence[int], settings: DistillSettings, num_classes: int) -> list[Tensor]:
    """Of [G, I, ...] what belongs to images that there are, a row a class: image i has place i // K of class i % K."""
    number = settings.images_in_all or num_classes * settings.ipc
    return [
        torch.stack([own[i // num_classes] for i in range(class_id, number, num_classes)])
        for class_id, own in zip(unit, leaf, strict=True)
        if class_id < number
    ]


def make_settings(**values: object) -> DistillSettings:
    """Resolved settings of a problem that takes milliseconds a step."""
    small = {
        "iterations": 6,
        "lr_img": 0.1,
        "task_balance": 0.01,
        "batch_real": 5,
        "network": "convnet-w4-d2",
        "dsa_strategy": "none",
        "zca": "off",
        "classes_per_group": 5,
        "seed": 3,
        "precision": "float32",
        "compile": "off",
    }
    return DistillSettings.model_validate({**small, **values})


def make_distiller(settings: DistillSettings, *, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Matching:
    """A distiller for images of two channels, on the CPU."""
    height, width = size
    return find_method(settings.method)(
        settings, channels=CHANNELS, height=height, width=width, num_classes=len(SIZES), device=CPU
    )


def real_images(*, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[int, Tensor]:
    """Noise with a mean of its own for each class, float32."""
    return {
        c: torch.from_numpy(
            stream(0, "test/real", class_id=c).normal(0.3 * c, 1.0, (n, CHANNELS, *size))
        ).float()
        for c, n in enumerate(SIZES)
    }


def run(
    settings: DistillSettings,
    class_ids: Sequence[int],
    until: int,
    *,
    distiller: Matching | None = None,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> State:
    """The state of a group after `until` iterations from its start."""
    distiller = distiller or make_distiller(settings, size=size)
    real = real_images(size=size)
    return distiller.advance(distiller.start(class_ids, real), until, unit=class_ids, real=real)


def run_in_float64(settings: DistillSettings, class_ids: list[int], steps: int) -> tuple[State, State]:
    """Start and end of a group whose every number is float64."""
    distiller = make_distiller(settings)
    distiller.net.double()
    real = {c: images.double() for c, images in real_images().items()}
    start = distiller.start(class_ids, real)
    return start, distiller.advance(start, steps, unit=class_ids, real=real)


def digits_losses(iterations: int, **values: object) -> list[list[float]]:
    """Losses [iterations, classes] of three digits with all six augmentations."""
    train = load("digits", data_dir=Path("unused")).train
    white = Preprocess.fit(train.images, zca=False).apply(train.images)
    group = (0, 1, 2)
    real = {c: white[torch.from_numpy(train.labels == c)] for c in group}
    settings = DistillSettings.model_validate(
        {
            "iterations": iterations,
            "lr_img": 1.0,
            "task_balance": 0.01,
            "batch_real": 16,
            "network": "convnet-w8-d2",
            "dsa_strategy": DEFAULT_DSA,
            "zca": "off",
            "classes_per_group": 3,
            "precision": "float32",
            "compile": "off",
            **values,
        }
    )
    distiller = find_method(settings.method)(
        settings, channels=1, height=8, width=8, num_classes=10, device=CPU
    )
    state = distiller.advance(distiller.start(group, real), iterations, unit=group, real=real)
    return state.losses.tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    content = {
        "what": "loss of digits 0, 1, 2 before each of the first iterations, tests/atom/distill_samples.py",
        "command": "python tests/atom/distill_samples.py",
        "losses": digits_losses(4),
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(content, indent=2) + "\n")
    print(f"wrote {GOLDEN}")
