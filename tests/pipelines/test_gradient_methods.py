"""Methods by the command: separable units, one joint unit, its replicas, and preparations, on one worker and on two."""

from pathlib import Path

import pytest
import torch
from command_runs import run_here
from tiny_digits import NETWORK, NUM_CLASSES, white_digits

from atom.distilled import DistilledSet
from atom.methods.lookup import find_method
from atom.methods.settings import DistillSettings
from atom.methods.soundness import joined

SMALL = ("--dataset", "digits", "--network", NETWORK, "--iterations", 3)
CASES = {
    "dc": ("--ipc", 1, "--batch-real", 8),
    "dsa": ("--ipc", 2, "--inner-epochs", 2, "--batch-real", 8),
    "idc": ("--factor", 2, "--trained-networks", 2, "--training-passes", 2, "--batch-real", 8),
    "dd": ("--ipc", 2, "--distill-epochs", 2, "--lr-label", 0.05, "--replicas", 2),
    "rat-bptt": ("--ipc", 2, "--inner-steps", 3, "--window", 2, "--replicas", 3),
    "mtt": ("--num-experts", 2, "--max-start-epoch", 1, "--syn-steps", 3, "--max-loss", 9, "--replicas", 2),
}
TOGETHER = {
    "dsa": "the classes are distilled together, on one worker",
    "dd": "the classes are distilled together, their 2 replicas an iteration on up to 2 workers",
    "rat-bptt": "the classes are distilled together, their 3 replicas an iteration on up to 3 workers",
    "mtt": "the classes are distilled together, their 2 replicas an iteration on up to 2 workers",
}


def in_this_process(distilled: DistilledSet) -> torch.Tensor:
    """The images [N, C, H, W] that the recorded settings give, without Ray and in one go."""
    told = {name: value for name, value in distilled.settings.items() if name != "device"}
    settings = DistillSettings.model_validate(told)
    kind = find_method(settings.method)
    shape = {"channels": 1, "height": 8, "width": 8, "num_classes": NUM_CLASSES}
    method = kind(settings, **shape, device=torch.device("cpu"))
    images, labels = white_digits()
    real = {c: torch.from_numpy(images[labels == c]) for c in range(NUM_CLASSES)}
    prepared = method.prepare_all(real)
    parts = {}
    for unit in kind.units(settings, range(NUM_CLASSES)):
        state = method.start(unit, real, prepared=prepared)
        state = method.advance(state, 3, unit=unit, real=real, prepared=prepared)
        parts[unit] = kind.result(settings, unit, state)
    return torch.from_numpy(joined(parts).images).flatten(0, 1)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster", "ready_tables")
@pytest.mark.parametrize(
    ("method", "workers"),
    [("dc", 1), ("dc", 2), ("dsa", 2), ("idc", 2), ("dd", 2), ("rat-bptt", 1), ("rat-bptt", 2), ("mtt", 2)],
)
def test_the_command_gives_the_bits_of_one_process_on_any_workers(
    method: str, workers: int, tmp_path: Path
) -> None:
    place = ("--output", tmp_path / "out", "--num-actors", workers, "--checkpoint-every", 2)
    command = ("--method", method, *CASES[method], *SMALL, *place, "--eval-seeds", 0)
    code, lines, errors = run_here(*command)
    assert (code, errors) == (0, "")
    distilled = DistilledSet.load(lines[-1])
    assert distilled.images_NCHW.equal(in_this_process(distilled))
    # One unit of all classes may leave workers idle, and the command says so.
    if workers == 2:
        told = [line for line in lines if "distilled together" in line]
        assert told == [] if method not in TOGETHER else TOGETHER[method] in told[0]
