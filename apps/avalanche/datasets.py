"""From an experience of Avalanche to images by class, and from a memory back to a dataset that Avalanche mixes in."""

# N images, M images of a buffer, C channels, H height, W width

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TransformGroups
from avalanche.benchmarks.utils.classification_dataset import (
    ClassificationDataset,
    TaskAwareSupervisedClassificationDataset,
)
from torch import Tensor
from torch.utils.data import TensorDataset

from atom.augment import augment, draw_params
from atom.errors import ConfigError, ShapeError
from atom.preprocess import Preprocess
from atom.settings import parse_dsa_strategy

PIXEL_TOLERANCE = 0.05
"""How far pixels may lie outside of [0, 1]: interpolation overshoots, and float32 rounds. Chosen."""


@dataclass(frozen=True, eq=False)
class Arrived:
    """The real images of an experience.

    Attributes:
        images: of each class, float32 [N, C, H, W], as the eval transform of the benchmark gives them.
        tasks: task label of each class, or None where an item of the training data has none.
        labels_are_tensors: whether a label in an item is a tensor; Avalanche's collate mixes no two types.
    """

    images: Mapping[int, Tensor]
    tasks: Mapping[int, int] | None
    labels_are_tensors: bool


class DsaTransform:
    """Differentiable Siamese augmentation as a transform of one image: a random operation for each call.

    The random numbers come from torch's global generator, as those of torchvision's transforms do, so that
    `torch.manual_seed` repeats them and the workers of a data loader draw different ones.

    Args:
        strategy: operations joined by "_", see `atom.settings.DEFAULT_DSA`, or "none".

    Raises:
        ConfigError: an operation is unknown.

    Example:
        >>> DsaTransform("crop_flip")(torch.zeros(3, 32, 32)).shape
        torch.Size([3, 32, 32])
    """

    def __init__(self, strategy: str) -> None:
        self.operations = parse_dsa_strategy(strategy, flag="DSA strategy")

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """The augmented image, of the same shape."""
        if not self.operations:
            return image_CHW
        height, width = image_CHW.shape[1:]
        rng = np.random.default_rng(int(torch.randint(2**62, (1,))))
        params = draw_params(self.operations, num_rows=1, height=height, width=width, rng=rng)
        return augment(image_CHW[None], torch.from_numpy(params))[0]


def read_experience(exp: Any, *, name: str, num_classes: int, limit: int | None = None) -> Arrived:
    """All images of an experience through its eval transforms: a distillation must not see random augmentation.

    Args:
        exp: of `nc_benchmark` or `class_incremental_benchmark`.
        name: of the experience, for messages.
        num_classes: labels are below it.
        limit: read at most so many images of a class.

    Raises:
        ConfigError: no images, items of an unknown form, images that are no finite float tensors of one shape,
            labels out of range, or a class with several task labels.
    """
    dataset = exp.dataset.eval()
    labels_N = np.array([int(label) for label in dataset.targets], dtype=np.int64)
    if not len(labels_N):
        raise ConfigError(f"{name} holds no images, expected those of one class or more.")
    if labels_N.min() < 0 or labels_N.max() >= num_classes:
        raise ConfigError(
            f"{name} has labels from {labels_N.min()} to {labels_N.max()}, expected 0 to {num_classes - 1}; pass as"
            " num_classes the classes of the whole benchmark."
        )
    # An item of the training group would draw random numbers that the training is to draw.
    first, tasks_N = dataset[0], getattr(dataset, "targets_task_labels", None)
    if len(first) not in (2, 3) or (len(first) == 3 and tasks_N is None):
        raise ConfigError(
            f"{name}: an item of the training data has {len(first)} fields, expected image, label and, in a task-aware"
            " benchmark, task label."
        )
    rows = {int(label): np.flatnonzero(labels_N == label)[:limit] for label in np.unique(labels_N)}
    images = {label: _stack(dataset, of_class, f"{name}, class {label}") for label, of_class in rows.items()}
    if len({image.shape[1:] for image in images.values()}) > 1:
        raise ConfigError(f"{name}: its images have several shapes; resize them in the eval transform.")
    tasks = None
    if tasks_N is not None and len(first) == 3:
        tasks = {label: _task_of(tasks_N, labels_N, label, name) for label in rows}
    return Arrived(images, tasks, isinstance(first[1], Tensor))


def check_space(arrived: Arrived, preprocess: Preprocess, *, name: str) -> None:
    """Refuse images that are no pixels once the preprocessing is undone: a wrong space costs accuracy in silence.

    Raises:
        ConfigError: pixels outside of [0, 1], or images of another shape than the preprocessing is for.
    """
    white_NCHW = torch.cat(list(arrived.images.values()))
    try:
        pixels_NCHW = preprocess.invert(white_NCHW)
    except ShapeError as error:
        raise ConfigError(f"{name}: {error}") from error
    low, high = pixels_NCHW.min().item(), pixels_NCHW.max().item()
    if low < -PIXEL_TOLERANCE or high > 1 + PIXEL_TOLERANCE:
        raise ConfigError(
            f"{name}: with the preprocessing undone its images lie between {low:.2f} and {high:.2f}, expected pixels"
            " between 0 and 1; pass as preprocess what the benchmark's eval transform does."
        )


def make_dataset(
    images_MCHW: Tensor,
    labels_M: Tensor,
    *,
    tasks: Mapping[int, int] | None,
    labels_are_tensors: bool,
    train_transform: DsaTransform,
) -> AvalancheDataset:
    """A buffer whose items have the fields and types of the training data.

    Its only transforms are frozen: those of the benchmark, which would normalise a second time, cannot take
    their place. The group "train" augments, "eval" changes nothing.

    Args:
        images_MCHW: float32, in the space of the benchmark's eval transform.
        labels_M: int64.
        tasks, labels_are_tensors: see `Arrived`.
        train_transform: of the group "train".
    """
    kind = TensorDataset if labels_are_tensors else _PlainLabels
    # Annotated loosely: Avalanche's own type of a sequence fits no list.
    labels: Any = labels_M.tolist()
    attributes = [DataAttribute(labels, "targets")]
    if tasks is not None:
        of_images: Any = [tasks[label] for label in labels]
        attributes.append(DataAttribute(of_images, "targets_task_labels", use_in_getitem=True))
    dataset = ClassificationDataset if tasks is None else TaskAwareSupervisedClassificationDataset
    return dataset(
        [kind(images_MCHW, labels_M)],
        data_attributes=attributes,
        frozen_transform_groups=TransformGroups(
            {"train": train_transform if train_transform.operations else None, "eval": None}
        ),
    )


class _PlainLabels(TensorDataset):
    """Items with the label as a number."""

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image_CHW, label = super().__getitem__(index)
        return image_CHW, int(label)


def _stack(dataset: Any, rows: np.ndarray, where: str) -> Tensor:
    images = [dataset[int(row)][0] for row in rows]
    bad = [image for image in images if not (isinstance(image, Tensor) and image.is_floating_point())]
    if bad:
        received = f"a tensor of {bad[0].dtype}" if isinstance(bad[0], Tensor) else type(bad[0]).__name__
        raise ConfigError(
            f"{where}: an image is {received}, expected a float tensor [C, H, W]; end the eval transform of the"
            " benchmark with ToTensor and Normalize."
        )
    if len({image.shape for image in images}) > 1 or images[0].ndim != 3:
        shapes = ", ".join(sorted({str(list(image.shape)) for image in images})[:3])
        raise ConfigError(f"{where}: images have the shapes {shapes}; expected one shape [C, H, W].")
    stacked_NCHW = torch.stack(images).float().cpu()
    if not bool(stacked_NCHW.isfinite().all()):
        raise ConfigError(f"{where}: an image holds NaN or infinity; look at the eval transform.")
    return stacked_NCHW


def _task_of(tasks_N: Any, labels_N: np.ndarray, label: int, name: str) -> int:
    tasks = {int(tasks_N[int(row)]) for row in np.flatnonzero(labels_N == label)}
    if len(tasks) > 1:
        raise ConfigError(
            f"{name}: class {label} has the task labels {sorted(tasks)}, expected one; a memory by class keeps one."
        )
    return tasks.pop()


__all__ = ["Arrived", "DsaTransform", "check_space", "make_dataset", "read_experience"]
