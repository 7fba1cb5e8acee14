"""One step of a learner: the head grows, the network learns, and its accuracies are taken; a pure function."""

# N new images, M images in memory, T test images, C channels, H height, W width, K classes, n images of a class

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from apps.continual.learner import RESTARTING, learn, predict_seen, with_statistics_of
from apps.continual.memory import Memory
from apps.continual.settings import LearnerSettings
from apps.continual.state import Labelled, LearnerState, StepData
from apps.learner.gate import accuracy_of
from apps.learner.growth import Body, Weights, answers_grown, with_outputs
from atom.preprocess import Preprocess
from atom.settings import EvaluateSettings

DER = "der++"


@dataclass(frozen=True, eq=False)
class Pixels:
    """Labelled images as they are.

    Attributes:
        images_NCHW: uint8.
        labels_N: int64, outputs of the network after the step.
    """

    images_NCHW: np.ndarray
    labels_N: np.ndarray

    def white(self, preprocess: Preprocess) -> Labelled:
        """Preprocessed."""
        return preprocess.apply(self.images_NCHW), torch.from_numpy(self.labels_N)


@dataclass(frozen=True, eq=False)
class StepJob:
    """All that decides a step but the device.

    Attributes:
        number: of the version that comes of it, from 1.
        learner: er, er-ace, der++ or gdumb.
        body: the network.
        num_classes: K, after the step.
        num_old: outputs before it.
        current: real images of the step.
        memory_before, memory_after: see `Memory.to_bytes`; the labels are those after the step, which old classes had
            before.
        preprocess: tensors by name.
        state: of the version before; None in the first step.
        initial: given weights of the network, all but its head, or None.
        settings: of the learner, as given.
        train_settings: of gdumb, resolved.
        symbols: whether images show written symbols.
        seed: of every random stream.
        tests: images to judge by, or None.
        validation: images of the step to compare `rivals` by, or None.
        rivals: memories of the step's end, by name, each in the place of `memory_after`.
    """

    number: int
    learner: str
    body: Body
    num_classes: int
    num_old: int
    current: Pixels
    memory_before: bytes
    memory_after: bytes
    preprocess: Mapping[str, np.ndarray]
    state: bytes | None
    initial: Weights | None
    settings: LearnerSettings
    train_settings: EvaluateSettings
    symbols: bool
    seed: int
    tests: Pixels | None = None
    validation: Pixels | None = None
    rivals: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StepOutcome:
    """What came of a step.

    Attributes:
        state: of the network, see `LearnerState.to_bytes`.
        before, after: accuracy of each class that has test images, percent, by label; before: of old classes.
        rivals: accuracy of a fresh network on the validation images, percent, by memory.
    """

    state: bytes
    before: Mapping[int, float]
    after: Mapping[int, float]
    rivals: Mapping[str, float]


def run_step(job: StepJob, device: torch.device) -> StepOutcome:
    """The step; its bits depend on the job, the kind of device and PyTorch's number of threads.

    Raises:
        ConfigError, NotFiniteError: see `learn`.
    """
    preprocess = _preprocess(job)
    state = None if job.state is None else LearnerState.from_bytes(job.state)
    before: dict[int, float] = {}
    if state is not None and job.tests is not None:
        old = job.tests.labels_N < job.num_old
        if old.any():
            known = Pixels(job.tests.images_NCHW[old], job.tests.labels_N[old])
            before = _accuracies(job, state, known, job.num_old, preprocess, device)
    after = _learned(job, state, preprocess, device)
    found = (
        _accuracies(job, after, job.tests, job.num_classes, preprocess, device)
        if job.tests is not None
        else {}
    )
    rivals = {
        name: _worth(job, content, job.validation, preprocess, device)
        for name, content in job.rivals.items()
        if job.validation is not None
    }
    return StepOutcome(after.to_bytes(), before, found, rivals)


def grown_state(job: StepJob, state: LearnerState) -> LearnerState:
    """The network before it learns, an output for each class: rows of old ones bit for bit, new ones as they begin."""
    rows = [row if row < job.num_old else None for row in range(job.num_classes)]
    fresh = job.body.begin(job.num_classes, seed=job.seed, step=job.number)
    weights = with_outputs(state.weights, fresh, job.body.head(), rows)
    return LearnerState(job.number - 2, weights, state.logits)


def _learned(
    job: StepJob, state: LearnerState | None, preprocess: Preprocess, device: torch.device
) -> LearnerState:
    current = job.current.white(preprocess)
    memories = [Memory.from_bytes(content) for content in (job.memory_before, job.memory_after)]
    before, after = (memory.contents(preprocess) for memory in memories)
    step_labels = tuple(sorted(set(job.current.labels_N.tolist())))
    restarts = job.learner in RESTARTING
    start = None
    if restarts or state is None:
        start, state = _start(job), None
    else:
        state = grown_state(job, state)
        if job.learner == DER and before is not None and job.num_classes > job.num_old:
            said = _said(job, state, before, device)
            state = answers_grown(state, said)
    # The answers to a class that came back are those to images that are no more.
    fresh_again = [label for label in step_labels if label < job.num_old] if job.learner == DER else []
    data = StepData(
        step=job.number - 1,
        step_classes=step_labels,
        seen_classes=tuple(range(job.num_classes)),
        num_classes=job.num_classes,
        current=None if restarts else current,
        memory_before=before,
        memory_after=_without(after, fresh_again),
    )
    learned = _learn(job, job.learner, state, data, start=start, device=device)
    if fresh_again and after is not None:
        said = _said(job, learned, after, device)
        learned = replace(learned, logits={**learned.logits, **{c: said[c] for c in fresh_again}})
    if restarts:
        # A network that has seen all classes in equal shares is judged as trained, see docs/continual.md.
        return learned
    restated = with_statistics_of(
        learned,
        job.body.network,
        images_NCHW=current[0],
        num_classes=job.num_classes,
        train_settings=job.train_settings,
        device=device,
    )
    return learned if restated is None else restated


def _learn(
    job: StepJob,
    learner: str,
    state: LearnerState | None,
    data: StepData,
    *,
    start: LearnerState | None,
    device: torch.device,
) -> LearnerState:
    return learn(
        learner,
        state,
        data,
        network=job.body.network,
        settings=job.settings,
        train_settings=job.train_settings,
        seed=job.seed,
        device=device,
        symbols=job.symbols,
        start=start,
    )


def _start(job: StepJob) -> LearnerState:
    fresh = job.body.begin(job.num_classes, seed=job.seed, step=job.number)
    return LearnerState(0, {**fresh, **(job.initial or {})})


def _said(job: StepJob, state: LearnerState, images: Labelled, device: torch.device) -> dict[int, np.ndarray]:
    """What the network of a state says of remembered images, float32 [n, K] by class."""
    logits_MK = _predict(job, state, images[0], job.num_classes, device)
    labels_M = images[1].numpy()
    return {int(label): logits_MK[labels_M == label] for label in np.unique(labels_M)}


def _without(images: Labelled | None, labels: Sequence[int]) -> Labelled | None:
    if images is None or not labels:
        return images
    kept_M = ~torch.isin(images[1], torch.tensor(labels))
    return images[0][kept_M], images[1][kept_M]


def _worth(
    job: StepJob, memory: bytes, judged: Pixels, preprocess: Preprocess, device: torch.device
) -> float:
    """Accuracy on the images, percent, of a fresh network that learns from a memory alone."""
    data = StepData(
        step=job.number - 1,
        step_classes=(),
        seen_classes=tuple(range(job.num_classes)),
        num_classes=job.num_classes,
        memory_after=Memory.from_bytes(memory).contents(preprocess),
    )
    state = _learn(job, "gdumb", None, data, start=_start(job), device=device)
    images_TCHW, labels_T = judged.white(preprocess)
    logits_TK = _predict(job, state, images_TCHW, job.num_classes, device)
    return 100 * float((logits_TK.argmax(axis=1) == labels_T.numpy()).mean())


def _accuracies(
    job: StepJob,
    state: LearnerState,
    tests: Pixels,
    num_classes: int,
    preprocess: Preprocess,
    device: torch.device,
) -> dict[int, float]:
    images_TCHW, labels_T = tests.white(preprocess)
    return accuracy_of(_predict(job, state, images_TCHW, num_classes, device), labels_T.numpy())


def _predict(
    job: StepJob, state: LearnerState, images_TCHW: Tensor, num_classes: int, device: torch.device
) -> np.ndarray:
    return predict_seen(
        state,
        job.body.network,
        images_TCHW=images_TCHW,
        num_classes=num_classes,
        train_settings=job.train_settings,
        device=device,
    ).numpy()


def _preprocess(job: StepJob) -> Preprocess:
    return Preprocess.from_tensors({name: torch.tensor(array) for name, array in job.preprocess.items()})


__all__ = ["Pixels", "StepJob", "StepOutcome", "grown_state", "run_step"]
