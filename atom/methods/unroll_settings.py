"""What the methods that differentiate through a training may be told, beside the settings of all methods."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from atom.errors import ConfigError
from atom.settings import Settings, check_useless, parse_dsa_strategy


class JudgedOptions(Settings):
    """Options of the methods whose trained networks are judged by real images."""

    lr_lr: Annotated[float, Field(ge=0)] = 0.01
    """Adam's step size on the logarithm of lr_inner; 0 holds it, as RaT-BPTT does. Chosen, measured."""
    lr_label: Annotated[float, Field(ge=0)] = 0.0
    """Adam's step size on the logits of soft labels, which start at smoothed classes; 0: labels are hard. SLDD: that of
    the images."""
    batch_outer: Annotated[int, Field(ge=1)] = 256
    """Real images, of all classes together, that judge a trained network. Chosen, measured; DD: 1024, RaT-BPTT:
    5000."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Networks per iteration, whose gradients are averaged; further workers take a share of them."""
    images_in_all: Annotated[int, Field(ge=1)] | None = None
    """Stored images of all classes together, perhaps fewer than classes, in place of --ipc; needs learned labels.
    Source: SLDD."""

    @model_validator(mode="after")
    def _labels_for_all(self) -> Self:
        if self.images_in_all is not None and not self.lr_label:
            raise ConfigError(
                f"--images-in-all {self.images_in_all}: labels are hard, and a class without an image could not be"
                " learned; pass --lr-label as well, such as 0.05, or --ipc instead."
            )
        return self

    def shrunk(self) -> Self:
        """Two networks, few real images."""
        return self.changed(batch_outer=min(self.batch_outer, 16), replicas=min(self.replicas, 2))


class OrderedOptions(JudgedOptions):
    """Options of dd."""

    distill_steps: Annotated[int, Field(ge=1)] | None = None
    """Training steps in which a network sees all images once, each step its own; must divide those of a class; default
    as many, one image of each class in a step. Source: DD."""
    distill_epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over these steps; default 3 (DD), and as many as make 15 steps."""
    lr_inner: Annotated[float, Field(gt=0)] = 0.1
    """Size of every step at the start; each is learned. Chosen, measured; DD: 0.02 on MNIST, 0.001 on CIFAR-10."""
    inner_init: Literal["random", "fixed"] = "random"
    """First weights of the networks: random, anew in every iteration; fixed, the same in all, and in trainings on the
    set. Source: DD, which has both."""

    @model_validator(mode="after")
    def _one_step_for_all(self) -> Self:
        if self.images_in_all is not None and (self.distill_steps or 1) > 1:
            raise ConfigError(
                f"--distill-steps {self.distill_steps}: the images of --images-in-all {self.images_in_all} are all in"
                " one step; leave it out, or pass --ipc instead."
            )
        return self


class BackpropagationOptions(JudgedOptions):
    """Options of rat-bptt."""

    inner_steps: Annotated[int, Field(ge=1)] = 15
    """Training steps of a network on the images, at most. Chosen, measured; RaT-BPTT: 130 to 300."""
    window: Annotated[int, Field(ge=1)] | None = None
    """Of these, the steps that are differentiated, the last ones of a training that ends at random; default all.
    RaT-BPTT: 60 to 100."""
    window_at: Literal["random", "end"] = "random"
    """Where the window lies: random, anew in each iteration; end, the last of all steps. Source: RaT-BPTT."""
    inner_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    """What trains the network; momentum: SGD with 0.9. RaT-BPTT: adam."""
    lr_inner: Annotated[float, Field(gt=0)] = 0.1
    """Its step size at the start. Chosen, measured for sgd; RaT-BPTT: 0.001 with adam."""
    inner_dsa_strategy: str = "none"
    """Augmentation of the images in every training step, and of the real ones, as --eval-dsa-strategy; none: chosen,
    measured. RaT-BPTT: flip_rotate."""
    batch_per_class: Annotated[int, Field(ge=1)] | None = None
    """Stored images per class in a training step, drawn anew for each; default all."""

    def shrunk(self) -> Self:
        """A few steps of a training as well."""
        steps = min(self.inner_steps, 4)
        # Shorter than the training where it was, or `window_at` would mean nothing.
        window = self.window and min(self.window, steps - (self.window < self.inner_steps))
        return super().shrunk().changed(inner_steps=steps, window=window)

    @field_validator("inner_dsa_strategy")
    @classmethod
    def _known_inner_operations(cls, strategy: str) -> str:
        parse_dsa_strategy(strategy, flag="--inner-dsa-strategy")
        return strategy

    @model_validator(mode="after")
    def _window_within(self) -> Self:
        check_at_most("--window", self.window, self.inner_steps, "steps of --inner-steps")
        if self.window in (None, self.inner_steps):
            check_useless(self, "window_at", "the window is all steps; pass a smaller --window as well")
        return self


class TrajectoryOptions(Settings):
    """Options of mtt."""

    num_experts: Annotated[int, Field(ge=1)] = 8
    """Networks trained on the real images beforehand. Chosen, measured; MTT: 100."""
    lr_expert: Annotated[float, Field(gt=0)] = 0.05
    """Step size of their SGD, without momentum. Chosen, measured; MTT: 0.01."""
    batch_expert: Annotated[int, Field(ge=1)] = 64
    """Images of a step of theirs. Chosen, measured; MTT: 256."""
    flat_rho: Annotated[float, Field(ge=0)] = 0.0
    """Disturbance of their weights at which gradients are taken, so that they end in flat places; twice the cost. 0:
    plain SGD. FTD and DATM: 0.01."""
    flat_alpha: Annotated[float, Field(ge=0)] = 0.3
    """With flat_rho, how much of the plain gradient's orthogonal part is taken off. Source: DATM, FTD 0.3 or 1."""
    min_start_epoch: Annotated[int, Field(ge=0)] = 0
    """First epoch of an expert that a student may start from; DATM: 0 to 40."""
    max_start_epoch: Annotated[int, Field(ge=1)] = 6
    """Epoch before which it starts. Chosen, measured; MTT: 2 to 40 by set and ipc."""
    expert_epochs: Annotated[int, Field(ge=1)] = 2
    """Epochs of the expert that a student is to make up for. Source: MTT, 2 or 3."""
    syn_steps: Annotated[int, Field(ge=1)] = 20
    """Steps of the student on the synthetic images. Source: MTT, 10 to 80 by set and ipc."""
    batch_syn: Annotated[int, Field(ge=1)] | None = None
    """Stored images in a step of the student; default all."""
    lr_student: Annotated[float, Field(gt=0)] = 0.05
    """Step size of the student at the start; it is learned. Chosen, measured; MTT: 0.001 or 0.01."""
    lr_lr: Annotated[float, Field(ge=0)] = 0.01
    """SGD's step size on the logarithm of lr_student; 0 holds it. Chosen, measured."""
    max_loss: Annotated[float, Field(gt=0)] = 2.0
    """Loss above which a step is left out; at 1 the student is as far as if it had not moved, and images may begin a
    little above. Chosen, measured; DATM: 1.0 or 1.1, MTT: none."""

    replicas: Annotated[int, Field(ge=1)] = 1
    """Networks per iteration, whose gradients are averaged; further workers take a share of them."""

    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of a running mean of the images, of datm also of the labels, which is the result then; 0: the last iterate.
    FTD: 0.999 to 0.9999."""

    @model_validator(mode="after")
    def _some_start(self) -> Self:
        if self.min_start_epoch >= self.max_start_epoch:
            raise ConfigError(
                f"--min-start-epoch {self.min_start_epoch} leaves no epoch before --max-start-epoch"
                f" {self.max_start_epoch}; pass a smaller one."
            )
        return self

    def shrunk(self) -> Self:
        """Two experts of a few epochs, and few steps."""
        return self.changed(
            num_experts=min(self.num_experts, 2),
            min_start_epoch=min(self.min_start_epoch, 1),
            max_start_epoch=min(self.max_start_epoch, 2),
            expert_epochs=min(self.expert_epochs, 2),
            syn_steps=min(self.syn_steps, 4),
            replicas=min(self.replicas, 2),
        )


def check_at_most(flag: str, asked: int | None, most: int, of: str) -> None:
    """Refuse to take more than there are.

    Raises:
        ConfigError: see above.
    """
    if asked is not None and asked > most:
        raise ConfigError(
            f"{flag} {asked}: there are only {most} {of}; pass at most {most}, or leave it out."
        )


class AlignedOptions(TrajectoryOptions):
    """Options of datm, which learns labels with the images."""

    max_loss: Annotated[float, Field(gt=0)] = 1.0
    """Loss above which a step is left out; at 1 the student is as far as if it had not moved. Source: DATM."""
    lr_label: Annotated[float, Field(gt=0)] = 2.0
    """SGD's step size on the logits of the labels, at momentum 0.9. Source: DATM, 2 to 10 by set and ipc."""
    first_max_start_epoch: Annotated[int, Field(ge=1)] | None = None
    """max_start_epoch at the first iteration, from which it grows; default it is the same in all. Source: DATM."""
    growth_iterations: Annotated[int, Field(ge=1)] = 1000
    """Iterations in which it grows to max_start_epoch. Source: DATM, 1000 or 2000."""
    images_in_all: Annotated[int, Field(ge=1)] | None = None
    """Stored images of all classes together, perhaps fewer than classes, in place of --ipc. Source: SLDD."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.first_max_start_epoch is None:
            check_useless(
                self, "growth_iterations", "nothing grows without --first-max-start-epoch; pass that as well"
            )
        return self

    def shrunk(self) -> Self:
        """The growth as well."""
        small, first = super().shrunk(), self.first_max_start_epoch
        if first is None:
            return small
        first = max(small.min_start_epoch + 1, min(first, small.max_start_epoch))
        return small.changed(first_max_start_epoch=first, growth_iterations=min(self.growth_iterations, 4))
