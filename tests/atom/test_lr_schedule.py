"""Step sizes that fall: the same of every method that moves images."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from atom.methods import registry
from atom.methods.lookup import find_method
from atom.methods.settings import DistillSettings
from atom.resolve import resolve_settings
from atom.streams import stream

SHAPE = {"channels": 1, "height": 8, "width": 8, "num_classes": 2}
QUICK = {
    "idc": {"trained_networks": 1, "training_passes": 2},
    "rat-bptt": {"inner_steps": 2},
    "mtt": {"num_experts": 1, "max_start_epoch": 1, "expert_epochs": 1, "syn_steps": 2, "max_loss": 99},
    "datm": {"num_experts": 1, "max_start_epoch": 1, "expert_epochs": 1, "syn_steps": 2, "max_loss": 99},
    "dd": {"distill_epochs": 2},
}


def real_images() -> dict[int, Tensor]:
    rng = stream(0, "test/real")
    return {c: torch.from_numpy(rng.standard_normal((6, 1, 8, 8), np.float32)) for c in range(2)}


@pytest.mark.parametrize("name", [n for n in registry.NAMES if "lr_schedule" not in find_method(n).unread])
def test_a_step_is_as_much_smaller_as_the_schedule_says(name: str) -> None:
    real, unit = real_images(), (0, 1)

    def settings(schedule: str) -> DistillSettings:
        values = {"method": name, "network": "convnet-w4-d1", "iterations": 6, "batch_real": 4}
        values |= {"lr_schedule": schedule, "dsa_strategy": "none", **QUICK.get(name, {})}
        if name in ("atom", "spatial", "channel"):
            values["network"] = "convnet-w4-d2"
        asked = DistillSettings.model_validate(values)
        return resolve_settings(asked, device_kind="cpu", symbols=True, **SHAPE)

    moved = {}
    prepared, before = {}, None
    for schedule in ("constant", "cosine"):
        method = find_method(name)(settings(schedule), device=torch.device("cpu"), **SHAPE)
        if before is None:
            prepared = method.prepare_all(real)
            before = method.advance(
                method.start(unit, real, prepared=prepared), 2, unit=unit, real=real, prepared=prepared
            )
        after = method.advance(before, 3, unit=unit, real=real, prepared=prepared)
        moved[schedule] = after.images.astype(np.float64) - before.images
    share = (1 + math.cos(math.pi * 2 / 6)) / 2
    assert np.abs(moved["constant"]).max() > 0
    np.testing.assert_allclose(
        moved["cosine"], share * moved["constant"], atol=1e-5 * np.abs(moved["constant"]).max() + 1e-6
    )
