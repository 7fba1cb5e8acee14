"""What the methods share that judge a trained network by real images, and differentiate that through its training.

    minimise over images X, step sizes β, perhaps labels Y:   E over θ_0 of CE(real batch; θ_T),
    θ_{t+1} = θ_t − β_t ∇CE(X_t, Y_t; θ_t)

The gradients are exact, see `atom.methods.unroll`. Labels are learned where an option says so, as softmax(logits) of
each stored image. Sources: Sucholutsky and Schonlau, *Soft-label dataset distillation and text dataset distillation*,
IJCNN 2021; Li et al., *Soft-label anonymous gastric X-ray image distillation*, ICIP 2020.
DEVIATION(Sucholutsky and Schonlau): their labels are any numbers, not distributions, and move at the images' rate.
"""

# K classes, I stored images per class, M images of a step, B real images, C channels, H height, W width, P weights

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from atom import nets
from atom.formation import decode, label_decoded
from atom.methods.joint import Joint, learned_labels
from atom.methods.method import NOTHING, Part, Prepared, Shape, State, Unit
from atom.methods.networks import warn_of_small_maps
from atom.methods.settings import DistillSettings
from atom.methods.unroll import Adam, Leaves, Optimizer, Training
from atom.methods.unroll_settings import JudgedOptions
from atom.settings import DeviceKind

CLIP_MULTIPLE, NORM_MEMORY = 2.0, 0.9
"""A gradient by the images is cut to this many times the running mean of its norm. Source: RaT-BPTT's code."""
STEPS_PER_ITERATION = 1 << 16
"""Counters of an iteration's training steps; their number lies far below."""
SMOOTHING = 0.1
"""Share of a learned label that lies evenly on all classes at the start: a one-hot label has no finite logits."""


class Backpropagation(Joint):
    """Images by the gradient through trainings of networks on them.

    The state holds the images, "log_rate" of the steps, perhaps "logits" of the labels, Adam's moments of each and the
    running "norm" of the gradient by the images, and "steps", those that moved something.

    Attributes:
        adam: of the images, the step sizes and the logits.
        optimizer: of the networks.
    """

    unread = Joint.unread | {"momentum_img", "dsa_strategy"}
    adam = Adam()
    optimizer: Optimizer

    def __init__(self, settings: DistillSettings, *, device: torch.device, **shape: int) -> None:
        super().__init__(settings, device=device, **shape)
        self.judged = cast(JudgedOptions, settings.options)
        self.weights = nets.WeightDraw(self.network.net)
        self.rates = {"images": cast(float, settings.lr_img), "log_rate": self.judged.lr_lr}
        if self.learns_labels(settings):
            self.rates["logits"] = self.judged.lr_label

    @classmethod
    def learns_labels(cls, settings: DistillSettings) -> bool:
        """Where their step size is not 0."""
        return cast(JudgedOptions, settings.options).lr_label > 0

    @classmethod
    def resolve(cls, settings: DistillSettings, shape: Shape, device_kind: DeviceKind) -> DistillSettings:
        """3000 iterations on a GPU, 200 on a CPU, at a step size of 0.05 for Adam: chosen, measured on CPUs alone.

        Raises:
            ConfigError: an unknown network, or one with BatchNorm.
        """
        settings = super().resolve(settings, shape, device_kind)
        warn_of_small_maps(settings, shape)
        iterations = 3000 if device_kind == "cuda" else 200
        return settings.model_copy(
            update={
                "iterations": iterations if settings.iterations is None else settings.iterations,
                "lr_img": settings.lr_img or 0.05,
            }
        )

    @abstractmethod
    def first_log_rate(self) -> np.ndarray:
        """Logarithm of the step size of every step, [], or of each, [T]."""

    @abstractmethod
    def rate(self, leaves: Leaves, step: int) -> Tensor:
        """Step size of a step, []."""

    @abstractmethod
    def window(self, iteration: int, replica: int) -> tuple[int, int]:
        """First step that is differentiated, and the one after the last."""

    @abstractmethod
    def start_weights(self, iteration: int, replica: int) -> np.random.Generator:
        """What the first weights of a network are drawn from."""

    @abstractmethod
    def rows(
        self, counter: int, step: int, replica: int, *, per_class: int, num_classes: int
    ) -> Tensor | None:
        """Decoded images of a training step, of `per_class` of each class, class by class; None: all.

        Args:
            counter: of the step, among all of the distillation.
            step: its number within its training.
            replica: which network.
            per_class, num_classes: decoded images of a class, and classes.
        """

    def start(
        self,
        unit: Sequence[int],
        real: Mapping[int, Tensor],
        *,
        given: np.ndarray | None = None,
        prepared: Prepared = NOTHING,
    ) -> State:
        """See `Method.start`."""
        del prepared
        images = self.first_images(unit, real, given)
        leaves = {"images": images, "log_rate": self.first_log_rate().astype(images.dtype)}
        if "logits" in self.rates:
            logits = first_logits(unit, self.num_classes)[:, None].repeat(images.shape[1], 1)
            leaves["logits"] = logits.astype(images.dtype)
        moments = {f"{n}_{m}": np.zeros_like(leaf) for n, leaf in leaves.items() for m in ("first", "second")}
        return State.first(
            {**leaves, **moments, "norm": np.zeros((), images.dtype), "steps": np.zeros((), np.int64)},
            columns=1,
        )

    @classmethod
    def replicas(cls, settings: DistillSettings) -> int:
        """As many as `--replicas` says."""
        return cast(JudgedOptions, settings.options).replicas

    @property
    def learned(self) -> Sequence[str]:
        """Images [K, I, C, H, W], "log_rate" as `first_log_rate`, where labels are learned "logits" [K, I, classes]."""
        return tuple(self.rates)

    def of_replica(
        self,
        leaves: Leaves,
        iteration: int,
        number: int,
        *,
        unit: Sequence[int],
        real: Mapping[int, Tensor],
        prepared: Prepared,
    ) -> tuple[float, dict[str, Tensor]]:
        """One network: trained, judged, and walked back through its window."""
        del prepared
        start, end = self.window(iteration, number)
        self.weights.load(self.weights.draw(self.start_weights(iteration, number)))
        weights = self.network.weights().to(leaves["images"].dtype)
        training = Training(
            lambda weights, leaves, step: self._step_loss(
                weights, leaves, iteration, step, number, unit=unit
            ),
            self.rate,
            self.optimizer,
        )
        state = training.optimizer.start(weights)
        # Before the window only the newest state is kept.
        for step in range(start):
            state = training.run(state, leaves, range(step, step + 1))[-1]
        states = training.run(state, leaves, range(start, end))
        images_BCHW, labels_B = self._real_batch(unit, real, iteration, number)
        last = states[-1][0].requires_grad_()
        loss = cross_entropy(self.logits(last, images_BCHW), labels_B)
        (cotangent,) = torch.autograd.grad(loss, last)
        return loss.item(), training.gradients(states, leaves, range(start, end), cotangent)

    def _step_loss(
        self,
        weights: Tensor,
        leaves: Leaves,
        iteration: int,
        step: int,
        replica: int,
        *,
        unit: Sequence[int],
    ) -> Tensor:
        """Cross-entropy on the synthetic images of a training step, augmented anew in each."""
        counter = iteration * STEPS_PER_ITERATION + step
        images_MCHW = decode(self.stored(leaves["images"], unit), self.settings.factor)
        targets = label_decoded(self.targets(leaves, unit), self.settings.factor)
        per_class = len(images_MCHW) // len(unit)
        rows = self.rows(counter, step, replica, per_class=per_class, num_classes=len(unit))
        if rows is not None:
            rows = rows.to(self.device)
            images_MCHW, targets = images_MCHW[rows], targets[rows]
        images_MCHW = self.augmented(images_MCHW, self.drawn("augment", counter, replica))
        return cross_entropy(self.logits(weights, images_MCHW), targets)

    def _real_batch(
        self, unit: Sequence[int], real: Mapping[int, Tensor], iteration: int, replica: int
    ) -> tuple[Tensor, Tensor]:
        """Augmented real images [B, C, H, W] and their classes [B], class after class."""
        ends = np.cumsum([len(real[c]) for c in unit])
        rng, batch = self.drawn("batch", iteration, replica), self.judged.batch_outer
        rows = np.sort(rng.choice(ends[-1], size=min(batch, int(ends[-1])), replace=False))
        images, labels = [], []
        for class_id, end, part in zip(
            unit, ends, np.split(rows, np.searchsorted(rows, ends[:-1])), strict=True
        ):
            of_class = torch.from_numpy(part - (end - len(real[class_id]))).to(self.device)
            images.append(real[class_id][of_class])
            labels += [class_id] * len(part)
        images_BCHW = self.augmented(torch.cat(images), self.drawn("augment real", iteration, replica))
        return images_BCHW, torch.tensor(labels, device=self.device)

    def updated(
        self, arrays: Mapping[str, Tensor], gradients: Mapping[str, Tensor], iteration: int
    ) -> dict[str, Tensor]:
        """After a step of Adam on each leaf, on the images at a clipped gradient."""
        norm = gradients["images"].norm()
        # Not iterations: one that was left out moved no mean. Older checkpoints, without the number, left none out.
        steps = int(arrays.get("steps", iteration))
        memory = NORM_MEMORY if steps else 0.0
        mean = memory * arrays["norm"] + (1 - memory) * norm
        clip = (CLIP_MULTIPLE * mean / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1.0)
        new = {"norm": mean, "steps": torch.tensor(steps + 1)}
        share = self.settings.rate_share(iteration)
        for name, rate in self.rates.items():
            held = (arrays[name], arrays[f"{name}_first"], arrays[f"{name}_second"])
            gradient = gradients[name] * clip if name == "images" else gradients[name]
            stepped = self.adam.step(held, gradient, share * rate, steps)
            new[name], new[f"{name}_first"], new[f"{name}_second"] = stepped
        return new

    @classmethod
    def result(cls, settings: DistillSettings, unit: Unit, state: State) -> Part:
        """Images, and labels where they are learned."""
        del unit
        return Part(state.images, learned_labels(state) if cls.learns_labels(settings) else None)


def first_logits(unit: Sequence[int], num_classes: int) -> np.ndarray:
    """Logits [G, K] of smoothed one-hot labels of the classes, float64.

    Example:
        >>> import numpy as np
        >>> np.exp(first_logits([2], 4)).round(3).tolist()
        [[0.025, 0.025, 0.925, 0.025]]
    """
    smooth = np.full((len(unit), num_classes), SMOOTHING / num_classes)
    smooth[np.arange(len(unit)), list(unit)] += 1 - SMOOTHING
    return np.log(smooth)


__all__ = ["SMOOTHING", "STEPS_PER_ITERATION", "Backpropagation", "first_logits"]
