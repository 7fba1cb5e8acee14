"""Searches over a few networks on some of the digits, with everything decided as a command decides it."""

from pathlib import Path
from typing import Any

from apps.nas.space import Candidate, Space
from pipelines.architecture.case import NasCase
from pipelines.architecture.plan import plan
from pipelines.console.commands import NasCommand
from pipelines.output.store import Store
from pipelines.real_images import load_real
from pipelines.workers.resources import ActorSize


def digits_case(folder: Path, *, networks: Space | None = None, num_actors: int = 1, **asked: Any) -> NasCase:
    """A case with its output below a folder; `networks` stand for those that --space names."""
    few = {
        "dataset": "digits",
        "train_per_class": 12,
        "data_dir": folder / "data",
        "eval_precision": "float32",
    }
    command = NasCommand.of(**{**few, **asked})
    real = load_real(command.data, smoke=False)
    load = {} if networks is None else {"load": lambda *_, **__: networks}
    size, store = ActorSize(num_actors, cpus=1, gpus=0), Store.open(folder / "out")
    return NasCase(command, plan(command, [], real, **load), [], real, store, size, "cpu")


def named_space(**multiply_adds: int | None) -> Space:
    """Networks of these names and costs, none of which is ever built."""
    candidates = tuple(Candidate(name, 1, cost) for name, cost in multiply_adds.items())
    return Space("mine:list", candidates, 1, (8, 8), 10)
