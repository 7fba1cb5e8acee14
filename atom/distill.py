"""The optimisation of a group of classes: start, advance to an iteration, state in and out.

A group is a pure function of its real images, its settings, its seed, the kind of device and the threads: each
iteration asks `atom.streams` for its own random numbers, so it does not matter where the loop was interrupted,
on which machine it went on, or what ran beside it.
"""

# N images, C channels, H height, W width, G classes of the group, B real images a class, I images per class,
# P numbers of an augmentation row

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from atom import nets
from atom.augment import augment
from atom.device import autocast, compile_apart, deterministic, use_threads
from atom.draws import Draw, Draws
from atom.errors import ConfigError, ShapeError
from atom.formation import decode
from atom.initial import initial_images
from atom.matching import class_statistics, matching_loss
from atom.scale import check_range, to_real_scale
from atom.settings import DistillSettings

T = TypeVar("T")

IMAGES_VERSION = 3
"""Part of the identity of every output; to be raised whenever equal settings come to give other images."""

CACHE_PIXELS = 32 * 32 * 32
"""Pixels of images whose activations a CPU core's cache holds, for the networks of this field. Measured."""


@dataclass(frozen=True)
class GroupState:
    """Where the optimisation of a group stands: all that a later step depends on, and the losses so far.

    Attributes:
        iteration: steps done.
        images: [G, I, C, H, W] float32, preprocessed space.
        momentum: the same shape, SGD's velocity.
        losses: [iteration, G] float32, the loss of each class before each step.
        failures: of each class that failed, why. Its images are NaN; the others are what they would be beside a
            sound one.
    """

    iteration: int
    images: np.ndarray
    momentum: np.ndarray
    losses: np.ndarray
    failures: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def first(cls, images: np.ndarray) -> "GroupState":
        """Before the first step, from these stored images, [G, I, C, H, W] float32."""
        losses = np.zeros((0, len(images)), dtype=np.float32)
        return cls(iteration=0, images=images, momentum=np.zeros_like(images), losses=losses)


class GroupDistiller:
    """Distils a fixed group of classes; one instance serves any number of groups of the same shape.

    Args:
        settings: resolved, see `atom.resolve.resolve_settings`: no None, no "auto".
        channels, height, width: of the real images.
        num_classes: of the whole source, for the network's head.
        device: where to compute.

    Raises:
        ConfigError: settings are not resolved, or the network cannot be used.
    """

    def __init__(
        self,
        settings: DistillSettings,
        *,
        channels: int,
        height: int,
        width: int,
        num_classes: int,
        device: torch.device,
    ) -> None:
        unresolved = [name for name, value in settings.model_dump().items() if value in (None, "auto")]
        if unresolved:
            raise ConfigError(
                f"GroupDistiller: {', '.join(unresolved)} hold unresolved defaults; pass the settings through"
                " resolve_settings."
            )
        self.settings = settings
        self.device = device
        self.shape = (channels, height, width)
        self.num_classes = num_classes
        self.dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        # Eager instance norm on a CPU is slow in channels_last (8x8 digits: 179 ms a step against 108); compiled
        # or on CUDA, channels_last is the convolutions' own order.
        eager_on_cpu = device.type == "cpu" and settings.compile != "on"
        self.layout = torch.contiguous_format if eager_on_cpu else torch.channels_last
        self.net = self._frozen_network()
        self.draws = Draws(settings, self.net, height=height, width=width, device=device)
        self._real_statistics: Callable[..., list[Tensor]] = self._compiled(self._real_step)
        self._synthetic_loss: Callable[..., Tensor] = self._compiled(self._synthetic_step)

    def start(self, class_ids: Sequence[int], real: Mapping[int, Tensor]) -> GroupState:
        """State before the first step.

        Args:
            class_ids: the G classes of the group, in order.
            real: for each class its preprocessed images, [n, C, H, W] float32.

        Raises:
            ConfigError: a class has fewer images than the initialisation needs.
            ShapeError: a class's images do not have the promised shape.
        """
        with self._repeatable():
            images = np.stack([self._initial(c, real[c]) for c in class_ids])
        return GroupState.first(images)

    def advance(
        self,
        state: GroupState,
        until: int,
        *,
        class_ids: Sequence[int],
        real: Mapping[int, Tensor],
        on_iteration: Callable[[int], None] | None = None,
    ) -> GroupState:
        """State after iteration `until`; the result does not depend on how the way there was cut into calls.

        The settings' last iteration is followed by `atom.scale.to_real_scale`: until then nothing holds the scale of
        the images where the network has InstanceNorm.

        Args:
            state: of the same group.
            until: iterations done in the returned state, at most the settings' number.
            class_ids: as in `start`.
            real: as in `start`; best on the device already, else it is copied there in every call.
            on_iteration: called with the number of iterations done, after each.

        Raises:
            ShapeError: the state is that of another number of classes.
            ConfigError: more iterations than the settings have, which would go on from finished images.

        A class whose images diverge, or end far out of the range of its real ones, is in the state's `failures`.
        """
        if len(state.images) != len(class_ids):
            raise ShapeError(
                f"advance: the state holds {len(state.images)} classes, but {len(class_ids)} were named."
            )
        if until > cast(int, self.settings.iterations):
            raise ConfigError(
                f"advance: until iteration {until}, but the settings have {self.settings.iterations}; raise iterations."
            )
        images = torch.from_numpy(state.images.copy()).to(self.device)
        momentum = torch.from_numpy(state.momentum.copy()).to(self.device)
        real = {class_id: real[class_id].to(self.device) for class_id in class_ids}
        steps = range(state.iteration, until)
        losses = torch.zeros(len(steps), len(class_ids), device=self.device)
        sizes = [len(real[class_id]) for class_id in class_ids]
        with self._repeatable():
            for step, draw in enumerate(self.draws.ahead(steps, class_ids, sizes)):
                losses[step] = self._step(images, momentum, draw, class_ids, real)
                if on_iteration is not None:
                    on_iteration(state.iteration + step + 1)
        losses = np.concatenate([state.losses, losses.cpu().numpy()])
        failures = {**self._diverged(images, losses, class_ids, until), **state.failures}
        if steps and until >= cast(int, self.settings.iterations):
            images, lost = self._at_real_scale(images, class_ids, real)
            failures = {**lost, **failures}
        for row in [row for row, class_id in enumerate(class_ids) if class_id in failures]:
            images[row] = torch.nan
        return GroupState(
            iteration=max(until, state.iteration),
            images=images.cpu().numpy(),
            momentum=momentum.cpu().numpy(),
            losses=losses,
            failures=failures,
        )

    def _diverged(
        self, images: Tensor, losses_TG: np.ndarray, class_ids: Sequence[int], until: int
    ) -> dict[int, str]:
        """Of each class whose images are no longer finite, since when, and what can be done."""
        found = {}
        for row, class_id in enumerate(class_ids):
            if bool(images[row].isfinite().all()):
                continue
            sound = np.isfinite(losses_TG[:, row])
            since = until if sound.all() else int(sound.argmin())
            found[class_id] = (
                f"class {class_id}: its images are no longer finite after iteration {since}, at --lr-img"
                f" {self.settings.lr_img:g}; look at the class's real images, or pass a smaller --lr-img or a network"
                " with normalisation."
            )
        return found

    @contextmanager
    def _repeatable(self) -> Iterator[None]:
        """What decides bits besides the inputs: the thread count, and CUDA's choice of algorithms."""
        with use_threads(self.settings.threads_per_actor), deterministic(self.device):
            yield

    def _step(
        self,
        images: Tensor,
        momentum: Tensor,
        draw: Draw,
        class_ids: Sequence[int],
        real: Mapping[int, Tensor],
    ) -> Tensor:
        """One iteration in place on images and momentum, both [G, I, C, H, W]; returns the losses [G]."""
        self.draws.weights.load(draw.weights)
        params_GP = draw.params_GP.to(self.device, non_blocking=True)
        targets = self._targets(draw, params_GP, class_ids, real)
        losses, gradients = [], []
        per_call = self._classes_per_call(len(class_ids))
        for start in range(0, len(class_ids), per_call):
            part = slice(start, start + per_call)
            leaf_NCHW = images[part].flatten(0, 1).requires_grad_()
            loss_G = self._synthetic_loss(leaf_NCHW, params_GP[part], [target[part] for target in targets])
            gradients.append(torch.autograd.grad(loss_G.sum(), leaf_NCHW)[0])
            losses.append(loss_G.detach())
        momentum.mul_(self.settings.momentum_img).add_(torch.cat(gradients).view_as(momentum))
        images.sub_(momentum, alpha=cast(float, self.settings.lr_img))
        return torch.cat(losses)

    @torch.no_grad()
    def _targets(
        self, draw: Draw, params_GP: Tensor, class_ids: Sequence[int], real: Mapping[int, Tensor]
    ) -> list[Tensor]:
        """Statistics of the real batches, [G, D_i] each."""
        rows_GB = draw.rows_GB.to(self.device, non_blocking=True)
        batches = [real[c][rows_B] for c, rows_B in zip(class_ids, rows_GB, strict=True)]
        per_call = self._real_per_call()
        if per_call is None:
            statistics = self._real_statistics(torch.cat(batches), params_GP)
            # A CUDA graph's outputs are overwritten by the next compiled call: the targets need their own memory.
            return [statistic.clone() for statistic in statistics]
        of_classes = []
        for row, batch in enumerate(batches):
            parts = [self._real_statistics(part, params_GP[row : row + 1]) for part in batch.split(per_call)]
            of_classes.append([torch.cat(column).mean(0) for column in zip(*parts, strict=True)])
        return [torch.stack(column) for column in zip(*of_classes, strict=True)]

    def _real_per_call(self) -> int | None:
        """Real images of a class in one forward pass; None: those of all classes together, as a GPU likes it.

        A core's cache holds the activations of some tens of images; a batch that leaves it waits for memory
        (640 images of 32x32, compiled, one thread: 387 ms in passes of 32, 556 ms in one). Equal parts, so
        that nothing is compiled twice and the mean of the parts is the mean of the whole.
        """
        batch = self.settings.batch_real
        if self.device.type != "cpu" or self.net.mixes_batch:
            return None
        fitting = [n for n in range(1, batch + 1) if batch % n == 0 and n <= self._images_in_cache()]
        # A batch without a divisor near that size is better left whole than taken image by image.
        return fitting[-1] if 4 * fitting[-1] >= min(batch, self._images_in_cache()) else batch

    def _classes_per_call(self, num_classes: int) -> int:
        """Classes whose synthetic images go through the network together, for the same reason."""
        if self.device.type != "cpu":
            return num_classes
        a_class = self.settings.ipc * self.settings.factor**2
        return max(
            n
            for n in range(1, num_classes + 1)
            if num_classes % n == 0 and (n == 1 or n * a_class <= self._images_in_cache())
        )

    def _images_in_cache(self) -> int:
        _, height, width = self.shape
        return max(1, CACHE_PIXELS // (height * width))

    def _real_step(self, real_NCHW: Tensor, params_GP: Tensor) -> list[Tensor]:
        batch = real_NCHW.shape[0] // params_GP.shape[0]
        augmented = (
            augment(real_NCHW, params_GP.repeat_interleave(batch, dim=0))
            if self.draws.operations
            else real_NCHW
        )
        return self._statistics(augmented, len(params_GP))

    def _synthetic_step(self, stored_NCHW: Tensor, params_GP: Tensor, targets: list[Tensor]) -> Tensor:
        images_NCHW = decode(stored_NCHW, self.settings.factor)
        batch = images_NCHW.shape[0] // params_GP.shape[0]
        if self.draws.operations:
            images_NCHW = augment(images_NCHW, params_GP.repeat_interleave(batch, dim=0))
        return matching_loss(targets, self._statistics(images_NCHW, len(params_GP)), self.settings)

    def _statistics(self, images_NCHW: Tensor, num_classes: int) -> list[Tensor]:
        images_NCHW = images_NCHW.contiguous(memory_format=self.layout)
        with autocast(self.device, self.dtype):
            return class_statistics(self.net, images_NCHW, num_classes=num_classes, settings=self.settings)

    def _at_real_scale(
        self, images: Tensor, class_ids: Sequence[int], real: Mapping[int, Tensor]
    ) -> tuple[Tensor, dict[int, str]]:
        """The finished images [G, I, C, H, W], each class at the scale of its real ones, and which cannot be kept."""
        with self._repeatable():
            scaled = [
                to_real_scale(own, real[c], factor=self.settings.factor)
                for c, own in zip(class_ids, images, strict=True)
            ]
        lost = {}
        for class_id, own in zip(class_ids, scaled, strict=True):
            try:
                check_range(decode(own, self.settings.factor), real[class_id], class_id=class_id)
            except ConfigError as error:
                lost[class_id] = str(error)
        return torch.stack(scaled), lost

    def _initial(self, class_id: int, real_NCHW: Tensor) -> np.ndarray:
        if tuple(real_NCHW.shape[1:]) != self.shape:
            raise ShapeError(
                f"class {class_id}: real images have shape {tuple(real_NCHW.shape)}, expected [n, {self.shape}]."
            )
        images_ICHW = initial_images(
            real_NCHW.cpu(), self.settings, class_id=class_id, num_classes=self.num_classes
        )
        return images_ICHW.numpy()

    def _frozen_network(self) -> nets.BlockNet:
        channels, height, width = self.shape
        net = nets.build(
            self.settings.network, channels=channels, image_size=(height, width), num_classes=self.num_classes
        )
        net = nets.require_blocks(net, self.settings.network)
        # Dropout would draw from a global generator; only batch statistics need training mode.
        # DEVIATION(DM's code): the published loops leave dropout active.
        net.eval()
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        net.requires_grad_(False)
        return net.to(self.device).to(memory_format=self.layout)

    def _compiled(self, step: Callable[..., T]) -> Callable[..., T]:
        if self.settings.compile != "on":
            return step
        # CUDA graphs replay the whole step without the host; on a CPU there is nothing to replay.
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        return compile_apart(step, fullgraph=True, dynamic=False, mode=mode)
