"""Training a network on the images of one step beside a memory of the steps before.

Every random draw is counted by the step and by the batch within it, and none depends on the learner: all
learners see the same current batches, augmented in the same way, and draw the same rows of a memory.

Shapes: N images of the step, M images in memory, B images of a batch, C channels, H height, W width,
K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from apps.continual.settings import LearnerSettings
from atom.augment import augment, draw_params
from atom.batches import batches_of, check_batches
from atom.device import autocast, own_generators
from atom.settings import parse_dsa_strategy
from atom.streams import stream


@dataclass(frozen=True, eq=False)
class Batch:
    """Images that a network is trained on, or a whole memory.

    Attributes:
        images_BCHW: float32, preprocessed.
        labels_B: int64.
        logits_BK: what a network is to answer, float32; for der++ only.
    """

    images_BCHW: Tensor
    labels_B: Tensor
    logits_BK: Tensor | None = None


Network = Callable[[Tensor], Tensor]
"""Logits [B, K] for images [B, C, H, W]."""
Draw = Callable[[int], Batch]
"""Batch `which` (0, 1, ...) out of the memory, drawn for the present training step."""
Objective = Callable[[Network, Batch, Draw | None], Tensor]
"""Loss of one training step: of the network, the current batch, and the memory, None where it is empty."""


def er_loss(net: Network, current: Batch, draw: Draw | None) -> Tensor:
    """Mean cross-entropy over the current batch and one of the memory, in one pass; without a memory, fine-tuning.

    Source: experience replay as in Mammoth's `er`.
    """
    if draw is None:
        return cross_entropy(net(current.images_BCHW), current.labels_B)
    memory = draw(0)
    images_BCHW = torch.cat([current.images_BCHW, memory.images_BCHW])
    return cross_entropy(net(images_BCHW), torch.cat([current.labels_B, memory.labels_B]))


def er_ace_loss(
    net: Network,
    current: Batch,
    draw: Draw | None,
    *,
    step_classes: Sequence[int],
    seen_classes: Sequence[int],
) -> Tensor:
    """Asymmetric cross-entropy: new images compete among the new classes only, remembered ones among all seen.

    So that new images do not push the old classes' logits down. The two means are added.

    DEVIATION(ER-ACE's code): it takes the classes of each batch for the new ones, since it knows no steps, and
    leaves logits of classes that never came unmasked. Here both terms follow the definition, whose sets of
    classes hold no unseen ones.

    Source: Caccia et al., *New insights on reducing abrupt representation change in online continual
    learning*, ICLR 2022.
    """
    loss = cross_entropy_among(step_classes, net(current.images_BCHW), current.labels_B)
    if draw is None:
        return loss
    memory = draw(0)
    return loss + cross_entropy_among(seen_classes, net(memory.images_BCHW), memory.labels_B)


def der_loss(net: Network, current: Batch, draw: Draw | None, *, alpha: float, beta: float) -> Tensor:
    """DER++: cross-entropy on the current batch, stored logits of one memory batch, labels of a second one.

    The distance to the stored logits is the squared error, averaged over images and all K classes. A term of
    weight 0 is left out, with the pass through the network that it would take.

    Source: Buzzega et al., *Dark experience for general continual learning*, NeurIPS 2020, and Mammoth's
    `derpp`.
    """
    loss = cross_entropy(net(current.images_BCHW), current.labels_B)
    if draw is None:
        return loss
    if alpha:
        memory = draw(0)
        loss = loss + alpha * mse_loss(net(memory.images_BCHW), cast(Tensor, memory.logits_BK))
    if beta:
        memory = draw(1)
        loss = loss + beta * cross_entropy(net(memory.images_BCHW), memory.labels_B)
    return loss


def objective_of(
    learner: str, settings: LearnerSettings, *, step_classes: Sequence[int], seen_classes: Sequence[int]
) -> Objective:
    """The loss of a learner from the second step on."""
    if learner == "er-ace":
        return partial(er_ace_loss, step_classes=step_classes, seen_classes=seen_classes)
    if learner == "der++":
        return partial(der_loss, alpha=settings.der_alpha, beta=settings.der_beta)
    return er_loss


def cross_entropy_among(classes: Sequence[int], logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Mean cross-entropy of a softmax over some of the classes; the logits of the others have no gradient.

    Args:
        classes: ids, every label among them.
        logits_BK: floating point.
        labels_B: int64.
    """
    others_K = torch.ones(logits_BK.shape[1], dtype=torch.bool, device=logits_BK.device)
    others_K[list(classes)] = False
    return cross_entropy(logits_BK.masked_fill(others_K, -torch.inf), labels_B)


def train_beside(
    net: nn.Module,
    current: Batch,
    memory: Batch | None,
    *,
    objective: Objective,
    settings: LearnerSettings,
    dtype: torch.dtype,
    layout: torch.memory_format,
    seed: int,
    step: int,
    stays: tuple[np.ndarray, np.ndarray] | None = None,
    on_batch: Callable[[np.ndarray], None] | None = None,
) -> None:
    """Train a network in place on the images of one step; every image once an epoch, the memory beside.

    The optimiser starts afresh: with the default momentum of 0 it has no state that a step could pass on.

    Args:
        net: as the step before left it, on the device of the images, in `layout`.
        current: all images of the step.
        memory: to draw from, or None.
        objective: the loss.
        settings: resolved.
        dtype: arithmetic of the network, float32 or bfloat16; the loss is float32.
        layout: memory format of the network.
        seed, step: of the random streams, under purposes "continual/...".
        stays: from which training step on each image of `memory` is there, and at which no more, see
            `Passing.stays`; None: all are there always.
        on_batch: called after each training step with the rows of the images it was on.

    Raises:
        ConfigError: a batch of one image that BatchNorm refuses.
    """
    device = current.images_BCHW.device
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=settings.lr_replay,
        momentum=settings.momentum_replay,
        weight_decay=settings.weight_decay_replay,
        fused=True,
    )

    def logits(images_BCHW: Tensor) -> Tensor:
        with autocast(device, dtype):
            logits_BK = net(images_BCHW.contiguous(memory_format=layout))
        return logits_BK.float()

    # With a memory, er shows the two in one pass, in which no image is alone.
    alone = memory is None or objective is not er_loss
    if alone:
        check_batches(net, current.images_BCHW, settings.batch_current)
    # Every draw is one batch, of the whole memory where it holds no more.
    if alone and memory is not None and min(settings.batch_memory, len(memory.labels_B)) == 1:
        check_batches(net, memory.images_BCHW, 1)
    batches = _batches(current, settings=settings, seed=seed, step=step)
    net.train()
    with own_generators(device, int(stream(seed, "continual/network", step).integers(2**63))):
        for number, (rows_B, batch) in enumerate(batches):
            draw = None
            there = None if stays is None else np.flatnonzero((stays[0] <= number) & (number < stays[1]))
            if memory is not None and (there is None or len(there)):
                draw = partial(
                    _draw, memory, settings=settings, seed=seed, step=step, number=number, there=there
                )
            optimizer.zero_grad()
            objective(logits, batch, draw).backward()
            optimizer.step()
            if on_batch is not None:
                on_batch(rows_B)
                net.train()


def batch_numbers(num_images: int, *, settings: LearnerSettings, seed: int, step: int) -> np.ndarray:
    """The batch of the first epoch in which each image of a step passes, int64 [N], from 0."""
    batch_N = np.empty(num_images, np.int64)
    for number, rows_B in enumerate(_rows(num_images, 0, settings=settings, seed=seed, step=step)):
        batch_N[rows_B] = number
    return batch_N


def _rows(
    num_images: int, epoch: int, *, settings: LearnerSettings, seed: int, step: int
) -> Iterator[np.ndarray]:
    order_N = stream(seed, "continual/order", step, epoch).permutation(num_images)
    yield from batches_of(order_N, settings.batch_current)


def _batches(
    current: Batch, *, settings: LearnerSettings, seed: int, step: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Augmented batches of all epochs, one after the other, and their rows."""
    number = 0
    for epoch in range(cast(int, settings.step_epochs)):
        for rows_B in _rows(len(current.labels_B), epoch, settings=settings, seed=seed, step=step):
            rng = stream(seed, "continual/augment", step, number)
            yield rows_B, _augmented(current, rows_B, rng=rng, settings=settings)
            number += 1


def _draw(
    memory: Batch,
    which: int,
    *,
    settings: LearnerSettings,
    seed: int,
    step: int,
    number: int,
    there: np.ndarray | None,
) -> Batch:
    """Distinct rows of the memory, augmented; all of them, in random order, where it holds fewer than a batch."""
    rng = stream(seed, f"continual/memory/{which}", step, number)
    size = len(memory.labels_B) if there is None else len(there)
    rows_B = rng.choice(size, size=min(settings.batch_memory, size), replace=False)
    return _augmented(memory, rows_B if there is None else there[rows_B], rng=rng, settings=settings)


def _augmented(
    whole: Batch, rows_B: np.ndarray, *, rng: np.random.Generator, settings: LearnerSettings
) -> Batch:
    device, (height, width) = whole.images_BCHW.device, whole.images_BCHW.shape[2:]
    rows = torch.from_numpy(rows_B).to(device)
    images_BCHW = whole.images_BCHW[rows]
    operations = parse_dsa_strategy(settings.replay_dsa_strategy)
    if operations:
        params = draw_params(operations, num_rows=len(rows_B), height=height, width=width, rng=rng)
        images_BCHW = augment(images_BCHW, torch.from_numpy(params).to(device, non_blocking=True))
    logits_BK = None if whole.logits_BK is None else whole.logits_BK[rows]
    return Batch(images_BCHW, whole.labels_B[rows], logits_BK)
