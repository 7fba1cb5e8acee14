"""The methods dc and dsa, and what idc shares with them: SGD on images by which a network learns as from real ones.

Where the network is never trained on the synthetic images (one outer step; idc), a class is a pure function of its own
real images and the seed (and of idc's networks). Else all classes are one unit, since each moves the network that the
others meet. Either way each step asks `atom.streams` for its own random numbers, by its count, which is iteration *
outer steps + outer step.
"""

# N images, C channels, H height, W width, K classes, G classes of the unit, B real images a class, I images per class,
# P numbers of an augmentation row

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from atom.augment import augment
from atom.device import at_least_float32, autocast
from atom.draws import Draw, Draws
from atom.formation import decode, label_decoded
from atom.methods import gradient_defaults
from atom.methods.ending import check_call, is_finite, kept
from atom.methods.gradient_settings import LoopOptions
from atom.methods.gradients import Distance, class_gradients, cosine_distance, row_weights
from atom.methods.inner_training import train_pass
from atom.methods.method import NOTHING, About, Method, Prepared, Shape, State, check_resolved
from atom.methods.networks import network_of, twice_differentiable, warn_of_small_maps
from atom.methods.settings import DistillSettings
from atom.settings import DeviceKind
from atom.streams import stream

_DC = """```bibtex
@inproceedings{zhao2021dc,
  title     = {Dataset Condensation with Gradient Matching},
  author    = {Zhao, Bo and Mopuri, Konda Reddy and Bilen, Hakan},
  booktitle = {International Conference on Learning Representations},
  year      = {2021}
}
```"""
_DSA = """```bibtex
@inproceedings{zhao2021dsa,
  title     = {Dataset Condensation with Differentiable Siamese Augmentation},
  author    = {Zhao, Bo and Bilen, Hakan},
  booktitle = {International Conference on Machine Learning},
  year      = {2021}
}
```"""
LR_NET, BATCH_NET = 0.01, 256
"""SGD on the network between steps on the images, without momentum. Source: DC, published code."""


class GradientMatching(Method):
    """Matches gradients of weights; its state holds the images and SGD's velocity, "momentum".

    Attributes:
        outer_steps: steps on the images in each iteration.
        random_network: whether an iteration reads the weights of a random network.
    """

    unread: ClassVar[frozenset[str]] = frozenset({"compile"})
    outer_steps = 1
    random_network: ClassVar[bool] = True

    def __init__(self, settings: DistillSettings, *, device: torch.device, **shape: int) -> None:
        super().__init__(settings, device=device, **shape)
        check_resolved(dict(settings.options))
        self.dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        self.net = network_of(settings, Shape(**shape)).to(device)
        self.weights = self._weights(self.net)
        self.distance = self._distance(settings)
        size = {"height": shape["height"], "width": shape["width"]}
        self.draws = Draws(settings, self.net, **size, device=device, random_network=self.random_network)

    @classmethod
    def _weights(cls, net: nn.Module) -> Sequence[Tensor]:
        """Which weights are matched."""
        return row_weights(net)

    @classmethod
    def _distance(cls, settings: DistillSettings) -> Distance:
        """How far their gradients are apart."""
        del settings
        return cosine_distance

    @abstractmethod
    def _set_network(
        self, count: int, draw: Draw, images: Tensor, unit: Sequence[int], prepared: Prepared
    ) -> None:
        """Give the network the weights that step `count` matches gradients of; `images` as they are before it."""

    def start(
        self,
        unit: Sequence[int],
        real: Mapping[int, Tensor],
        *,
        given: np.ndarray | None = None,
        prepared: Prepared = NOTHING,
    ) -> State:
        """See `Method.start` and `Method.initial`."""
        del prepared
        images = self.initial(unit, real) if given is None else given
        return State.first({"images": images, "momentum": np.zeros_like(images)}, columns=len(unit))

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
        """See `Method.advance`, and `atom.methods.ending.kept` for how it ends; a loss is the mean over outer steps.

        Raises:
            ShapeError: the state is that of another number of classes.
            ConfigError: more iterations than the settings have, which would go on from finished images.
        """
        check_call(state, until, unit=unit, settings=self.settings)
        images = torch.from_numpy(state.images.copy()).to(self.device)
        momentum = torch.from_numpy(state.arrays["momentum"].copy()).to(self.device)
        real = {class_id: real[class_id].to(self.device) for class_id in unit}
        losses = torch.zeros(max(0, until - state.iteration), len(unit), device=self.device)
        counts = range(state.iteration * self.outer_steps, until * self.outer_steps)
        sizes = [len(real[class_id]) for class_id in unit]
        together, done = self.outer_steps > 1, state.iteration
        with self.repeatable(), twice_differentiable():
            for count, draw in zip(counts, self.draws.ahead(counts, unit, sizes), strict=True):
                # At the first image that is not finite the network that all classes meet is lost.
                if together and count % self.outer_steps == 0 and not is_finite(images):
                    break
                self._set_network(count, draw, images, unit, prepared)
                iteration, outer_step = divmod(count, self.outer_steps)
                rate = cast(float, self.settings.lr_img) * self.settings.rate_share(iteration)
                losses[iteration - state.iteration] += self._step(images, momentum, draw, unit, real, rate)
                done = iteration + (outer_step + 1 == self.outer_steps)
                if on_iteration is not None and done > iteration:
                    on_iteration(done)
            return kept(
                state,
                {"images": images, "momentum": momentum},
                np.concatenate(
                    [state.losses, (losses[: done - state.iteration] / self.outer_steps).cpu().numpy()]
                ),
                until=done,
                unit=unit,
                real=real,
                settings=self.settings,
                together=together,
            )

    def _step(
        self,
        images: Tensor,
        momentum: Tensor,
        draw: Draw,
        class_ids: Sequence[int],
        real: Mapping[int, Tensor],
        rate: float,
    ) -> Tensor:
        """One step in place on images and momentum, both [G, I, C, H, W]; returns the losses [G]."""
        rows_GB = draw.rows_GB.to(self.device, non_blocking=True)
        params_GP = draw.params_GP.to(self.device, non_blocking=True)
        losses, gradients = [], []
        # One class at a time: each has gradients of its own, and then its bits do not depend on the others.
        for row, class_id in enumerate(class_ids):
            target = self._gradients(real[class_id][rows_GB[row]], class_id, params_GP[row])
            leaf_ICHW = images[row].requires_grad_()
            own = self._gradients(decode(leaf_ICHW, self.settings.factor), class_id, params_GP[row])
            loss = self.distance([gradient.detach() for gradient in target], own)
            gradients.append(torch.autograd.grad(loss, leaf_ICHW)[0])
            losses.append(loss.detach())
        momentum.mul_(self.settings.momentum_img).add_(torch.stack(gradients))
        images.sub_(momentum, alpha=rate)
        return torch.stack(losses)

    def _gradients(self, images_NCHW: Tensor, class_id: int, params_P: Tensor) -> list[Tensor]:
        if self.draws.operations:
            images_NCHW = augment(images_NCHW, params_P.repeat(len(images_NCHW), 1))
        differentiable = images_NCHW.requires_grad
        return class_gradients(
            self._logits(images_NCHW), class_id, self.weights, differentiable=differentiable
        )

    def _logits(self, images_NCHW: Tensor) -> Tensor:
        with autocast(self.device, self.dtype):
            logits_NK = self.net(images_NCHW)
        return at_least_float32(logits_NK)


class Siamese(GradientMatching):
    """Gradients under one augmentation for the real and the synthetic images of a class (Zhao and Bilen, 2021).

    With more than one outer step the network is trained on the synthetic images between them, and all classes are one
    unit.
    """

    about = About("matching of gradients under siamese augmentation (DSA)", f"{_DSA}\n\n{_DC}")
    Options = LoopOptions

    def __init__(self, settings: DistillSettings, *, device: torch.device, **shape: int) -> None:
        super().__init__(settings, device=device, **shape)
        options = cast(LoopOptions, settings.options)
        self.outer_steps = cast(int, options.outer_steps)
        self.inner_epochs = cast(int, options.inner_epochs)

    @classmethod
    def resolve(cls, settings: DistillSettings, shape: Shape, device_kind: DeviceKind) -> DistillSettings:
        """See `atom.methods.gradient_defaults`, and `atom.methods.networks.warn_of_small_maps`."""
        gradient_defaults.check_network(settings, shape, cls._weights, cls._distance(settings))
        warn_of_small_maps(settings, shape)
        return gradient_defaults.resolve_loop(settings, shape, device_kind)

    def _set_network(
        self, count: int, draw: Draw, images: Tensor, unit: Sequence[int], prepared: Prepared
    ) -> None:
        del prepared
        if count % self.outer_steps == 0:
            assert draw.weights is not None, "drawn, since random_network is set"
            self.draws.weights.load(draw.weights)
            return
        factor = self.settings.factor
        labels_G = torch.tensor(unit, device=self.device)
        optimizer = torch.optim.SGD(self.net.parameters(), lr=LR_NET)
        for epoch in range(self.inner_epochs):
            train_pass(
                self._logits,
                decode(images.flatten(0, 1), factor),
                label_decoded(labels_G.repeat_interleave(images.shape[1]), factor),
                optimizer=optimizer,
                batch=BATCH_NET,
                operations=self.draws.operations,
                rng=stream(self.settings.seed, "distill/inner", count, epoch),
            )


class Plain(Siamese):
    """Gradients without augmentation (Zhao et al., 2021).

    Its images start where --init says. DEVIATION(DC): there, from noise; real images are the default of all methods
    here.
    """

    about = About("matching of gradients (DC)", _DC)
    unread = frozenset({"compile", "dsa_strategy"})

    def __init__(self, settings: DistillSettings, *, device: torch.device, **shape: int) -> None:
        # Here, since the settings of a distillation tell its teachers' augmentation as well.
        super().__init__(settings.model_copy(update={"dsa_strategy": "none"}), device=device, **shape)


__all__ = ["GradientMatching", "Plain", "Siamese"]
