"""Fresh random weights, written into a network that exists.

Distillation takes another random network in every iteration. Building one anew costs more than drawing its
numbers, and changes the storage that a compiled step or a CUDA graph has been prepared for. So the network
stays, and its weights are replaced: one flat vector is drawn on the host, from a stream of `atom.streams`,
and copied into the parameters. The distributions are those of PyTorch's own initialisation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from atom.errors import ConfigError
from atom.nets.vit import LearnedTokens
from atom.streams import stream

# A seed in the flat float32 vector: two numbers below 2**24, which float32 holds exactly.
_SEED_BASE = 1 << 24


@dataclass(frozen=True)
class _Piece:
    """One parameter, by the module that holds it: `scale` is the bound, the deviation, or the constant."""

    module: nn.Module
    name: str
    kind: int
    scale: float

    @property
    def parameter(self) -> nn.Parameter:
        parameter = self.module._parameters[self.name]
        assert parameter is not None
        return parameter


_UNIFORM, _NORMAL, _CONSTANT = range(3)  # the order of the kinds in the flat vector


def _fan_in(module: nn.Module, _name: str) -> tuple[int, float]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return _UNIFORM, weight[0].numel() ** -0.5


def _ones_and_zeros(_module: nn.Module, name: str) -> tuple[int, float]:
    return _CONSTANT, 1.0 if name == "weight" else 0.0


def _standard_normal(_module: nn.Module, _name: str) -> tuple[int, float]:
    return _NORMAL, 1.0


# Keyed by the initialisation itself, so that a subclass with one of its own is not mistaken for its parent.
_RULES: dict[Callable[..., None], Callable[[nn.Module, str], tuple[int, float]]] = {
    _ConvNd.reset_parameters: _fan_in,
    nn.Linear.reset_parameters: _fan_in,
    _NormBase.reset_parameters: _ones_and_zeros,
    nn.GroupNorm.reset_parameters: _ones_and_zeros,
    nn.LayerNorm.reset_parameters: _ones_and_zeros,
    nn.RMSNorm.reset_parameters: _ones_and_zeros,
    LearnedTokens.reset_parameters: _standard_normal,
}


class WeightDraw:
    """How the weights of one network are drawn: planned once, then drawn and loaded any number of times.

    Convolutions and linear layers: weight and bias uniform within ±1/sqrt(fan_in). Norms: 1 and 0, running
    statistics as new. ViT's learned tokens: standard normal. Any other module with parameters: by its method
    `draw_weights(rng)` if it has one (a `numpy.random.Generator`; writes in place), else by its
    `reset_parameters()` (PyTorch's `_reset_parameters` too), under a generator state that is put back.

    Every parameter is drawn anew, pretrained or frozen ones too. Storage and identity of the parameters stay.

    Raises:
        ConfigError: a module holds parameters and nothing says how to draw them.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> plan = WeightDraw(net)
        >>> flat = plan.draw(stream(0, "demo"))
        >>> plan.load(flat)
        >>> bool(net.weight.abs().max() <= 0.5)
        True
    """

    def __init__(self, net: nn.Module) -> None:
        self._foreign: list[nn.Module] = []
        pieces: list[_Piece] = []
        for path, module in net.named_modules():
            names = [name for name, parameter in module._parameters.items() if parameter is not None]
            rule = _RULES.get(getattr(type(module), "reset_parameters", None))  # pyrefly: ignore[bad-argument-type]
            if names and (rule is None or hasattr(module, "draw_weights")):
                _require_own_draw(module, path, names)
                self._foreign.append(module)
            elif rule is not None:
                pieces += [_Piece(module, name, *rule(module, name)) for name in names]
        self._pieces = list(_without_repeats(sorted(pieces, key=lambda piece: piece.kind)))
        self._norms = [module for module in net.modules() if isinstance(module, _NormBase)]
        self._plan()

    def _plan(self) -> None:
        """Lay out the flat vector: uniform, normal, constant pieces, then the seed of foreign modules."""
        self._sizes = [piece.parameter.numel() for piece in self._pieces]
        ends = np.cumsum([0, *self._sizes]).tolist()
        self._slices = [slice(begin, end) for begin, end in pairwise(ends)]
        kinds = [piece.kind for piece in self._pieces]
        self._num_uniform = sum(n for n, kind in zip(self._sizes, kinds, strict=True) if kind == _UNIFORM)
        self._num_normal = sum(n for n, kind in zip(self._sizes, kinds, strict=True) if kind == _NORMAL)
        self._num_values = ends[-1]
        self._num_seed = 2 if self._foreign else 0
        # Pinned memory lets the copy to a GPU run beside the host.
        self._pinned = any(piece.parameter.is_cuda for piece in self._pieces)

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self._num_values + self._num_seed

    def draw(self, rng: np.random.Generator) -> Tensor:
        """Weights of one random network: float32 (size,) on the host, pinned if the network is on a GPU.

        Touches neither the network nor torch's generators, so it may run in a background thread.
        """
        flat = torch.empty(self.size, dtype=torch.float32, pin_memory=self._pinned)
        values = flat.numpy()
        uniform = values[: self._num_uniform]
        rng.random(dtype=np.float32, out=uniform)
        uniform -= np.float32(0.5)
        normal = values[self._num_uniform : self._num_uniform + self._num_normal]
        rng.standard_normal(dtype=np.float32, out=normal)
        for piece, part in zip(self._pieces, self._slices, strict=True):
            if piece.kind == _CONSTANT:
                values[part] = piece.scale
            else:
                values[part] *= np.float32(2 * piece.scale if piece.kind == _UNIFORM else piece.scale)
        if self._num_seed:
            values[self._num_values :] = rng.integers(_SEED_BASE, size=2)
        return flat

    @torch.no_grad()
    def load(self, flat: Tensor) -> None:
        """Write the weights of `draw` into the network, in place; on a GPU without waiting for the host."""
        if self._pieces:
            parameters: list[Tensor] = [piece.parameter for piece in self._pieces]
            there = flat[: self._num_values].to(parameters[0].device, non_blocking=True)
            parts = there.split(self._sizes)
            shaped = [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
            torch._foreach_copy_(parameters, shaped)
        for norm in self._norms:
            norm.reset_running_stats()
        if self._foreign:
            low, high = (int(number) for number in flat[self._num_values :].tolist())
            _redraw(self._foreign, low + _SEED_BASE * high)


def fill_weights(net: nn.Module, rng: np.random.Generator) -> None:
    """Replace all weights of a network by fresh random ones, in place; see `WeightDraw`.

    The same stream gives the same bits, whatever the network held before.

    Raises:
        ConfigError: a module holds parameters and nothing says how to draw them.
    """
    plan = WeightDraw(net)
    plan.load(plan.draw(rng))


@torch.no_grad()
def load_vector(net: nn.Module, flat_P: Tensor) -> None:
    """Write flat weights, in the order of `parameters()`, into a network, in place.

    As `torch.nn.utils.vector_to_parameters`, but the parameters keep their storage and memory format, for which a step
    may be compiled.
    """
    parameters: list[Tensor] = list(net.parameters())
    parts = flat_P.split([p.numel() for p in parameters])
    torch._foreach_copy_(parameters, [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)])


def _without_repeats(pieces: list[_Piece]) -> Iterator[_Piece]:
    """Pieces whose parameter did not come before: modules may share one."""
    seen: set[int] = set()
    for piece in pieces:
        if id(piece.parameter) not in seen:
            seen.add(id(piece.parameter))
            yield piece


def _own_draw(module: nn.Module) -> Callable[[], None] | None:
    for name in ("reset_parameters", "_reset_parameters"):
        method = getattr(module, name, None)
        if callable(method):
            return method
    return None


def _require_own_draw(module: nn.Module, path: str, names: list[str]) -> None:
    if not hasattr(module, "draw_weights") and _own_draw(module) is None:
        raise ConfigError(
            f"network module {path or 'at the top'!r} ({type(module).__name__}): nothing says how to draw "
            f"its parameters {', '.join(names)}; give the class a method reset_parameters(self) or "
            "draw_weights(self, rng)."
        )


def _redraw(modules: list[nn.Module], seed: int) -> None:
    """Let modules initialise themselves, with torch's generators seeded for the time and put back after."""
    devices = {p.device for module in modules for p in module.parameters(recurse=False) if p.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        torch.random.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        for index, module in enumerate(modules):
            own = getattr(module, "draw_weights", None)
            if callable(own):
                own(stream(seed, "nets/draw_weights", index))
            else:
                method = _own_draw(module)
                assert method is not None
                method()
