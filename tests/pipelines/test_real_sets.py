"""Sets of real images by the command: no iterations, and a name beside the baseline's own."""

from pathlib import Path

import numpy as np
import pytest
from command_runs import run_here
from tiny_digits import NETWORK, NUM_CLASSES, white_digits

from atom.distilled import DistilledSet
from pipelines.baselines import coresets

SMALL = ("--dataset", "digits", "--network", NETWORK, "--epochs", 1, "--eval-seeds", 1, "--num-actors", 2)


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster", "ready_tables")
def test_a_set_of_real_images_stands_beside_the_baseline_of_its_name(tmp_path: Path) -> None:
    command = (*SMALL, "--method", "kcenter", "--ipc", 2, "--baselines", "random", "kcenter")
    command = (*command, "--eval-networks", NETWORK, "--output", tmp_path / "out", "--checkpoint-every", 1)
    for _ in range(2):
        code, lines, errors = run_here(*command)
        assert (code, errors) == (0, "")
    distilled = DistilledSet.load(lines[-1])
    images, labels = white_digits()
    (made,) = coresets(["kcenter"], images, labels, ipc=2, num_classes=NUM_CLASSES, seed=0, seeds=[0])
    assert np.array_equal(distilled.images_NCHW.numpy(), made.draws[None][0])
    assert [row["method"] for row in distilled.results] == ["set (kcenter)", "random", "kcenter"]
    # The same images, the same training.
    assert distilled.results[0]["mean"] == distilled.results[2]["mean"]
    assert distilled.results[0]["distill_s"] > 0
    assert "* Tried on: convnet-w8-d2." in (tmp_path / "out" / "set" / "README.md").read_text()
