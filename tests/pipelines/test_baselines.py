"""Coresets that a set is measured against: the same on every machine, as far as can be."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_digits import NUM_CLASSES, white_digits

from atom.device import use_threads
from atom.errors import ConfigError
from atom.methods.lookup import find_method
from atom.methods.settings import DistillSettings
from atom.resolve import resolve_settings
from pipelines.baselines import MANY_CLASSES, coresets, note_on
from pipelines.console.commands import DistillCommand
from pipelines.distill import distill


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


@pytest.mark.parametrize(
    ("num_classes", "asked", "expected"),
    [
        (MANY_CLASSES, None, ("random", "herding", "kcenter")),
        (MANY_CLASSES + 1, None, ("random",)),
        (MANY_CLASSES + 1, ("kcenter",), ("kcenter",)),
        (MANY_CLASSES + 1, (), ()),
    ],
)
def test_beside_a_set_of_many_classes_stand_random_images_unless_others_are_named(
    num_classes: int,
    asked: tuple[str, ...] | None,
    expected: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look(real: object, *, baselines: tuple[str, ...], **options: object) -> None:
        raise ConfigError(f"{baselines}")

    real = SimpleNamespace(train=SimpleNamespace(num_classes=num_classes))
    monkeypatch.setattr("pipelines.real_images.load_real", lambda *_, **__: real)
    monkeypatch.setattr("pipelines.real_images.judging_images", lambda *_: None)
    monkeypatch.setattr("pipelines.real_images.check_ipc", look)
    with pytest.raises(ConfigError) as caught:
        distill(DistillCommand() if asked is None else DistillCommand(baselines=asked))
    assert str(caught.value) == str(expected)
    assert len(note_on(num_classes)) == (num_classes > MANY_CLASSES)
