"""What a method may give: states that can be stored and go on, parts that make a set."""

# G classes of a unit, I stored images per class, K classes, C channels, H height, W width

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import ValidationError

from atom.errors import ConfigError
from atom.methods.method import Part, State, Unit
from atom.settings import OwnTraining


def check_state(state: State, unit: Sequence[int], until: int) -> None:
    """Refuse a state that could not be stored, or from which the work would never end: a fault of its method.

    Raises:
        ConfigError: one sentence on what is wrong.
    """
    flaw, expected = "", f"[{state.iteration}, 1] or [{state.iteration}, {len(unit)}]"
    numbers = [array for array in state.arrays.values() if isinstance(array, np.ndarray | np.generic)]
    if state.iteration != until and len(state.failures) < len(unit):
        flaw = f"it stands at iteration {state.iteration}, expected {until}"
    elif len(numbers) < len(state.arrays) or any(array.dtype.kind not in "biuf" for array in numbers):
        flaw = "its arrays are not all NumPy's, of numbers"
    elif "images" not in state.arrays:
        flaw = f"it has the arrays {sorted(state.arrays)}, expected images among them"
    elif state.losses.shape not in ((state.iteration, 1), (state.iteration, len(unit))):
        flaw = f"its losses have shape {list(state.losses.shape)}, expected {expected}"
    if flaw:
        raise ConfigError(
            f"the method gave a state that cannot be kept: {flaw}; correct its start or advance."
        )


def joined(parts: Mapping[Unit, Part]) -> Part:
    """The parts of all units as one, of all their classes in order.

    Returns:
        Images [K, I, C, H, W], soft labels [K, I, K] or None.

    Raises:
        ConfigError: a part is none, or they do not fit together: a fault of the method.
    """
    for unit, part in parts.items():
        _check_part(part, unit)
    soft = {part.soft_labels is not None for part in parts.values()}
    training = [dict(part.training) for part in parts.values()]
    if len(soft) != 1 or any(one != training[0] for one in training):
        raise ConfigError(
            "the units of the distillation gave soft labels in part, or different trainings; that is a fault of the"
            " method, whose results must agree on both."
        )
    place = {class_id: (unit, row) for unit in parts for row, class_id in enumerate(unit)}

    def stacked(name: str) -> np.ndarray:
        return np.stack([getattr(parts[unit], name)[row] for _, (unit, row) in sorted(place.items())])

    return Part(stacked("images"), stacked("soft_labels") if soft == {True} else None, training[0])


def _check_part(part: Part, unit: Unit) -> None:
    images, soft = part.images, part.soft_labels
    sound = images.ndim == 5 and images.dtype == np.float32 and len(images) == len(unit)
    if soft is not None:
        sound &= soft.ndim == 3 and soft.dtype == np.float32 and soft.shape[:2] == images.shape[:2]
    try:
        OwnTraining.model_validate(dict(part.training))
        sound &= "protocol" not in part.training
    except (ValidationError, ConfigError):
        sound = False
    if not sound:
        told = None if soft is None else f"{soft.dtype} {list(soft.shape)}"
        raise ConfigError(
            f"the method gave images {images.dtype} {list(images.shape)}, soft labels {told} and training"
            f" {dict(part.training)} for {len(unit)} classes, expected float32 [G, I, C, H, W], float32 [G, I, K] or"
            " None, and settings of an evaluation; correct its result."
        )


__all__ = ["check_state", "joined"]
