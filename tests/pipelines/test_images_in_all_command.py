"""Five images of ten classes by the commands: gone on with from a checkpoint, judged beside five real ones, audited."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import checkpointed, run_here
from tiny_digits import NETWORK, NUM_CLASSES, digits_set, white_digits

from atom.distilled import DistilledSet
from atom.methods.joint import learned_labels
from atom.methods.method import State
from atom.methods.rat_bptt import RandomTruncated
from atom.methods.settings import DistillSettings
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.ownership import settings_hash
from pipelines.output.store import Store

UNIT = tuple(range(NUM_CLASSES))
ITERATIONS, HALF = 6, 3
TINY = ("--eval-seeds", 1, "--epochs", 2)
ASKED = ("--images-in-all", 5, "--lr-label", 0.05, "--inner-steps", 3, "--iterations", ITERATIONS)


def until(iteration: int, distilled: DistilledSet) -> State:
    """The state that the recorded settings come to, in this process."""
    told = {name: value for name, value in distilled.settings.items() if name != "device"}
    settings = DistillSettings.model_validate(told)
    shape = {"channels": 1, "height": 8, "width": 8, "num_classes": NUM_CLASSES}
    method = RandomTruncated(settings, **shape, device=torch.device("cpu"))
    images, labels = white_digits()
    real = {c: torch.from_numpy(images[labels == c]) for c in UNIT}
    return method.advance(method.start(UNIT, real), iteration, unit=UNIT, real=real)


def test_a_search_refuses_a_set_of_images_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pipelines.session.connect", lambda: pytest.fail("the command has come as far as Ray")
    )
    whole = digits_set()
    few = replace(whole, images_NCHW=whole.images_NCHW[:5], labels=torch.arange(5), ipc=1)
    few = replace(few, soft_labels=torch.full((5, 10), 0.1))
    given = ("--set", few.save(tmp_path / "few"), "--proxies", "distilled", "--validation-frac", 0.1)
    code, _, errors = run_here(*given, "--output", tmp_path / "out", script="nas")
    assert code == 2
    assert (
        "--set: the set has 5 images in all for 10 classes, not as many of each, which the coresets" in errors
    )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster", "ready_tables")
def test_five_images_of_ten_classes_go_through_the_commands(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ("--dataset", "digits", "--network", NETWORK, "--method", "rat-bptt", *ASKED, *TINY)
    command = (*command, "--eval-networks", NETWORK, "--output", output)
    code, lines, errors = run_here(*command)
    assert (code, errors) == (0, "")
    assert any("rat-bptt, 5 images in all: accuracy" in line for line in lines)
    assert any("a set of --method datm with the same --images-in-all has" in line for line in lines)
    first = DistilledSet.load(lines[-1])
    digest = settings_hash(json.loads((output / "settings.json").read_text()))
    Checkpoints(Store.open(output), digest).save(UNIT, until(HALF, first))
    assert checkpointed(output) == HALF
    code, lines, errors = run_here(*command)
    assert (code, errors, checkpointed(output)) == (0, "", ITERATIONS)

    last = until(ITERATIONS, first)
    for distilled in (first, DistilledSet.load(lines[-1])):
        assert distilled.labels.tolist() == [0, 1, 2, 3, 4]
        assert distilled.soft_labels is not None
        assert np.array_equal(distilled.images_NCHW.numpy(), last.images[:5, 0])
        assert np.array_equal(distilled.soft_labels.numpy(), learned_labels(last)[:5, 0])
        stored = {row["method"]: row["stored_images"] for row in distilled.results}
        assert stored == dict.fromkeys(
            ("rat-bptt", "rat-bptt (own training)", "random", "herding", "kcenter"), 5
        )

    given = ("--set", output, *TINY, "--baselines", "random")
    code, lines, errors = run_here(*given, "--output", tmp_path / "judged", script="evaluate")
    assert (code, errors) == (0, "")
    rows = json.loads((tmp_path / "judged" / "results.json").read_text())
    assert {row["stored_images"] for row in rows if row["method"] == "random"} == {5}

    code, lines, errors = run_here(*given, "--output", tmp_path / "audit", script="audit")
    assert (code, errors) == (0, "")
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert {one["set"] for one in found["findings"]} == {"rat-bptt", "random"}
    assert DistilledSet.load(output).audit == found
