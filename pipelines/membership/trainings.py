"""Losses of real images after trainings on each set, as Ray tasks; every finished training is kept on disk."""

# N images of a set, T images asked about, C channels, H height, W width, K classes

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from atom import nets
from atom.settings import DeviceKind, EvaluateSettings
from atom.train import TRAINING_VERSION
from pipelines.console.progress import Progress
from pipelines.evaluation import THREADS, SmallSet, content_of, initial_key
from pipelines.membership.remote import run_losses
from pipelines.output.array_files import pack, unpack
from pipelines.output.ownership import settings_hash
from pipelines.output.provenance import distinct, program
from pipelines.output.store import Store
from pipelines.workers.faults import Failure
from pipelines.workers.pool import Limits
from pipelines.workers.remote import Trial, TrialContext
from pipelines.workers.resources import ActorSize
from pipelines.workers.tasks import run_tasks


@dataclass(frozen=True, eq=False)
class AuditedSet:
    """A set under audit.

    Attributes:
        small: what networks are trained on: one pair of images and targets, under None.
        labels_N: the classes of its images.
        holds_real: whether its images are real ones, whose own membership is asked about as well.
    """

    small: SmallSet
    labels_N: np.ndarray
    holds_real: bool

    @property
    def images(self) -> np.ndarray:
        """Decoded and preprocessed, float32."""
        return self.small.draws[None][0]


@dataclass
class Losses:
    """By set the losses float32 [T + N] of each training, see `run_losses`; failures by training; and all programs that
    trained."""

    found: dict[str, list[np.ndarray]] = field(default_factory=dict)
    failed: dict[Trial, Failure] = field(default_factory=dict)
    stopped: bool = False
    programs: list[dict[str, Any]] = field(default_factory=list)


def losses_of_trainings(
    sets: Sequence[AuditedSet],
    asked: tuple[np.ndarray, np.ndarray],
    store: Store,
    *,
    network: str,
    seeds: Sequence[int],
    num_classes: int,
    settings: EvaluateSettings,
    device_kind: DeviceKind,
    size: ActorSize,
    limits: Limits | None = None,
    stop: threading.Event | None = None,
) -> Losses:
    """Train a network on every set with every seed, and ask each about the same images.

    Args:
        sets: what to train on; each by the training that it carries, if it carries one.
        asked: preprocessed real images float32 and labels.
        store: losses are kept under losses/, named by all that decides them.
        network, seeds, num_classes, settings: of the trainings; settings resolved.
        device_kind, size, limits, stop: see `pipelines.evaluation.evaluate_sets`.
    """
    of_set = {one.small.name: one.small.settings(settings) for one in sets}
    trials = [Trial(one.small.name, network, seed) for one in sets for seed in seeds]
    names = _record_names(sets, asked, trials, of_set, num_classes, device_kind)
    kept = {trial: _kept(store, names[trial]) for trial in trials}
    found = {trial: one[0] for trial, one in kept.items() if one is not None}
    programs, now = [one[1] for one in kept.values() if one is not None], program()
    shared = [
        ray.put({one.small.name: (*one.small.draws[None], one.labels_N) for one in sets}),
        ray.put(asked[0]),
        ray.put(asked[1]),
        TrialContext(num_classes=num_classes, settings=of_set, device_kind=device_kind, threads=THREADS),
    ]
    with Progress(
        "training", len(trials), num_items=len(trials), unit="trainings", item="trainings", done=len(found)
    ) as progress:

        def keep(trial: Trial, losses: np.ndarray) -> None:
            store.write_bytes(names[trial], pack({"losses": losses}, {"program": json.dumps(now)}))
            found[trial] = losses
            programs.append(now)
            progress.update(len(found), items_done=len(found))

        outcome = run_tasks(
            run_losses,
            [trial for trial in trials if trial not in found],
            shared=shared,
            size=size.one_thread,
            kind=lambda trial: trial.set_name,
            limits=limits,
            on_result=keep,
            on_tick=lambda _: progress.update(len(found), items_done=len(found)),
            stop=stop,
        )
    by_set = {
        one.small.name: [found[t] for t in trials if t in found and t.set_name == one.small.name]
        for one in sets
    }
    return Losses(by_set, outcome.failed, outcome.stopped, distinct(programs))


def _record_names(
    sets: Sequence[AuditedSet],
    asked: tuple[np.ndarray, np.ndarray],
    trials: Sequence[Trial],
    settings: Mapping[str, EvaluateSettings],
    num_classes: int,
    device_kind: DeviceKind,
) -> dict[Trial, str]:
    channels, height, width = asked[0].shape[1:]
    contents = {one.small.name: content_of(*one.small.draws[None]) for one in sets}
    about: dict[str, Any] = {
        "asked": content_of(*asked),
        "device": device_kind,
        "threads": THREADS,
        "version": TRAINING_VERSION,
    }
    names = {}
    for trial in trials:
        source = nets.identity(
            trial.network, channels=channels, image_size=(height, width), num_classes=num_classes
        )
        own = settings[trial.set_name]
        key = settings_hash(
            {
                **own.model_dump(mode="json", exclude={"initial_weights"}),
                **about,
                **initial_key(trial.network, own),
                "train": contents[trial.set_name],
                "network": source,
                "seed": trial.seed,
            }
        )
        names[trial] = f"losses/{trial.name}-{key}.safetensors"
    return names


def _kept(store: Store, name: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Losses of a training, and the program that it was done by."""
    if not store.exists(name):
        return None
    try:
        arrays, about = unpack(store.read_bytes(name))
        return arrays["losses"], json.loads(about["program"])
    except (ValueError, KeyError):
        # Damaged: this training is done again.
        return None
