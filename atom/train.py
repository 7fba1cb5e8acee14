"""Training a network on a small set and asking it about images: the two halves of every evaluation.

Shapes: N training images, T images asked about, B images of a batch, C channels, H height, W width,
K classes.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.modules.batchnorm import _BatchNorm

from atom.augment import augment, draw_params
from atom.batches import batches_of, check_batches, num_batches, own_parts
from atom.device import autocast, kind_of, own_generators
from atom.errors import ConfigError, NotFiniteError
from atom.pixels import Images
from atom.protocols import PROTOCOLS
from atom.resolve import resolve_evaluation
from atom.settings import EvaluateSettings, OwnTraining, parse_dsa_strategy
from atom.streams import stream

TRAINING_VERSION = 4
"""Part of the key of every stored result of a training; to be raised whenever equal settings come to give other
numbers."""

Forward = Callable[[nn.Module, Tensor], Tensor]
"""Logits [B, K] of a network for images [B, C, H, W]."""


def run(net: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Logits [B, K] of a network: the plain `Forward`."""
    return net(images_BCHW)


@dataclass(frozen=True)
class Budget:
    """When a training ends instead of after the settings' epochs: at a number of steps, or of seconds.

    The step size falls at the shares of it at which it falls of the epochs.

    Raises:
        ConfigError: not exactly one of the two is given, or it is not positive and finite.
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [number for number in (self.steps, self.seconds) if number is not None]
        # Not `<= 0`: NaN passes that, and a training with no end never returns.
        if len(given) != 1 or not 0 < given[0] < math.inf:
            raise ConfigError(f"training budget {self}: expected a positive number of steps or of seconds.")


def train_network(
    net: nn.Module,
    images_NCHW: Images,
    targets: Tensor,
    *,
    settings: EvaluateSettings,
    seed: int,
    symbols: bool | None = None,
    forward: Forward = run,
    budget: Budget | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> int:
    """Train a network in place on a small set, and return the number of steps.

    Args:
        net: with its initial weights, on the device of the images.
        images_NCHW: float32, preprocessed, or pixels.
        targets: labels int64 [N], or probabilities float [N, K].
        settings: of the training; unresolved defaults are resolved for the device and the images. With the step sizes
            of an `OwnTraining` the images must be in the order in which the set has them.
        seed: of the order of the images, of DSA, and of whatever the network itself draws (dropout).
        symbols: whether the images show written symbols; see `evaluate`.
        forward: how to run the network; give a compiled one, or leave the default.
        budget: ends the training, in the middle of an epoch if need be, or after more epochs than the settings'.
        on_epoch: called with the number of whole epochs done; may ask the network about images.

    Raises:
        ConfigError: a batch that BatchNorm refuses, or steps of its own with a budget or of no images.
    """
    device = images_NCHW.device
    settings = resolve_evaluation(settings, device_kind=kind_of(device), symbols=symbols)
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=settings.lr_net,
        momentum=settings.momentum_net,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    steps = num_batches(len(images_NCHW), settings.batch)
    own_rates = _own_rates(settings, budget, images_NCHW)
    if own_rates:
        steps = len(own_rates) // cast(int, settings.epochs)
    clock = _Clock(settings, budget, device, steps_per_epoch=steps)
    dtype, layout = compute_dtype(settings), _layout_of(net)
    # Steps of their own are taken on the images as they are.
    cutmix = 0.0 if own_rates else PROTOCOLS[settings.protocol].cutmix
    check_batches(net, images_NCHW, len(images_NCHW) // steps if own_rates else settings.batch)
    with own_generators(device, int(stream(seed, "evaluate/network").integers(2**63))):
        for epoch in count():
            net.train()
            for number, (batch_BCHW, rows_B) in enumerate(
                _batches(images_NCHW, epoch, settings=settings, seed=seed)
            ):
                if clock.ended():
                    return clock.steps
                rate = own_rates[clock.steps] if own_rates else settings.lr_net * clock.lr_factor()
                optimizer.param_groups[0]["lr"] = rate
                targets_B, mixed = targets[rows_B], None
                if cutmix:
                    rng = stream(seed, "evaluate/cutmix", epoch, number)
                    batch_BCHW, mixed = _mixed(batch_BCHW, targets_B, cutmix, rng)
                with autocast(device, dtype):
                    logits_BK = forward(net, batch_BCHW.contiguous(memory_format=layout))
                optimizer.zero_grad()
                loss = cross_entropy(logits_BK.float(), targets_B)
                if mixed is not None:
                    others_B, share = mixed
                    loss = share * cross_entropy(logits_BK.float(), others_B) + (1 - share) * loss
                loss.backward()
                optimizer.step()
                clock.steps += 1
            if on_epoch is not None:
                on_epoch(epoch + 1)
            if clock.ended():
                break
    return clock.steps


def _own_rates(settings: EvaluateSettings, budget: Budget | None, images_NCHW: Images) -> tuple[float, ...]:
    """Step sizes that the set brings; none by the common protocol."""
    if not isinstance(settings, OwnTraining) or not settings.step_sizes:
        return ()
    if budget is not None:
        raise ConfigError(
            "training: a set with steps of its own is trained on by all of them; pass no budget."
        )
    if len(images_NCHW) < settings.steps_per_epoch:
        raise ConfigError(
            f"training: {settings.steps_per_epoch} steps an epoch for {len(images_NCHW)} images, expected an image for"
            " each; pass the set as it was made."
        )
    return settings.step_sizes


class _Clock:
    """How far a training is."""

    def __init__(
        self, settings: EvaluateSettings, budget: Budget | None, device: torch.device, *, steps_per_epoch: int
    ) -> None:
        self.steps = 0
        self._epochs, self._per_epoch = cast(int, settings.epochs), steps_per_epoch
        self._budget = budget
        self._device = device
        self._protocol = PROTOCOLS[settings.protocol]
        self._end = steps_per_epoch * self._epochs
        if budget is not None and budget.steps is not None:
            self._end = budget.steps
        self._start_s = time.monotonic()

    def ended(self) -> bool:
        if self._budget is not None and self._budget.seconds is not None:
            return self._elapsed_s() >= self._budget.seconds
        return self.steps >= self._end

    def lr_factor(self) -> float:
        if self._budget is None:
            return self._protocol.rate_share(self.steps // self._per_epoch, self._epochs)
        if self._budget.seconds is not None:
            return self._protocol.rate_share(self._elapsed_s(), self._budget.seconds)
        return self._protocol.rate_share(self.steps, self._end)

    def _elapsed_s(self) -> float:
        if self._device.type == "cuda":
            # Steps are queued faster than they are computed.
            torch.cuda.synchronize(self._device)
        return time.monotonic() - self._start_s


def _batches(
    images_NCHW: Images, epoch: int, *, settings: EvaluateSettings, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented images [B, C, H, W] and their rows [B], every image once an epoch; see `batches_of`, `OwnTraining`."""
    device, (height, width) = images_NCHW.device, images_NCHW.shape[2:]
    operations = parse_dsa_strategy(settings.eval_dsa_strategy)
    if isinstance(settings, OwnTraining) and settings.step_sizes:
        parts = own_parts(len(images_NCHW), settings.steps_per_epoch)
    else:
        order_N = stream(seed, "evaluate/order", epoch).permutation(len(images_NCHW))
        parts = batches_of(order_N, settings.batch)
    for number, rows in enumerate(parts):
        rows_B = torch.from_numpy(rows).to(device)
        batch_BCHW = images_NCHW[rows_B]
        if operations:
            rng = stream(seed, "evaluate/augment", epoch, number)
            params = draw_params(operations, num_rows=len(rows_B), height=height, width=width, rng=rng)
            batch_BCHW = augment(batch_BCHW, torch.from_numpy(params).to(device, non_blocking=True))
        yield batch_BCHW, rows_B


def _mixed(
    images_BCHW: Tensor, targets_B: Tensor, probability: float, rng: np.random.Generator
) -> tuple[Tensor, tuple[Tensor, float] | None]:
    """By CutMix: the images with a box of others', these' targets, and the share of the box; or the images as they are.

    Its area is uniform in 0 … 1, its centre anywhere; what lies outside is cut off. Source: IDC's published code.
    """
    if rng.random() >= probability:
        return images_BCHW, None
    others = torch.from_numpy(rng.permutation(len(images_BCHW))).to(images_BCHW.device)
    side = float(np.sqrt(rng.random()))
    spans = []
    for size in images_BCHW.shape[2:]:
        half, centre = int(size * side) // 2, int(rng.integers(size))
        spans.append(slice(max(0, centre - half), min(size, centre + half)))
    rows, columns = spans
    mixed_BCHW = images_BCHW.clone()
    mixed_BCHW[:, :, rows, columns] = images_BCHW[others][:, :, rows, columns]
    box = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed_BCHW, (targets_B[others], box / images_BCHW[0, 0].numel())


@torch.no_grad()
def predict(
    net: nn.Module,
    images_TCHW: Images,
    *,
    dtype: torch.dtype = torch.float32,
    batch: int | None = None,
    forward: Forward = run,
) -> Tensor:
    """Logits float32 [T, K] on the CPU, the network in evaluation mode.

    Args:
        net: on the device of the images.
        images_TCHW: float32, preprocessed, or pixels.
        dtype: arithmetic, float32 or bfloat16.
        batch: images at once; default 100 on a CPU, where larger ones fall out of the cache (measured: 340 ms
            per 500 images against 580 with 250), and 1000 on CUDA.
        forward: how to run the network.

    Raises:
        NotFiniteError: a logit is NaN or infinite; the largest of such is no answer, though argmax names one.
    """
    device = images_TCHW.device
    batch = min(batch or (1000 if device.type == "cuda" else 100), len(images_TCHW))
    layout = _layout_of(net)
    net.eval()
    logits = []
    for start in range(0, len(images_TCHW), batch):
        batch_BCHW = images_TCHW[start : start + batch]
        # The last batch is filled up, so that a compiled network meets one shape only.
        filled_BCHW = pad(batch_BCHW, (0, 0, 0, 0, 0, 0, 0, batch - len(batch_BCHW)))
        with autocast(device, dtype):
            logits_BK = forward(net, filled_BCHW.contiguous(memory_format=layout))
        logits.append(logits_BK[: len(batch_BCHW)].float())
    logits_TK = torch.cat(logits).cpu()
    if not bool(logits_TK.isfinite().all()):
        bad = int((~logits_TK.isfinite().all(dim=1)).sum())
        raise NotFiniteError(
            f"the network's outputs hold NaN or infinity for {bad} of {len(logits_TK)} images after training: it"
            " diverged; lower the step size."
        )
    return logits_TK


def accuracy(
    net: nn.Module,
    images_TCHW: Images,
    labels_T: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    batch: int | None = None,
    forward: Forward = run,
) -> float:
    """Share of images whose largest logit is that of their class, in percent; arguments and errors as for `predict`."""
    return percent_right(predict(net, images_TCHW, dtype=dtype, batch=batch, forward=forward), labels_T)


def percent_right(logits_TK: Tensor, labels_T: Tensor) -> float:
    """Share of logits, on the CPU, whose largest is that of the class, in percent."""
    return 100.0 * (logits_TK.argmax(dim=1) == labels_T.cpu()).double().mean().item()


STATISTICS_BATCH = 256
"""Most images whose batch statistics are taken at once; the statistics of equal batches are averaged."""


@torch.no_grad()
def reestimate_statistics(
    net: nn.Module, images_NCHW: Tensor, *, dtype: torch.dtype = torch.float32, forward: Forward = run
) -> None:
    """Put a network's BatchNorm statistics to those of the given images, in place; its weights stay.

    A network that learned from made images carries their statistics into its answers about real ones. No label
    is needed to put that right. Networks without BatchNorm stay as they are, and so do BatchNorm layers that are
    frozen: in evaluation mode within a network that trains. As `torch.optim.swa_utils.update_bn`, which leaves
    every layer in the mode of the whole network and drops activations.

    Args:
        net: on the device of the images; every layer is left in the mode it was in.
        images_NCHW: real images, float32, preprocessed, in any order; best several dozen or more.
        dtype: arithmetic, float32 or bfloat16.
        forward: how to run the network.
    """
    modes = [(module, module.training) for module in net.modules()]
    norms = [
        module
        for module, training in modes
        if isinstance(module, _BatchNorm) and module.track_running_stats and (training or not net.training)
    ]
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.train().reset_running_stats()
        # None: the mean of all batches, not one that forgets the first.
        norm.momentum = None
    order_N = torch.from_numpy(stream(0, "statistics/order").permutation(len(images_NCHW)))
    shuffled_NCHW = images_NCHW[order_N.to(images_NCHW.device)]
    layout = _layout_of(net)
    # Each batch a mixture of the classes, and all of one size, since each weighs the same.
    parts = -(-len(images_NCHW) // STATISTICS_BATCH) if norms else 0
    with autocast(images_NCHW.device, dtype):
        for part_BCHW in shuffled_NCHW.tensor_split(parts) if parts else ():
            forward(net, part_BCHW.contiguous(memory_format=layout))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, training in modes:
        module.training = training


def compute_dtype(settings: EvaluateSettings) -> torch.dtype:
    """Arithmetic of resolved settings."""
    return torch.bfloat16 if settings.eval_precision == "bfloat16" else torch.float32


def _layout_of(net: nn.Module) -> torch.memory_format:
    """Memory format of a network's convolutions, which its input should share."""
    for parameter in net.parameters():
        if parameter.dim() == 4 and not parameter.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format
