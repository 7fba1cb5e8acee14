"""What der++ keeps of a network: its answers for the images in memory, by class and place in the class."""

# M images in memory, K classes, n images of one class

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from apps.continual.state import Labelled
from atom.errors import ConfigError
from atom.train import predict

Answers = Mapping[int, np.ndarray]
"""Logits float32 [n, K] by class id, in the memory's order."""


def record_answers(
    net: nn.Module, memory: Labelled, known: Answers, *, dtype: torch.dtype, device: torch.device
) -> dict[int, np.ndarray]:
    """Answers for a memory: those of old for known classes, the network's for new ones.

    DEVIATION(DER): the original records an image's logits while the stream passes, on the augmented image and
    under a network in the midst of the step. Here it is the network at the end of the step in which the class
    came, on the plain image: distilled images exist only when the step is over, and all memories get the same.

    Args:
        net: on `device`; asked in evaluation mode.
        memory: images and labels; the images of a class in their order.
        known: answers recorded in earlier steps; a class that has lost images loses their answers.
        dtype: arithmetic of the network.
        device: where to compute.

    Raises:
        ConfigError: a known class has more images than answers.
    """
    images_MCHW, labels_M = memory
    answers = {}
    for class_id, rows in _rows_by_class(labels_M).items():
        if class_id in known:
            answers[class_id] = _first(known, class_id, len(rows))
        else:
            images_NCHW = images_MCHW[rows.to(images_MCHW.device)].to(device)
            answers[class_id] = predict(net, images_NCHW, dtype=dtype).numpy()
    return answers


def recall_answers(known: Answers, labels_M: Tensor, *, num_classes: int) -> Tensor:
    """The answers for a memory, row by row: float32 [M, K] on the CPU.

    Args:
        known: of all its classes, for at least as many images as it holds.
        labels_M: of the memory; the n-th image of a class has the n-th answer.
        num_classes: K.

    Raises:
        ConfigError: answers are missing.
    """
    logits_MK = torch.empty(len(labels_M), num_classes)
    for class_id, rows in _rows_by_class(labels_M).items():
        logits_MK[rows] = torch.tensor(_first(known, class_id, len(rows)))
    return logits_MK


def _rows_by_class(labels_M: Tensor) -> dict[int, Tensor]:
    labels_M = labels_M.cpu()
    return {c: (labels_M == c).nonzero()[:, 0] for c in labels_M.unique().tolist()}


def _first(known: Answers, class_id: int, count: int) -> np.ndarray:
    """The answers for the first `count` images of a class."""
    recorded = known.get(class_id, ())
    if len(recorded) < count:
        raise ConfigError(
            f"der++ has answers for {len(recorded)} images of class {class_id}, but the memory holds {count}; give it"
            " the memory that the step before ended with, or the first images of every class of it."
        )
    return np.asarray(recorded[:count])
