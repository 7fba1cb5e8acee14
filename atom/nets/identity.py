"""What a user's own network is: a digest of all that a stored result of it depends on.

An edit shows in the sources that the network's module imports, or in the network that is built: a number read from a
file is in no source, and a custom gradient in no output.
"""

# N images, C channels, H height, W width

import ast
import functools
import hashlib
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path, PurePath
from types import ModuleType

import torch
from torch import Tensor, nn

from atom.device import seeded, settings_kept
from atom.nets.custom import import_function, importable, module_of
from atom.nets.registry import build
from atom.nets.shapes import Size
from atom.streams import stream

_OURS = ("atom", "apps", "pipelines")
"""This project's packages: a new version of it is no edit of the user's."""
_INSTALLED = {"site-packages", "dist-packages"}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def identity(name: str, *, channels: int, image_size: Size, num_classes: int) -> str:
    """The name of a network, and for a user's own the digest of its sources and of what they build.

    The same all through a process, as the code that it has imported is.

    Args:
        name, channels, image_size, num_classes: see `atom.nets.build`.

    Raises:
        ConfigError: the user's network cannot be imported or built.
    """
    return _identity(name, channels, tuple(image_size), num_classes, Path.cwd()) if ":" in name else name


@functools.cache
def _identity(name: str, channels: int, image_size: Size, num_classes: int, _here: Path) -> str:
    sources = sources_digest(import_function(name))
    sizes = {"channels": channels, "image_size": image_size, "num_classes": num_classes}
    net, other = (build(name, **sizes, seed=seed) for seed in (0, 1))
    # Where the file lies does not decide what is in it.
    return f"{PurePath(name).name}@{sources}-{network_digest(net, channels, image_size, other=other)}"


def sources_digest(*things: ModuleType | Callable[..., object]) -> str:
    """Digest of the files that define modules, functions, classes or partials, and of all that those import.

    Files of Python, of installed packages and of this project do not count, nor does what is imported by a name
    made at run time. 16 characters.
    """
    modules = [thing if isinstance(thing, ModuleType) else module_of(thing) for thing in things]
    left = [
        (module.__name__, Path(file))
        for module in modules
        if module is not None and (file := getattr(module, "__file__", None))
    ]
    found: dict[Path, str] = {}
    with importable(*(path.parent for _, path in left)):
        while left:
            name, path = left.pop()
            if path in found or not _is_users(name, path):
                continue
            try:
                content = path.read_bytes()
            except OSError:  # inside an archive
                continue
            found[path] = hashlib.sha256(content).hexdigest()
            if path.suffix == ".py":
                left += [spot for wanted in _imports(content, name, path) if (spot := _find(wanted))]
    return hashlib.sha256("".join(sorted(found.values())).encode()).hexdigest()[:16]


def _is_users(name: str, path: Path) -> bool:
    standard = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    installed = _INSTALLED & set(path.parts) or any(path.is_relative_to(folder) for folder in standard)
    return not installed and name.partition(".")[0] not in _OURS


def _imports(content: bytes, name: str, path: Path) -> Iterator[str]:
    """Full names that a source imports anywhere, and those that may be modules or not."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # imported nowhere, or where that is allowed to fail
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for each in names:
            # Importing a.b runs a too.
            parts = each.split(".")
            if all(parts):
                yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _find(name: str) -> tuple[str, Path] | None:
    """Name and file of a user's module, imported or not; nothing is imported for it."""
    parts = name.split(".")
    file, folders = None, None
    for end, part in enumerate(parts, 1):
        whole = ".".join(parts[:end])
        if (module := sys.modules.get(whole)) is not None:
            file, folders = getattr(module, "__file__", None), getattr(module, "__path__", None)
        elif end > 1 and folders is None:  # the name of a function or a class
            return None
        else:
            # Under its last name, as Python would look for the whole one in the imported package.
            spec = (
                PathFinder.find_spec(part, folders) if folders is not None else importlib.util.find_spec(part)
            )
            if spec is None:
                return None
            file, folders = spec.origin, spec.submodule_search_locations
        folders = None if folders is None else list(folders)
        if file and not _is_users(whole, Path(file)):
            return None
    return (name, Path(file)) if file and Path(file).is_file() else None


def network_digest(net: nn.Module, channels: int, image_size: Size, *, other: nn.Module | None = None) -> str:
    """Digest of a network's structure, weights, buffers, and answers to fixed images with fixed weights; 16 characters.

    Of the weights that are random, their number and size: other processors draw them with other last bits. The answers
    are asked in float64 and rounded, as other processors sum in another order. The network is on the CPU and spoilt:
    its weights, its type and its statistics are others afterwards.

    Args:
        net, channels, image_size: see `atom.nets.build`.
        other: the same built under another seed, which tells the random weights; without it none are.
    """
    others = {} if other is None else dict(_named_tensors(other))
    digest = hashlib.sha256()
    for path, module in net.named_modules():
        # Rates of dropout and the like are in neither shapes nor answers.
        told = _ADDRESS.sub("", module.extra_repr())
        digest.update(f"{path} {type(module).__qualname__} {told}\n".encode())
    for path, value in _named_tensors(net):
        digest.update(f"{path} {tuple(value.shape)} {value.dtype} {value.requires_grad}\n".encode())
        fixed = value.detach().flatten()
        again = others.get(path, value).detach().flatten()
        if value.is_floating_point() and again.shape == fixed.shape:
            drawn = fixed[fixed != again].double()
            fixed = fixed[fixed == again]
            digest.update(f"{len(drawn)} {drawn.abs().mean():.4g} {drawn.square().mean():.4g}\n".encode())
        digest.update(fixed.contiguous().view(torch.uint8).numpy().tobytes())
    for answer in _answers(net, (2, channels, *image_size)):
        digest.update(f"{answer}\n".encode())
    return digest.hexdigest()[:16]


def _named_tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from net.named_parameters()
    yield from net.named_buffers()


def _answers(net: nn.Module, shape: tuple[int, ...]) -> Iterator[str]:
    """What a network says in float64, or in float32 where it knows no other, in both of its modes."""
    rng = stream(0, "nets/identity")
    fixed = {path: rng.uniform(-1, 1, tuple(weight.shape)) for path, weight in net.named_parameters()}
    images_NCHW = torch.from_numpy(rng.standard_normal(shape))
    training = net.training
    for dtype, digits in ((torch.float64, 9), (torch.float32, 3)):
        with settings_kept(), torch.no_grad(), seeded(0):
            torch.set_default_dtype(dtype)
            net.to(dtype)
            for path, weight in net.named_parameters():
                # Small enough that deep networks stay finite.
                fan_in = weight.numel() // max(1, len(weight)) if weight.ndim > 1 else 1
                weight.copy_(torch.from_numpy(fixed[path]) / max(1, fan_in) ** 0.5)
            told, failed = [], ""
            for mode in (False, True):
                net.train(mode)
                try:
                    told += _said(net, images_NCHW.to(dtype), digits)
                except Exception as error:
                    failed = type(error).__name__
                    told.append(failed)
        net.train(training)
        if not failed:
            break
    yield from told


def _said(net: nn.Module, images_NCHW: Tensor, digits: int) -> list[str]:
    outputs = [net(images_NCHW)]
    blocks = getattr(net, "blocks", None)
    if callable(blocks):
        maps, embedding = blocks(images_NCHW)
        outputs += [*maps, embedding]
    told = []
    for output in outputs:
        size = output.double().abs().mean().item()
        # Of what is large, the mean and the mean of squares: both see every value.
        values = (
            output.double().flatten() if output.numel() <= 4096 else output.double().pow(2).flatten(1).mean(1)
        )
        scale = size or 1.0
        told.append(f"{tuple(output.shape)} {size:.{digits}g}")
        told += [f"{round(value / scale, digits) + 0.0}" for value in values.tolist()]
    return told
