"""Soft labels from teachers: what networks trained on the real images say of the images of a set.

Of a stored image, decoded to x_1 ... x_F (F = factor²), and teachers with the weights θ_1 ... θ_T after their epochs:

    y = 1/(T F) sum over t, f of softmax(net(x_f; θ_t))

on the images as they are, unaugmented, the network in evaluation mode, at temperature 1.

Source: Qin, Deng and Alvarez-Melis, *A Label is Worth a Thousand Images in Dataset Distillation*, NeurIPS 2024, and
its released code, for random real images; it has one teacher and no factor.
"""

# N stored images, C channels, H height, W width, K classes, P weights

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atom import nets
from atom.device import deterministic, use_threads
from atom.errors import ConfigError
from atom.formation import decode
from atom.methods.experts import Expert, Recipe, experts
from atom.methods.lookup import find_method
from atom.methods.method import Shape
from atom.methods.settings import DistillSettings
from atom.methods.teacher_settings import TeacherSettings
from atom.nets.layers import mixes_batch
from atom.set_values import without_folders

BATCH = 100
"""Images of a forward pass; part of the recipe, since it may decide bits."""

CITATION = """```bibtex
@inproceedings{qin2024label,
  title     = {A Label is Worth a Thousand Images in Dataset Distillation},
  author    = {Qin, Tian and Deng, Zhiwei and Alvarez-Melis, David},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024}
}
```"""


def teachers(asked: TeacherSettings, settings: DistillSettings) -> Sequence[Expert]:
    """The networks to train; none where no epoch is asked for.

    They are trained alike for every method of equal network, seed and augmentation: in float32.

    Args:
        asked: how.
        settings: of the distillation, resolved.
    """
    if asked.teacher_epoch is None:
        return ()
    recipe = Recipe(
        network=settings.network,
        seed=settings.seed,
        rate=asked.lr_teacher,
        batch=asked.batch_teacher,
        dsa_strategy=settings.dsa_strategy,
        threads=settings.threads_per_actor,
    )
    return experts(asked.num_teachers, asked.teacher_epoch, recipe)


def check_teachers(asked: TeacherSettings, settings: DistillSettings, shape: Shape) -> None:
    """Refuse teachers that have nothing to label, or cannot be.

    Args:
        asked: how.
        settings: of the distillation, resolved or not.
        shape: of the real images.

    Raises:
        ConfigError: the method learns labels, the network is more than its weights, or there is a recipe and no epoch.
    """
    if asked.teacher_epoch is None:
        given = [name for name, value in asked if value != type(asked).model_fields[name].default]
        if given:
            raise ConfigError(
                f"--{given[0].replace('_', '-')}: there are no teachers without --teacher-epoch; pass that as well, or"
                " leave this out."
            )
        return
    if find_method(settings.method).learns_labels(settings):
        raise ConfigError(
            f"--teacher-epoch {asked.teacher_epoch}: the method {settings.method} learns the labels of its images"
            " itself; leave it out."
        )
    size = (shape.height, shape.width)
    net = nets.build(
        settings.network, channels=shape.channels, image_size=size, num_classes=shape.num_classes
    )
    if mixes_batch(net):
        raise ConfigError(
            f"--teacher-epoch {asked.teacher_epoch}: a teacher is kept as its weights alone, which the running"
            f" statistics of BatchNorm in --network {settings.network} are not; pass a network with another norm."
        )


def own_teachers(settings: DistillSettings) -> Sequence[Expert]:
    """The experts of a method that learns labels, as far as they are trained; they label its rivals."""
    method = find_method(settings.method)
    if not method.learns_labels(settings):
        return ()
    return [one for one in method.preparations(settings) if isinstance(one, Expert)]


def told_of(labelling: Sequence[Expert]) -> dict[str, Any]:
    """What a set says of its teachers: number, epochs and recipe, without folders of this machine."""
    recipe = asdict(labelling[0].recipe)
    network = without_folders(labelling[0].recipe.network)
    return {**recipe, "network": network, "number": len(labelling), "epoch": labelling[0].epochs}


_ASKED = {
    "teacher_epoch": "epoch",
    "num_teachers": "number",
    "lr_teacher": "rate",
    "batch_teacher": "batch",
}
_KNOWN = {
    "network": "network",
    "seed": "seed",
    "dsa_strategy": "dsa_strategy",
    "threads_per_actor": "threads",
}
"""Settings by what `told_of` calls them."""


MOST_RETOLD = 10_000
"""Epochs of all teachers together that a stranger's set may ask for. Chosen."""


def retold(told: object, shape: Shape) -> Sequence[Expert]:
    """The teachers that `told_of` tells of, to be trained anew.

    None if it is not sound, asks for more than `MOST_RETOLD` epochs, or names a network that is somebody's own code or
    cannot be a teacher on these images.

    Args:
        told: from a set of anybody's.
        shape: of the real images.
    """
    try:
        values = dict(told)  # pyrefly: ignore
        asked = TeacherSettings.model_validate({ours: values[theirs] for ours, theirs in _ASKED.items()})
        settings = DistillSettings.model_validate({ours: values[theirs] for ours, theirs in _KNOWN.items()})
        if (
            nets.is_own(settings.network)
            or asked.num_teachers * max(1, asked.teacher_epoch or 0) > MOST_RETOLD
        ):
            return ()
        check_teachers(asked, settings, shape)
    except (TypeError, KeyError, ValueError, ConfigError):
        return ()
    found = teachers(asked, settings)
    return found if found and told_of(found) == values else ()


@torch.no_grad()
def soft_labels(
    images_NCHW: Tensor,
    weights: Sequence[np.ndarray],
    *,
    network: str,
    num_classes: int,
    factor: int,
    device: torch.device,
    threads: int,
) -> Tensor:
    """Soft labels [N, K] of stored images, float32 on the CPU, each row a distribution.

    Args:
        images_NCHW: stored images, preprocessed, float32.
        weights: of each teacher, [P], in the order of `parameters()`.
        network: by name.
        num_classes: K.
        factor: of the stored images.
        device: where to compute.
        threads: CPU threads, which decide bits.

    Raises:
        ConfigError: there are no teachers.
    """
    if not weights:
        raise ConfigError("soft labels need a teacher; pass the weights of one or more.")
    channels, height, width = images_NCHW.shape[1:]
    with use_threads(threads), deterministic(device):
        net = nets.build(network, channels=channels, image_size=(height, width), num_classes=num_classes)
        net = net.eval().to(device)
        total_NK = torch.zeros(len(images_NCHW), num_classes, device=device)
        for weights_P in weights:
            # A copy: what workers share is read-only.
            nets.load_vector(net, torch.tensor(weights_P, device=device))
            parts = [_answers(net, part.to(device), factor) for part in images_NCHW.split(BATCH)]
            total_NK += torch.cat(parts)
        return (total_NK / len(weights)).cpu()


def _answers(net: torch.nn.Module, stored_NCHW: Tensor, factor: int) -> Tensor:
    probabilities = net(decode(stored_NCHW, factor)).softmax(dim=1)
    return probabilities.unflatten(0, (len(stored_NCHW), factor**2)).mean(dim=1)


def last_weights(prepared: Mapping[str, np.ndarray]) -> np.ndarray:
    """Weights [P] after the last epoch that is read of an expert."""
    return prepared["epochs"][-1]


__all__ = [
    "BATCH",
    "CITATION",
    "MOST_RETOLD",
    "check_teachers",
    "last_weights",
    "own_teachers",
    "retold",
    "soft_labels",
    "teachers",
    "told_of",
]
