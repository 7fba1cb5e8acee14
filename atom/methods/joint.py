"""What the methods share whose images are differentiated through a training of a network on all of them."""

# K classes, I places of a class, N images, C channels, H height, W width, P weights of the network, R replicas

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from atom import nets
from atom.augment import augment, draw_params
from atom.device import at_least_float32, autocast, precision_name
from atom.errors import ConfigError
from atom.methods.ending import check_call, is_finite, kept, stood_still
from atom.methods.method import NOTHING, Arrays, Method, Prepared, Shape, State, Unit
from atom.methods.networks import network_of, tried_twice, twice_differentiable
from atom.methods.settings import DistillSettings
from atom.methods.unroll import FlatNetwork, Leaves
from atom.settings import DeviceKind, rows_of
from atom.streams import stream


class Joint(Method):
    """All classes are one unit: they meet in the network.

    Attributes:
        operations: of DSA, in the steps of the training.
        remedy: what to change where no step moved the images, for people.
        to_scale: whether the finished images may be put to the scale of the real ones.
    """

    unread: ClassVar[frozenset[str]] = frozenset({"batch_real", "classes_per_group", "compile"})
    operations: tuple[str, ...] = ()
    remedy: ClassVar[str]
    to_scale: ClassVar[bool] = True

    def __init__(self, settings: DistillSettings, *, device: torch.device, **shape: int) -> None:
        super().__init__(settings, device=device, **shape)
        self.dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        self.network = FlatNetwork(network_of(settings, Shape(**shape)).to(device))

    @classmethod
    def resolve(cls, settings: DistillSettings, shape: Shape, device_kind: DeviceKind) -> DistillSettings:
        """The precision: float32 unless asked, since gradients of gradients have few bits to lose.

        Raises:
            ConfigError: an unknown network, one with BatchNorm, or one that cannot be differentiated twice.
        """
        net = network_of(settings, shape)
        nets.WeightDraw(net)
        try:
            network = FlatNetwork(net)
        except ConfigError as error:
            raise ConfigError(f"--network {settings.network}: with {settings.method} {error}") from error
        blank_NCHW = torch.zeros(1, shape.channels, shape.height, shape.width, requires_grad=True)
        weights_P = network.weights().requires_grad_()
        with tried_twice(settings):
            loss = cross_entropy(network(weights_P, blank_NCHW), torch.tensor([0]))
            (gradient_P,) = torch.autograd.grad(loss, weights_P, create_graph=True)
            # Not `grad`, which steps over what is differentiable once, and leaves its share out.
            gradient_P.square().sum().backward()
        precision = (
            "float32" if settings.precision == "auto" else precision_name(settings.precision, device_kind)
        )
        return settings.model_copy(update={"precision": precision})

    @classmethod
    def units(cls, settings: DistillSettings, class_ids: Sequence[int]) -> list[Unit]:
        """One."""
        del settings
        return [tuple(class_ids)]

    @property
    @abstractmethod
    def learned(self) -> Sequence[str]:
        """Arrays of the state that move by gradients."""

    @abstractmethod
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
        """Loss of one network of an iteration, and its gradients by the leaves, one for each of `learned`."""

    @abstractmethod
    def updated(
        self, arrays: Mapping[str, Tensor], gradients: Mapping[str, Tensor], iteration: int
    ) -> Mapping[str, Tensor]:
        """The state's arrays after a step on what is learned."""

    def finished(self, arrays: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The state's arrays after the last iteration, before the images are put to scale: here as they are."""
        return arrays

    def why_still(self, prepared: Prepared) -> str:
        """Why no step moved the images, and what to change, for people; ends a sentence."""
        del prepared
        return self.remedy

    def is_sound(self, loss: float) -> bool:
        """Whether a network of that loss has a say; its gradients are known to be finite."""
        return math.isfinite(loss)

    def replica(
        self,
        arrays: Arrays,
        iteration: int,
        number: int,
        *,
        unit: Sequence[int],
        real: Mapping[int, Tensor],
        prepared: Prepared = NOTHING,
    ) -> Arrays:
        """See `Method.replica`: "loss" and the gradients by name."""
        leaves = {name: torch.tensor(arrays[name], device=self.device) for name in self.learned}
        with self.repeatable(), twice_differentiable():
            loss, gradients = self.of_replica(
                leaves, iteration, number, unit=unit, real=self._here(unit, real), prepared=prepared
            )
        return {"loss": np.asarray(loss), **{name: g.cpu().numpy() for name, g in gradients.items()}}

    def gradients(
        self,
        leaves: Leaves,
        iteration: int,
        *,
        unit: Sequence[int],
        real: Mapping[int, Tensor],
        prepared: Prepared = NOTHING,
    ) -> tuple[float, dict[str, Tensor] | None]:
        """Loss of an iteration and its gradients by the leaves: means over the sound replicas, in their order.

        Args:
            leaves: of each of `learned`.
            iteration: counts from 0.
            unit, real, prepared: as for `Method.advance`.

        Returns:
            NaN and None, where no replica was sound.
        """
        every = range(self.replicas(self.settings))
        if self.elsewhere is None:
            answers = [
                self.of_replica(leaves, iteration, number, unit=unit, real=real, prepared=prepared)
                for number in every
            ]
        else:
            arrays = {name: leaf.cpu().numpy() for name, leaf in leaves.items()}

            def here(number: int) -> Arrays:
                return self.replica(arrays, iteration, number, unit=unit, real=real, prepared=prepared)

            answers = [
                (float(a["loss"]), {n: torch.tensor(a[n], device=self.device) for n in leaves})
                for a in self.elsewhere(arrays, iteration, every, here)
            ]
        sound = [
            (loss, gradients)
            for loss, gradients in answers
            if self.is_sound(loss) and all(bool(g.isfinite().all()) for g in gradients.values())
        ]
        if not sound:
            return math.nan, None
        sums = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        for _, gradients in sound:
            for name, gradient in gradients.items():
                sums[name] += gradient / len(sound)
        return sum(loss / len(sound) for loss, _ in sound), sums

    def advance(
        self,
        state: State,
        until: int,
        *,
        unit: Sequence[int],
        real: Mapping[int, Tensor],
        prepared: Prepared = NOTHING,
        on_iteration: Callable[[int], None] | None = None,
    ) -> State:
        """See `Method.advance` and `atom.methods.ending`; the loss of a step that moved nothing is NaN."""
        check_call(state, until, unit=unit, settings=self.settings)
        arrays: Mapping[str, Tensor] = {
            name: torch.tensor(array, device=self.device) for name, array in state.arrays.items()
        }
        real = self._here(unit, real)
        losses = np.full((max(0, until - state.iteration), 1), np.nan, np.float32)
        iteration = state.iteration
        with self.repeatable(), twice_differentiable():
            # At the first image that is not finite all is lost, wherever the way is cut.
            while iteration < until and is_finite(arrays["images"]):
                leaves = {name: arrays[name] for name in self.learned}
                loss, gradients = self.gradients(leaves, iteration, unit=unit, real=real, prepared=prepared)
                if gradients is not None:
                    arrays = self.updated(arrays, gradients, iteration)
                    losses[iteration - state.iteration] = loss
                iteration += 1
                if on_iteration is not None:
                    on_iteration(iteration)
            if state.iteration < iteration == self.settings.iterations:
                arrays = self.finished(arrays)
            ended = kept(
                state,
                arrays,
                np.concatenate([state.losses, losses[: iteration - state.iteration]]),
                until=iteration,
                unit=unit,
                real=real,
                settings=self.settings,
                to_scale=self.to_scale,
                together=True,
                counts=self.counts(unit),
            )
        return stood_still(ended, unit=unit, settings=self.settings, why=self.why_still(prepared))

    def _here(self, unit: Sequence[int], real: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {class_id: real[class_id].to(self.device) for class_id in unit}

    def augmented(self, images_NCHW: Tensor, rng: np.random.Generator) -> Tensor:
        """The images under one operation for all, with numbers of its own for each."""
        if not self.operations:
            return images_NCHW
        num_rows, _, height, width = images_NCHW.shape
        rows = draw_params(self.operations, num_rows=num_rows, height=height, width=width, rng=rng)
        return augment(images_NCHW, torch.from_numpy(rows).to(images_NCHW.device))

    def first_images(
        self, unit: Sequence[int], real: Mapping[int, Tensor], given: np.ndarray | None
    ) -> np.ndarray:
        """Images [K, I, C, H, W] before the first step: the given ones or those of `initial`; empty places hold 0."""
        images = self.initial(unit, real) if given is None else given.copy()
        for row, count in enumerate(self.counts(unit)):
            images[row, count:] = 0
        return images

    def counts(self, unit: Sequence[int]) -> list[int]:
        """Stored images of each class of the unit. The state has I places for each, the last of which may be empty."""
        of_class = self.settings.per_class(self.num_classes)
        return [of_class[class_id] for class_id in unit]

    def stored(self, array: Tensor, unit: Sequence[int]) -> Tensor:
        """Of [K, I, ...] what belongs to stored images, [N, ...], class by class; empty places have gradient 0."""
        flat, rows = array.flatten(0, 1), rows_of(self.counts(unit), array.shape[1])
        return flat if len(rows) == len(flat) else flat[torch.tensor(rows, device=flat.device)]

    def targets(self, leaves: Leaves, unit: Sequence[int]) -> Tensor:
        """Of the N stored images: classes [N], or where labels are learned distributions [N, classes]."""
        if "logits" in leaves:
            return self.stored(leaves["logits"], unit).softmax(1)
        return torch.tensor(unit, device=self.device).repeat_interleave(leaves["images"].shape[1])

    def logits(self, weights_P: Tensor, images_NCHW: Tensor) -> Tensor:
        """Of the network with these weights, [N, K], float32 or float64."""
        with autocast(self.device, self.dtype):
            logits_NK = self.network(weights_P, images_NCHW)
        return at_least_float32(logits_NK)

    def drawn(self, purpose: str, counter: int, second: int = 0) -> np.random.Generator:
        """Random numbers of this method for a purpose and two counters."""
        return stream(self.settings.seed, f"{type(self).__name__}/{purpose}", counter, second)


def learned_labels(state: State) -> np.ndarray:
    """Distributions over classes [K, I, classes] float32 that the "logits" of a state stand for."""
    # A copy: what was stored may be read-only.
    return torch.tensor(state.arrays["logits"]).double().softmax(2).float().numpy()


__all__ = ["Joint", "learned_labels"]
