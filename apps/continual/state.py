"""What a learner is given at a step, and what it carries to the next one and to disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from apps.continual.passing import Passing
from atom.errors import ArtifactError, ConfigError, DataError, ShapeError

# N images, C channels, H height, W width, K classes, n images of one class in memory

Labelled = tuple[Tensor, Tensor]
"""Preprocessed float32 images [N, C, H, W] and their int64 labels [N], the source's class ids."""

_WEIGHTS, _LOGITS, _STEP = "weights/", "logits/", "step"


@dataclass(frozen=True, eq=False)
class StepData:
    """What there is to learn from at one step; a learner looks at its own parts only, the others may be None.

    Attributes:
        step: of the stream, from 0.
        step_classes: ids of the classes that come in this step.
        seen_classes: those and all that came before.
        num_classes: K of the whole stream: the network has K outputs from the first step on.
        current: real training images of the step; of er, er-ace, der++, finetune.
        memory_before: the memory when the step begins; of er and der++. A class that shrinks loses its last
            images: der++ knows a remembered image by its class and its place in the class.
        memory_after: the memory when it ends, which gdumb trains on, er-ace replays, and der++ records answers for.
        everything_seen: real training images of all classes seen; of joint.
        soft_targets: probabilities [M, K] of the images of `memory_after`, which gdumb trains on in place of their
            classes; None where there are none.
        lots_before, lots_after: int64 [M], lot of each image of the memories, by which der++ knows it in place of its
            class, see `apps.continual.stream`; None: its class.
        passing: in a stream of one pass, how the memory changes while images pass; of er, er-ace and der++.

    Raises:
        ShapeError: images and labels of a part do not fit together.
        DataError: a part holds a class that has not come yet, or the step is not one of the stream.
    """

    step: int
    step_classes: tuple[int, ...]
    seen_classes: tuple[int, ...]
    num_classes: int
    current: Labelled | None = None
    memory_before: Labelled | None = None
    memory_after: Labelled | None = None
    everything_seen: Labelled | None = None
    soft_targets: Tensor | None = None
    lots_before: Tensor | None = None
    lots_after: Tensor | None = None
    passing: Passing | None = None

    def __post_init__(self) -> None:
        if self.step < 0 or not set(self.step_classes) <= set(self.seen_classes) <= {
            *range(self.num_classes)
        }:
            raise DataError(
                f"step {self.step} with classes {self.step_classes} of {self.seen_classes} seen: expected a step from 0"
                f" and classes among those seen, and these among 0 to {self.num_classes - 1}."
            )
        for name in ("current", "memory_before", "memory_after", "everything_seen"):
            classes = self.step_classes if name == "current" else self.seen_classes
            _check_part(getattr(self, name), classes, where=f"step {self.step}, {name}")
        expected = (self.num_images("memory_after"), self.num_classes)
        if self.soft_targets is not None and self.soft_targets.shape != expected:
            raise ShapeError(
                f"step {self.step}: soft targets {tuple(self.soft_targets.shape)}, expected {expected} as memory_after"
                " and the classes of the stream have them."
            )

    def num_images(self, name: str) -> int:
        """Images of the part of that name."""
        part = getattr(self, name)
        return 0 if part is None else len(part[1])

    def part(self, name: str) -> Labelled | None:
        """The part of that name, or None where it holds no images."""
        return getattr(self, name) if self.num_images(name) else None

    def needed(self, name: str, learner: str) -> Labelled:
        """The part of that name.

        Raises:
            ConfigError: it holds no images.
        """
        if (part := self.part(name)) is None:
            raise ConfigError(
                f"step {self.step}: learner {learner} needs {name}, which is empty; pass its images."
            )
        return part


@dataclass(frozen=True, eq=False)
class LearnerState:
    """A learner after a step.

    Attributes:
        step: the step it has learned last, from 0.
        weights: parameters and buffers of the network by name.
        logits: of der++, what the network answered for the images in memory, by class or lot: float32 [n, K] in
            the memory's order. A class's answers are recorded once, and lose their last rows when the class does.

    Example:
        >>> state = LearnerState(step=2, weights={"bias": np.zeros(3, np.float32)})
        >>> again = LearnerState.from_bytes(state.to_bytes())
        >>> again.step, again.weights["bias"].tolist()
        (2, [0.0, 0.0, 0.0])
    """

    step: int
    weights: Mapping[str, np.ndarray]
    logits: Mapping[int, np.ndarray] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The state as a safetensors file."""
        named = {
            _STEP: np.array(self.step, dtype=np.int64),
            **{_WEIGHTS + name: array for name, array in self.weights.items()},
            **{f"{_LOGITS}{class_id}": array for class_id, array in self.logits.items()},
        }
        # Not ascontiguousarray, which makes vectors of the scalars that BatchNorm counts with.
        return safetensors.numpy.save({name: np.array(array, order="C") for name, array in named.items()})

    @classmethod
    def from_bytes(cls, content: bytes) -> "LearnerState":
        """The inverse of `to_bytes`, bit for bit; nothing is unpickled.

        Raises:
            ArtifactError: the content is damaged or something else.
        """
        try:
            named = safetensors.numpy.load(content)
            return cls(
                step=int(named.pop(_STEP)),
                weights={n.removeprefix(_WEIGHTS): a for n, a in named.items() if n.startswith(_WEIGHTS)},
                logits={int(n.removeprefix(_LOGITS)): a for n, a in named.items() if n.startswith(_LOGITS)},
            )
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ArtifactError(
                f"learner state: {len(content)} bytes are not a state written here ({type(error).__name__}: {error});"
                " delete the file and run the command again."
            ) from error


def weights_of(net: nn.Module) -> dict[str, np.ndarray]:
    """Copies of a network's parameters and buffers, C-contiguous, by name."""
    return {
        name: np.array(value.detach().cpu().numpy(), order="C") for name, value in net.state_dict().items()
    }


def load_weights(net: nn.Module, state: LearnerState, *, network: str) -> None:
    """Write the weights of a state into a network.

    Raises:
        ConfigError: they are those of another network.
    """
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: value.shape for name, value in state.weights.items()}
    if shapes != found:
        first = min(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
        raise ConfigError(
            f"learner state after step {state.step}: {first} is {found.get(first, 'missing')}, but network {network!r}"
            f" has {shapes.get(first, 'none')}; continue with the network, image size and classes of the step before."
        )
    net.load_state_dict({name: torch.tensor(value) for name, value in state.weights.items()})


def _check_part(part: Labelled | None, classes: Sequence[int], *, where: str) -> None:
    if part is None:
        return
    images_NCHW, labels_N = part
    if images_NCHW.dim() != 4 or labels_N.shape != images_NCHW.shape[:1]:
        raise ShapeError(
            f"{where}: images {tuple(images_NCHW.shape)} with labels {tuple(labels_N.shape)}; expected [N, C, H, W]"
            " and one label an image, [N]."
        )
    # Otherwise a mask would hide an image's own class, and its loss be infinite.
    foreign = sorted(set(labels_N.unique().tolist()) - set(classes))
    if foreign:
        raise DataError(
            f"{where}: holds images of class {foreign[0]}, expected classes {sorted(classes)} only."
        )
