"""How good a small set is: train fresh networks on it, test them on real images.

Protocol of the family (Zhao and Bilen, DM): SGD, step size x0.1 at half of the epochs, DSA with one operation
a batch, the last epoch reported, the test images read once per trained network and never augmented.
DEVIATION(DM's code): the momentum buffer is kept where the step size drops; DM builds a new optimiser there.

Networks are trained one after the other, each on all threads given; run seeds in parallel by giving each
process one thread. Stacking them (`torch.func.vmap`) takes three times as long as eager one by one on CIFAR
shapes on a CPU and saves little on digits (`benchmarks/evaluate_many.py`); and the bits of a network would
depend on which others were stacked with it.

Shapes: N training images, T test images, C channels, H height, W width, K classes.
"""

import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from statistics import fmean, stdev
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from atom import nets
from atom.device import compile_apart, deterministic, has_compiler, kind_of, use_threads
from atom.errors import ConfigError, NotFiniteError, ShapeError
from atom.nets.layers import mixes_batch
from atom.pixels import Images, Pixels
from atom.resolve import resolve_evaluation
from atom.scores import Scores, score
from atom.settings import DeviceKind, EvaluateSettings, OwnTraining, Switch
from atom.streams import stream
from atom.train import (
    Forward,
    compute_dtype,
    percent_right,
    predict,
    reestimate_statistics,
    run,
    train_network,
)

COMPILE_WORTH_FLOP = 1.5e12
"""Arithmetic of one network, training and test, from which torch.compile pays on a CPU. Measured on one core
with bfloat16: about 105 GFLOP/s eager, 170 compiled, 12 s to compile, which a handful of seeds share. Judged
per network, not per call, so that the accuracy of a seed does not depend on which seeds share its call."""


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies of one network architecture, one entry per seed whose training came to a network that answers.

    Attributes:
        network: its name.
        seeds: of the trainings.
        accuracies: test accuracy in percent.
        train_seconds: wall time of each training, the first including compilation.
        test_seconds: wall time of each test.
        compiled: whether torch.compile was used.
        diverged: seeds of the other trainings, whose networks answered with NaN or infinity; never all of them.
        with_real_statistics: the accuracies once more, with BatchNorm statistics re-estimated on real images; None
            where there were no such images, or there is no BatchNorm.
        scores: of each training, what the same answers are worth otherwise.
        scores_with_real_statistics: the same for `with_real_statistics`.
    """

    network: str
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    train_seconds: tuple[float, ...]
    test_seconds: tuple[float, ...]
    compiled: bool
    diverged: tuple[int, ...] = ()
    with_real_statistics: tuple[float, ...] | None = None
    scores: tuple[Scores, ...] = ()
    scores_with_real_statistics: tuple[Scores, ...] | None = None

    @property
    def mean(self) -> float:
        """Mean accuracy in percent."""
        return fmean(self.accuracies)

    @property
    def std(self) -> float | None:
        """Standard deviation over the trainings (n - 1 in the denominator), in points; None for a single one."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None


def evaluate(
    images_NCHW: Images | np.ndarray,
    labels_N: Tensor | np.ndarray,
    *,
    test_images: Images | np.ndarray,
    test_labels: Tensor | np.ndarray,
    network: str,
    num_classes: int,
    seeds: Sequence[int],
    settings: EvaluateSettings,
    device: torch.device,
    threads: int,
    compile: Switch = "auto",
    symbols: bool | None = None,
    soft_labels: Tensor | np.ndarray | None = None,
    statistics_images: Tensor | np.ndarray | None = None,
) -> Evaluation:
    """Train one network per seed on a small set and test each once.

    The accuracy of a seed depends on the sets, the network's name, the settings, the kind of device, the threads, and
    whether the network is compiled; not on the other seeds.

    Args:
        images_NCHW: the small set, decoded and preprocessed, float32, or pixels of real images.
        labels_N: its classes, integers; or, as `DistilledSet.decode` gives soft labels, probabilities float [N, K].
        test_images: real test images [T, C, H, W] float32, preprocessed in the same way, or pixels that are.
        test_labels: their classes [T], integers.
        network: a name `atom.nets.build` knows.
        num_classes: K; labels lie in 0 to K - 1.
        seeds: one training each.
        settings: of the training.
        device: where to train and test.
        threads: CPU threads.
        compile: torch.compile of the network; auto: where `worth_compiling` says so.
        symbols: whether the images show written symbols, which are not mirrored; needed where the settings leave the
            augmentation at "auto". A `DistilledSet` knows.
        soft_labels: class probabilities [N, K] to train on instead of the labels.
        statistics_images: real training images float32, preprocessed, whose labels are not needed: networks with
            BatchNorm are tested a second time, with statistics re-estimated on them.

    Raises:
        ShapeError: arrays do not fit together.
        ConfigError: an image is not finite, a label is out of range, the network or DSA is unknown, or no compiler is
            there to compile with.
        NotFiniteError: every training diverged.
    """
    given = _as_tensor(labels_N)
    if soft_labels is None and given.ndim == 2 and given.is_floating_point():
        soft_labels, labels_N = given, given.argmax(1)
    train_NCHW, train_N = _checked(images_NCHW, labels_N, num_classes=num_classes, what="training")
    test_TCHW, test_T = _checked(test_images, test_labels, num_classes=num_classes, what="test")
    if train_NCHW.shape[1:] != test_TCHW.shape[1:]:
        raise ShapeError(
            f"evaluate: training images are {tuple(train_NCHW.shape[1:])} and test images "
            f"{tuple(test_TCHW.shape[1:])}; decode and preprocess both to the same [C, H, W]."
        )
    targets = train_N if soft_labels is None else _checked_soft(soft_labels, (len(train_N), num_classes))
    settings = resolve_evaluation(settings, device_kind=kind_of(device), symbols=symbols)
    channels, height, width = train_NCHW.shape[1:]
    build = partial(
        nets.build, network, channels=channels, image_size=(height, width), num_classes=num_classes
    )
    with use_threads(threads), deterministic(device):
        compiled = _compiles(compile, build(), train_NCHW, settings, device, len(test_T))
        forward = run
        if compiled:
            forward = _compiled_forward(network, tuple(train_NCHW.shape), num_classes, settings.batch)
        layout = _layout(device, compiled=compiled)
        train = (train_NCHW.to(device), targets.to(device))
        test = (test_TCHW.to(device), test_T)
        real_NCHW = None
        if statistics_images is not None and mixes_batch(build()):
            real_NCHW = _as_tensor(statistics_images).float().to(device)
        trials, again, diverged = {}, [], {}
        for seed in seeds:
            rng, own = stream(start_seed(settings, seed), "evaluate/weights"), nets.is_own(network)
            net = nets.begin(build, rng, own=own, initial_weights=settings.initial_weights)
            net = net.to(device).to(memory_format=layout)
            try:
                trials[seed] = _train_and_test(
                    net, train, test, settings=settings, seed=seed, forward=forward
                )
            except NotFiniteError as error:
                diverged[seed] = error
                continue
            if real_NCHW is not None:
                dtype = compute_dtype(settings)
                reestimate_statistics(net, real_NCHW, dtype=dtype)
                # What does not answer with these statistics has answered with its own.
                with suppress(NotFiniteError):
                    logits_TK = predict(net, test[0], dtype=dtype, forward=forward)
                    again.append((percent_right(logits_TK, test[1]), score(logits_TK, test[1])))
    if diverged and not trials:
        each = f", all {len(diverged)} trainings" if len(diverged) > 1 else ""
        raise NotFiniteError(f"evaluate {network}{each}: {next(iter(diverged.values()))}")
    accuracies, scores, train_seconds, test_seconds = (
        zip(*trials.values(), strict=True) if trials else ((), (), (), ())
    )
    percents_again, scores_again = zip(*again, strict=True) if again else ((), ())
    return Evaluation(
        network=network,
        seeds=tuple(trials),
        accuracies=accuracies,
        train_seconds=train_seconds,
        test_seconds=test_seconds,
        compiled=compiled,
        diverged=tuple(diverged),
        with_real_statistics=None if real_NCHW is None else percents_again,
        scores=scores,
        scores_with_real_statistics=None if real_NCHW is None else scores_again,
    )


def start_seed(settings: EvaluateSettings, seed: int) -> int:
    """Whose random weights the training begins with."""
    own = settings.start_seed if isinstance(settings, OwnTraining) else None
    return seed if own is None else own


def _train_and_test(
    net: nn.Module,
    train: tuple[Images, Tensor],
    test: tuple[Images, Tensor],
    *,
    settings: EvaluateSettings,
    seed: int,
    forward: Forward,
) -> tuple[float, Scores, float, float]:
    """Accuracy in percent, other scores, seconds of the training, seconds of the test."""
    device = train[0].device
    start = time.perf_counter()
    train_network(net, *train, settings=settings, seed=seed, forward=forward)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    trained = time.perf_counter()
    logits_TK = predict(net, test[0], dtype=compute_dtype(settings), forward=forward)
    tested = time.perf_counter()
    return percent_right(logits_TK, test[1]), score(logits_TK, test[1]), trained - start, tested - trained


@cache
def _compiled_forward(network: str, shape: tuple[int, ...], num_classes: int, batch_train: int) -> Forward:
    """A compiled `Forward`, one for each network and shape of the small set, shared by all its trainings."""
    return compile_apart(run, dynamic=False)


def worth_compiling(
    net: nn.Module,
    shape_NCHW: Sequence[int],
    settings: EvaluateSettings,
    *,
    num_test: int,
    device_kind: DeviceKind,
) -> bool:
    """On a CPU, if a training and its test are enough arithmetic; never on CUDA, where none was measured.

    Args:
        net: the network.
        shape_NCHW: of the small set, decoded.
        settings: resolved.
        num_test: test images.
        device_kind: where it is trained and tested.
    """
    if device_kind != "cpu":
        return False
    num_images, channels, height, width = shape_NCHW
    forward_flop = 2.0 * nets.count_multiply_adds(net, channels, (height, width))
    # A training step is a forward and a backward pass, the latter twice the arithmetic.
    images = 3 * num_images * cast(int, settings.epochs) + num_test
    return forward_flop * images >= COMPILE_WORTH_FLOP and has_compiler()


def _compiles(
    asked: Switch,
    net: nn.Module,
    train_NCHW: Images,
    settings: EvaluateSettings,
    device: torch.device,
    num_test: int,
) -> bool:
    kind = kind_of(device)
    if asked == "auto":
        return worth_compiling(net, train_NCHW.shape, settings, num_test=num_test, device_kind=kind)
    if asked == "on" and not has_compiler(kind):
        raise ConfigError(
            "evaluate: this training is to be compiled, but there is no compiler with Python's headers on this machine;"
            " install g++ here, or compute where it is."
        )
    return asked == "on"


def _layout(device: torch.device, *, compiled: bool) -> torch.memory_format:
    # Eager group norm on a CPU is slow in channels_last: 75 ms a step against 30, ConvNet-3, 10 images.
    return torch.channels_last if compiled or device.type == "cuda" else torch.contiguous_format


def _checked(
    images_NCHW: Images | np.ndarray, labels_N: Tensor | np.ndarray, *, num_classes: int, what: str
) -> tuple[Images, Tensor]:
    """Float32 images, or pixels, and int64 labels, found to be sound."""
    labels = _as_tensor(labels_N)
    images = images_NCHW if isinstance(images_NCHW, Pixels) else _as_tensor(images_NCHW).float()
    if len(images.shape) != 4 or labels.shape != images.shape[:1] or len(images) == 0:
        raise ShapeError(
            f"evaluate: {what} images {tuple(images.shape)} with labels {tuple(labels.shape)}; expected at "
            "least one image, [N, C, H, W], and one label per image, [N]."
        )
    if labels.is_floating_point():
        raise ConfigError(
            f"evaluate: {what} labels are {labels.dtype}; expected integers, or pass soft_labels."
        )
    if isinstance(images, Tensor) and not bool(images.isfinite().all()):
        bad = int((~images.isfinite().flatten(1).all(dim=1)).nonzero()[0])
        raise ConfigError(f"evaluate: {what} image {bad} holds NaN or infinity; expected finite numbers.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ConfigError(
            f"evaluate: {what} labels run from {low} to {high}; expected 0 to {num_classes - 1} for "
            f"{num_classes} classes."
        )
    return images, labels.long()


def _checked_soft(soft_labels: Tensor | np.ndarray, shape: tuple[int, int]) -> Tensor:
    soft = _as_tensor(soft_labels).float()
    if soft.shape != shape:
        raise ShapeError(f"evaluate: soft_labels are {tuple(soft.shape)}; expected [N, K] = {shape}.")
    if not bool(soft.isfinite().all()) or bool((soft < 0).any()):
        raise ConfigError(
            "evaluate: soft_labels hold negative or non-finite numbers; expected probabilities."
        )
    return soft


def _as_tensor(values: Tensor | np.ndarray) -> Tensor:
    if isinstance(values, Tensor):
        return values
    with warnings.catch_warnings():
        # Arrays out of Ray's object store are read-only, which is fine: nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(np.ascontiguousarray(values))
