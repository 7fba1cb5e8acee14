"""What was tried on atom and not kept, for `benchmarks/levers.py`: --method benchmarks/lever_methods.py:Averaged

They do what they say for one call of `advance`, as that script makes it; they are no methods for the commands.
"""

# G classes, I stored images per class, B real images a class, C channels, H height, W width

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor, nn

from atom import nets
from atom.draws import Draw, Draws
from atom.methods.ending import kept
from atom.methods.matching_loop import Atom
from atom.methods.method import NOTHING, Prepared, State
from atom.methods.settings import DistillSettings
from atom.streams import stream


class Averaged(Atom):
    """The running mean of the images over the iterations, decay 0.95."""

    def _step(self, images: Tensor, *given: Any) -> Tensor:
        loss_G = super()._step(images, *given)
        self.mean = images.clone() if self.mean is None else 0.95 * self.mean + 0.05 * images
        if self.count + 1 == self.settings.iterations:
            # The last step's images are what is kept.
            images.copy_(self.mean)
        self.count += 1
        return loss_G

    def advance(self, *given: Any, **named: Any) -> State:
        """As atom's, of all iterations at once."""
        self.mean, self.count = None, 0
        return super().advance(*given, **named)


class Clustered(Atom):
    """Real batches of one image of each of B clusters of a class, found by principal components. Source: DREAM."""

    def advance(self, state: State, until: int, *, unit: Sequence[int], real: Any, **named: Any) -> State:
        """As atom's."""
        batch, seed = self.settings.batch_real, self.settings.seed
        plain = Draws.ahead.__get__(self.draws)
        members = {}
        for class_id in unit:
            flat_nD = real[class_id].flatten(1).numpy()
            parts = PCA(min(50, flat_nD.shape[1]), random_state=0).fit_transform(flat_nD)
            found = KMeans(batch, n_init=1, max_iter=20, random_state=seed).fit(parts).labels_
            members[class_id] = [np.flatnonzero(found == one) for one in range(batch)]

        def ahead(steps: range, class_ids: Sequence[int], sizes: Sequence[int]) -> Iterator[Draw]:
            for step, draw in zip(steps, plain(steps, class_ids, sizes), strict=True):
                rows = [
                    [rng.choice(own) for own in members[c]]
                    for c, rng in ((c, stream(seed, "lever/cluster", step, c)) for c in class_ids)
                ]
                yield replace(draw, rows_GB=torch.tensor(np.array(rows)))

        self.draws.ahead = ahead
        return super().advance(state, until, unit=unit, real=real, **named)


class Mixed(Atom):
    """Each iteration by one of several networks; BatchNorm has frozen statistics of real images of all classes."""

    NETWORKS = ("{}", "{}-batch")
    REFERENCE = 256

    def __init__(self, settings: DistillSettings, *, device: torch.device, **shape: int) -> None:
        super().__init__(settings, device=device, **shape)
        networks = [network.format(settings.network) for network in self.NETWORKS]
        self.parts = [
            Atom(settings.changed(method="atom", network=name), device=device, **shape) for name in networks
        ]
        self.norms = [
            [module for module in part.net.modules() if isinstance(module, nn.BatchNorm2d)]
            for part in self.parts
        ]
        for part in self.parts:
            part.net.mixes_batch = False

    @classmethod
    def preparations(cls, settings: DistillSettings) -> Sequence[str]:
        """Real images of all classes."""
        del settings
        return ("reference",)

    def prepare(self, name: str, real: Mapping[int, Tensor]) -> Mapping[str, np.ndarray]:
        """`REFERENCE` images, as many of each class."""
        del name
        each = self.REFERENCE // len(real)
        rng = stream(self.settings.seed, "lever/reference")
        return {
            "images": np.concatenate(
                [own[rng.choice(len(own), each, replace=False)].numpy() for own in real.values()]
            )
        }

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
        """As atom's, iteration by iteration by one part."""
        del on_iteration
        reference_RCHW = torch.from_numpy(prepared["reference"]["images"])
        images, momentum = (torch.from_numpy(state.arrays[name].copy()) for name in ("images", "momentum"))
        losses, sizes = [], [len(real[c]) for c in unit]
        with self.repeatable():
            for iteration in range(state.iteration, until):
                number = int(stream(self.settings.seed, "lever/network", iteration).integers(len(self.parts)))
                part = self.parts[number]
                draw = part.draws.at(iteration, unit, sizes)
                part._set_networks(None, iteration, draw)
                self._freeze(part.net, self.norms[number], reference_RCHW)
                rate = float(self.settings.lr_img or 0) * self.settings.rate_share(iteration)
                losses.append(part._step(images, momentum, draw, unit, real, rate).numpy())
        arrays = {"images": images, "momentum": momentum}
        found = np.stack(losses)
        return kept(state, arrays, found, until=until, unit=unit, real=real, settings=self.settings)

    @torch.no_grad()
    def _freeze(self, net: nets.BlockNet, norms: Sequence[nn.BatchNorm2d], reference_RCHW: Tensor) -> None:
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None
        if norms:
            net.blocks(reference_RCHW)
        for norm in norms:
            norm.eval()


class FrozenBatchNorm(Mixed):
    """BatchNorm alone, of frozen statistics."""

    NETWORKS = ("{}-batch",)


class MixedDepths(Mixed):
    """Networks of two, three and four blocks."""

    NETWORKS = ("{}-d2", "{}-d3", "{}-d4")


__all__ = ["Averaged", "Clustered", "FrozenBatchNorm", "Mixed", "MixedDepths"]
