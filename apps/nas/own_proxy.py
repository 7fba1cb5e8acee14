"""A proxy of the user's own, named `module:function` or `path/to/file.py:function`: a score without training."""

# B images of the batch, C channels, H height, W width

import inspect
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from atom import nets
from atom.device import own_generators, seeded
from atom.errors import ConfigError


def own_function(spec: str) -> Callable[..., object]:
    """The function of that name.

    Raises:
        ConfigError: it cannot be imported, or not be called as function(net, images, labels).
    """
    what = f"proxy {spec}"
    function = nets.import_object(spec, what=what)
    if not callable(function):
        raise ConfigError(
            f"{what}: is {type(function).__name__}, not callable; expected a function (net, images, labels) -> float."
        )
    try:
        inspect.signature(function).bind("net", "images", "labels")
    except TypeError as error:
        raise ConfigError(
            f"{what}: cannot be called as function(net, images, labels) ({error}); give it these three arguments."
        ) from None
    except ValueError:  # some of those written in C do not tell their arguments
        pass
    return function


def own_digest(spec: str) -> str:
    """Digest of the function's sources, see `atom.nets.sources_digest`; errors as for `own_function`."""
    function = own_function(spec)
    # A partial takes numbers from the file that is named, whatever file its code is in.
    return nets.sources_digest(nets.import_module(spec.rpartition(":")[0], what=f"proxy {spec}"), function)


def own_score(spec: str, net: nn.Module, images_BCHW: Tensor, labels_B: Tensor, *, seed: int) -> float:
    """What the function says of a network; larger is better, never NaN, and -inf ranks last.

    It runs with gradients on, with PyTorch's settings put back after it, and the generators of torch, NumPy and
    Python at the seed.

    Args:
        spec: its name.
        net: in training mode; the function may change it.
        images_BCHW: preprocessed float32 images on the network's device, which the function may change too.
        labels_B: int64, same device.
        seed: what random numbers it draws follow from it.

    Raises:
        ConfigError: see `own_function`, or it returns no number, NaN or +inf.
        Exception: whatever it raises.
    """
    function = own_function(spec)
    with own_generators(images_BCHW.device, seed), seeded(seed), torch.enable_grad():
        value = nets.call(partial(function, net, images_BCHW, labels_B))
    try:
        score = float(value)  # pyrefly: ignore
    except (RuntimeError, TypeError, ValueError):
        raise ConfigError(
            f"proxy {spec}: returned {type(value).__name__}, expected one number, the larger the better."
        ) from None
    if math.isnan(score) or score == math.inf:
        raise ConfigError(f"proxy {spec}: returned {score}, expected a finite number, or -inf for the worst.")
    return score
