"""Defaults and checks of the methods that match gradients, decided once by the driver."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from atom import nets
from atom.errors import ConfigError
from atom.methods.gradient_settings import LoopOptions, RealTrainingOptions
from atom.methods.gradients import Distance, class_gradients
from atom.methods.method import Shape
from atom.methods.networks import network_of, tried_twice
from atom.methods.settings import DistillSettings
from atom.nets.layers import mixes_batch
from atom.settings import DeviceKind

PUBLISHED_INNER_EPOCHS = {1: 1, 10: 50, 20: 25, 30: 20, 40: 15, 50: 10}
"""Epochs of the network between steps on the images, by the number of these steps, which is the ipc. Source: DC,
published code."""

CPU_OUTER_STEPS, CPU_INNER_EPOCHS, CPU_IMAGE_STEPS = 10, 20, 120
"""On a CPU, where the published loops take days: the number of iterations is that of steps on the images in all, over
that of outer steps. Chosen, measured: docs/gradient-matching.md."""

LR_MSE, LR_L1 = 1e-3, 5e-5
"""Step sizes of idc's metrics on preprocessed pixels, at one image a class. Chosen, measured:
docs/gradient-matching.md. They grow with the images of a class. Source: IDC, published code."""

Weights = Callable[[nn.Module], Sequence[Tensor]]


def default_outer_steps(ipc: int, device_kind: DeviceKind) -> int:
    """Steps on the images with each network: as many as images of a class, up to the last row of the published table.

    Example:
        >>> default_outer_steps(20, "cuda"), default_outer_steps(100, "cuda"), default_outer_steps(20, "cpu")
        (20, 50, 10)
    """
    return min(ipc, 50 if device_kind == "cuda" else CPU_OUTER_STEPS)


def default_inner_epochs(outer_steps: int, device_kind: DeviceKind) -> int:
    """Epochs of the network between two of these steps: the published ones, between the rows of that table 500 in all.

    That is the table's own rule at 10, 20 and 50. Its code refuses other numbers.

    Example:
        >>> default_inner_epochs(10, "cuda"), default_inner_epochs(2, "cuda"), default_inner_epochs(10, "cpu")
        (50, 250, 20)
    """
    if device_kind == "cpu" and outer_steps > 1:
        return CPU_INNER_EPOCHS
    return PUBLISHED_INNER_EPOCHS.get(outer_steps, 500 // outer_steps or 1)


def resolve_loop(settings: DistillSettings, shape: Shape, device_kind: DeviceKind) -> DistillSettings:
    """The settings of dc and dsa with their defaults.

    Raises:
        ConfigError: --classes-per-group, where the network is trained on all classes; --inner-epochs, where it is not.
    """
    options = settings.options
    assert isinstance(options, LoopOptions), "the settings are of dc or dsa"
    outer = options.outer_steps or default_outer_steps(settings.ipc, device_kind)
    inner = options.inner_epochs or default_inner_epochs(outer, device_kind)
    if outer == 1 and inner != default_inner_epochs(1, device_kind):
        raise ConfigError(
            f"--inner-epochs {inner}: with one outer step {settings.method} never trains its network; pass"
            " --outer-steps 2 or more as well, or leave this out."
        )
    if outer > 1 and settings.classes_per_group not in (None, shape.num_classes):
        raise ConfigError(
            f"--classes-per-group {settings.classes_per_group}: with {outer} outer steps {settings.method} trains its"
            " network on the images of all classes, which are one unit; leave it out, or pass --outer-steps 1."
        )
    on_cpu = max(1, CPU_IMAGE_STEPS // outer) if outer > 1 else 300
    iterations = 1000 if device_kind == "cuda" else on_cpu
    update = {
        "iterations": iterations if settings.iterations is None else settings.iterations,
        "lr_img": settings.lr_img or 0.1,
        # All classes in one group are one unit.
        "classes_per_group": shape.num_classes if outer > 1 else settings.classes_per_group or 1,
        "options": options.model_copy(update={"outer_steps": outer, "inner_epochs": inner}),
    }
    return _plain(settings.model_copy(update=update))


def resolve_real_training(settings: DistillSettings, device_kind: DeviceKind) -> DistillSettings:
    """The settings of idc with its defaults."""
    options = settings.options
    assert isinstance(options, RealTrainingOptions), "the settings are of idc"
    iterations = 8000 if device_kind == "cuda" else 300
    update = {
        "iterations": iterations if settings.iterations is None else settings.iterations,
        "lr_img": settings.lr_img or settings.ipc * (LR_MSE if options.metric == "mse" else LR_L1),
        "classes_per_group": settings.classes_per_group or 1,
    }
    return _plain(settings.model_copy(update=update))


def _plain(settings: DistillSettings) -> DistillSettings:
    # float32 also where the device has bfloat16: the published arithmetic, and cosines of small gradients.
    precision = "float32" if settings.precision == "auto" else settings.precision
    # A compiled forward pass cannot be differentiated twice (torch 2.14).
    return settings.model_copy(update={"precision": precision, "compile": "off"})


def check_network(settings: DistillSettings, shape: Shape, weights: Weights, distance: Distance) -> None:
    """Refuse a network whose gradients cannot be matched, before any worker starts.

    Raises:
        ConfigError: it has BatchNorm, nothing to match, or an operation that cannot be differentiated twice.
    """
    net = network_of(settings, shape)
    flag = f"--network {settings.network}: {settings.method}"
    if mixes_batch(net):
        raise ConfigError(
            f"{flag} matches the gradients of one class at a time, and batch statistics of a single class are none of"
            " the whole; pass a network without BatchNorm, such as convnet, and judge by others with --eval-networks."
        )
    nets.WeightDraw(net)
    own = weights(net)
    if not own:
        raise ConfigError(
            f"{flag} matches the weights of convolutions, and the network has none; pass --method dc."
        )
    blank_NCHW = torch.zeros(1, shape.channels, shape.height, shape.width, requires_grad=True)
    with tried_twice(settings):
        gradients = class_gradients(net(blank_NCHW), 0, own, differentiable=True)
        # Not `grad`, which steps over what is differentiable once, and leaves its share out.
        distance([g.detach() + 1 for g in gradients], gradients).backward()


__all__ = [
    "check_network",
    "default_inner_epochs",
    "default_outer_steps",
    "resolve_loop",
    "resolve_real_training",
]
