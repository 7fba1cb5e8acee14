"""The method rat-bptt: back-propagation through training, in random truncated windows.

In every iteration a fresh random network is trained on the synthetic images, and the loss of the trained network on
real ones is differentiated by the images, through the steps of its training:

    minimise over images X, step size β:   E over θ_0, s of CE(real batch; θ_{s+W}),
    θ_{t+1} = θ_t − β ∇CE(X; θ_t),   gradients through the last W of the steps, s ~ uniform{1 .. T−W}

With W = T this is plain back-propagation through T steps (s = 0).
Source: Feng, Vedantam and Kempe, *Embarrassingly simple dataset distillation*, ICLR 2024, and its released code.
DEVIATION(that code): s is drawn in every iteration, not once in ten; the step size may be learned, by its logarithm,
which its authors hold.
"""

from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from atom.errors import ConfigError
from atom.methods.backpropagation import Backpropagation
from atom.methods.method import About, Part, Shape, State, Unit
from atom.methods.settings import DistillSettings
from atom.methods.unroll import SGD, Adam, Leaves
from atom.methods.unroll_settings import BackpropagationOptions, check_at_most
from atom.settings import DeviceKind, parse_dsa_strategy

_CITATION = """```bibtex
@inproceedings{feng2024embarrassingly,
  title     = {Embarrassingly Simple Dataset Distillation},
  author    = {Feng, Yunzhen and Vedantam, Shanmukha Ramakrishna and Kempe, Julia},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2311.07025}
}
```"""


OPTIMIZERS = {"sgd": SGD(), "momentum": SGD(momentum=0.9), "adam": Adam()}
"""Of the networks. Source of the momentum: Deng and Russakovsky, *Remember the Past*, NeurIPS 2022."""


class RandomTruncated(Backpropagation):
    """Back-propagation through training."""

    about = About("back-propagation through training in random windows (RaT-BPTT)", _CITATION)
    Options = BackpropagationOptions
    remedy = (
        "each training on them exploded; pass a smaller --lr-inner, fewer --inner-steps, or a --network with fewer"
        " blocks."
    )

    def __init__(self, settings: DistillSettings, *, device: torch.device, **shape: int) -> None:
        super().__init__(settings, device=device, **shape)
        self.options = cast(BackpropagationOptions, settings.options)
        self.operations = parse_dsa_strategy(self.options.inner_dsa_strategy)
        self.optimizer = OPTIMIZERS[self.options.inner_optimizer]

    @classmethod
    def resolve(cls, settings: DistillSettings, shape: Shape, device_kind: DeviceKind) -> DistillSettings:
        """As `Backpropagation.resolve`; all steps are differentiated, all images are in each, unless asked.

        Raises:
            ConfigError: as there, or a batch of more than there is of each class.
        """
        settings = super().resolve(settings, shape, device_kind)
        options = cast(BackpropagationOptions, settings.options)
        check_at_most("--batch-per-class", options.batch_per_class, settings.ipc, "stored images of a class")
        if options.images_in_all is not None and options.batch_per_class not in (None, settings.ipc):
            raise ConfigError(
                f"--batch-per-class {options.batch_per_class}: not all classes have as many of the images of"
                f" --images-in-all {options.images_in_all}; leave it out, or pass --ipc instead."
            )
        settled = {
            "window": options.window or options.inner_steps,
            "batch_per_class": options.batch_per_class or settings.ipc,
        }
        return settings.model_copy(update={"options": options.model_copy(update=settled)})

    def first_log_rate(self) -> np.ndarray:
        """See `Backpropagation.first_log_rate`: one for all steps, []."""
        return np.log(np.asarray(self.options.lr_inner))

    def rate(self, leaves: Leaves, step: int) -> Tensor:
        """See `Backpropagation.rate`."""
        del step
        return leaves["log_rate"].exp()

    def window(self, iteration: int, replica: int) -> tuple[int, int]:
        """See `Backpropagation.window`."""
        window = cast(int, self.options.window)
        before = self.options.inner_steps - window
        if before and self.options.window_at == "random":
            # At least one step before it, as in RaT-BPTT: else the window meets random weights far too often.
            before = int(self.drawn("window", iteration, replica).integers(1, before + 1))
        return before, before + window

    def start_weights(self, iteration: int, replica: int) -> np.random.Generator:
        """See `Backpropagation.start_weights`: a fresh network in every iteration."""
        return self.drawn("weights", iteration, replica)

    def rows(
        self, counter: int, step: int, replica: int, *, per_class: int, num_classes: int
    ) -> Tensor | None:
        """See `Backpropagation.rows`: stored images of each class at random, with all that they decode to."""
        del step
        wanted, tiles = cast(int, self.options.batch_per_class), self.settings.factor**2
        stored = per_class // tiles
        if wanted >= stored:
            return None
        rng = self.drawn("images", counter, replica)
        chosen = np.concatenate([c * stored + rng.permutation(stored)[:wanted] for c in range(num_classes)])
        return torch.from_numpy((chosen[:, None] * tiles + np.arange(tiles)).reshape(-1))

    @classmethod
    def result(cls, settings: DistillSettings, unit: Unit, state: State) -> Part:
        """Images, labels where they are learned, and the inner training, where an evaluation can make its steps.

        That is not where Adam makes them, or on some of the images alone.
        """
        part, options = super().result(settings, unit, state), cast(BackpropagationOptions, settings.options)
        optimizer = OPTIMIZERS[options.inner_optimizer]
        if not isinstance(optimizer, SGD) or options.batch_per_class != settings.ipc:
            return part
        training = {
            "epochs": options.inner_steps,
            # One step an epoch, of all images, and no drop of the rate.
            "step_sizes": [float(np.exp(state.arrays["log_rate"]))] * options.inner_steps,
            "momentum_net": optimizer.momentum,
            "weight_decay": 0.0,
            "eval_dsa_strategy": options.inner_dsa_strategy,
            "eval_precision": settings.precision,
        }
        return replace(part, training=training)


__all__ = ["RandomTruncated"]
