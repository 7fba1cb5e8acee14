"""The method idc: gradients of convolutions in networks that were trained on real images beforehand."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from atom.draws import Draw
from atom.methods import gradient_defaults
from atom.methods.experts import Expert, Recipe, experts
from atom.methods.gradient_loop import GradientMatching
from atom.methods.gradient_settings import RealTrainingOptions
from atom.methods.gradients import Distance, absolute_distance, convolution_weights, squared_distance
from atom.methods.method import About, Prepared, Shape
from atom.methods.settings import DistillSettings
from atom.settings import DeviceKind
from atom.streams import stream

_IDC = """```bibtex
@inproceedings{kim2022idc,
  title     = {Dataset Condensation via Efficient Synthetic-Data Parameterization},
  author    = {Kim, Jang-Hyun and Kim, Jinuk and Oh, Seong Joon and Yun, Sangdoo and Song, Hwanjun
               and Jeong, Joonhyun and Ha, Jung-Woo and Song, Hyun Oh},
  booktitle = {International Conference on Machine Learning},
  year      = {2022}
}
```"""

REAL_LR, REAL_MOMENTUM, REAL_DECAY, REAL_BATCH = 0.01, 0.9, 5e-4, 64
"""SGD on idc's networks: that of this project's evaluation, on smaller batches. Chosen."""

PASS_IMAGES = 2000
"""Real images of a pass of idc's networks, at most. Source: IDC, published code, for CIFAR."""


def recipe_of(settings: DistillSettings) -> Recipe:
    """How idc's networks are trained, and those of the methods that match features, which read the same ones."""
    return Recipe(
        network=settings.network,
        seed=settings.seed,
        rate=REAL_LR,
        batch=REAL_BATCH,
        momentum=REAL_MOMENTUM,
        weight_decay=REAL_DECAY,
        dsa_strategy=settings.dsa_strategy,
        most=PASS_IMAGES,
        precision=settings.precision,
        threads=settings.threads_per_actor,
    )


class RealTraining(GradientMatching):
    """Gradients of convolutions in networks trained on real images (IDC-I of Kim et al., 2022); classes are apart.

    DEVIATION(IDC): there a fresh network is trained on real images beside the synthetic ones, a step on these after
    each pass; here some networks are trained beforehand, and each step meets one of them before one of its passes,
    both at random. So the training is paid for once, and not by every group of classes.
    DEVIATION(IDC): its velocity is that of all classes, to which each class's step adds; here each class has its own.
    """

    about = About("matching of gradients in networks trained on real images (IDC-I)", _IDC)
    Options = RealTrainingOptions
    random_network = False

    @classmethod
    def _weights(cls, net: nn.Module) -> Sequence[Tensor]:
        return convolution_weights(net)

    @classmethod
    def _distance(cls, settings: DistillSettings) -> Distance:
        metric = cast(RealTrainingOptions, settings.options).metric
        return squared_distance if metric == "mse" else absolute_distance

    @classmethod
    def resolve(cls, settings: DistillSettings, shape: Shape, device_kind: DeviceKind) -> DistillSettings:
        """See `atom.methods.gradient_defaults.resolve_real_training` and `check_network`."""
        gradient_defaults.check_network(settings, shape, cls._weights, cls._distance(settings))
        return gradient_defaults.resolve_real_training(settings, device_kind)

    @classmethod
    def preparations(cls, settings: DistillSettings) -> Sequence[Expert]:
        """The networks to train, each met before one of its passes.

        DEVIATION(IDC): DSA instead of CutMix.
        """
        options = cast(RealTrainingOptions, settings.options)
        return experts(options.trained_networks, options.training_passes - 1, recipe_of(settings))

    def _set_network(
        self, count: int, draw: Draw, images: Tensor, unit: Sequence[int], prepared: Prepared
    ) -> None:
        del draw, images, unit
        options = cast(RealTrainingOptions, self.settings.options)
        rng = stream(self.settings.seed, "distill/trained", count)
        name = f"expert {rng.integers(options.trained_networks)}"
        stage = prepared[name]["epochs"][rng.integers(options.training_passes)]
        # A copy: what workers share is read-only.
        with torch.no_grad():
            vector_to_parameters(torch.from_numpy(stage.copy()).to(self.device), self.net.parameters())


__all__ = ["RealTraining", "recipe_of"]
