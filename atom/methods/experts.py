"""Experts: networks trained on the real images beforehand, their weights kept before the first epoch and after each.

A method names the experts that it reads among its `preparations`. The commands train each on a worker and keep it by
its recipe and its images, so that other runs find it. Methods read `prepared[expert.name]["epochs"]`.
"""

# N images of all classes, C channels, H height, W width, K classes, E epochs done, P weights

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from atom import nets
from atom.device import at_least_float32, autocast, deterministic, use_threads
from atom.errors import ConfigError
from atom.methods.flat import FlatSGD
from atom.methods.inner_training import train_pass
from atom.settings import parse_dsa_strategy
from atom.streams import stream

EXPERTS_VERSION = 1
"""To be raised whenever equal recipes come to give other weights."""

_BUFFER = "momentum_buffer"
"""As torch's SGD calls it."""

Arrays = Mapping[str, np.ndarray]
"""Of an expert: "epochs" [E + 1, P] float32, its weights in the order of `parameters()`, and with momentum "velocity"
[P], by which its training goes on."""


@dataclass(frozen=True)
class Recipe:
    """How experts are trained: with the real images and the number of an expert, all that decides its weights.

    Attributes:
        network: by name.
        seed: of all random numbers; each expert has weights and an order of its own.
        rate, momentum, weight_decay: of SGD.
        batch: images of a step, at most.
        dsa_strategy: augmentation, operations joined by "_", or "none".
        most: images of an epoch, at most; None, all.
        flat_rho, flat_alpha: see `atom.methods.flat.FlatSGD`; rho 0, plain SGD, which knows no alpha.
        precision: "float32" or "bfloat16".
        threads: of the CPU.
    """

    network: str
    seed: int
    rate: float
    batch: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    dsa_strategy: str = "none"
    most: int | None = None
    flat_rho: float = 0.0
    flat_alpha: float = 0.0
    precision: str = "float32"
    threads: int = 1


@dataclass(frozen=True)
class Expert:
    """One network to train, and how far.

    Attributes:
        number: from 0.
        epochs: that are read; one that was trained for longer has the same weights until there.
        recipe: how.
    """

    number: int
    epochs: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """By which a method finds it among what was prepared."""
        return f"expert {self.number}"

    def read_from(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """What methods read of one that was trained for as long or longer: "epochs" [epochs + 1, P]."""
        return {"epochs": arrays["epochs"][: self.epochs + 1]}


def experts(number: int, epochs: int, recipe: Recipe) -> Sequence[Expert]:
    """So many of one recipe."""
    return [Expert(one, epochs, recipe) for one in range(number)]


def name_of(preparation: "str | Expert") -> str:
    """By which a method finds it among what was prepared."""
    return preparation.name if isinstance(preparation, Expert) else preparation


def epochs_done(arrays: Arrays | None) -> int:
    """How far an expert is."""
    return 0 if arrays is None else len(arrays["epochs"]) - 1


def train(
    expert: Expert,
    real: Mapping[int, Tensor],
    before: Arrays | None = None,
    *,
    num_classes: int,
    device: torch.device,
    seconds: float = float("inf"),
    on_epoch: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """The expert some epochs later: at its last one, or after the epoch in which the time was up.

    The weights do not depend on how the way there was cut into calls.

    Args:
        expert: which.
        real: preprocessed images of each class, [n, C, H, W] float32; float64 is computed in as it is.
        before: what the last call gave; None at the start.
        num_classes: of the whole source.
        device: where to compute.
        seconds: after which no epoch is begun; at least one is trained, unless all are.
        on_epoch: called with the number of epochs done, after each.

    Raises:
        ConfigError: the weights diverge, or the network has parts that weights alone do not tell.
    """
    recipe, started = expert.recipe, time.monotonic()
    operations = parse_dsa_strategy(recipe.dsa_strategy)
    with use_threads(recipe.threads), deterministic(device):
        images_NCHW = torch.cat([real[class_id].to(device) for class_id in sorted(real)])
        labels_N = torch.cat([torch.full((len(real[c]),), c) for c in sorted(real)]).to(device)
        net = _network(recipe.network, images_NCHW, num_classes).to(images_NCHW)
        optimizer = _optimizer(recipe, net)
        if before is None:
            nets.fill_weights(net, stream(recipe.seed, "expert/weights", 0, expert.number))
            before = {"epochs": _flat(net.parameters())[None]}
        else:
            _restore(net, optimizer, before)
        weights_EP = list(before["epochs"])
        for epoch in range(epochs_done(before), expert.epochs):
            train_pass(
                partial(_logits, net, device, recipe.precision),
                images_NCHW,
                labels_N,
                optimizer=optimizer,
                batch=recipe.batch,
                operations=operations,
                rng=stream(recipe.seed, "expert/pass", epoch, expert.number),
                most=recipe.most,
            )
            weights_EP.append(_flat(net.parameters()))
            _check_finite(weights_EP[-1], expert, epoch)
            if on_epoch is not None:
                on_epoch(epoch + 1)
            if time.monotonic() - started >= seconds:
                break
        arrays = {"epochs": np.stack(weights_EP)}
        return {**arrays, "velocity": _velocity(net, optimizer)} if recipe.momentum else arrays


def _network(name: str, images_NCHW: Tensor, num_classes: int) -> nn.Module:
    """In evaluation mode: dropout would draw from a global generator."""
    _, channels, height, width = images_NCHW.shape
    net = nets.build(name, channels=channels, image_size=(height, width), num_classes=num_classes)
    if net.mixes_batch:
        raise ConfigError(
            f"network {name!r}: an expert is its weights alone, which BatchNorm's running statistics are not among;"
            " pass a network with instance, group or layer norm, or none."
        )
    return net.eval().requires_grad_(True)


def _optimizer(recipe: Recipe, net: nn.Module) -> torch.optim.Optimizer:
    sgd = {"lr": recipe.rate, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    if recipe.flat_rho:
        return FlatSGD(net.parameters(), rho=recipe.flat_rho, alpha=recipe.flat_alpha, **sgd)
    return torch.optim.SGD(net.parameters(), **sgd)


def _logits(net: nn.Module, device: torch.device, precision: str, images_NCHW: Tensor) -> Tensor:
    with autocast(device, torch.bfloat16 if precision == "bfloat16" else torch.float32):
        logits_NK = net(images_NCHW)
    return at_least_float32(logits_NK)


def _flat(tensors: Iterable[Tensor]) -> np.ndarray:
    # A copy, as `parameters_to_vector` makes: on a CPU `detach().cpu()` of a weight is the weight itself.
    return parameters_to_vector(tensors).detach().cpu().numpy()


def _velocity(net: nn.Module, optimizer: torch.optim.Optimizer) -> np.ndarray:
    known = [optimizer.state[weight].get(_BUFFER) for weight in net.parameters()]
    return _flat(
        torch.zeros_like(weight) if buffer is None else buffer
        for weight, buffer in zip(net.parameters(), known, strict=True)
    )


def _restore(net: nn.Module, optimizer: torch.optim.Optimizer, before: Arrays) -> None:
    # Copies: what workers share is read-only.
    _fill([weight.data for weight in net.parameters()], before["epochs"][-1])
    if "velocity" in before:
        buffers = [torch.empty_like(weight) for weight in net.parameters()]
        _fill(buffers, before["velocity"])
        for weight, buffer in zip(net.parameters(), buffers, strict=True):
            optimizer.state[weight][_BUFFER] = buffer


def _fill(tensors: Sequence[Tensor], flat_P: np.ndarray) -> None:
    parts = torch.from_numpy(flat_P.copy()).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def _check_finite(weights_P: np.ndarray, expert: Expert, epoch: int) -> None:
    if not np.isfinite(weights_P).all():
        # Those of idc and --trained-networks have a momentum, and a step size that no flag sets.
        remedy = (
            " that no flag sets; pass another --network"
            if expert.recipe.momentum
            else "; pass a smaller --lr-expert, or for a teacher a smaller --lr-teacher"
        )
        raise ConfigError(
            f"{expert.name}: its weights are no longer finite after epoch {epoch + 1}, at a step size of"
            f" {expert.recipe.rate:g}{remedy}."
        )


__all__ = ["EXPERTS_VERSION", "Arrays", "Expert", "Recipe", "epochs_done", "experts", "name_of", "train"]
