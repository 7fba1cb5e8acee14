"""Every recipe can be run as its header says, and says what to expect of it."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from atom.resolve import resolve_evaluation, resolve_settings
from atom.settings import DistillSettings, EvaluateSettings
from pipelines.evaluation import check_baselines
from pipelines.options import DistillCommand, parse

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
# channels, height and width, classes
SHAPES = {
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "tinyimagenet": (3, 64, 200),
    "fashionmnist": (1, 28, 10),
}
PUBLISHED = [
    *(f"{name}-ipc{ipc}" for name in SHAPES for ipc in (1, 10, 50)),
    "cifar10-ipc1-factor2",
    "cifar10-ipc10-factor2",
    "cifar10-ipc1-laptop",
    "cifar10-ipc10-laptop",
    "fashionmnist-ipc10-laptop",
]

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def parsed(path, *more):
    return parse(DistillCommand, ["--config", str(path), *more], prog="atom-distill")


def header(path):
    """Fields of the opening comment, continuation lines joined."""
    fields, label = {}, ""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        match = re.match(r"# ([A-Z][a-z]+): +(.*)", line)
        if match:
            label = match[1]
            fields[label] = match[2]
        elif label:
            fields[label] += " " + line.lstrip("# ")
    return fields


def test_the_published_settings_are_all_there():
    assert set(PUBLISHED) <= {path.stem for path in RECIPES}


@every_recipe
def test_header_states_source_published_number_cost_and_command(path):
    fields = header(path)
    assert {"Source", "Published", "Cost", "Command"} <= set(fields)
    assert re.search(r"\d+\.\d ± \d\.\d", fields["Published"]), "a published number comes with its spread"
    assert "ATOM: not read" in fields["Published"]
    assert re.search(r"\b(measured|estimated)\b", fields["Cost"])


@every_recipe
def test_command_of_the_header_is_the_recipe_itself(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    python, script, *arguments = shlex.split(header(path)["Command"])
    assert (python, script) == ("python", "pipelines/distill.py")
    assert (ROOT / script).is_file()
    command = parse(DistillCommand, arguments, prog="atom-distill")
    assert command.config is not None
    assert command.config.resolve() == path
    assert command.output == f"runs/{path.stem}"
    assert command.model_copy(update={"config": None, "output": None}) == parsed(path).model_copy(
        update={"config": None}
    )


@every_recipe
def test_name_of_the_file_says_what_is_distilled(path):
    command = parsed(path)
    factor = f"-factor{command.factor}" if command.factor > 1 else ""
    laptop = "-laptop" if command.iterations == 300 else ""
    assert path.stem == f"{command.dataset}-ipc{command.ipc}{factor}{laptop}"
    assert (command.iterations, command.epochs) == ((300, 300) if laptop else (8000, 1000))


@pytest.mark.parametrize("device_kind", ["cpu", "cuda"])
@every_recipe
def test_settings_resolve_and_keep_what_the_recipe_states(path, device_kind):
    command = parsed(path)
    channels, side, num_classes = SHAPES[command.dataset]
    settings = resolve_settings(
        command.part(DistillSettings),
        device_kind=device_kind,
        channels=channels,
        height=side,
        width=side,
        num_classes=num_classes,
    )
    evaluation = resolve_evaluation(command.part(EvaluateSettings), device_kind=device_kind)
    resolved = {**settings.model_dump(), **evaluation.model_dump()}
    stated = yaml.safe_load(path.read_text())
    assert {key: resolved[key] for key in stated if key in resolved} == {
        key: stated[key] for key in stated if key in resolved
    }
    assert num_classes % settings.classes_per_group == 0
    check_baselines(command.baselines)


@every_recipe
def test_what_the_recipe_leaves_out_would_be_filled_in_alike(path):
    """The values a recipe spells out are those of the sources that the defaults have too."""
    command = parsed(path)
    channels, side, num_classes = SHAPES[command.dataset]
    bare = DistillSettings(ipc=command.ipc, factor=command.factor)
    shape = {"channels": channels, "height": side, "width": side, "num_classes": num_classes}
    default = resolve_settings(bare, device_kind="cuda", **shape)
    for name in ("zca", "zca_eps", "task_balance", "power", "lr_img", "momentum_img", "dsa_strategy", "init"):
        assert getattr(command, name) == getattr(default, name), name


def test_flags_win_over_the_recipe():
    assert parsed(ROOT / "recipes" / "cifar10-ipc1.yaml", "--iterations", "5").iterations == 5
