"""What every method that moves images does around its steps: check the call, and end with images that can be kept."""

# G classes of a unit, I stored images per class, C channels, H height, W width, T iterations so far

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from atom.errors import ConfigError, ShapeError
from atom.formation import decode
from atom.methods.method import State
from atom.methods.settings import DistillSettings
from atom.scale import check_range, to_real_scale


def check_call(state: State, until: int, *, unit: Sequence[int], settings: DistillSettings) -> None:
    """Refuse a call of `Method.advance` that cannot be meant.

    Raises:
        ShapeError: the state is that of another number of classes.
        ConfigError: more iterations than the settings have, which would go on from finished images.
    """
    if len(state.images) != len(unit):
        raise ShapeError(f"advance: the state holds {len(state.images)} classes, but {len(unit)} were named.")
    if until > cast(int, settings.iterations):
        raise ConfigError(
            f"advance: until iteration {until}, but the settings have {settings.iterations}; raise iterations."
        )


def kept(
    state: State,
    arrays: Mapping[str, Tensor],
    losses: np.ndarray,
    *,
    until: int,
    unit: Sequence[int],
    real: Mapping[int, Tensor],
    settings: DistillSettings,
    to_scale: bool = True,
    together: bool = False,
    counts: Sequence[int] | None = None,
) -> State:
    """The state after the steps; after the settings' last one, with images at the scale of the real ones.

    See `atom.scale.to_real_scale`. A class whose images diverge, or end far out of the range of its real ones, is in
    the new state's `failures`.

    Args:
        state: before the steps.
        arrays: after them, "images" [G, I, C, H, W] among them, on the device of the real images.
        losses: of all iterations so far, [T, G], or [T, 1] of a unit that is distilled jointly.
        until: iterations done.
        unit, real: as for `Method.advance`.
        settings: resolved.
        to_scale: whether the finished images may be put to scale.
        together: whether the classes move each other, so that the unit fails as a whole; then `until` is the first
            iteration after which images were not finite, if any.
        counts: of each class, how many of its I images there are, where not all; the last places are empty.
    """
    images = arrays["images"]
    counts = [images.shape[1]] * len(unit) if counts is None else counts
    failures = {**_diverged(images, losses, unit, until, settings, together=together), **state.failures}
    if state.iteration < until == settings.iterations:
        if to_scale:
            images = images.clone()
            for class_id, own, count in zip(unit, images, counts, strict=True):
                if count:
                    own[:count] = to_real_scale(own[:count], real[class_id], factor=settings.factor)
        there = {c: own[:count] for c, own, count in zip(unit, images, counts, strict=True) if count}
        failures = {**_out_of_range(there, real, settings.factor), **failures}
    for row in [row for row, class_id in enumerate(unit) if class_id in failures]:
        images[row] = torch.nan
    return State(
        iteration=max(until, state.iteration),
        arrays={name: array.cpu().numpy() for name, array in {**arrays, "images": images}.items()},
        losses=losses,
        failures=failures,
    )


def stood_still(state: State, *, unit: Sequence[int], settings: DistillSettings, why: str) -> State:
    """The state, failed as a whole if no step of all moved its images; `why` says what can be done.

    Args:
        state: of `kept`, with a loss that is NaN for each step that was left out.
        unit: its classes.
        settings: resolved.
        why: ends the sentence.
    """
    if not settings.iterations or state.iteration < settings.iterations or not np.isnan(state.losses).all():
        return state
    failures = {c: f"class {c}: none of {settings.iterations} steps moved its images: {why}" for c in unit}
    lost = np.full_like(state.images, np.nan)
    return replace(state, arrays={**state.arrays, "images": lost}, failures={**failures, **state.failures})


def _diverged(
    images: Tensor,
    losses: np.ndarray,
    unit: Sequence[int],
    until: int,
    settings: DistillSettings,
    *,
    together: bool,
) -> dict[int, str]:
    """Of each class whose images are no longer finite, since when, and what can be done."""
    broken = [row for row in range(len(unit)) if not is_finite(images[row])]
    found = {}
    for row in range(len(unit)) if broken and together else broken:
        sound = np.isfinite(losses[:, min(row, losses.shape[1] - 1)])
        since = until if together or sound.all() else int(sound.argmin())
        whose = "its images" if row in broken else f"images of class {unit[broken[0]]}, which move it,"
        found[unit[row]] = (
            f"class {unit[row]}: {whose} are no longer finite after iteration {since}, at --lr-img"
            f" {settings.lr_img:g}; look at the class's real images, or pass a smaller --lr-img or a network"
            " with normalisation."
        )
    return found


def is_finite(images: Tensor) -> bool:
    """Whether every number is."""
    return bool(images.isfinite().all())


def _out_of_range(images: Mapping[int, Tensor], real: Mapping[int, Tensor], factor: int) -> dict[int, str]:
    """Of each class whose finished images cannot be kept, why."""
    lost = {}
    for class_id, own in images.items():
        try:
            check_range(decode(own, factor), real[class_id], class_id=class_id)
        except ConfigError as error:
            lost[class_id] = str(error)
    return lost


__all__ = ["check_call", "is_finite", "kept", "stood_still"]
