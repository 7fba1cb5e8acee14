"""Coresets that a set is measured against: the same on every machine, as far as can be."""

import numpy as np
import pytest
import torch
from tiny_digits import NUM_CLASSES, white_digits

from atom.device import use_threads
from atom.methods.lookup import find_method
from atom.methods.settings import DistillSettings
from atom.resolve import resolve_settings
from pipelines.baselines import coresets


@pytest.mark.parametrize("method", ["herding", "kcenter"])
def test_coresets_depend_neither_on_the_arithmetic_nor_on_the_threads_of_the_machine(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = white_digits()
    chosen = []
    for fast, number in ((False, 1), (True, 2)):
        monkeypatch.setattr("atom.device._computes_in_bfloat16", lambda device, fast=fast: fast)
        with use_threads(number):
            (made,) = coresets(
                [method],
                images,
                labels,
                ipc=60,
                num_classes=NUM_CLASSES,
                seed=0,
                seeds=[0],
                network="convnet-w8-d2",
            )
        chosen.append(made.draws[None][0])
    assert np.array_equal(*chosen)


@pytest.mark.parametrize("method", ["random", "herding", "kcenter"])
def test_a_method_of_that_name_chooses_the_same_images(method: str) -> None:
    images, labels = white_digits()
    common = {"ipc": 3, "num_classes": NUM_CLASSES, "seed": 2}
    (made,) = coresets([method], images, labels, seeds=[0], **common)
    asked = DistillSettings(method=method, ipc=3, seed=2)
    shape = {"channels": 1, "height": 8, "width": 8, "num_classes": NUM_CLASSES}
    settings = resolve_settings(asked, device_kind="cpu", symbols=True, **shape)
    chooser = find_method(method)(settings, device=torch.device("cpu"), **shape)
    real = {c: torch.from_numpy(images[labels == c]) for c in range(NUM_CLASSES)}
    chosen = np.concatenate([chooser.start((c,), real).images[0] for c in range(NUM_CLASSES)])
    assert np.array_equal(chosen, next(iter(made.draws.values()))[0])
