"""The methods random, herding and kcenter: real images as they are, the ones that a set of that size is compared with.

They are the coresets of `atom.coreset`; no step is made. With a factor a stored image is a grid of shrunken ones, as
other methods start from.
"""

# G classes of a unit, I stored images per class, N real images of a class, C channels, H height, W width

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from atom.coreset import draw_seed, select_of_class
from atom.embedding import coreset_features
from atom.errors import ConfigError
from atom.formation import encode
from atom.methods.ending import check_call
from atom.methods.method import NOTHING, About, Method, Prepared, Shape, State, Unit
from atom.methods.settings import DistillSettings
from atom.methods.teachers import CITATION
from atom.settings import DeviceKind

_HERDING = """```bibtex
@inproceedings{welling2009herding,
  title     = {Herding Dynamical Weights to Learn},
  author    = {Welling, Max},
  booktitle = {International Conference on Machine Learning},
  year      = {2009}
}
```"""
_KCENTER = """```bibtex
@article{gonzalez1985clustering,
  title   = {Clustering to Minimize the Maximum Intercluster Distance},
  author  = {Gonzalez, Teofilo F.},
  journal = {Theoretical Computer Science},
  volume  = {38},
  year    = {1985}
}
```"""


class Chosen(Method):
    """Real images, chosen class by class, after no iteration.

    Attributes:
        choice: one of `atom.coreset.METHODS`.
    """

    unread: ClassVar[frozenset[str]] = frozenset(
        {
            *(
                "iterations",
                "lr_img",
                "lr_schedule",
                "momentum_img",
                "batch_real",
                "init",
                "dsa_strategy",
                "classes_per_group",
            ),
            *("precision", "compile"),
        }
    )
    choice: ClassVar[str]

    @classmethod
    def resolve(cls, settings: DistillSettings, shape: Shape, device_kind: DeviceKind) -> DistillSettings:
        """No iterations."""
        del shape, device_kind
        return settings.model_copy(update={"iterations": 0})

    @classmethod
    def units(cls, settings: DistillSettings, class_ids: Sequence[int]) -> list[Unit]:
        """Each class by itself."""
        del settings
        return [(class_id,) for class_id in class_ids]

    def start(
        self,
        unit: Sequence[int],
        real: Mapping[int, Tensor],
        *,
        given: np.ndarray | None = None,
        prepared: Prepared = NOTHING,
    ) -> State:
        """The chosen images, which is all.

        Raises:
            ConfigError: images are given, or a class has too few.
        """
        del prepared
        if given is not None:
            raise ConfigError(
                f"method {self.settings.method!r} chooses real images; leave out the given ones."
            )
        images = np.stack([self._chosen(class_id, real[class_id].cpu()) for class_id in unit])
        return State.first({"images": images}, columns=len(unit))

    def _chosen(self, class_id: int, real_NCHW: Tensor) -> np.ndarray:
        settings, count = self.settings, self.settings.ipc * self.settings.factor**2
        if count > len(real_NCHW):
            raise ConfigError(
                f"class {class_id} has {len(real_NCHW)} training images, but --ipc {settings.ipc} with --factor"
                f" {settings.factor} takes {count}; pass a smaller --ipc."
            )
        if self.choice == "random":
            # The first draw of the baseline that stands beside a set of this seed.
            features_ND, seed = np.zeros((len(real_NCHW), 1)), draw_seed(settings.seed, 0)
        else:
            features_ND, seed = self._features(real_NCHW), settings.seed
        rows = select_of_class(self.choice, features_ND, count=count, class_id=class_id, seed=seed)
        return encode(real_NCHW[torch.from_numpy(rows)], settings.factor).numpy()

    def _features(self, real_NCHW: Tensor) -> np.ndarray:
        return coreset_features(real_NCHW, num_classes=self.num_classes, seed=self.settings.seed)

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
        """The state as it is."""
        del real, prepared, on_iteration
        check_call(state, until, unit=unit, settings=self.settings)
        return state


class Random(Chosen):
    """Drawn without replacement."""

    about = About("drawing real images at random", CITATION)
    choice = "random"


class Herding(Chosen):
    """Their mean comes close to that of all, in the embedding of a random network."""

    about = About("herding: real images whose mean matches that of their class", _HERDING)
    choice = "herding"


class KCenter(Chosen):
    """Far from each other, in the embedding of a random network."""

    about = About("k-center: real images far from each other", _KCENTER)
    choice = "kcenter"
