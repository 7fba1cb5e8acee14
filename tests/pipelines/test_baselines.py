"""Coresets that a set is measured against: the same on every machine, as far as can be."""

import numpy as np
import pytest
from tiny_digits import NUM_CLASSES, white_digits

from atom.device import use_threads
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
