"""Defaults of the matching methods that depend on the images or the device, decided once by the driver."""

import logging
from dataclasses import replace
from typing import cast

import torch

from atom import nets
from atom.device import has_compiler, precision_name
from atom.errors import ConfigError
from atom.methods.feature_terms import FeatureTerms
from atom.methods.matching import Objective, class_statistics
from atom.methods.matching_settings import EmbeddingOptions
from atom.methods.method import Shape
from atom.methods.networks import network_of
from atom.methods.settings import DistillSettings
from atom.settings import DeviceKind

log = logging.getLogger(__name__)

COMPILE_WORTH_FLOP = 4e12
"""Arithmetic of one group from which torch.compile pays on a CPU: it costs 30 to 60 s there, and eager float32
computes at about 50 GFLOP/s a core. Chosen, measured."""

COMPILE_CLASSES = 5
"""Classes that one compilation is to pay for, at least: a worker takes several small groups. Chosen."""

GROUP_BYTES = 8 * 2**30
"""Memory of a step on a GPU that the default grouping keeps within: a card of 12 GB holds it beside the real images.
A constant, since the grouping decides bits, and must not follow the card that happens to be there. Chosen."""

PASS_BYTES = 16 * 2**30
"""Memory of a GPU for one forward pass over real images. Chosen: groups that a user makes larger than the default's
keep their one pass up to here (640 images of 64x64), and a class of 128 images of 224x224, 12 GiB, its own."""

REAL_BYTES, SYNTHETIC_BYTES = 15, 27
"""Bytes of a step's peak for each number of the largest activation, per real and per synthetic image. Measured: 2.5 GiB
for ten classes of CIFAR-10 at IPC 1 with 128 real images each, on an H100; the synthetic ones on a CPU."""

COVARIANCE_BYTES = 24
"""More of them for each number of a class's covariance: those of real and synthetic images, their difference and what
becomes of it. Counted, not measured."""


def resolve(
    settings: DistillSettings, shape: Shape, device_kind: DeviceKind, objective: Objective
) -> DistillSettings:
    """The settings with no None and no "auto" left.

    Args:
        settings: those that are common to all methods are resolved.
        shape: of the real images.
        device_kind: of the workers.
        objective: to try the network on.

    Raises:
        ConfigError: an unknown network, or one without the blocks that the objective matches.
    """
    on_gpu = device_kind == "cuda"
    options = settings.options
    assert isinstance(options, EmbeddingOptions), "the settings are of one of these methods"
    balance = default_task_balance(shape.height, shape.width)
    filled = settings.model_copy(
        update={
            "iterations": (8000 if on_gpu else 300) if settings.iterations is None else settings.iterations,
            "lr_img": settings.lr_img or (1.0 if settings.ipc <= 50 else 10.0),
            "options": options
            if options.task_balance is not None
            else options.model_copy(update={"task_balance": balance}),
        }
    )
    _check_terms(filled, objective)
    _check_network(filled, shape, objective)
    grouping = settings.classes_per_group or (_group_size(filled, shape) if on_gpu else 1)
    filled = filled.model_copy(update={"classes_per_group": grouping})
    compiled = _compile(filled, device_kind, shape)
    precision = settings.precision
    if precision == "auto" and not on_gpu and compiled == "off":
        # Eager bfloat16 on a CPU converts more than it saves: 133 ms a step against 108 on digits. Measured.
        precision = "float32"
    return filled.model_copy(
        update={"compile": compiled, "precision": precision_name(precision, device_kind)}
    )


def images_per_pass(settings: DistillSettings, shape: Shape) -> int:
    """Real images that go through the network together on a GPU, at most; the same on every card."""
    net = network_of(settings, shape)
    numbers = nets.largest_map(net, shape.channels, (shape.height, shape.width))
    return max(1, PASS_BYTES // (REAL_BYTES * numbers))


def default_task_balance(height: int, width: int) -> float:
    """λ where none was set: 0.01 below 64 pixels, 0.02 from there on. Source: DataDAM, hyper-parameter table."""
    return 0.02 if max(height, width) >= 64 else 0.01


def group_flop(settings: DistillSettings, shape: Shape) -> float:
    """Floating-point operations of one group's whole distillation: real forward, synthetic forward and backward."""
    size = (shape.height, shape.width)
    forward = 2.0 * nets.count_multiply_adds(
        network_of(settings, shape), channels=shape.channels, image_size=size
    )
    images = settings.batch_real + 3 * settings.ipc * settings.factor**2
    classes = min(max(settings.classes_per_group or 1, COMPILE_CLASSES), shape.num_classes)
    return forward * images * classes * (settings.iterations or 0)


def _compile(settings: DistillSettings, device_kind: DeviceKind, shape: Shape) -> str:
    if settings.compile == "off":
        return "off"
    if settings.compile == "auto":
        flop = group_flop(settings, shape)
        worth = (settings.iterations or 0) >= 500 if device_kind == "cuda" else flop >= COMPILE_WORTH_FLOP
        if not worth:
            return "off"
    if not has_compiler(device_kind):
        log.warning(
            "no compiler with Python's headers found (g++ or $CXX for CPUs, gcc, clang or $CC for CUDA): the step"
            " runs eagerly, several times slower."
        )
        return "off"
    return "on"


def _group_size(settings: DistillSettings, shape: Shape) -> int:
    """Classes of a group on a GPU: as many as `GROUP_BYTES` hold, in groups of about equal size."""
    synthetic = settings.ipc * settings.factor**2
    # The calibration's network sees the synthetic images too.
    networks = 2 if cast(EmbeddingOptions, settings.options).calibration else 1
    images = REAL_BYTES * settings.batch_real + SYNTHETIC_BYTES * synthetic * networks
    net = network_of(settings, shape)
    bytes_of_class = images * nets.largest_map(net, shape.channels, (shape.height, shape.width))
    if cast(EmbeddingOptions, settings.options).covariance_weight:
        with torch.no_grad():
            blank = torch.zeros(1, shape.channels, shape.height, shape.width)
            features = nets.require_blocks(net, settings.network).eval().blocks(blank)[1].shape[1]
        bytes_of_class += COVARIANCE_BYTES * features**2
    fitting = max(1, GROUP_BYTES // bytes_of_class)
    num_groups = -(-shape.num_classes // fitting)
    return -(-shape.num_classes // num_groups)


def _check_network(settings: DistillSettings, shape: Shape, objective: Objective) -> None:
    """Refuse a network that cannot distil by this method before any worker starts."""
    net = network_of(settings, shape)
    nets.WeightDraw(net)
    net = nets.require_blocks(net, settings.network).eval()
    with torch.no_grad():
        blank = torch.zeros(1, shape.channels, shape.height, shape.width)
        class_statistics(net, blank, num_classes=1, objective=replace(objective, features=FeatureTerms()))
    if net.mixes_batch and cast(EmbeddingOptions, settings.options).trained_networks:
        raise ConfigError(
            f"--network {settings.network}: --trained-networks trains it on all classes and shows it one at a time, and"
            " the batch statistics of one class are none of the whole; pass a network without BatchNorm, such as"
            " convnet, and judge by others with --eval-networks."
        )


def _check_terms(settings: DistillSettings, objective: Objective) -> None:
    """Refuse an objective that does not exist for these numbers of images, or that has no term."""
    images = {
        "--batch-real": settings.batch_real,
        "--ipc, with --factor,": settings.ipc * settings.factor**2,
    }
    few = [f"{flag} gives {count}" for flag, count in images.items() if count < 2]
    if objective.features.covariance_weight and few:
        raise ConfigError(
            f"--covariance-weight {objective.features.covariance_weight:g}: the covariance of a class needs at least 2"
            f" images of it, and {' and '.join(few)}; pass more, such as --factor 2, or leave it out."
        )
    options = cast(EmbeddingOptions, settings.options)
    terms = (
        objective.spatial,
        objective.channel,
        objective.features.count,
        options.task_balance,
        options.calibration,
    )
    if not any(terms):
        raise ConfigError(
            f"--task-balance 0: it is the only term of {settings.method}; pass another, such as --cf-weight 300."
        )
