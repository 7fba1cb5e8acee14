"""Every recipe can be run as its header says, and says what to expect of it."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from apps.continual.exemplars import image_bytes
from apps.continual.stream import class_stream
from apps.nas.proxies import check_names
from apps.nas.space import load_space, sample
from atom.resolve import resolve_evaluation, resolve_settings
from atom.settings import DistillSettings, EvaluateSettings
from pipelines.console.options import ContinualCommand, DistillCommand, NasCommand, parse
from pipelines.evaluation import check_baselines
from pipelines.incremental import plan as continual_plan

ROOT = Path(__file__).parents[1]
SEARCHES = sorted((ROOT / "recipes").glob("nas-*.yaml"))
STREAMS = sorted((ROOT / "recipes").glob("continual-*.yaml"))
RECIPES = sorted(set((ROOT / "recipes").glob("*.yaml")) - set(SEARCHES) - set(STREAMS))
# channels, height and width, classes
SHAPES = {
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "tinyimagenet": (3, 64, 200),
    "fashionmnist": (1, 28, 10),
    "digits": (1, 8, 10),
}
PUBLISHED = [
    *(f"{name}-ipc{ipc}" for name in SHAPES if name != "digits" for ipc in (1, 10, 50)),
    "cifar10-ipc1-factor2",
    "cifar10-ipc10-factor2",
    "cifar10-ipc1-laptop",
    "cifar10-ipc10-laptop",
    "fashionmnist-ipc10-laptop",
    "cifar10-ipc10-nas-laptop",
]
ITERATIONS = {"": 8000, "-laptop": 300, "-nas-laptop": 500}

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
every_search = pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
every_stream = pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
every_application = pytest.mark.parametrize("path", [*SEARCHES, *STREAMS], ids=lambda path: path.stem)


def parsed(path, *more):
    return parse(DistillCommand, ["--config", str(path), *more], prog="atom-distill")


def parsed_search(path):
    return parse(NasCommand, ["--config", str(path)], prog="atom-nas")


def parsed_stream(path):
    return parse(ContinualCommand, ["--config", str(path)], prog="atom-continual")


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
    laptop = next(kind for kind, number in ITERATIONS.items() if number == command.iterations)
    assert path.stem == f"{command.dataset}-ipc{command.ipc}{factor}{laptop}"
    assert command.epochs == (300 if laptop else 1000)


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
        symbols=False,
    )
    evaluation = resolve_evaluation(command.part(EvaluateSettings), device_kind=device_kind, symbols=False)
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
    default = resolve_settings(bare, device_kind="cuda", symbols=False, **shape)
    for name in ("zca", "zca_eps", "task_balance", "power", "lr_img", "momentum_img", "dsa_strategy", "init"):
        assert getattr(command, name) == getattr(default, name), name


def test_flags_win_over_the_recipe():
    assert parsed(ROOT / "recipes" / "cifar10-ipc1.yaml", "--iterations", "5").iterations == 5


def test_the_searches_are_all_there():
    assert {"nas-cifar10-720", "nas-cifar10-36-laptop", "nas-digits-laptop"} <= {
        path.stem for path in SEARCHES
    }


@every_application
def test_header_of_an_application_states_source_published_and_expected_number_cost_and_command(path):
    fields = header(path)
    assert {"Source", "Published", "Expected", "Cost", "Command"} <= set(fields)
    assert "ATOM: not read" in fields["Published"]
    assert re.search(r"\b(not run here|see benchmarks/README\.md)\b", fields["Expected"])
    assert re.search(r"\b(measured|estimated)\b", fields["Cost"])


@every_application
def test_command_of_an_application_is_the_recipe_itself(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    kind, prog = (NasCommand, "nas") if path in SEARCHES else (ContinualCommand, "continual")
    python, script, *arguments = shlex.split(header(path)["Command"])
    assert (python, script) == ("python", f"pipelines/{prog}.py")
    command = parse(kind, arguments, prog=f"atom-{prog}")
    assert command.config is not None
    assert command.config.resolve() == path
    assert command.output == f"runs/{path.stem}"
    own = parse(kind, ["--config", str(path)], prog=f"atom-{prog}")
    assert command.model_copy(update={"config": None, "output": None}) == own.model_copy(
        update={"config": None}
    )


@every_search
def test_a_search_can_be_had(path):
    command = parsed_search(path)
    check_names(command.proxies)
    space = load_space(command.space, channels=3, image_size=(32, 32), num_classes=10)
    assert command.sample is None or len(sample(space, command.sample, seed=0).names) == command.sample
    if "early-seconds" in command.proxies:
        assert set(command.proxies) & {"distilled", "random"}, "a set whose seconds it takes"


@every_search
def test_a_search_holds_out_what_its_set_was_not_distilled_from(path):
    command = parsed_search(path)
    for location in command.set:
        made = parsed(ROOT / "recipes" / f"{Path(location).name}.yaml")
        assert (made.validation_frac, made.train_per_class) == (
            command.validation_frac,
            command.train_per_class,
        )


def test_the_streams_are_all_there():
    names = ("cifar100-5steps", "cifar100-10steps", "digits-laptop", "fashionmnist-laptop")
    assert {f"continual-{name}" for name in names} <= {path.stem for path in STREAMS}


@every_stream
def test_a_stream_can_be_had(path):
    command = parsed_stream(path)
    budget = continual_plan.check_names(command)
    source, num_steps = continual_plan.source_of(command)
    channels, side, num_classes = SHAPES[source]
    stream = class_stream(num_classes, num_steps=num_steps, order_seed=command.orders - 1)
    assert len({len(classes) for classes in stream.steps}) == 1
    for storage in ("uint8", command.storage):
        budget.check(num_classes, image_bytes((channels, side, side), storage=storage))
    assert path.stem in {f"continual-{source}-{end}" for end in ("laptop", f"{num_steps}steps")}


@every_stream
def test_settings_of_a_stream_are_the_resolved_ones(path):
    command = parsed_stream(path)
    source, _ = continual_plan.source_of(command)
    channels, side, num_classes = SHAPES[source]
    asked = command.part(DistillSettings).model_copy(update={"network": command.distil_network})
    shape = {"channels": channels, "height": side, "width": side, "num_classes": num_classes}
    on: dict[str, Any] = {"device_kind": "cpu", "symbols": source == "digits"}
    resolved = resolve_settings(asked, **on, **shape).model_dump()
    resolved |= resolve_evaluation(command.part(EvaluateSettings), **on).model_dump()
    stated = yaml.safe_load(path.read_text()).items()
    assert [(key, value) for key, value in stated if key in resolved and resolved[key] != value] == []


@pytest.mark.parametrize("steps", [5, 10])
def test_the_published_streams_follow_the_script_of_dm(steps):
    command = parsed_stream(ROOT / "recipes" / f"continual-cifar100-{steps}steps.yaml")
    assert (command.dataset, command.steps, command.budget) == ("seq-cifar100", steps, "20/class")
    assert (command.learners, command.orders, command.seeds) == (("gdumb",), 5, 3)
    assert (command.epochs, command.batch_train, command.lr_net) == (1000, 256, 0.01)
