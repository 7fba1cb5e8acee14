"""The method dd: dataset distillation, where each training step has images and a step size of its own.

    θ_{t+1} = θ_t − β_t ∇CE(X_s; θ_t),   t = 0 .. T − 1,   s = t mod S,   T = S · epochs
    minimise over images X_0 .. X_{S−1} and step sizes β_0 .. β_{T−1}:   E over θ_0 of CE(real batch; θ_T)

Of the decoded images, step s has those with numbers s, s + S, s + 2S, ... Order and step sizes are part of the set: it
carries them as the training that `atom.settings.OwnTraining` describes, and with fixed first weights their seed.
Source: Wang, Zhu, Torralba and Efros, *Dataset Distillation*, 2018, and its released code.
DEVIATION(that code): step sizes are learned by their logarithms, not through softplus; no schedule halves Adam's step
sizes; gradients by the images are clipped; networks begin as all others here, not by Xavier's rule.
"""

# M images of a step, T steps

from typing import cast

import numpy as np
import torch
from torch import Tensor

from atom import nets
from atom.batches import own_parts
from atom.errors import ConfigError
from atom.methods.backpropagation import Backpropagation
from atom.methods.method import About, Part, Shape, State, Unit
from atom.methods.settings import DistillSettings
from atom.methods.unroll import SGD, Leaves
from atom.methods.unroll_settings import OrderedOptions
from atom.settings import DeviceKind
from atom.streams import stream

FEWEST_EPOCHS, FEWEST_STEPS = 3, 15
"""Of a training. Sources: DD; chosen, measured by rat-bptt."""

_CITATION = """```bibtex
@article{wang2018dataset,
  title   = {Dataset Distillation},
  author  = {Wang, Tongzhou and Zhu, Jun-Yan and Torralba, Antonio and Efros, Alexei A.},
  journal = {arXiv preprint arXiv:1811.10959},
  year    = {2018}
}
```"""


class Ordered(Backpropagation):
    """Dataset distillation (Wang et al., 2018).

    Its images stay as the last step leaves them: the sizes of the steps were learned for those.
    """

    about = About("back-propagation through training steps of their own images and sizes (DD)", _CITATION)
    Options = OrderedOptions
    remedy = (
        "each training on them exploded; pass a smaller --lr-inner, fewer --distill-epochs, or a --network with fewer"
        " blocks."
    )
    optimizer = SGD()
    to_scale = False
    version = 2

    def __init__(self, settings: DistillSettings, *, device: torch.device, **shape: int) -> None:
        super().__init__(settings, device=device, **shape)
        self.options = cast(OrderedOptions, settings.options)
        self.num_steps = cast(int, self.options.distill_steps)
        self.total = self.num_steps * cast(int, self.options.distill_epochs)

    @classmethod
    def resolve(cls, settings: DistillSettings, shape: Shape, device_kind: DeviceKind) -> DistillSettings:
        """As `Backpropagation.resolve`; one image of each class in a step, 3 epochs or as many as make 15 steps.

        With --images-in-all all are in one step: what a step has of each class would differ from step to step.

        Raises:
            ConfigError: as there, or the steps do not divide the images of a class.
        """
        options, of_class = cast(OrderedOptions, settings.options), settings.ipc * settings.factor**2
        steps = options.distill_steps or (of_class if options.images_in_all is None else 1)
        if of_class % steps:
            raise ConfigError(
                f"--distill-steps {steps}: the {of_class} images of a class do not divide into as many equal parts;"
                f" pass a divisor of {of_class}, or another --ipc."
            )
        epochs = options.distill_epochs or max(FEWEST_EPOCHS, -(-FEWEST_STEPS // steps))
        settled = options.model_copy(update={"distill_steps": steps, "distill_epochs": epochs})
        settings = super().resolve(settings, shape, device_kind)
        return settings.model_copy(update={"options": settled})

    def first_log_rate(self) -> np.ndarray:
        """See `Backpropagation.first_log_rate`: one for each step, [T]."""
        return np.full(self.total, np.log(self.options.lr_inner))

    def rate(self, leaves: Leaves, step: int) -> Tensor:
        """See `Backpropagation.rate`."""
        return leaves["log_rate"][step].exp()

    def window(self, iteration: int, replica: int) -> tuple[int, int]:
        """See `Backpropagation.window`: all steps."""
        del iteration, replica
        return 0, self.total

    def start_weights(self, iteration: int, replica: int) -> np.random.Generator:
        """See `Backpropagation.start_weights`: fresh ones, or always those with which trainings on the set begin."""
        if self.options.inner_init == "fixed":
            return stream(start_seed(self.settings), "evaluate/weights")
        return self.drawn("weights", iteration, replica)

    def rows(
        self, counter: int, step: int, replica: int, *, per_class: int, num_classes: int
    ) -> Tensor | None:
        """See `Backpropagation.rows`: those of the step."""
        del counter, replica
        if self.num_steps == 1:
            return None
        return torch.from_numpy(own_parts(per_class * num_classes, self.num_steps)[step % self.num_steps])

    @classmethod
    def result(cls, settings: DistillSettings, unit: Unit, state: State) -> Part:
        """Images, labels where they are learned, and the training that they were learned for."""
        part, options = super().result(settings, unit, state), cast(OrderedOptions, settings.options)
        training = {
            "epochs": options.distill_epochs,
            "step_sizes": np.exp(state.arrays["log_rate"]).tolist(),
            "momentum_net": 0.0,
            "weight_decay": 0.0,
            "eval_dsa_strategy": "none",
            "eval_precision": settings.precision,
        }
        if options.inner_init == "fixed":
            training |= {"start_seed": start_seed(settings)}
            training |= {"initial_weights": "drawn"} if nets.is_own(settings.network) else {}
        return Part(part.images, part.soft_labels, training)


def start_seed(settings: DistillSettings) -> int:
    """Of the fixed first weights: a number that no evaluation takes for a training of its own."""
    return int(stream(settings.seed, "dd/start").integers(1 << 20, 1 << 31))


__all__ = ["Ordered", "start_seed"]
