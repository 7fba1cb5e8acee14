"""Methods that choose real images: which ones, as how many, and what they refuse."""

from typing import Any

import numpy as np
import pytest
import torch

from atom.errors import ConfigError
from atom.formation import encode
from atom.methods.lookup import check_read, find_method
from atom.methods.method import State
from atom.methods.settings import DistillSettings
from atom.resolve import resolve_settings

SHAPE = {"channels": 2, "height": 8, "width": 6, "num_classes": 3}
METHODS = ("random", "herding", "kcenter")


def real_images() -> dict[int, torch.Tensor]:
    """Seven to nine images [n, 2, 8, 6] of each of three classes."""
    rng = np.random.default_rng(0)
    return {c: torch.from_numpy(rng.standard_normal((7 + c, 2, 8, 6), dtype=np.float32)) for c in range(3)}


def chosen(method: str, **changes: Any) -> np.ndarray:
    """Images [K, I, C, H, W] of all classes, each its own unit."""
    asked = DistillSettings.model_validate({"method": method, "ipc": 2, **changes})
    settings = resolve_settings(asked, device_kind="cpu", symbols=True, **SHAPE)
    kind, real, found = find_method(method), real_images(), []
    for unit in kind.units(settings, range(3)):
        made = kind(settings, device=torch.device("cpu"), **SHAPE)
        own = {c: real[c] for c in unit}
        state = made.advance(made.start(unit, own), 0, unit=unit, real=own)
        assert (state.iteration, state.losses.shape, state.failures) == (0, (0, 1), {})
        part = kind.result(settings, unit, state)
        assert part.soft_labels is None
        found.append(part.images[0])
    return np.stack(found)


def rows_of(images_KICHW: np.ndarray) -> list[list[int]]:
    """Which real image of its class each chosen one is."""
    real = real_images()
    return [
        [int((real[c] == torch.from_numpy(image)).flatten(1).all(1).nonzero()) for image in images]
        for c, images in enumerate(images_KICHW)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_distinct_real_images_that_the_seed_decides(method: str) -> None:
    rows = rows_of(chosen(method, ipc=5))
    assert all(len(set(own)) == 5 for own in rows)
    assert rows == rows_of(chosen(method, ipc=5))
    if method == "random":
        assert rows != rows_of(chosen(method, ipc=5, seed=1))


@pytest.mark.parametrize("method", METHODS)
def test_with_a_factor_a_stored_image_is_a_grid_of_chosen_ones(method: str) -> None:
    whole, real = chosen(method, ipc=1, factor=2), real_images()
    for class_id, rows in enumerate(rows_of(chosen(method, ipc=4))):
        assert np.array_equal(whole[class_id], encode(real[class_id][rows], 2).numpy())


@pytest.mark.parametrize(
    ("name", "value"),
    [("iterations", 3), ("lr_img", 0.5), ("init", "noise"), ("batch_real", 5), ("compile", "on")],
)
def test_settings_of_an_optimisation_are_refused(name: str, value: object) -> None:
    settings = DistillSettings.model_validate({"method": "herding", name: value})
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}: the method herding does not read it"):
        check_read(settings)


def test_too_few_images_given_ones_and_more_iterations_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="class 0 has 7 training images, but --ipc 2 with --factor 2 takes 8"
    ):
        chosen("random", factor=2)
    settings = resolve_settings(DistillSettings(method="random"), device_kind="cpu", symbols=True, **SHAPE)
    made = find_method("random")(settings, device=torch.device("cpu"), **SHAPE)
    images = np.zeros((1, 1, 2, 8, 6), np.float32)
    with pytest.raises(ConfigError, match="leave out the given ones"):
        made.start((0,), real_images(), given=images)
    with pytest.raises(ConfigError, match="until iteration 1, but the settings have 0"):
        made.advance(State.first({"images": images}, columns=1), 1, unit=(0,), real={})
