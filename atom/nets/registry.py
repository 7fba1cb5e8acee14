"""Networks by name."""

import difflib
from collections.abc import Callable
from functools import partial

from torch import nn

from atom.device import seeded, settings_kept
from atom.errors import ConfigError
from atom.nets.cell_spec import CELL_FAMILY, parse_cell
from atom.nets.cells import CellNet
from atom.nets.custom import build_custom
from atom.nets.layers import mixes_batch
from atom.nets.plain import alexnet, convnet, vgg11
from atom.nets.resnet import ResNet18
from atom.nets.shapes import Size
from atom.nets.spec import WORD_NORM, Norm, parse_convnet
from atom.nets.vit import ViT
from atom.nets.weights import fill_weights
from atom.streams import stream

# Their names take a norm as a suffix, such as vgg11-batch; ViT has its own.
_WITH_NORM: dict[str, Callable[..., nn.Module]] = {"alexnet": alexnet, "vgg11": vgg11, "resnet18": ResNet18}


def known_names() -> tuple[str, ...]:
    """The plain names that `build` knows, and one of NAS-Bench-201; all but ViT take parts, see there."""
    return ("convnet", *_WITH_NORM, "vit", f"{CELL_FAMILY}-333333")


def with_batch_norm(name: str) -> str:
    """The name of the same network with BatchNorm; that of a ConvNet for those that have no such sibling.

    Networks of NAS-Bench-201 have BatchNorm anyway.

    Example:
        >>> [with_batch_norm(name) for name in ("convnet", "convnet-w64-nonorm-max", "vgg11", "vit")]
        ['convnet-batch', 'convnet-w64-max-batch', 'vgg11-batch', 'convnet-batch']
    """
    base, *parts = name.split("-")
    if base == CELL_FAMILY:
        return name
    if is_own(name) or base not in ("convnet", *_WITH_NORM):
        return "convnet-batch"
    return "-".join([base, *(part for part in parts if part not in WORD_NORM), "batch"])


def is_own(name: str) -> bool:
    """Whether a name is that of a user's function."""
    return ":" in name


def build(name: str, *, channels: int, image_size: Size, num_classes: int, seed: int = 0) -> nn.Module:
    """A network by name, float32 on the CPU, in training mode, with an attribute `mixes_batch`.

    Names: `convnet` and any `convnet-…` of `atom.nets.parse_convnet`; `alexnet`, `vgg11`, `resnet18`, each
    also with a norm (`vgg11-batch`; nonorm, batch, layer, instance, group), by default none for AlexNet and
    instance for the others; `vit`; `nasbench201-…` of `atom.nets.parse_cell`; a user's own, `module:function` or
    `path/to/file.py:function`.

    The weights are random and always the same for a name and sizes; `fill_weights` draws others. A user's own network
    has those that its function returns, which `seed` decides where they are random. Global generators are left as they
    were.

    Args:
        name: as above.
        channels: of the images, at least 1.
        image_size: (height, width) in pixels.
        num_classes: at least 1.
        seed: of global generators while a user's function runs.

    Raises:
        ConfigError: the name or a part of it is unknown, a size is out of range, or a user's network is not
            as `docs/own-network.md` says.

    Example:
        >>> import torch
        >>> net = build("convnet-w32-d2", channels=1, image_size=(8, 8), num_classes=10)
        >>> activations, embedding = net.blocks(torch.zeros(5, 1, 8, 8))
        >>> [tuple(each.shape) for each in activations], tuple(embedding.shape)
        ([(5, 32, 8, 8), (5, 32, 4, 4)], (5, 128))
    """
    for label, number in (("channels", channels), ("image side", min(image_size)), ("classes", num_classes)):
        if number < 1:
            raise ConfigError(f"network {name!r}: {label} {number}, expected at least 1.")
    make, shape = _maker(name), {"channels": channels, "image_size": tuple(image_size)}
    net = build_from(make, **shape, num_classes=num_classes, seed=seed)
    if not is_own(name):
        fill_weights(net, stream(0, "nets/build"))
    return net


def build_from(
    make: Callable[..., nn.Module], *, channels: int, image_size: Size, num_classes: int, seed: int = 0
) -> nn.Module:
    """What a user's `make` builds for these sizes, as it returns it, with the attribute that `build` promises."""
    # Constructors initialise from global generators, which are not ours to advance.
    with settings_kept(), seeded(seed):
        net = make(channels=channels, image_size=tuple(image_size), num_classes=num_classes)
    if not hasattr(net, "mixes_batch"):
        net.mixes_batch = mixes_batch(net)  # pyrefly: ignore[bad-argument-type]
    return net


def _maker(name: str) -> Callable[..., nn.Module]:
    if is_own(name):
        return partial(build_custom, name)
    base, _, suffix = name.partition("-")
    if base == "convnet":
        return partial(convnet, parse_convnet(name))
    if base in _WITH_NORM:
        return partial(_WITH_NORM[base], norm=_norm(name, suffix)) if suffix else _WITH_NORM[base]
    if name == "vit":
        return ViT
    if base == CELL_FAMILY:
        return partial(CellNet, parse_cell(name))
    close = difflib.get_close_matches(name, [*known_names(), "convnet-batch", "vgg11-batch"], n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"network {name!r}: unknown; known are {', '.join(known_names())}, with parts such as "
        f"convnet-w64-d2-batch or vgg11-batch, and your own as module:function.{hint}"
    )


def _norm(name: str, suffix: str) -> Norm:
    if suffix not in WORD_NORM:
        close = difflib.get_close_matches(suffix, WORD_NORM, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"network {name!r}: unknown norm {suffix!r}; known are {', '.join(WORD_NORM)}.{hint}"
        )
    return WORD_NORM[suffix]
