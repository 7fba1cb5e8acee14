"""Where the images of a buffer come from; nothing here knows Avalanche. Those distilled here: `distilling`."""

# N real images of a class, C channels, H height, W width

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from apps.continual.exemplars import Exemplars, Storage
from apps.continual.precomputed import from_distilled
from atom.device import use_threads
from atom.distilled import DistilledSet
from atom.preprocess import Preprocess
from atom.soundness import check_even

log = logging.getLogger(__name__)

CLASSES_ALONE = "the images have soft labels; Avalanche's losses take the class of an image instead."


class Source(Protocol):
    """Gives the exemplars of the classes of an experience.

    Attributes:
        real_images: how many real images of a class it wants to see; None: all.
        again: whether it has other images for a class that comes again.
        seconds: spent on distillation so far.
    """

    real_images: int | None
    again: bool
    seconds: float

    def take(
        self, real: Mapping[int, Tensor], *, quota: Mapping[int, int], experience: int
    ) -> dict[int, Exemplars]:
        """At most `quota` exemplars of each class, most important first.

        Args:
            real: images of each class, float32 [N, C, H, W], in the space of the networks.
            quota: of each class, 1 or more.
            experience: its number, for the name of a file.
        """
        ...


class DistilledBefore:
    """Takes the classes from a distilled set, such as the output of `atom-distill` on a cluster.

    Args:
        distilled: of the same classes as the benchmark, in the same order.
        storage: one of `exemplars.STORAGES`.
        preprocess: what the space of the networks is; a set of another one is brought to it.
        seed, network: of the order in which the images are kept, see `selection.order_distilled`.

    Raises:
        ConfigError: a set of images in all.
    """

    real_images: int | None = 10
    """Enough to see their shape and their range."""
    again = False

    def __init__(
        self, distilled: DistilledSet, *, storage: Storage, preprocess: Preprocess, seed: int, network: str
    ) -> None:
        self.seconds = 0.0
        check_even(distilled, "the distilled set", "a buffer keeps")
        if distilled.soft_labels is not None:
            log.warning(CLASSES_ALONE)
            distilled = replace(distilled, soft_labels=None)
        self._distilled, self._storage, self._preprocess = distilled, storage, preprocess
        self._seed, self._network = seed, network

    def take(
        self, real: Mapping[int, Tensor], *, quota: Mapping[int, int], experience: int
    ) -> dict[int, Exemplars]:
        """As `Source.take`; fewer than the quota where the set has fewer.

        Raises:
            ConfigError: the set does not fit, see `precomputed.from_distilled`.
        """
        channels, height, width = next(iter(real.values())).shape[1:]
        with use_threads(1):
            exemplars = from_distilled(
                self._distilled,
                sorted(real),
                storage=self._storage,
                class_names=self._distilled.class_names,
                image_shape=(channels, height, width),
                preprocess=self._preprocess,
                seed=self._seed,
                network=self._network,
            )
        return {class_id: kept.head(quota[class_id]) for class_id, kept in exemplars.items()}


__all__ = ["DistilledBefore", "Source"]
