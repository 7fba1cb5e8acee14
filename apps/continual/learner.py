"""Learners: what becomes of a network at each step of a stream of classes; pure functions of what they are given.

N images, T images asked about, C channels, H height, W width, K classes, M images in memory
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from apps.continual.answers import recall_answers, record_answers
from apps.continual.replay import Batch, Objective, batch_numbers, er_loss, objective_of, train_beside
from apps.continual.settings import LearnerSettings
from apps.continual.state import LearnerState, StepData, load_weights, weights_of
from atom import nets
from atom.device import deterministic, kind_of, resolve_precision
from atom.errors import ConfigError, NotFiniteError
from atom.nets.layers import mixes_batch
from atom.resolve import resolve_evaluation
from atom.settings import EvaluateSettings
from atom.streams import stream
from atom.train import compute_dtype, predict, reestimate_statistics, train_network

__all__ = [
    "LEARNERS",
    "RESTARTING",
    "LearnerState",
    "StepData",
    "deciding",
    "learn",
    "predict_seen",
    "with_statistics_of",
]

Learner = Literal["gdumb", "er", "er-ace", "der++", "finetune", "joint"]
LEARNERS: tuple[str, ...] = get_args(Learner)
RESTARTING = ("gdumb", "joint")
"""Learners that train a fresh network in every step and need no state of the step before."""


STATISTICS_IMAGES = 1024
"""Most real images of a step that BatchNorm statistics are re-estimated on. Chosen: four batches."""


def deciding(learner: str, settings: LearnerSettings, train_settings: EvaluateSettings) -> dict[str, Any]:
    """Those of the resolved settings that decide what a learner comes to, plain values: another one leaves it alone.

    But for the initial weights: they matter for a user's own network only.

    Args:
        learner: one of LEARNERS.
        settings, train_settings: see `learn`.
    """
    # What a network begins with depends on whose it is, too.
    of_memory = train_settings.model_dump(mode="json", exclude={"initial_weights"})
    of_steps = settings.model_dump(mode="json")
    joint_epochs = of_steps.pop("joint_epochs")
    if learner in RESTARTING:
        return of_memory if learner == "gdumb" else {**of_memory, "epochs": joint_epochs}
    if learner != "der++":
        del of_steps["der_alpha"], of_steps["der_beta"]
    if learner == "finetune":
        del of_steps["batch_memory"]
    return {**of_steps, "eval_precision": of_memory["eval_precision"]}


def learn(
    learner: str,
    state: LearnerState | None,
    data: StepData,
    *,
    network: str,
    settings: LearnerSettings,
    train_settings: EvaluateSettings,
    seed: int,
    device: torch.device,
    symbols: bool | None = None,
    start: LearnerState | None = None,
) -> LearnerState:
    """The learner after one more step.

    * gdumb: a fresh network, trained on the memory alone, by soft labels where that has them. Source: Prabhu et al.,
      ECCV 2020, in the form of DM.
    * joint: a fresh network, trained on everything seen: what forgetting nothing gives.
    * finetune: goes on with the network on the images of the step alone: what doing nothing gives.
    * er, der++: go on with the images of the step beside the memory of earlier classes; er-ace beside that of
      all classes seen, for which the memory of a step is made before it is learned. See `apps.continual.replay`.

    A network of the project's starts at random weights; a user's own as its function returns it, pretrained and frozen
    parameters included, unless `train_settings.initial_weights` is "drawn".

    The bits depend on the arguments, the kind of device and PyTorch's number of CPU threads, which is the
    caller's to set. In the first step there is nothing to replay: all learners but gdumb and joint are one. But where
    images pass once (`data.passing`), er, er-ace and der++ replay those that have passed, from the second batch on.

    Args:
        learner: one of LEARNERS.
        state: after the step before; None in the first step. Learners that restart do not look at it.
        data: of the step.
        network: a name `atom.nets.build` knows.
        settings: of the learners that go on, and `joint_epochs`; unresolved defaults are resolved for the device.
        train_settings: of gdumb and joint, and the arithmetic and initial weights of all; likewise.
        seed: of weights, order, augmentation and draws.
        device: where to compute.
        symbols: whether the images show written symbols, which are not mirrored; needed where an augmentation is left
            at "auto".
        start: weights that a fresh network begins with, such as pretrained ones; None: as above. Its step is not asked.

    Raises:
        ConfigError: unknown learner or network, a part of the data that it needs is missing, or a state that
            is not of the step before or of another network.
        NotFiniteError: the training diverged.
    """
    _check_step(learner, state, data)
    job = _Job(
        network,
        settings.resolved(
            device_kind=kind_of(device),
            step_images=data.num_images("current") or 1,
            seen_images=data.num_images("everything_seen") or 1,
            symbols=symbols,
        ),
        resolve_evaluation(train_settings, device_kind=kind_of(device), symbols=symbols),
        seed,
        device,
        start,
    )
    try:
        with deterministic(device):
            after = (
                _restart(learner, data, job) if learner in RESTARTING else _go_on(learner, state, data, job)
            )
    except NotFiniteError as error:
        raise NotFiniteError(f"step {data.step}: {learner}: {error}") from error
    arrays = [*after.weights.values(), *after.logits.values()]
    if not all(np.isfinite(array).all() for array in arrays):
        raise NotFiniteError(
            f"step {data.step}: the weights of {learner} hold NaN or infinity after training; lower the step size."
        )
    return after


def predict_seen(
    state: LearnerState,
    network: str,
    *,
    images_TCHW: Tensor,
    num_classes: int,
    train_settings: EvaluateSettings,
    device: torch.device,
) -> Tensor:
    """Logits float32 [T, K] on the CPU of the network in a state, in evaluation mode, for all K classes.

    Args:
        state: after any step.
        network: the name it was trained under.
        images_TCHW: float32, preprocessed.
        num_classes: K.
        train_settings: its arithmetic.
        device: where to compute.

    Raises:
        ConfigError: the state is that of another network.
        NotFiniteError: a logit is NaN or infinite.
    """
    dtype = resolve_precision(train_settings.eval_precision, device)
    with deterministic(device):
        net = _build(network, images_TCHW, num_classes)
        load_weights(net, state, network=network)
        net = net.to(device).to(memory_format=_layout(net, device))
        try:
            return predict(net, images_TCHW.to(device), dtype=dtype)
        except NotFiniteError as error:
            raise NotFiniteError(f"step {state.step}: {error}") from error


def with_statistics_of(
    state: LearnerState,
    network: str,
    *,
    images_NCHW: Tensor,
    num_classes: int,
    train_settings: EvaluateSettings,
    device: torch.device,
) -> LearnerState | None:
    """The state with BatchNorm statistics re-estimated on real images; None where the network has no BatchNorm.

    A network that rehearses made images answers about real ones with statistics of both. The real images of the step
    are at hand, and no image of an earlier class is needed. For judging only: learning goes on with the state as is.

    Args:
        state, network, num_classes, train_settings, device: as in `predict_seen`.
        images_NCHW: real, float32, preprocessed; evenly spaced `STATISTICS_IMAGES` of them are used.
    """
    net = _build(network, images_NCHW, num_classes)
    if not mixes_batch(net):
        return None
    dtype = resolve_precision(train_settings.eval_precision, device)
    rows = np.unique(np.linspace(0, len(images_NCHW) - 1, STATISTICS_IMAGES).round().astype(np.int64))
    with deterministic(device):
        load_weights(net, state, network=network)
        net = net.to(device).to(memory_format=_layout(net, device))
        real_NCHW = images_NCHW[torch.from_numpy(rows)].to(device)
        reestimate_statistics(net, real_NCHW, dtype=dtype)
    return replace(state, weights=weights_of(net))


@dataclass(frozen=True)
class _Job:
    """What stays the same from step to step, resolved."""

    network: str
    settings: LearnerSettings
    train_settings: EvaluateSettings
    seed: int
    device: torch.device
    start: LearnerState | None = None

    def net(self, images_NCHW: Tensor, data: StepData, state: LearnerState | None) -> nn.Module:
        """The network of a state, or a fresh one of the step's own, see `atom.nets.begin`."""
        state = self.start if state is None else state
        if state is None:
            net = nets.begin(
                partial(_build, self.network, images_NCHW, data.num_classes),
                stream(self.seed, "continual/weights", data.step),
                own=nets.is_own(self.network),
                initial_weights=self.train_settings.initial_weights,
            )
        else:
            net = _build(self.network, images_NCHW, data.num_classes)
            load_weights(net, state, network=self.network)
        return net.to(self.device).to(memory_format=_layout(net, self.device))

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the network in training."""
        return compute_dtype(self.train_settings)

    def objective(self, learner: str, data: StepData) -> Objective:
        """The loss of a learner where it has something to replay."""
        return objective_of(
            learner, self.settings, step_classes=data.step_classes, seen_classes=data.seen_classes
        )

    def train(
        self,
        net: nn.Module,
        current: Batch,
        memory: Batch | None,
        objective: Objective,
        data: StepData,
        **passing: Any,
    ) -> None:
        """Train on the images of the step beside a memory; `passing` as in `train_beside`."""
        train_beside(
            net,
            current,
            memory,
            objective=objective,
            settings=self.settings,
            dtype=self.dtype,
            layout=_layout(net, self.device),
            seed=self.seed,
            step=data.step,
            **passing,
        )


def _restart(learner: str, data: StepData, job: _Job) -> LearnerState:
    settings = job.train_settings
    if learner == "gdumb":
        images_NCHW, labels_N = data.needed("memory_after", learner)
        if data.soft_targets is not None:
            labels_N = _among_seen(data.soft_targets, labels_N, data.seen_classes)
    else:
        images_NCHW, labels_N = data.needed("everything_seen", learner)
        settings = settings.model_copy(update={"epochs": job.settings.joint_epochs})
    net = job.net(images_NCHW, data, None)
    # train_network counts its draws by epoch alone: each step has a seed of its own.
    seed = int(stream(job.seed, "continual/training", data.step).integers(2**63))
    train_network(net, images_NCHW.to(job.device), labels_N.to(job.device), settings=settings, seed=seed)
    return LearnerState(data.step, weights_of(net))


def _among_seen(soft_MK: Tensor, labels_M: Tensor, seen_classes: Sequence[int]) -> Tensor:
    """Soft labels without what they say of classes that have not come; nothing left leaves the image's own class."""
    seen_K = torch.zeros(soft_MK.shape[1])
    seen_K[list(seen_classes)] = 1
    kept_MK = soft_MK * seen_K
    total_M1 = kept_MK.sum(dim=1, keepdim=True)
    own_MK = torch.nn.functional.one_hot(labels_M, soft_MK.shape[1]).float()
    return torch.where(total_M1 > 0, kept_MK / total_M1.clamp(min=torch.finfo(torch.float32).tiny), own_MK)


def _go_on(learner: str, state: LearnerState | None, data: StepData, job: _Job) -> LearnerState:
    images_NCHW, labels_N = data.needed("current", learner)
    current = Batch(images_NCHW.to(job.device), labels_N.to(job.device))
    net = job.net(images_NCHW, data, state)
    if data.passing is not None and learner != "finetune":
        return LearnerState(data.step, *_pass_once(learner, net, current, state, data, job))
    memory, objective = None, er_loss
    if state is not None:
        memory, objective = _memory(learner, state, data, job), job.objective(learner, data)
    job.train(net, current, memory, objective, data)
    answers, after = {}, data.part("memory_after")
    if learner == "der++" and after is not None:
        known = {} if state is None else state.logits
        by_lot = after[0], after[1] if data.lots_after is None else data.lots_after
        answers = record_answers(net, by_lot, known, dtype=job.dtype, device=job.device)
    return LearnerState(data.step, weights_of(net), answers)


def _pass_once(
    learner: str, net: nn.Module, current: Batch, state: LearnerState | None, data: StepData, job: _Job
) -> tuple[dict[str, np.ndarray], dict[int, np.ndarray]]:
    """Weights and, of der++, answers, where the images pass once and the memory changes after every batch.

    From the second batch on there is something to replay, images of this step among it, as in the published online
    form of the three. der++ records what the network answers to an image right after it has been trained on it.
    """
    assert data.passing is not None, "asked for by the caller"
    none = torch.empty(0, dtype=torch.int64)
    before_M = data.memory_before if data.memory_before is not None else (current.images_BCHW[:0], none)
    lots_M = before_M[1] if data.lots_before is None else data.lots_before
    batch_N = batch_numbers(len(current.labels_B), settings=job.settings, seed=job.seed, step=data.step)
    stays = data.passing.stays(lots_M.numpy(), batch_N)
    num_before, since_P, until_P = len(lots_M), *stays
    pool = Batch(
        torch.cat([before_M[0].to(job.device), current.images_BCHW]),
        torch.cat([before_M[1].to(job.device), current.labels_B]),
    )
    objective = job.objective(learner, data)
    if learner != "der++":
        job.train(net, current, pool, objective, data, stays=stays)
        return weights_of(net), {}
    logits_PK = torch.zeros(len(pool.labels_B), data.num_classes, device=job.device)
    if state is not None and num_before:
        answers_MK = recall_answers(state.logits, lots_M, num_classes=data.num_classes)
        logits_PK[:num_before] = answers_MK.to(job.device)

    def record(rows_B: np.ndarray) -> None:
        places_B = num_before + rows_B
        entered = torch.from_numpy(places_B[since_P[places_B] < until_P[places_B]]).to(job.device)
        if len(entered):
            logits_PK[entered] = predict(net, pool.images_BCHW[entered], dtype=job.dtype).to(job.device)

    pool = Batch(pool.images_BCHW, pool.labels_B, logits_PK)
    job.train(net, current, pool, objective, data, stays=stays, on_batch=record)
    keys_P = np.concatenate([data.passing.keys_before, data.passing.keys_current])
    lots_P = np.concatenate([lots_M.numpy(), data.passing.lots_current])
    left = np.flatnonzero(until_P == until_P.max(initial=0))
    left = left[np.argsort(keys_P[left], kind="stable")]
    answers = {
        lot: logits_PK[torch.from_numpy(left[lots_P[left] == lot]).to(job.device)].cpu().numpy()
        for lot in np.unique(lots_P[left]).tolist()
    }
    return weights_of(net), answers


def _memory(learner: str, state: LearnerState, data: StepData, job: _Job) -> Batch | None:
    """The memory that a learner replays, with the answers to it where it asks for them."""
    # DEVIATION(ER-ACE): its buffer takes in new images as they pass, here the memory is complete from the start.
    # It has to hold the new classes: beside old images alone they are only ever pushed down. Measured on digits:
    # nothing of the last step is recognised then.
    part = data.part("memory_after" if learner == "er-ace" else "memory_before")
    if learner == "finetune" or part is None:
        return None
    images_MCHW, labels_M = part[0].to(job.device), part[1].to(job.device)
    if learner != "der++":
        return Batch(images_MCHW, labels_M)
    lots_M = labels_M if data.lots_before is None else data.lots_before
    logits_MK = recall_answers(state.logits, lots_M, num_classes=data.num_classes)
    return Batch(images_MCHW, labels_M, logits_MK.to(job.device))


def _check_step(learner: str, state: LearnerState | None, data: StepData) -> None:
    if learner not in LEARNERS:
        raise ConfigError(f"learner {learner!r}: unknown; known are {', '.join(LEARNERS)}.")
    if learner in RESTARTING:
        return
    before = None if state is None else state.step
    expected = data.step - 1 if data.step else None
    if before != expected:
        found, wanted = ("none" if s is None else f"that after step {s}" for s in (before, expected))
        raise ConfigError(
            f"step {data.step}: learner {learner} received as state {found}, expected {wanted}; learn the"
            " steps in order."
        )


def _build(network: str, images_NCHW: Tensor, num_classes: int, *, seed: int = 0) -> nn.Module:
    channels, *size = images_NCHW.shape[1:]
    return nets.build(
        network, channels=channels, image_size=(size[0], size[1]), num_classes=num_classes, seed=seed
    )


def _layout(net: nn.Module, device: torch.device) -> torch.memory_format:
    # Eager group norm, which is instance norm too, is slow in channels_last on a CPU; all else is faster.
    # Numbers: apps/nas/trial.py.
    grouped = any(isinstance(module, nn.GroupNorm) for module in net.modules())
    return torch.contiguous_format if device.type == "cpu" and grouped else torch.channels_last
