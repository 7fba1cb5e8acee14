"""One unit of work: one network, one proxy, one seed; a pure function of the images and the settings.

N training images, B images of a batch, T images asked about, C channels, H height, W width, K classes
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from apps.nas.latency import BATCH as LATENCY_BATCH
from apps.nas.latency import latency_ms
from apps.nas.own_proxy import own_score
from apps.nas.proxies import Proxy, part_rows
from apps.nas.space import Space
from apps.nas.zero_cost import zero_cost_score
from atom import nets
from atom.batches import num_batches
from atom.device import deterministic, use_threads
from atom.pixels import Pixels
from atom.settings import EvaluateSettings
from atom.streams import stream
from atom.train import Budget, accuracy, compute_dtype, train_network

ZERO_COST_BATCH = 64
"""Real images that a zero-cost score, or a user's own, looks at. Source: Abdelfattah et al., ICLR 2021."""

# Reference and proxies share neither weights nor the order of images, or noise would count as agreement.
_REFERENCE_SEEDS = 1_000_000

Labelled = tuple[Tensor | Pixels, Tensor]
"""Preprocessed float32 images [N, C, H, W], or pixels that are, and int64 labels [N]; of a tiny set also soft ones,
float32 [N, K]."""


@dataclass(frozen=True)
class Unit:
    """One score to be found.

    Attributes:
        network: its name in the space.
        proxy: name of the proxy.
        seed: of weights, order and augmentation, or of the batch a zero-cost score looks at.
    """

    network: str
    proxy: str
    seed: int

    def __str__(self) -> str:
        return f"{self.network} ({self.proxy}, seed {self.seed})"


@dataclass(frozen=True, eq=False)
class Images:
    """The real images in one preprocessing."""

    train: Labelled
    validation: Labelled
    test: Labelled


@dataclass(frozen=True)
class Score:
    """What a unit came to.

    Attributes:
        score: larger is better; validation accuracy in percent where the network was trained; milliseconds of a
            latency.
        test_accuracy: in percent; of the whole training set only, for the report.
        steps: of the training.
        train_seconds: wall time of the training, or of the zero-cost score.
        score_seconds: wall time of asking about validation and test images.
    """

    score: float
    test_accuracy: float | None = None
    steps: int = 0
    train_seconds: float = 0.0
    score_seconds: float = 0.0


OnEpoch = Callable[[int, Callable[[], Score]], None]
"""Called after every epoch with the number of epochs done and a function that finds the score so far."""


@dataclass(frozen=True)
class Recipe:
    """How all networks are trained: the same for every proxy but for the length.

    Attributes:
        settings: resolved; its epochs are those on a tiny set.
        whole_epochs: epochs on the whole training set.
        steps: of "early-steps", the steps that a training on the tiny set takes.
        threads: CPU threads of a worker.
    """

    settings: EvaluateSettings
    whole_epochs: int
    steps: int
    threads: int = 1


def run_unit(
    unit: Unit,
    proxy: Proxy,
    *,
    space: Space,
    small: Mapping[str, Mapping[int | None, tuple[np.ndarray, np.ndarray]]],
    real: Mapping[str, Images],
    recipe: Recipe,
    device: torch.device,
    seconds: float | None = None,
) -> Score:
    """Score one network by one proxy.

    Args:
        unit: what to score.
        proxy: by what.
        space: where the network's name comes from.
        small: tiny sets by proxy, and by training seed or under None for all seeds: images and labels, soft ones too.
        real: real images by preprocessing, on `device`.
        recipe: of the training.
        device: where to compute.
        seconds: training time of the proxy of equal seconds.

    Raises:
        ConfigError: the network cannot be built or does not fit the images, or a user's own proxy gives no number.
        NotFiniteError: its outputs are not finite; see `atom.train.predict`.
    """
    return train_unit(
        unit, proxy, space=space, small=small, real=real, recipe=recipe, device=device, seconds=seconds
    )[1]


def train_unit(
    unit: Unit,
    proxy: Proxy,
    *,
    space: Space,
    small: Mapping[str, Mapping[int | None, tuple[np.ndarray, np.ndarray]]],
    real: Mapping[str, Images],
    recipe: Recipe,
    device: torch.device,
    seconds: float | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[nn.Module, Score]:
    """The network as the proxy left it, on `device`, and its score; arguments and errors as for `run_unit`."""
    images = real[proxy.real]
    with use_threads(recipe.threads), deterministic(device):
        seed = unit.seed + (_REFERENCE_SEEDS if proxy.kind == "whole" else 0)
        net = nets.begin(
            partial(space.build, unit.network),
            stream(seed, "nas/weights"),
            own=space.is_own(unit.network),
            initial_weights=recipe.settings.initial_weights,
        ).to(device)
        if proxy.kind in ("zero-cost", "own"):
            return net, _without_training(net, unit, proxy, space, images.train)
        if proxy.kind == "latency":
            begun = time.perf_counter()
            taken = latency_ms(net, images.train[0][:LATENCY_BATCH])
            return net, Score(taken, train_seconds=time.perf_counter() - begun)
        net = net.to(memory_format=_layout(net, device))
        train, settings, budget = images.train, recipe.settings, None
        if proxy.epochs is not None:
            settings = settings.model_copy(update={"epochs": proxy.epochs})
        if proxy.kind == "set":
            draws = small[proxy.name]
            train = _on(device, *(draws[None] if None in draws else draws[unit.seed]))
        elif proxy.kind == "real":
            rows_N = torch.from_numpy(part_rows(train[1].cpu().numpy(), proxy.percent)).to(device)
            train = train if proxy.percent == 100 else (train[0][rows_N], train[1][rows_N])
        elif proxy.kind == "whole":
            settings = settings.model_copy(update={"epochs": recipe.whole_epochs})
        else:
            budget = Budget(seconds=seconds) if proxy.kind == "seconds" else Budget(steps=recipe.steps)
        looks = _Looks(net, images.validation, settings, on_epoch, num_batches(len(train[1]), settings.batch))
        steps = train_network(
            net,
            *train,
            settings=settings,
            seed=seed,
            budget=budget,
            on_epoch=looks.hook if on_epoch else None,
        )
        score = looks.score(steps)
        if proxy.kind == "whole":
            begun = time.perf_counter()
            test = accuracy(net, *images.test, dtype=compute_dtype(settings))
            score = replace(
                score, test_accuracy=test, score_seconds=score.score_seconds + time.perf_counter() - begun
            )
    return net, score


class _Looks:
    """Scores of one network while it is trained; the time that they take counts as scoring, not as training."""

    def __init__(
        self,
        net: nn.Module,
        validation: Labelled,
        settings: EvaluateSettings,
        on_epoch: OnEpoch | None,
        steps_per_epoch: int,
    ) -> None:
        self._net, self._validation, self._settings = net, validation, settings
        self._on_epoch, self._steps_per_epoch = on_epoch, steps_per_epoch
        self._begun_s, self._away_s, self._score_s = time.perf_counter(), 0.0, 0.0

    def hook(self, epoch: int) -> None:
        """Let somebody look at the network, who may take his time."""
        assert self._on_epoch is not None, "only given to a training that is looked at"
        begun_s = time.perf_counter()
        self._on_epoch(epoch, lambda: self.score(epoch * self._steps_per_epoch))
        self._away_s += time.perf_counter() - begun_s

    def score(self, steps: int) -> Score:
        """The score after this many steps."""
        device = self._validation[0].device
        _wait_for(device)
        begun_s = time.perf_counter()
        # A network that draws even when it is asked must not be trained differently for having been asked.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            dtype = compute_dtype(self._settings)
            validation = accuracy(self._net, *self._validation, dtype=dtype)
        done_s = time.perf_counter()
        self._score_s += done_s - begun_s
        return Score(validation, None, steps, begun_s - self._begun_s - self._away_s, self._score_s)


def rows_of_batch(num_images: int, seed: int) -> np.ndarray:
    """Which training images the zero-cost scores of a seed look at, at most `ZERO_COST_BATCH`."""
    order = stream(seed, "nas/zero-cost").permutation(num_images)
    return np.sort(order[:ZERO_COST_BATCH])


def _without_training(net: nn.Module, unit: Unit, proxy: Proxy, space: Space, train: Labelled) -> Score:
    multiply_adds = space.by_name[unit.network].multiply_adds
    rows_B = torch.from_numpy(rows_of_batch(len(train[1]), unit.seed)).to(train[0].device)
    images_BCHW, labels_B = train[0][rows_B], train[1][rows_B]
    begun = time.perf_counter()
    if proxy.kind == "own":
        score = own_score(proxy.source, net, images_BCHW, labels_B, seed=unit.seed)
    elif unit.proxy == "multiply-adds" and multiply_adds is not None:
        # A user may know the cost better than a counter of convolutions and products does.
        score = float(multiply_adds)
    else:
        score = zero_cost_score(unit.proxy, net, images_BCHW=images_BCHW, labels_B=labels_B)
    return Score(score, train_seconds=time.perf_counter() - begun)


def _on(device: torch.device, images_NCHW: np.ndarray, labels_N: np.ndarray) -> Labelled:
    # A tiny set: copied, so that nothing can write to what others read.
    labels = torch.tensor(labels_N, device=device)
    return torch.tensor(images_NCHW, device=device), labels if labels.is_floating_point() else labels.long()


def _layout(net: nn.Module, device: torch.device) -> torch.memory_format:
    # Eager, one core, images a second, contiguous against channels_last: batch norm 596, 1353; no norm 3608,
    # 5156; but group norm, which is instance norm too, 682, 285 (64 or 32 wide, 32x32 pixels, bfloat16).
    grouped = any(isinstance(module, nn.GroupNorm) for module in net.modules())
    return torch.contiguous_format if device.type == "cpu" and grouped else torch.channels_last


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
