"""The methods atom, spatial, channel and dm: SGD on the images of a group of classes against real batches.

A group is a pure function of its real images, its settings, its seed, the kind of device and the threads: each
iteration asks `atom.streams` for its own random numbers, so it does not matter where the loop was interrupted,
on which machine it went on, or what ran beside it.
"""

# N images, C channels, H height, W width, G classes of the group, B real images a class, I images per class,
# P numbers of an augmentation row, F frequencies, D features

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from atom import nets
from atom.device import compile_apart
from atom.draws import Draw, Draws
from atom.methods import matching_defaults
from atom.methods.ending import check_call, kept
from atom.methods.experts import Expert
from atom.methods.feature_terms import FeatureTerms
from atom.methods.matching import Objective
from atom.methods.matching_settings import AttentionOptions, EmbeddingOptions
from atom.methods.matching_step import MatchingStep
from atom.methods.method import NOTHING, About, Method, Prepared, Shape, State, check_resolved
from atom.methods.settings import DistillSettings
from atom.methods.trained_features import TrainedNetworks, networks_of
from atom.settings import DeviceKind

T = TypeVar("T")

CACHE_PIXELS = 32 * 32 * 32
"""Pixels of images whose activations a CPU core's cache holds, for the networks of this field. Measured."""

_ATOM = """```bibtex
@inproceedings{khaki2024atom,
  title     = {{ATOM}: Attention Mixer for Efficient Dataset Distillation},
  author    = {Khaki, Samir and Sajedi, Ahmad and Wang, Kai and Liu, Lucy Z. and Lawryshyn, Yuri A.
               and Plataniotis, Konstantinos N.},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops},
  year      = {2024},
  note      = {arXiv:2405.01373}
}
```"""
_DATADAM = (
    "Its objective: Sajedi et al., *DataDAM: Efficient Dataset Distillation with Attention Matching*,"
    " ICCV 2023."
)
_DM = "Its objective: Zhao and Bilen, *Dataset Condensation with Distribution Matching*, WACV 2023."


class Matching(Method):
    """Matches mean statistics of features; its state holds the images and SGD's velocity, "momentum".

    Attributes:
        spatial, channel: whether these attention maps are matched, beside the mean embeddings.
    """

    spatial: ClassVar[bool]
    channel: ClassVar[bool]
    Options = AttentionOptions

    def __init__(self, settings: DistillSettings, *, device: torch.device, **shape: int) -> None:
        super().__init__(settings, device=device, **shape)
        check_resolved(dict(settings.options))
        self.step = MatchingStep(
            settings, self._objective(settings), shape=self.shape, num_classes=self.num_classes, device=device
        )
        self.net = self.step.net
        size = {"height": shape["height"], "width": shape["width"]}
        trains = bool(cast(EmbeddingOptions, settings.options).trained_networks)
        self.draws = Draws(
            settings,
            self.net,
            **size,
            device=device,
            frequencies=self.step.frequencies,
            random_network=not trains,
        )
        self._real_statistics: Callable[..., list[Tensor]] = self._compiled(self.step.real)
        self._synthetic_loss: Callable[..., Tensor] = self._compiled(self.step.synthetic)

    @classmethod
    def resolve(cls, settings: DistillSettings, shape: Shape, device_kind: DeviceKind) -> DistillSettings:
        """See `atom.methods.matching_defaults.resolve`."""
        return matching_defaults.resolve(settings, shape, device_kind, cls._objective(settings))

    @classmethod
    def _objective(cls, settings: DistillSettings) -> Objective:
        options = cast(EmbeddingOptions, settings.options)
        power = options.power if isinstance(options, AttentionOptions) else 1
        terms = FeatureTerms(options.cf_weight, options.covariance_weight)
        return Objective(cls.spatial, cls.channel, power, options.task_balance or 0.0, terms)

    @classmethod
    def preparations(cls, settings: DistillSettings) -> Sequence[Expert]:
        """The networks to train, if any."""
        return networks_of(settings)

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
        """See `Method.advance`.

        The settings' last iteration is followed by `atom.scale.to_real_scale`: until then nothing holds the scale of
        the images where the network has InstanceNorm.

        Raises:
            ShapeError: the state is that of another number of classes.
            ConfigError: more iterations than the settings have, which would go on from finished images.

        A class whose images diverge, or end far out of the range of its real ones, is in the state's `failures`.
        """
        check_call(state, until, unit=unit, settings=self.settings)
        images = torch.from_numpy(state.images.copy()).to(self.device)
        momentum = torch.from_numpy(state.arrays["momentum"].copy()).to(self.device)
        real = {class_id: real[class_id].to(self.device) for class_id in unit}
        steps = range(state.iteration, until)
        losses = torch.zeros(len(steps), len(unit), device=self.device)
        sizes = [len(real[class_id]) for class_id in unit]
        options = cast(EmbeddingOptions, self.settings.options)
        trained = TrainedNetworks(self.settings, prepared, self.device) if options.trained_networks else None
        with self.repeatable():
            for step, draw in enumerate(self.draws.ahead(steps, unit, sizes)):
                self._set_networks(trained, state.iteration + step, draw)
                rate = cast(float, self.settings.lr_img) * self.settings.rate_share(state.iteration + step)
                losses[step] = self._step(images, momentum, draw, unit, real, rate)
                if on_iteration is not None:
                    on_iteration(state.iteration + step + 1)
        losses = np.concatenate([state.losses, losses.cpu().numpy()])
        with self.repeatable():
            return kept(
                state,
                {"images": images, "momentum": momentum},
                losses,
                until=until,
                unit=unit,
                real=real,
                settings=self.settings,
            )

    def _set_networks(self, trained: TrainedNetworks | None, iteration: int, draw: Draw) -> None:
        """The iteration's weights: fresh random ones, or those of a trained network."""
        if trained is None:
            assert draw.weights is not None, "drawn where no network is trained"
            self.draws.weights.load(draw.weights)
            return
        weights_P, end_P = trained.weights_at(iteration)
        nets.load_vector(self.net, weights_P)
        if self.step.judge is not None:
            nets.load_vector(self.step.judge, end_P)

    def _step(
        self,
        images: Tensor,
        momentum: Tensor,
        draw: Draw,
        class_ids: Sequence[int],
        real: Mapping[int, Tensor],
        rate: float,
    ) -> Tensor:
        """One iteration in place on images and momentum, both [G, I, C, H, W]; returns the losses [G]."""
        params_GP = draw.params_GP.to(self.device, non_blocking=True)
        frequencies_FD = draw.frequencies_FD
        if frequencies_FD is not None:
            frequencies_FD = frequencies_FD.to(self.device, non_blocking=True)
        targets = self._targets(draw, params_GP, frequencies_FD, class_ids, real)
        labels_G = None if self.step.judge is None else torch.tensor(class_ids, device=self.device)
        losses, gradients = [], []
        per_call = self._classes_per_call(len(class_ids))
        for start in range(0, len(class_ids), per_call):
            part = slice(start, start + per_call)
            leaf_NCHW = images[part].flatten(0, 1).requires_grad_()
            loss_G = self._synthetic_loss(
                leaf_NCHW,
                params_GP[part],
                [target[part] for target in targets],
                frequencies_FD,
                None if labels_G is None else labels_G[part],
            )
            gradients.append(torch.autograd.grad(loss_G.sum(), leaf_NCHW)[0])
            losses.append(loss_G.detach())
        momentum.mul_(self.settings.momentum_img).add_(torch.cat(gradients).view_as(momentum))
        images.sub_(momentum, alpha=rate)
        return torch.cat(losses)

    @torch.no_grad()
    def _targets(
        self,
        draw: Draw,
        params_GP: Tensor,
        frequencies_FD: Tensor | None,
        class_ids: Sequence[int],
        real: Mapping[int, Tensor],
    ) -> list[Tensor]:
        """Statistics of the real batches, [G, D_i] each."""
        rows_GB = draw.rows_GB.to(self.device, non_blocking=True)
        batches = [real[c][rows_B] for c, rows_B in zip(class_ids, rows_GB, strict=True)]
        per_call = self._real_per_call(len(batches))
        if per_call is None:
            return self._kept_statistics(torch.cat(batches), params_GP, frequencies_FD)
        of_classes = []
        for row, batch in enumerate(batches):
            own = params_GP[row : row + 1]
            parts = [self._kept_statistics(part, own, frequencies_FD) for part in batch.split(per_call)]
            of_classes.append([torch.cat(column).mean(0) for column in zip(*parts, strict=True)])
        return [torch.stack(column) for column in zip(*of_classes, strict=True)]

    def _kept_statistics(
        self, batch_NCHW: Tensor, params_GP: Tensor, frequencies_FD: Tensor | None
    ) -> list[Tensor]:
        # A CUDA graph's outputs are overwritten by the next compiled call: these need memory of their own.
        return [one.clone() for one in self._real_statistics(batch_NCHW, params_GP, frequencies_FD)]

    def _real_per_call(self, num_classes: int) -> int | None:
        """Real images of a class in one forward pass; None: those of all classes together, as a GPU likes it.

        Where large images of all classes would take more than `matching_defaults.PASS_BYTES` of a GPU, they go through
        in parts too; how large follows from images, batch and network alone, never from the card.

        A core's cache holds the activations of some tens of images; a batch that leaves it waits for memory
        (640 images of 32x32, compiled, one thread: 387 ms in passes of 32, 556 ms in one). Equal parts, so
        that nothing is compiled twice and the mean of the parts is the mean of the whole.
        """
        batch = self.settings.batch_real
        if self.net.mixes_batch:
            return None
        if self.device.type != "cpu":
            if num_classes * batch <= self._images_per_pass:
                return None
            return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= self._images_per_pass)
        fitting = [n for n in range(1, batch + 1) if batch % n == 0 and n <= self._images_in_cache()]
        # A batch without a divisor near that size is better left whole than taken image by image.
        return fitting[-1] if 4 * fitting[-1] >= min(batch, self._images_in_cache()) else batch

    @cached_property
    def _images_per_pass(self) -> int:
        return matching_defaults.images_per_pass(self.settings, Shape(*self.shape, self.num_classes))

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

    def _compiled(self, step: Callable[..., T]) -> Callable[..., T]:
        if self.settings.compile != "on":
            return step
        # CUDA graphs replay the whole step without the host; on a CPU there is nothing to replay.
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        return compile_apart(step, fullgraph=True, dynamic=False, mode=mode)


class Atom(Matching):
    """Spatial and channel attention (Khaki et al., 2024)."""

    about = About("matching of spatial and channel attention (ATOM)", _ATOM)
    spatial, channel = True, True


class Spatial(Matching):
    """Spatial attention alone, the objective of DataDAM (Sajedi et al., 2023)."""

    about = About("matching of spatial attention (the objective of DataDAM)", f"{_ATOM}\n\n{_DATADAM}")
    spatial, channel = True, False


class Channel(Matching):
    """Channel attention alone."""

    about = About("matching of channel attention", _ATOM)
    spatial, channel = False, True


class MeanEmbedding(Matching):
    """Mean embeddings alone (Zhao and Bilen, 2023)."""

    about = About("matching of mean embeddings (DM)", f"{_ATOM}\n\n{_DM}")
    Options = EmbeddingOptions
    spatial, channel = False, False
