"""A user's own network, named `module:function` or `path/to/file.py:function`."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from atom.device import settings_kept
from atom.errors import ConfigError
from atom.nets.layers import BlockNet
from atom.nets.shapes import Size

T = TypeVar("T")


def build_custom(name: str, *, channels: int, image_size: Size, num_classes: int) -> nn.Module:
    """The network that the user's function returns for these sizes, tried once on two blank images.

    Raises:
        ConfigError: the function cannot be imported or called, returns no `nn.Module`, or the network does
            not give logits (N, num_classes), or its `blocks` not what `atom.nets.BlockNet` says.
    """
    return build_with(
        import_function(name), name, channels=channels, image_size=image_size, num_classes=num_classes
    )


def build_with(
    function: Callable[..., object], name: str, *, channels: int, image_size: Size, num_classes: int
) -> nn.Module:
    """The network that a function returns for these sizes, tried once on two blank images.

    Args:
        function: called with the three sizes as keywords.
        name: of the network, for messages.
        channels, image_size, num_classes: see `atom.nets.build`.

    Raises:
        ConfigError: as for `build_custom`.
    """
    try:
        net = call(function, channels=channels, image_size=image_size, num_classes=num_classes)
    except Exception as error:
        raise ConfigError(
            f"network {name!r}: the function failed with {type(error).__name__}: {error}; it is called as "
            f"function(channels={channels}, image_size={image_size}, num_classes={num_classes})."
        ) from error
    if not isinstance(net, nn.Module):
        raise ConfigError(
            f"network {name!r}: the function returned {type(net).__name__}, expected a torch.nn.Module."
        )
    _try_out(net, name, channels=channels, image_size=image_size, num_classes=num_classes)
    return net


def module_of(thing: Callable[..., object]) -> ModuleType | None:
    """The module that defines a function, class, partial or callable object; None where it is not known."""
    thing = inspect.unwrap(thing)
    while isinstance(thing, partial):
        thing = inspect.unwrap(thing.func)
    if not (inspect.isroutine(thing) or inspect.isclass(thing)):
        thing = type(thing)  # an instance with a __call__
    return sys.modules.get(getattr(thing, "__module__", None) or "")


def call(function: Callable[..., T], **arguments: object) -> T:
    """What a user's function returns, which may import the neighbours of its file only now.

    PyTorch's settings are put back after it.

    Raises:
        RuntimeError: it wanted to end the process.
        Exception: whatever it raises.
    """
    file = getattr(module_of(function), "__file__", None)
    try:
        with settings_kept(), importable(*([Path(file).resolve().parent] if file else [])):
            return function(**arguments)
    except SystemExit as error:
        raise RuntimeError(f"it called exit({error.code!r})") from error


def require_blocks(net: nn.Module, name: str) -> BlockNet:
    """The same network, known to be able to distil: distillation reads the features of its blocks.

    Raises:
        ConfigError: the network has no method `blocks`.
    """
    if not callable(getattr(net, "blocks", None)):
        raise ConfigError(
            f"network {name!r}: {type(net).__name__} has no method blocks(images), so it can be evaluated "
            "but not distil; add one that returns (list of activations, embedding), see docs/own-network.md."
        )
    return cast(BlockNet, net)  # a user's class need not inherit from it


@contextmanager
def importable(*folders: Path) -> Iterator[None]:
    """Within, modules are found in the working directory, which a console command has not on its path, and in folders.

    Args:
        folders: such as that of a file, whose neighbours it imports.
    """
    added = list(dict.fromkeys(str(folder) for folder in (Path.cwd(), *folders)))
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def import_function(name: str) -> Callable[..., object]:
    """The function that a user's `module:function` or `path/to/file.py:function` means.

    Raises:
        ConfigError: it cannot be imported, or is none.
    """
    function = import_object(name, what=f"network {name!r}")
    if not callable(function):
        raise ConfigError(
            f"network {name!r}: {name.rpartition(':')[2]!r} is {type(function).__name__}, not callable; expected"
            " a function (channels, image_size, num_classes) -> torch.nn.Module."
        )
    return function


def import_object(name: str, *, what: str) -> object:
    """What a user's `module:attribute` or `path/to/file.py:attribute` means.

    Args:
        name: modules are looked for on the import path and in the working directory.
        what: how messages begin, such as "network 'mine:net'".

    Raises:
        ConfigError: it cannot be imported, or has no such attribute.
    """
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise ConfigError(f"{what}: expected module:name or path/to/file.py:name.")
    module = import_module(where, what=what)
    if not hasattr(module, attribute):
        raise ConfigError(f"{what}: {where} has no {attribute!r}; name something defined there.")
    return getattr(module, attribute)


def import_module(where: str, *, what: str) -> ModuleType:
    """The module or the file before the colon of a name; arguments and errors as for `import_object`."""
    path = Path(where) if where.endswith(".py") else None
    try:
        # What a module sets when it is imported would hold for the first network of a process only.
        with settings_kept(), importable(*([path.resolve().parent] if path else [])):
            return importlib.import_module(where) if path is None else _load_file(path)
    except (Exception, SystemExit) as error:  # whatever the user's module does when it runs
        raise ConfigError(
            f"{what}: cannot import {where} ({type(error).__name__}: {error}); give a module "
            "on the import path or in the working directory, or the path of a .py file."
        ) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    # By full path: two files of one name must not replace each other, and classes must keep their identity
    # when a file is named twice.
    module_name = f"atom_user_network_{path.resolve()}".replace("/", "_").replace(".", "_")
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


@torch.no_grad()
def _try_out(net: nn.Module, name: str, *, channels: int, image_size: Size, num_classes: int) -> None:
    images_NCHW = torch.zeros(2, channels, *image_size)
    training = net.training
    net.eval()
    try:
        logits = net(images_NCHW)
        blocks = getattr(net, "blocks", None)
        features = blocks(images_NCHW) if callable(blocks) else None
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"network {name!r}: failed on images of shape {tuple(images_NCHW.shape)} with "
            f"{type(error).__name__}: {error}."
        ) from error
    finally:
        net.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        raise ConfigError(
            f"network {name!r}: images of shape {tuple(images_NCHW.shape)} gave {_describe(logits)}, "
            f"expected logits of shape {(2, num_classes)}."
        )
    if features is not None and not _are_features(features):
        raise ConfigError(
            f"network {name!r}: blocks(images) gave {_describe(features)}, expected (list of activations of "
            "shape (N, C, H, W), embedding of shape (N, D)) with the N of the images."
        )


def _are_features(features: object) -> bool:
    if not isinstance(features, tuple) or len(features) != 2:
        return False
    maps, embedding = features
    return (
        isinstance(maps, list)
        and len(maps) > 0
        and all(isinstance(each, Tensor) and each.ndim == 4 and each.shape[0] == 2 for each in maps)
        and isinstance(embedding, Tensor)
        and embedding.ndim == 2
        and embedding.shape[0] == 2
    )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of ({', '.join(_describe(each) for each in value)})"
    return type(value).__name__
