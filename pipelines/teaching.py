"""Soft labels for finished images: teachers through the pool of workers, then each small set as a task.

What a teacher is, and what it says, is in `atom.methods.teachers`. Teachers are kept where experts are, so a rerun
finds them; labels are computed anew, which takes seconds.
"""

# N stored images, C channels, H height, W width, K classes

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray

from atom.methods.experts import Expert, Recipe
from atom.rivals import WITH_TEACHER
from pipelines.evaluation import SmallSet
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.expert_files import ExpertFiles
from pipelines.preparing import Preparing, prepare
from pipelines.workers.cluster import as_tensor
from pipelines.workers.dispatch import Limits
from pipelines.workers.faults import Failure
from pipelines.workers.remote import Problem
from pipelines.workers.resources import ActorSize
from pipelines.workers.tasks import run_tasks
from pipelines.workers.works import Spent

OWN = ("the set", None)
"""The set among what is labelled, which real images are named beside by set and seed of the draw."""

Key = tuple[str, int | None]


@dataclass
class Taught:
    """What came of it.

    Attributes:
        soft_labels: of the set's stored images, [N, K]; None where it was not to be labelled.
        rivals: the sets of real images once more, with labels of the same teachers.
        failed: why a teacher or a labelling failed, by name; then there are no labels.
        stopped: whether a signal ended it early.
        programs: those that trained the teachers.
    """

    soft_labels: np.ndarray | None = None
    rivals: list[SmallSet] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)
    stopped: bool = False
    programs: list[dict[str, Any]] = field(default_factory=list)


def teach(
    teachers: Sequence[Expert],
    images_NCHW: np.ndarray | None,
    rivals: Sequence[SmallSet],
    *,
    factor: int,
    problem: Problem,
    real: Mapping[int, Any],
    checkpoints: Checkpoints,
    experts: ExpertFiles,
    size: ActorSize,
    limits: Limits | None = None,
    stop: threading.Event | None = None,
    on_spent: Callable[[Spent], None] | None = None,
) -> Taught:
    """Train teachers, from wherever they stand on disk, and label.

    Args:
        teachers: of one recipe; none, nothing is done.
        images_NCHW: stored images of the set, preprocessed; None: its labels are its own.
        rivals: sets of real images, unlabelled.
        factor: of the set's images.
        problem: what the workers are told.
        real, checkpoints, experts, size, limits, stop: see `pipelines.preparing`.
        on_spent: see `Clock`; only the training counts.
    """
    if not teachers:
        return Taught()
    work = Preparing(problem, teachers, real, checkpoints, experts, on_spent=on_spent)
    made = prepare(work, size=size, limits=limits, stop=stop)
    if made.failed or made.stopped:
        failed = {f"teacher, {name}": failure for name, failure in made.failed.items()}
        return Taught(failed=failed, stopped=made.stopped)
    images: dict[Key, tuple[np.ndarray, int]] = {
        (small.name, seed): (own, 1) for small in rivals for seed, (own, _) in small.draws.items()
    }
    if images_NCHW is not None:
        images[OWN] = images_NCHW, factor
    found: dict[Key, np.ndarray] = {}
    labelling = Labelling(teachers[0].recipe, problem)
    outcome = run_tasks(
        answer,
        list(images),
        shared=[ray.put(images), labelling, *(made.ready[teacher.name] for teacher in teachers)],
        size=size.one_thread,
        kind=lambda _: "labels",
        limits=limits,
        on_result=found.__setitem__,
        stop=stop,
    )
    if outcome.failed or outcome.stopped:
        failed = {f"labels of {name}": failure for (name, _), failure in outcome.failed.items()}
        return Taught(failed=failed, stopped=outcome.stopped)
    labels = found.pop(OWN, None)
    return Taught(labels, [_labelled(small, found) for small in rivals], programs=work.programs(work.items))


@dataclass(frozen=True)
class Labelling:
    """What a task has to know to label: how the teachers were trained, and where they answer."""

    recipe: Recipe
    problem: Problem


def answer(
    key: Key,
    images: Mapping[Key, tuple[np.ndarray, int]],
    labelling: Labelling,
    *prepared: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Soft labels [N, K] of the images of that name, given with their factor; the task."""
    from atom.device import resolve_device
    from atom.methods.teachers import last_weights, soft_labels

    stored_NCHW, factor = images[key]
    return soft_labels(
        as_tensor(stored_NCHW),
        [last_weights(arrays) for arrays in prepared],
        network=labelling.recipe.network,
        num_classes=labelling.problem.num_classes,
        factor=factor,
        device=resolve_device(labelling.problem.device_kind),
        threads=labelling.recipe.threads,
    ).numpy()


def _labelled(small: SmallSet, labels: Mapping[Key, np.ndarray]) -> SmallSet:
    draws = {seed: (images, labels[small.name, seed]) for seed, (images, _) in small.draws.items()}
    return replace(small, name=f"{small.name}{WITH_TEACHER}", draws=draws)
