"""The methods mtt and datm: images on which a student goes the way that experts went on the real ones.

Experts are trained on the real images beforehand, and their weights θ*_t kept after every epoch. In every iteration a
student starts from an expert at a random epoch t and makes N steps on the synthetic images X:

    θ_0 = θ*_t,   θ_{n+1} = θ_n − β ∇CE(X_n; θ_n),   L = |θ_N − θ*_{t+M}|² / |θ*_t − θ*_{t+M}|²

L is differentiated by the images, the logarithm of β and, in datm, the logits of the labels, through all N steps: the
gradient is exact, see `atom.methods.unroll`. L is 1 where the student has not moved, 0 where it has arrived.

Source: Cazenavette et al., *Dataset Distillation by Matching Training Trajectories*, CVPR 2022, and its released code;
Guo et al., *Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching*, ICLR 2024, and its code.
DEVIATION(MTT): β is learned by its logarithm, so that it stays positive, and a step whose loss is above `max_loss` is
left out, as in DATM; epochs and batches are even; the result is the last iterate, not the best of fifty on test images.
DEVIATION(DATM): experts are flattened only where --flat-rho says so; which expert chooses the first images is the first
one; they and the first labels come from experts after the last epoch that is read, max_start_epoch − 1 + expert_epochs,
not after 100.
"""

# K classes, I stored images per class, N images of a step, E epochs, P weights, C channels, H height, W width

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from atom.batches import batches_of, num_batches
from atom.errors import ConfigError
from atom.formation import decode, label_decoded
from atom.methods.experts import Expert, Recipe, experts
from atom.methods.joint import Joint, learned_labels
from atom.methods.method import NOTHING, About, Part, Prepared, Shape, State, Unit
from atom.methods.settings import DistillSettings
from atom.methods.unroll import SGD, Leaves, Training
from atom.methods.unroll_settings import AlignedOptions, TrajectoryOptions, check_at_most
from atom.settings import DeviceKind, parse_dsa_strategy

_MTT = """```bibtex
@inproceedings{cazenavette2022distillation,
  title     = {Dataset Distillation by Matching Training Trajectories},
  author    = {Cazenavette, George and Wang, Tongzhou and Torralba, Antonio and Efros, Alexei A. and Zhu, Jun-Yan},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022}
}
```"""
_DATM = """```bibtex
@inproceedings{guo2024lossless,
  title     = {Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching},
  author    = {Guo, Ziyao and Wang, Kai and Cazenavette, George and Li, Hui and Zhang, Kaipeng and You, Yang},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}
```"""

RATE_MOMENTUM, LABEL_MOMENTUM = 0.5, 0.9
"""Of the student's step size and of the labels' logits. Sources: MTT's and DATM's code."""


class Trajectories(Joint):
    """Trajectories of experts (Cazenavette et al., 2022).

    The state holds the images, their velocity "momentum", "log_rate" of the student and its velocity; with --ema the
    running mean "images_mean", which is the result.
    """

    about = About("matching of training trajectories (MTT)", _MTT)
    Options = TrajectoryOptions
    remedy = (
        "each student ended farther from its expert than --max-loss allows; pass a smaller --lr-student or fewer"
        " --syn-steps."
    )

    def __init__(self, settings: DistillSettings, *, device: torch.device, **shape: int) -> None:
        super().__init__(settings, device=device, **shape)
        self.options = cast(TrajectoryOptions, settings.options)
        self.operations = parse_dsa_strategy(settings.dsa_strategy)
        self.rates = {"images": cast(float, settings.lr_img), "log_rate": self.options.lr_lr}
        self.momenta = {"images": settings.momentum_img, "log_rate": RATE_MOMENTUM}
        self.averaged: tuple[str, ...] = ("images",) if self.options.ema else ()

    @classmethod
    def resolve(cls, settings: DistillSettings, shape: Shape, device_kind: DeviceKind) -> DistillSettings:
        """5000 iterations on a GPU (MTT), 150 on a CPU, at a step size of 100 (MTT, small sets).

        Raises:
            ConfigError: an unknown network, or one with BatchNorm.
        """
        stored = sum(settings.per_class(shape.num_classes))
        batch = cast(TrajectoryOptions, settings.options).batch_syn
        check_at_most("--batch-syn", batch, stored, "stored images")
        settings = super().resolve(settings, shape, device_kind)
        iterations = 5000 if device_kind == "cuda" else 150
        return settings.model_copy(
            update={
                "iterations": iterations if settings.iterations is None else settings.iterations,
                "lr_img": settings.lr_img or 100.0,
            }
        )

    @classmethod
    def preparations(cls, settings: DistillSettings) -> Sequence[Expert]:
        """The experts, trained for as many epochs as are read."""
        options = cast(TrajectoryOptions, settings.options)
        recipe = Recipe(
            network=settings.network,
            seed=settings.seed,
            rate=options.lr_expert,
            batch=options.batch_expert,
            dsa_strategy=settings.dsa_strategy,
            flat_rho=options.flat_rho,
            flat_alpha=options.flat_alpha if options.flat_rho else 0.0,
            threads=settings.threads_per_actor,
        )
        return experts(options.num_experts, options.max_start_epoch - 1 + options.expert_epochs, recipe)

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
        return self._first(self.first_images(unit, real, given), {})

    def _first(self, images: np.ndarray, more: Mapping[str, np.ndarray]) -> State:
        leaves = {
            "images": images,
            "log_rate": np.log(np.asarray(self.options.lr_student, images.dtype)),
            **more,
        }
        velocities = {_velocity(name): np.zeros_like(leaf) for name, leaf in leaves.items()}
        means = {_mean(name): leaves[name] for name in self.averaged}
        return State.first({**leaves, **velocities, **means}, columns=1)

    @classmethod
    def replicas(cls, settings: DistillSettings) -> int:
        """As many as `--replicas` says."""
        return cast(TrajectoryOptions, settings.options).replicas

    @property
    def learned(self) -> Sequence[str]:
        """Images [K, I, C, H, W], the step size's logarithm [], and what else has a rate."""
        return tuple(self.rates)

    def is_sound(self, loss: float) -> bool:
        """Whether the student is not farther off than `max_loss`; a NaN is."""
        return loss <= self.options.max_loss

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
        """One student: its loss L, and the gradients."""
        del real
        student = iteration * self.options.replicas + number
        start_P, target_P = self._span(student, prepared, leaves["images"].dtype)
        steps = range(self.options.syn_steps)
        training = Training(
            lambda weights, leaves, step: self._step_loss(weights, leaves, student, step, unit=unit),
            lambda leaves, _: leaves["log_rate"].exp(),
            SGD(),
        )
        states = training.run((start_P,), leaves, steps)
        missed_P, way = states[-1][0] - target_P, (start_P - target_P).square().sum()
        return float(missed_P.square().sum() / way), training.gradients(
            states, leaves, steps, 2 * missed_P / way
        )

    def _span(self, student: int, prepared: Prepared, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weights [P] of an expert where the student starts, and where it is to arrive."""
        options = self.options
        passes, place = divmod(student, options.num_experts)
        # Every expert once in a pass.
        expert = int(self.drawn("expert", passes).permutation(options.num_experts)[place])
        rng, iteration = self.drawn("start", student), student // options.replicas
        epoch = int(rng.integers(options.min_start_epoch, self._max_start_epoch(iteration)))
        weights_EP = prepared[f"expert {expert}"]["epochs"]
        # Copies: what workers share is read-only.
        start_P, target_P = (weights_EP[e].copy() for e in (epoch, epoch + options.expert_epochs))
        return tuple(torch.from_numpy(part).to(self.device, dtype) for part in (start_P, target_P))  # pyrefly: ignore

    def why_still(self, prepared: Prepared) -> str:
        """As everywhere, or that there is no way to go: L is 0 / 0 then."""
        options = self.options
        starts = range(options.min_start_epoch, options.max_start_epoch)
        ways = (
            (found["epochs"][e], found["epochs"][e + options.expert_epochs])
            for found in prepared.values()
            for e in starts
        )
        if any((one != other).any() for one, other in ways):
            return self.remedy
        return (
            f"the experts' weights are the same {options.expert_epochs} epochs after epochs {starts[0]} to"
            f" {starts[-1]}; pass a larger --lr-expert or other epochs, --min-start-epoch and --max-start-epoch."
        )

    def _max_start_epoch(self, iteration: int) -> int:
        del iteration
        return self.options.max_start_epoch

    def _step_loss(
        self, weights: Tensor, leaves: Leaves, student: int, number: int, *, unit: Sequence[int]
    ) -> Tensor:
        """Cross-entropy of a step of the student, on a batch of its pass over the synthetic images."""
        images = self.stored(leaves["images"], unit)
        batch = self.options.batch_syn or len(images)
        per_pass = num_batches(len(images), batch)
        rows = torch.arange(len(images))
        if per_pass > 1:
            passes, place = divmod(number, per_pass)
            order = self.drawn("order", student, passes).permutation(len(images))
            rows = torch.from_numpy(list(batches_of(order, batch))[place])
        rows_N = rows.to(self.device)
        images_NCHW = decode(images[rows_N], self.settings.factor)
        targets = label_decoded(self.targets(leaves, unit)[rows_N], self.settings.factor)
        images_NCHW = self.augmented(images_NCHW, self.drawn("augment", student, number))
        return cross_entropy(self.logits(weights, images_NCHW), targets)

    def updated(
        self, arrays: Mapping[str, Tensor], gradients: Mapping[str, Tensor], iteration: int
    ) -> dict[str, Tensor]:
        """After SGD with momentum on each leaf."""
        new, ema, share = {}, self.options.ema, self.settings.rate_share(iteration)
        for name, gradient in gradients.items():
            new[_velocity(name)] = self.momenta[name] * arrays[_velocity(name)] + gradient
            new[name] = arrays[name] - share * self.rates[name] * new[_velocity(name)]
        means = {_mean(n): ema * arrays[_mean(n)] + (1 - ema) * new[n] for n in self.averaged}
        return {**new, **means}

    @classmethod
    def result(cls, settings: DistillSettings, unit: Unit, state: State) -> Part:
        """Images, and the common training at the student's step size. Source: MTT, evaluation in the released code."""
        del settings, unit
        return Part(state.images, training={"lr_net": float(np.exp(state.arrays["log_rate"]))})

    def finished(self, arrays: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """With the running means in place of what they are the means of."""
        return {**arrays, **{name: arrays[_mean(name)] for name in self.averaged}}


class Aligned(Trajectories):
    """Trajectories with learned labels, whose difficulty fits the images (Guo et al., 2024).

    The state holds "logits" [K, I, classes] as well; labels are their softmax.
    """

    about = About("matching of training trajectories with learned labels (DATM)", f"{_DATM}\n\n{_MTT}")
    Options = AlignedOptions

    def __init__(self, settings: DistillSettings, *, device: torch.device, **shape: int) -> None:
        super().__init__(settings, device=device, **shape)
        self.rates["logits"] = cast(AlignedOptions, self.options).lr_label
        self.momenta["logits"] = LABEL_MOMENTUM
        # Labels go with their images.
        self.averaged += tuple("logits" for _ in self.averaged)

    @classmethod
    def resolve(cls, settings: DistillSettings, shape: Shape, device_kind: DeviceKind) -> DistillSettings:
        """As `Trajectories.resolve`.

        Raises:
            ConfigError: the start grows from outside of its range.
        """
        options = cast(AlignedOptions, settings.options)
        first = options.first_max_start_epoch
        if first is not None and not options.min_start_epoch < first <= options.max_start_epoch:
            raise ConfigError(
                f"--first-max-start-epoch {first}: expected more than --min-start-epoch {options.min_start_epoch}, at"
                f" most --max-start-epoch {options.max_start_epoch}."
            )
        return super().resolve(settings, shape, device_kind)

    @classmethod
    def learns_labels(cls, settings: DistillSettings) -> bool:
        """Always."""
        del settings
        return True

    def start(
        self,
        unit: Sequence[int],
        real: Mapping[int, Tensor],
        *,
        given: np.ndarray | None = None,
        prepared: Prepared = NOTHING,
    ) -> State:
        """Images as `Method.start`, among those that the first expert knows; logits are what the experts say of them.

        An image's logits are the mean over those experts that know its class, or over all where none does.
        """
        with self.repeatable(), torch.no_grad():
            known = {c: self._known(c, real[c], prepared) for c in unit}
        images = self.first_images(unit, known, given)
        with self.repeatable(), torch.no_grad():
            logits = np.stack([self._experts_say(images[row], c, prepared) for row, c in enumerate(unit)])
        return self._first(images, {"logits": logits})

    def _known(self, class_id: int, real_NCHW: Tensor, prepared: Prepared) -> Tensor:
        """The real images of the class that the first expert, at its last epoch, takes for it; all if too few."""
        wanted = self.settings.ipc * self.settings.factor**2
        right_N = self._answers(0, real_NCHW, prepared).argmax(1).cpu() == class_id
        known = real_NCHW[right_N.to(real_NCHW.device)]
        return known if len(known) >= wanted else real_NCHW

    def _experts_say(self, images_ICHW: np.ndarray, class_id: int, prepared: Prepared) -> np.ndarray:
        """Logits [I, K] of one class's stored images."""
        decoded = decode(torch.tensor(images_ICHW), self.settings.factor)
        every = torch.stack(
            [self._answers(e, decoded, prepared).cpu() for e in range(self.options.num_experts)]
        )
        every = every.view(len(every), len(images_ICHW), -1, every.shape[-1]).mean(2)
        right = (every.argmax(2) == class_id).unsqueeze(2)
        right = torch.where(right.any(0, keepdim=True), right, torch.ones_like(right))
        return ((every * right).sum(0) / right.sum(0)).numpy()

    def _answers(self, expert: int, images_NCHW: Tensor, prepared: Prepared) -> Tensor:
        weights_P = torch.from_numpy(prepared[f"expert {expert}"]["epochs"][-1].copy()).to(self.device)
        parts = images_NCHW.split(1000)
        return torch.cat([self.logits(weights_P, part.to(self.device)) for part in parts])

    def _max_start_epoch(self, iteration: int) -> int:
        """Of DATM's sequential generation: grows from the first to the last in the given iterations."""
        options = cast(AlignedOptions, self.options)
        if options.first_max_start_epoch is None:
            return options.max_start_epoch
        grown = (
            (options.max_start_epoch - options.first_max_start_epoch) * iteration // options.growth_iterations
        )
        return min(options.max_start_epoch, options.first_max_start_epoch + grown)

    @classmethod
    def result(cls, settings: DistillSettings, unit: Unit, state: State) -> Part:
        """Images, labels and training, as `Trajectories.result`."""
        return replace(super().result(settings, unit, state), soft_labels=learned_labels(state))


def _mean(leaf: str) -> str:
    return f"{leaf}_mean"


def _velocity(leaf: str) -> str:
    return "momentum" if leaf == "images" else f"{leaf}_momentum"


__all__ = ["Aligned", "Trajectories"]
