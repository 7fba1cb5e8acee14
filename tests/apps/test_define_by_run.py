"""Spaces that a function of Optuna's trial defines: which networks they hold, their names, and what is refused."""

import json
import os
import re
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import optuna
import pytest
import torch

from apps.nas.define_by_run import MAX_COMBINATIONS, MAX_NAME, combinations_of, names_of
from apps.nas.space import Space, load_space, sample
from atom.errors import ConfigError
from atom.nets import import_object

ROOT = Path(__file__).parents[2]
TINY = {"channels": 1, "image_size": (8, 8), "num_classes": 3}
HEAD = """
import optuna
from functools import partial
from torch import nn

def perceptron(channels, image_size, num_classes, width=4, act="relu"):
    height, width_ = image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width_, width),
                         nn.ReLU() if act == "relu" else nn.Sigmoid(), nn.Linear(width, num_classes))

"""
FLAT = """
def space(trial):
    width = trial.suggest_int("width", 2, 6, step=2)
    return partial(perceptron, width=width, act=trial.suggest_categorical("act", ["relu", "sigmoid"]))
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads the space of a body of code."""
    monkeypatch.chdir(tmp_path)

    def _load(body: str) -> Space:
        (tmp_path / "mine.py").write_text(HEAD + body, encoding="utf-8")
        return load_space("mine.py:space", **TINY)

    return _load


def conditional(trial):
    depth = trial.suggest_int("depth", 1, 3)
    if depth > 1:
        trial.suggest_categorical("skip", [True, False])
    if depth == 3 and trial.suggest_float("rate", 0.0, 0.3, step=0.1) > 0:
        trial.suggest_categorical("where", ["all", "last", None])
    return "convnet"


def test_every_combination_is_a_network_with_its_parameters_as_name_and_axes(load):
    space = load(FLAT)
    assert space.names == tuple(f"width-{w}_act-{a}" for w, a in product((2, 4, 6), ("relu", "sigmoid")))
    assert [c.axes for c in space.candidates] == [
        {"width": w, "act": a} for w, a in product((2, 4, 6), ("relu", "sigmoid"))
    ]
    assert [c.parameters for c in space.candidates] == [65 * w + (w + 1) * 3 for w in (2, 2, 4, 4, 6, 6)]
    assert len({c.identity for c in space.candidates}) == 6
    assert space.build("width-4_act-relu")(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert all(space.is_own(name) for name in space.names)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_combinations_are_those_of_optunas_exhaustive_sampler():
    study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=0, avoid_premature_stop=True))
    study.optimize(lambda trial: len(conditional(trial)))
    found = [parameters for parameters, _ in combinations_of(conditional)]
    assert sorted(map(json.dumps, found)) == sorted({json.dumps(trial.params) for trial in study.trials})
    assert len(found) == 1 + 2 + 2 * (1 + 3 * 3)


def test_the_order_is_always_the_same_and_the_last_parameter_varies_fastest():
    once, again = ([parameters for parameters, _ in combinations_of(conditional)] for _ in range(2))
    assert once == again
    assert [
        each["rate"]
        for each in once
        if each.get("skip") and each.get("where", "all") == "all" and "rate" in each
    ] == [
        0.0,
        0.1,
        0.2,
        0.3,
    ]


def test_networks_of_other_parameters_have_no_axes_and_are_sampled_by_cost(load):
    space = load("""
def space(trial):
    if trial.suggest_categorical("kind", ["wide", "known"]) == "known":
        return "convnet-w8-d1"
    return (perceptron, {"width": trial.suggest_int("width", 2, 3)})
""")
    assert space.names == ("kind-wide_width-2", "kind-wide_width-3", "kind-known")
    assert all(c.axes == {} and c.parameters for c in space.candidates)
    assert not space.is_own("kind-known")
    assert len(sample(space, 2, seed=0).names) == 2


def test_the_printed_function_of_a_trial_is_a_space(tmp_path):
    page = (ROOT / "docs" / "nas.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "trial" in block]
    (tmp_path / "my_space.py").write_text(example, encoding="utf-8")
    space = load_space(f"{tmp_path}/my_space.py:space", **TINY)
    assert (space.names[0], len(space.names)) == ("kind-mlp_width-16", 7)
    assert all(candidate.parameters for candidate in space.candidates)


def test_pruned_combinations_are_left_out(load):
    space = load(
        FLAT
        + """
def space(trial):
    if trial.suggest_int("width", 1, 3) == 2:
        raise optuna.TrialPruned
    return perceptron
"""
    )
    assert space.names == ("width-1", "width-3")


def test_names_are_safe_short_and_all_different():
    combinations = [
        {"act/in": value, "long": "x" * 90 if value == "last" else 1} for value in ("a b", "a-b", "c", "last")
    ]
    names = names_of(combinations)
    assert names[2] == "act-in-c_long-1"
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"[\w.+-]+", name) and len(name) <= MAX_NAME for name in names)
    assert names == names_of(combinations)


def test_twenty_thousand_networks_are_listed_in_seconds_and_one_more_is_refused():
    def space(trial, last):
        return [trial.suggest_int(name, 1, high) for name, high in (("a", 100), ("b", 20), ("c", last))]

    begun_s = time.monotonic()
    found = [parameters for parameters, _ in combinations_of(lambda trial: space(trial, 10))]
    assert len(found) == len(set(names_of(found))) == MAX_COMBINATIONS
    assert time.monotonic() - begun_s < 30
    with pytest.raises(
        ConfigError, match="more than 20,000 combinations; suggest fewer values or larger steps"
    ):
        list(combinations_of(lambda trial: space(trial, 11)))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "return trial.suggest_float('lr', 0, 1)",
            "'lr' is a float without a step, .* pass step= to suggest_float",
        ),
        ("return trial.suggest_float('lr', 0, 1, step=1e-9)", "more than 20,000 combinations"),
        ("return trial.suggest_int('seed', 0, 10**12)", "more than 20,000 combinations"),
        (
            "return trial.suggest_categorical('act', [nn.ReLU])",
            "choices of 'act' are not all None, bool, int",
        ),
        ("return perceptron", "asks the trial for no parameter"),
        (
            "1 / trial.suggest_int('x', 0, 3)",
            r"failed at \{'x': 0\} with ZeroDivisionError: .* raise optuna.TrialPr",
        ),
        ("trial.suggest_int('x', 3, 0)", "failed at {} with ValueError"),
        (
            "return nn.Linear(trial.suggest_int('x', 1, 2), 1)",
            r"returned Linear\(.* for \{'x': 1\}; expected a func",
        ),
        ("return trial.suggest_int('x', 1, 2)", r"returned 1 for \{'x': 1\}; expected a function \(channels"),
        ("trial.suggest_int('x', 1, 2)\n    raise optuna.TrialPruned", "is empty; the function prunes every"),
        ("trial.suggest_int('x', 1, 2)\n    exit(0)", r"it called exit\(0\)"),
        (
            "calls.append(1)\n    trial.suggest_int('x', len(calls), 5)\n    return perceptron",
            "'x' is asked for where another call with the same values so far asked for 'x', or with another range",
        ),
    ],
)
def test_a_function_that_makes_no_finite_space_is_refused(load, body, said):
    with pytest.raises(ConfigError, match=rf"^--space mine\.py:space: .*{said}"):
        load(f"calls = []\ndef space(trial):\n    {body}\n")


def test_a_parameter_that_is_asked_for_too_late_is_the_problem_of_its_network(load):
    space = load("""
def space(trial):
    trial.suggest_int("x", 1, 2)
    return lambda **sizes: perceptron(**sizes, width=trial.suggest_int("width", 1, 3))
""")
    assert all(
        "'width' is asked for when a network is built; ask for it in" in c.problem for c in space.candidates
    )


def test_the_function_is_called_once_for_each_combination_in_a_process(load):
    space = load("calls = []\n" + FLAT.replace("(trial):", "(trial):\n    calls.append(1)"))
    for name in space.names:
        space.build(name)
    assert import_object("mine.py:calls", what="it") == [1] * 6


def test_another_process_builds_the_network_of_a_name(load, tmp_path):
    space = load(FLAT)
    code = "from apps.nas.space import Space\n"
    code += "net = Space('mine.py:space', (), 1, (8, 8), 3).build('width-6_act-sigmoid')\n"
    code += "print(sum(p.detach().double().sum() for p in net.parameters()).item())"
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    expected = sum(p.detach().double().sum() for p in space.build("width-6_act-sigmoid").parameters())
    assert float(finished.stdout) == pytest.approx(float(expected), abs=1e-12)
