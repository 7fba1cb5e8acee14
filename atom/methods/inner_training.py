"""Training of a network within a distillation: passes of SGD over images, each from one stream of random numbers."""

# N images, B images of a batch, C channels, H height, W width

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from atom.augment import augment, draw_params
from atom.batches import batches_of


def train_pass(
    logits_of: Callable[[Tensor], Tensor],
    images_NCHW: Tensor,
    labels_N: Tensor,
    *,
    optimizer: torch.optim.Optimizer,
    batch: int,
    operations: tuple[str, ...],
    rng: np.random.Generator,
    most: int | None = None,
) -> None:
    """One pass over the images in random order, a step of the optimizer each batch.

    Args:
        logits_of: the network, float32 or float64 logits [B, K].
        images_NCHW, labels_N: on one device.
        optimizer: of the network's weights.
        batch: images a step, at most; see `atom.batches.batches_of`.
        operations: of DSA, one a batch with numbers of its own for each image; empty, none.
        rng: of the order and the augmentation.
        most: take no more than so many images; None, all.
    """
    height, width = images_NCHW.shape[2:]
    order_N = rng.permutation(len(images_NCHW))[:most]
    for rows in batches_of(order_N, batch):
        rows_B = torch.from_numpy(rows).to(images_NCHW.device)
        batch_BCHW = images_NCHW[rows_B]
        if operations:
            params = draw_params(operations, num_rows=len(rows), height=height, width=width, rng=rng)
            batch_BCHW = augment(batch_BCHW, torch.from_numpy(params).to(images_NCHW.device))
        # As a closure, for optimizers that ask for more than one gradient a step.
        step = partial(_gradient, logits_of, batch_BCHW, labels_N[rows_B], optimizer)
        optimizer.step(step)  # pyrefly: ignore


def _gradient(
    logits_of: Callable[[Tensor], Tensor],
    images_BCHW: Tensor,
    labels_B: Tensor,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """Into the weights' `grad`; returns the loss."""
    loss = cross_entropy(logits_of(images_BCHW), labels_B)
    optimizer.zero_grad()
    loss.backward()
    return loss


__all__ = ["train_pass"]
