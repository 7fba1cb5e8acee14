"""Spaces as a command takes them: what a search proposes in them, and that a user's own are listed by workers alone."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from apps.nas.space import SAMPLE_SEED, load_space, sample
from atom.errors import ConfigError
from pipelines.architecture.building import build_space
from pipelines.architecture.search_proposals import Dimensions
from pipelines.workers.pool import Limits

SHAPE: dict[str, Any] = {"channels": 1, "image_size": (8, 8), "num_classes": 3}
SPACE = """
import os
import sys
from functools import partial
from pathlib import Path


def linear(channels, image_size, num_classes, inner):
    from torch import nn

    if inner == 5:
        os._exit(3)
    inputs = channels * image_size[0] * image_size[1]
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, inner), nn.ReLU(), nn.Linear(inner, num_classes))


def space(trial):
    with Path(__file__).with_name("calls").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    trial.suggest_categorical("name", ["a", "b"])
    return partial(linear, inner=trial.suggest_int("inner", 2, 9))


def leaves(trial):
    sys.exit(0)


def networks():
    return [("sound", (linear, {"inner": 3}), None), ("absent", ("no_such_module:make", {}), None),
            ("crashes", (f"{__file__}:linear", {"inner": 5}), None)]
"""


def test_a_search_among_cells_proposes_an_operation_for_each_edge() -> None:
    space = load_space("nasbench201-n1", **SHAPE)
    found = Dimensions(space)
    assert list(found.choices) == ["0-1", "0-2", "1-2", "0-3", "1-3", "2-3"]
    assert {len(choices) for choices in found.choices.values()} == {5}
    assert found.name_of(dict(found.points[space.names[777]])) == space.names[777]


def test_a_search_in_a_space_by_trial_proposes_its_parameters(tmp_path: Path) -> None:
    path = tmp_path / "trial_space.py"
    path.write_text(SPACE.replace("inner == 5", "False"))
    assert dict(Dimensions(load_space(f"{path}:space", **SHAPE)).choices) == {
        "name": ["a", "b"],
        "inner": list(range(2, 10)),
    }


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_function_of_a_trial_runs_in_workers_once_each_and_builds_the_sample_alone(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trial_space.py"
    path.write_text(SPACE)
    limits = Limits(max_retries=0, chunk_timeout_s=60.0)
    space = build_space(f"{path}:space", **SHAPE, limits=limits, number=8)
    assert "building 8 networks" in capsys.readouterr().out
    assert {candidate.axes["inner"] for candidate in space.candidates} == set(range(2, 10))
    assert sample(space, 8, seed=SAMPLE_SEED) == space
    (crashed,) = [candidate for candidate in space.candidates if candidate.problem]
    assert (crashed.axes["inner"], crashed.parameters) == (5, None)
    assert "its worker ended without a word" in crashed.problem
    calls = Counter((tmp_path / "calls").read_text().split())
    assert set(calls.values()) == {16}
    assert str(os.getpid()) not in calls
    with pytest.raises(ConfigError, match=r"--space .*trial_space.py:leaves: it called exit\(0\)"):
        build_space(f"{path}:leaves", **SHAPE, limits=limits)
    with pytest.raises(ConfigError, match=r"--sample 17: .* has 16 networks; pass 1 to 16"):
        build_space(f"{path}:space", **SHAPE, limits=limits, number=17)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_function_with_arguments_that_fails_costs_its_network_alone(
    ray_cluster: None, tmp_path: Path
) -> None:
    path = tmp_path / "family_space.py"
    path.write_text(SPACE)
    limits = Limits(max_retries=0, chunk_timeout_s=60.0)
    space = build_space(f"{path}:networks", **SHAPE, limits=limits)
    problems = {candidate.name: candidate.problem for candidate in space.candidates}
    assert problems["sound"] == ""
    assert "cannot import no_such_module" in problems["absent"]
    assert "its worker ended without a word" in problems["crashes"]
