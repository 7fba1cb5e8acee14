"""A distillation of digits so small that a test can run it many times: twelve iterations of a narrow network."""

# G classes of a group, M stored images a class, C channels, H height, W width

import hashlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from atom import data
from atom.distilled import DistilledSet, describe_source
from atom.methods.method import State, Unit
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.resolve import resolve_settings
from pipelines.distillation import Distillation, distil_classes
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.store import Store
from pipelines.real_images import put_classes
from pipelines.workers.pool import Limits
from pipelines.workers.remote import Problem
from pipelines.workers.resources import ActorSize

ITERATIONS, CHUNK, NUM_CLASSES = 12, 4, 10
GROUPS: list[Unit] = [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
NETWORK = "convnet-w8-d2"


class HookedCheckpoints(Checkpoints):
    """Calls `hook` with the number of chunks stored so far, after each: a moment in the middle of the work."""

    def __init__(self, store: Store, settings: str, hook: Callable[[int], None] | None = None) -> None:
        super().__init__(store, settings)
        self.hook = hook
        self.stored = 0

    def save_all(self, states: Mapping[Unit, State]) -> None:
        for unit, state in states.items():
            super().save_all({unit: state})
            self.stored += 1
            if self.hook is not None:
                self.hook(self.stored)


@cache
def white_digits() -> tuple[np.ndarray, np.ndarray]:
    """Preprocessed training images [N, C, H, W] and labels [N]."""
    real = data.load("digits", data_dir=Path("unused"))
    preprocess = Preprocess.fit(real.train.images, zca=False, zca_eps=0.1)
    return preprocess.apply(real.train.images).numpy(), real.train.labels


def digits_set(**changes: Any) -> DistilledSet:
    """A set of the first two digits of each class; `changes` go into its fields."""
    real = data.load("digits", data_dir=Path("unused"))
    preprocess = Preprocess.fit(real.train.images, zca=False, zca_eps=0.1)
    rows = np.concatenate([real.train.indices_of(c)[:2] for c in range(NUM_CLASSES)])
    fields: dict[str, Any] = {
        "images_NCHW": preprocess.apply(real.train.images[rows]),
        "labels": torch.from_numpy(real.train.labels[rows]),
        "class_names": real.train.class_names,
        "ipc": 2,
        "method": "random",
        "preprocess": preprocess,
        "source": describe_source(real, image_size=None),
    }
    return DistilledSet(**(fields | changes))


def problem(**changes: Any) -> Problem:
    """What the workers are told; `changes` go into the settings."""
    shape = {"channels": 1, "height": 8, "width": 8, "num_classes": NUM_CLASSES}
    tiny = {"network": NETWORK, "iterations": ITERATIONS, "batch_real": 8}
    exact = {"compile": "off", "precision": "float32"}
    asked = DistillSettings.model_validate({**tiny, **exact, **changes})
    settings = resolve_settings(asked, device_kind="cpu", symbols=True, **shape)
    return Problem(settings=settings, device_kind="cpu", **shape)


def real_references() -> dict[int, Any]:
    """The images of each class in Ray's object store."""
    images, labels = white_digits()
    return put_classes(images, labels, NUM_CLASSES)


def distil(
    folder: Path,
    *,
    groups: Sequence[Unit] = GROUPS,
    num_actors: int = 1,
    every: int = CHUNK,
    hook: Callable[[int], None] | None = None,
    real: Mapping[int, Any] | None = None,
    **options: Any,
) -> Distillation:
    """`distil_classes` on the connected Ray, checkpoints under `folder`."""
    return distil_classes(
        problem(),
        groups,
        real if real is not None else real_references(),
        HookedCheckpoints(Store.open(str(folder)), "tiny", hook),
        size=ActorSize(num_actors, cpus=1, gpus=0),
        checkpoint_every=every,
        **{"limits": Limits(pause_s=0.1), **options},
    )


def digest(outcome: Distillation) -> dict[int, str]:
    """Checksum of each class's images, momentum and losses."""
    return {
        class_id: hashlib.sha256(
            b"".join(a[row].tobytes() for a in (state.images, state.arrays["momentum"], state.losses.T))
        ).hexdigest()
        for unit, state in sorted(outcome.states.items())
        for row, class_id in enumerate(unit)
        if class_id not in state.failures
    }


def classes_of(outcome: Distillation) -> list[int]:
    """Classes whose images are complete."""
    return sorted(digest(outcome))


def kill_workers() -> int:
    """SIGKILL to every distillation worker of this process's own Ray; returns how many there were."""
    workers = [p for p in psutil.Process().children(recursive=True) if _is_worker(p)]
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    return len(workers)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[:1] != [] and process.cmdline()[0].startswith(
            ("ray::PoolWorker", "ray::DistillWorker")
        )
    except psutil.Error:
        return False
