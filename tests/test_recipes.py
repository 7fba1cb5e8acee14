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
from atom import nets
from atom.data.sources import READERS
from atom.methods.lookup import check_read
from atom.methods.published import published
from atom.methods.settings import DistillSettings
from atom.resolve import resolve_evaluation, resolve_settings
from pipelines.comparison.asked import asked_sets, unread_notes
from pipelines.console.commands import CompareCommand, ContinualCommand, DistillCommand, NasCommand
from pipelines.console.options import parse
from pipelines.evaluation import check_baselines
from pipelines.incremental import plan as continual_plan

ROOT = Path(__file__).parents[1]
SEARCHES = sorted((ROOT / "recipes").glob("nas-*.yaml"))
STREAMS = sorted((ROOT / "recipes").glob("continual-*.yaml"))
XRAYS = sorted((ROOT / "recipes").glob("xrays-*.yaml"))
SUBSETS = sorted((ROOT / "recipes").glob("mtt-imagenet*.yaml"))
# By other methods than atom.
METHODS = sorted((ROOT / "recipes").glob("*-cifar10-ipc*.yaml"))
COMPARISONS = sorted((ROOT / "recipes").glob("compare-*.yaml"))
OTHERS = {*SEARCHES, *STREAMS, *XRAYS, *SUBSETS, *METHODS, *COMPARISONS}
RECIPES = sorted(set((ROOT / "recipes").glob("*.yaml")) - OTHERS)
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
    "cifar10-ipc10-factor2-laptop",
    "fashionmnist-ipc10-laptop",
    "cifar10-ipc10-nas-laptop",
]
SUFFIX_BY_ITERATIONS = {8000: "", 300: "-laptop", 1400: "-laptop", 500: "-nas-laptop"}

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
every_search = pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
every_stream = pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
every_method = pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
every_comparison = pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
every_application = pytest.mark.parametrize("path", [*SEARCHES, *STREAMS], ids=lambda path: path.stem)


def parsed(path, *more):
    return parse(DistillCommand, ["--config", str(path), *more])


def parsed_search(path):
    return parse(NasCommand, ["--config", str(path)])


def parsed_stream(path):
    return parse(ContinualCommand, ["--config", str(path)])


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
    assert re.search(r"\b(measured|estimated)\b.*\d", fields["Cost"])


@every_recipe
def test_command_of_the_header_is_the_recipe_itself(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    python, script, *arguments = shlex.split(header(path)["Command"])
    assert (python, script) == ("python", "pipelines/distill.py")
    assert (ROOT / script).is_file()
    command = parse(DistillCommand, arguments)
    assert command.config is not None
    assert command.config.resolve() == path
    assert command.output == f"runs/{path.stem}"
    assert command.model_copy(update={"config": None, "output": None}) == parsed(path).model_copy(
        update={"config": None}
    )


@every_recipe
def test_name_of_the_file_says_what_is_distilled(path):
    command = parsed(path)
    factor = f"-factor{command.distill.factor}" if command.distill.factor > 1 else ""
    suffix = SUFFIX_BY_ITERATIONS[command.distill.iterations]
    assert path.stem == f"{command.data.dataset}-ipc{command.distill.ipc}{factor}{suffix}"
    assert command.evaluate.epochs == (300 if suffix else 1000)


@pytest.mark.parametrize("device_kind", ["cpu", "cuda"])
@every_recipe
def test_settings_resolve_and_keep_what_the_recipe_states(path, device_kind):
    command = parsed(path)
    channels, side, num_classes = SHAPES[command.data.dataset]
    settings = resolve_settings(
        command.distill,
        device_kind=device_kind,
        channels=channels,
        height=side,
        width=side,
        num_classes=num_classes,
        symbols=False,
    )
    evaluation = resolve_evaluation(command.evaluate, device_kind=device_kind, symbols=False)
    resolved = {**settings.model_dump(), **dict(settings.options), **evaluation.model_dump()}
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
    channels, side, num_classes = SHAPES[command.data.dataset]
    bare = DistillSettings(ipc=command.distill.ipc, factor=command.distill.factor)
    shape = {"channels": channels, "height": side, "width": side, "num_classes": num_classes}
    default = resolve_settings(bare, device_kind="cuda", symbols=False, **shape)
    told, left = ({**dict(one), **dict(one.options)} for one in (command.distill, default))
    for name in ("zca", "zca_eps", "task_balance", "power", "lr_img", "momentum_img", "dsa_strategy", "init"):
        assert told[name] == left[name], name


def test_flags_win_over_the_recipe():
    assert parsed(ROOT / "recipes" / "cifar10-ipc1.yaml", "--iterations", "5").distill.iterations == 5


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
    command = parse(kind, arguments)
    assert command.config is not None
    assert command.config.resolve() == path
    assert command.output == f"runs/{path.stem}"
    own = parse(kind, ["--config", str(path)])
    assert command.model_copy(update={"config": None, "output": None}) == own.model_copy(
        update={"config": None}
    )


@every_search
def test_a_search_can_be_had(path):
    command = parsed_search(path)
    check_names(command.nas.proxies)
    space = load_space(command.nas.space, channels=3, image_size=(32, 32), num_classes=10)
    assert (
        command.nas.sample is None
        or len(sample(space, command.nas.sample, seed=0).names) == command.nas.sample
    )
    if "early-seconds" in command.nas.proxies:
        assert set(command.nas.proxies) & {"distilled", "random"}, "a set whose seconds it takes"


@every_search
def test_a_search_holds_out_what_its_set_was_not_distilled_from(path):
    command = parsed_search(path)
    for location in command.set:
        made = parsed(ROOT / "recipes" / f"{Path(location).name}.yaml")
        assert (made.data.validation_frac, made.data.train_per_class) == (
            command.data.validation_frac,
            command.data.train_per_class,
        )


@pytest.mark.parametrize("path", XRAYS, ids=lambda path: path.stem)
def test_an_x_ray_recipe_names_its_sources_and_can_be_had_of_a_file_anywhere(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    fields = header(path)
    assert {"Source", "Published", "Expected", "Cost", "Command"} <= set(fields)
    assert "ATOM: not read" in fields["Published"]
    assert "measured" in fields["Cost"]
    python, script, *arguments = shlex.split(header(path)["Command"])
    assert (python, script) == ("python", "pipelines/distill.py")
    command = parse(DistillCommand, arguments)
    assert command.output == f"runs/{path.stem}"
    assert command.model_copy(update={"output": None}) == parse(DistillCommand, arguments[:2])
    moved = parse(DistillCommand, [*arguments, "--dataset", "npz:/srv/x.npz", "--ipc", "3"])
    assert (moved.data.dataset, moved.data.class_names) == ("npz:/srv/x.npz", ("normal", "pneumonia"))
    shape = {"channels": 1, "height": 28, "width": 28, "num_classes": len(moved.data.class_names)}
    settings = resolve_settings(command.distill, device_kind="cpu", symbols=False, **shape)
    evaluation = resolve_evaluation(command.evaluate, device_kind="cpu", symbols=False)
    resolved = {**settings.model_dump(), **dict(settings.options), **evaluation.model_dump()}
    stated = yaml.safe_load(path.read_text()).items()
    assert [(key, value) for key, value in stated if key in resolved and resolved[key] != value] == []
    check_baselines(command.baselines)


def test_the_streams_are_all_there():
    names = ("cifar100-5steps", "cifar100-10steps", "digits-laptop", "fashionmnist-laptop")
    assert {f"continual-{name}" for name in names} <= {path.stem for path in STREAMS}


@every_stream
def test_a_stream_can_be_had(path):
    command = parsed_stream(path)
    budget = continual_plan.check_names(command)
    source, num_steps = continual_plan.source_of(command)
    channels, side, num_classes = SHAPES[source]
    stream = class_stream(num_classes, num_steps=num_steps, order_seed=command.stream.orders - 1)
    assert len({len(classes) for classes in stream.steps}) == 1
    for storage in ("uint8", command.stream.storage):
        budget.check(num_classes, image_bytes((channels, side, side), storage=storage))
    assert path.stem in {f"continual-{source}-{end}" for end in ("laptop", f"{num_steps}steps")}


@every_stream
def test_settings_of_a_stream_are_the_resolved_ones(path):
    command = parsed_stream(path)
    source, _ = continual_plan.source_of(command)
    channels, side, num_classes = SHAPES[source]
    asked = command.distill.changed(network=command.distil_network)
    shape = {"channels": channels, "height": side, "width": side, "num_classes": num_classes}
    on: dict[str, Any] = {"device_kind": "cpu", "symbols": source == "digits"}
    resolved = resolve_settings(asked, **on, **shape)
    resolved = {**dict(resolved), **dict(resolved.options)}
    resolved |= resolve_evaluation(command.evaluate, **on).model_dump()
    stated = yaml.safe_load(path.read_text()).items()
    assert [(key, value) for key, value in stated if key in resolved and resolved[key] != value] == []


@pytest.mark.parametrize("steps", [5, 10])
def test_the_published_streams_follow_the_script_of_dm(steps):
    command = parsed_stream(ROOT / "recipes" / f"continual-cifar100-{steps}steps.yaml")
    assert (command.data.dataset, command.stream.steps, command.stream.budget) == (
        "seq-cifar100",
        steps,
        "20/class",
    )
    assert (command.stream.learners, command.stream.orders, command.stream.seeds) == (("gdumb",), 5, 3)
    assert (command.evaluate.epochs, command.evaluate.batch_train, command.evaluate.lr_net) == (
        1000,
        256,
        0.01,
    )


@pytest.mark.parametrize("ipc", [1, 10])
def test_a_subset_of_imagenet_has_the_settings_of_mtt(ipc, monkeypatch):
    path = ROOT / "recipes" / f"mtt-imagenette-ipc{ipc}.yaml"
    fields, command = header(path), parsed(path)
    assert re.search(r"\d+\.\d ± \d\.\d", fields["Published"])
    assert (fields["Expected"], "estimated" in fields["Cost"]) == ("not run here.", True)
    monkeypatch.chdir(ROOT)
    asked = parse(DistillCommand, shlex.split(fields["Command"])[2:])
    assert (asked.distill, asked.evaluate, asked.output) == (
        command.distill,
        command.evaluate,
        f"runs/{path.stem}",
    )
    assert command.data.dataset.partition(":")[0] in READERS
    settings = resolve_settings(
        command.distill, device_kind="cuda", symbols=False, channels=3, height=128, width=128, num_classes=10
    )
    resolved = {**settings.model_dump(), **dict(settings.options)}
    stated = yaml.safe_load(path.read_text())
    assert {key: resolved[key] for key in stated if key in resolved} == {
        key: stated[key] for key in stated if key in resolved
    }
    net = nets.build(settings.network, channels=3, image_size=(128, 128), num_classes=10)
    # As many as a checkpoint of MTT's has.
    assert sum(parameter.numel() for parameter in net.parameters()) == 615_690


def test_the_methods_with_published_settings_are_all_there():
    names = ("dc-10", "dsa-1", "dsa-10", "idc-10", "mtt-1", "datm-1", "rat-bptt-10", "dd-10")
    assert {path.stem.replace("cifar10-ipc", "") for path in METHODS} == set(names)


@every_method
def test_a_method_has_its_published_settings(path, monkeypatch):
    """Published numbers have sources, costs nobody measured are called so, and what is stated is what is run."""
    fields, command = header(path), parsed(path)
    assert re.search(r"\d+\.\d ± \d\.\d", fields["Published"])
    assert "ATOM: not read" in fields["Published"]
    assert fields["Expected"].startswith("not run here")
    assert re.match(r"not known|estimated, not measured: ", fields["Cost"])
    monkeypatch.chdir(ROOT)
    python, script, *arguments = shlex.split(fields["Command"])
    assert (python, script) == ("python", "pipelines/distill.py")
    assert parse(DistillCommand, arguments).model_copy(update={"output": None}) == command.model_copy(
        update={"config": Path(f"recipes/{path.name}")}
    )
    assert parse(DistillCommand, arguments).output == f"runs/{path.stem}"
    assert path.stem == f"{command.distill.method}-{command.data.dataset}-ipc{command.distill.ipc}"
    stated = yaml.safe_load(path.read_text())
    assert resolved_alike(command, stated, device_kind="cuda") == []
    check_read(command.distill)
    check_baselines(command.baselines)


def resolved_alike(command, stated, *, device_kind):
    """Settings that a recipe states and that are resolved to something else."""
    channels, side, num_classes = SHAPES[command.data.dataset]
    shape = {"channels": channels, "height": side, "width": side, "num_classes": num_classes}
    on: dict[str, Any] = {"device_kind": device_kind, "symbols": command.data.dataset == "digits"}
    settings = resolve_settings(command.distill, **on, **shape)
    evaluation = resolve_evaluation(command.evaluate, **on)
    resolved = {**settings.model_dump(), **dict(settings.options), **evaluation.model_dump()}
    return [(key, value) for key, value in stated.items() if key in resolved and resolved[key] != value]


@pytest.mark.parametrize(
    ("stem", "published"),
    [("mtt-cifar10-ipc1", 1e-7), ("datm-cifar10-ipc1", 1e-7), ("mtt-imagenette-ipc1", 1e-6)],
)
def test_the_rate_of_a_logarithm_makes_the_first_step_that_was_published(stem, published):
    options = parsed(ROOT / "recipes" / f"{stem}.yaml").distill.options
    assert options.lr_lr * options.lr_student**2 == pytest.approx(published)


def test_the_comparisons_are_all_there():
    assert {path.stem for path in COMPARISONS} == {
        f"compare-{name}-laptop" for name in ("digits", "cifar10", "fashionmnist")
    }


@every_comparison
def test_header_of_a_comparison_states_source_published_and_expected_number_cost_and_command(path):
    fields = header(path)
    assert {"Source", "Published", "Expected", "Cost", "Command"} <= set(fields)
    assert "ATOM: not read" in fields["Published"]
    assert fields["Expected"] == "see docs/compare.md"
    assert re.match(r"measured: |see docs/compare\.md", fields["Cost"])


@every_comparison
def test_a_comparison_is_what_its_flags_would_ask_for(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    python, script, *arguments = shlex.split(header(path)["Command"])
    assert (python, script) == ("python", "pipelines/compare.py")
    flags = []
    for name, value in yaml.safe_load(path.read_text()).items():
        if name == "settings":
            value = [f"{method}.{key}={one}" for method, own in value.items() for key, one in own.items()]
        flags += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    told, command = parse(CompareCommand, flags), parse(CompareCommand, arguments)
    assert command.output == f"runs/{path.stem}"
    assert command.model_copy(update={"config": None, "output": None}) == told
    assert asked_sets(command) == asked_sets(told)


@every_comparison
def test_all_sets_of_a_comparison_can_be_had_as_stated(path):
    command = parse(CompareCommand, ["--config", str(path)])
    own = yaml.safe_load(path.read_text())["settings"]
    asked = asked_sets(command)
    assert [(one.label, one.settings.ipc) for one in asked] == [
        (method, ipc) for ipc in command.ipc for method in command.methods
    ]
    assert unread_notes(command) == []
    for one in asked:
        stated = {"network": command.distill.network} | own.get(one.label, {})
        if command.distill.iterations is not None:
            stated["iterations"] = command.distill.iterations
        assert resolved_alike(one.command, stated, device_kind="cpu") == [], one.label


@every_method
def test_the_preset_paper_has_the_settings_of_the_recipe(path):
    values = yaml.safe_load(path.read_text())
    preset = published(values["method"], values["ipc"])
    assert {name: value for name, value in values.items() if name in preset} == {
        name: value for name, value in preset.items() if name in values
    }
    # What one of them leaves to the defaults is resolved to the same.
    flags = ["--preset", "paper", "--method", values["method"], "--ipc", str(values["ipc"])]
    recipe, asked = parsed(path), parse(DistillCommand, flags)
    assert resolved(recipe) == resolved(asked)
    # The common protocol has fewer epochs on a CPU.
    assert asked.evaluate.epochs == values["epochs"] or asked.evaluate.protocol != "common"


def resolved(command):
    on: dict[str, Any] = {"device_kind": "cuda", "symbols": False}
    settings = resolve_settings(command.distill, channels=3, height=32, width=32, num_classes=10, **on)
    return settings, resolve_evaluation(command.evaluate, **on)
