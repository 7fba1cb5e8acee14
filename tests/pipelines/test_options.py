"""Flags, their defaults, the YAML file, and what `--help` costs and says."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atom.errors import ConfigError
from atom.methods import registry
from atom.methods.experts import Expert
from atom.methods.lookup import find_method
from atom.methods.registry import NAMES, options_of
from atom.resolve import resolve_settings
from atom.settings import Settings
from pipelines.console.commands import (
    AuditCommand,
    CompareCommand,
    ContinualCommand,
    DistillCommand,
    EvaluateCommand,
    NasCommand,
)
from pipelines.console.learner_commands import SUB_COMMANDS
from pipelines.console.options import CommandSettings, parse

COMMANDS = {
    "atom-distill": DistillCommand,
    "atom-evaluate": EvaluateCommand,
    "atom-compare": CompareCommand,
    "atom-nas": NasCommand,
    "atom-continual": ContinualCommand,
    "atom-audit": AuditCommand,
}


def parsed(*arguments: str) -> DistillCommand:
    return parse(DistillCommand, arguments)


def help_text(command: type[CommandSettings], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(command, ["--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", "digits"),
        ("method", "atom"),
        ("power", 4),
        ("ipc", 1),
        ("factor", 1),
        ("momentum_img", 0.5),
        ("batch_real", 128),
        ("init", "real"),
        ("network", "convnet"),
        ("dsa_strategy", "auto"),
        ("zca", "auto"),
        ("zca_eps", 0.1),
        ("seed", 0),
        ("lr_net", 0.01),
        ("momentum_net", 0.9),
        ("weight_decay", 5e-4),
        ("baselines", None),
    ],
)
def test_default_is_the_one_that_the_papers_or_the_documents_name(name: str, value: object) -> None:
    assert parsed().flat()[name] == value


def test_values_that_depend_on_data_or_device_are_left_open() -> None:
    command = parsed()
    open_names = ("iterations", "lr_img", "task_balance", "epochs", "num_actors", "gpus_per_actor", "output")
    assert [name for name in open_names if command.flat()[name] is not None] == []


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--batch-real", "64"], "batch_real", 64),
        (["--lr-img", "0.2"], "lr_img", 0.2),
        (["--eval-networks", "convnet", "vgg11"], "eval_networks", ("convnet", "vgg11")),
        (["--baselines"], "baselines", ()),
        (["--no-download"], "download", False),
        (["--data-dir", "/srv/images"], "data_dir", Path("/srv/images")),
        (["--gpus-per-actor", "0.25"], "gpus_per_actor", 0.25),
        (["--output=runs/a"], "output", "runs/a"),
    ],
)
def test_flag_is_the_name_of_the_field_in_kebab_case(arguments: list[str], name: str, value: object) -> None:
    assert parsed(*arguments).flat()[name] == value


@pytest.mark.parametrize("separate", [True, False])
def test_flag_wins_over_the_config_file_and_the_file_over_the_default(tmp_path: Path, separate: bool) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("ipc: 10\nlr-img: 0.5\neval_networks: [vgg11, vit]\n")
    config = ["--config", str(path)] if separate else [f"--config={path}"]
    command = parsed("--ipc", "50", *config)
    assert (command.distill.ipc, command.distill.lr_img, command.judges.eval_networks) == (
        50,
        0.5,
        ("vgg11", "vit"),
    )
    assert command.distill.batch_real == 128
    assert command.config == path


@pytest.mark.parametrize("word", ["on", "off"])
def test_words_of_a_switch_are_words_in_the_config_file(tmp_path: Path, word: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"zca: {word}\ncompile: {word}\nsymbols: {word}\ndownload: {word}\nsmoke: yes\n")
    command = parsed("--config", str(path))
    assert (command.distill.zca, command.distill.compile, command.data.symbols) == (word, word, word)
    assert (command.data.download, command.smoke) == (word == "on", True)


def test_flag_given_back_its_default_wins_over_the_config_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("ipc: 10\nsmoke: true\niterations: 7\n")
    command = parsed("--config", str(path), "--ipc", "1", "--no-smoke", "--iterations", "None")
    assert (command.distill.ipc, command.smoke, command.distill.iterations) == (1, False, None)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parsed().distill.ipc = 2  # pyrefly: ignore[read-only]


EVERY = {**COMMANDS, **{kind.prog: kind for kind in SUB_COMMANDS.values()}}


@pytest.mark.parametrize("command", EVERY.values(), ids=EVERY.keys())
def test_no_two_parts_of_a_command_have_a_flag_of_one_name(command: type[CommandSettings]) -> None:
    whole = command()
    own = [name for name, value in whole if not isinstance(value, Settings) and name not in command.hidden]
    for part, value in whole:
        if isinstance(value, Settings) and part not in command.hidden:
            inner = value.model_dump()
            options = inner.pop("options", {})
            names = inner if "distill.method" in command.decided else {**inner, **options}
            own += [name for name in names if f"{part}.{name}" not in command.decided and name != "options"]
    assert sorted(own) == sorted(whole.flags())


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_help_begins_with_the_flags_that_people_use_first(
    command: type[CommandSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = re.findall(r"^[^\w-]*--([a-z][a-z-]+)", help_text(command, capsys), re.MULTILINE)
    assert 10 <= len(command.first) <= 11
    assert [name.replace("-", "_") for name in shown][: len(command.first)] == [*command.first]


def test_help_shows_the_options_of_the_chosen_method(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for method in ("atom", "dm"):
        with pytest.raises(SystemExit):
            parsed("--help", "--method", method)
        texts.append(capsys.readouterr().out)
    assert ["--power" in text for text in texts] == [True, False]
    assert all("--task-balance" in text for text in texts)


@pytest.mark.parametrize("where", ["line", "file"])
def test_option_that_the_method_does_not_read_is_refused(tmp_path: Path, where: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("power: 2\n")
    more = ["--power", "2"] if where == "line" else ["--config", str(path)]
    with pytest.raises(
        ConfigError, match=r"--power: the method dm does not read it, only atom, spatial, channel do"
    ):
        parsed("--method", "dm", *more)
    assert parsed("--method", "spatial", *more).distill.options.model_dump()["power"] == 2


@pytest.mark.parametrize("method", registry.NAMES)
def test_a_chosen_method_has_the_defaults_that_are_its_own(method: str) -> None:
    """Methods share names of options, such as the number of trained networks, and not what these are by default."""
    assert parsed("--method", method).distill.options == registry.options_of(method)()
    kept = parsed("--task-balance", "0.5").changed(method="dm").distill.options.model_dump()
    assert kept["task_balance"] == 0.5


def test_the_old_name_of_the_method_and_the_last_of_two_are_understood() -> None:
    with pytest.raises(
        ConfigError, match=r"'mode' is not a setting of atom-distill; did you mean 'method'\?"
    ):
        parsed("--mode", "dm")
    assert (
        parsed("--method", "dm", "--method", "atom", "--power", "3").distill.options.model_dump()["power"]
        == 3
    )
    with pytest.raises(ConfigError, match="the method dm does not read it"):
        parsed("--method", "atom", "--method=dm", "--power", "3")


def test_a_command_is_changed_by_the_names_of_its_flags_whatever_part_they_are_of() -> None:
    changed = ContinualCommand.of(network="vit", seed=3, epochs=7, method="dm", task_balance=0.5, orders=2)
    assert (changed.network, changed.distill.network) == ("vit", "convnet")
    assert (changed.distill.seed, changed.evaluate.epochs, changed.stream.orders) == (3, 7, 2)
    assert changed.distill.options.model_dump(exclude_defaults=True) == {"task_balance": 0.5}
    with pytest.raises(
        ConfigError, match=r"--epochs: received 0: input should be greater than or equal to 1"
    ):
        changed.changed(epochs=0)
    with pytest.raises(ConfigError, match=r"'ipc' is not a setting of"):
        changed.changed(ipc=3)


def test_smoke_run_shrinks_but_keeps_what_is_smaller() -> None:
    small = parsed("--iterations", "2", "--batch-real", "8").shrunk()
    assert (small.distill.iterations, small.distill.batch_real) == (2, 8)
    large = parsed("--iterations", "8000", "--epochs", "1000", "--eval-seeds", "0", "--ipc", "7").shrunk()
    assert (large.distill.iterations, large.distill.batch_real, large.distill.ipc) == (4, 16, 7)
    assert (large.evaluate.epochs, large.judges.eval_seeds) == (2, 0)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_every_setting_has_a_line_of_help(
    command: type[CommandSettings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = help_text(command, capsys)
    for name, flag in command().flags().items():
        assert f"--{name.rstrip('_').replace('_', '-')}" in text
        assert flag.info.description, name
        assert len(flag.info.description) <= 210, name
        assert flag.info.description.endswith("."), name


@pytest.mark.parametrize("module", ["distill", "evaluate", "compare", "nas", "continual", "audit"])
def test_help_imports_neither_torch_nor_ray_nor_mlflow(module: str) -> None:
    heavy = ("torch", "ray", "mlflow", "torchvision", "sklearn", "pyarrow", "scipy", "numpy")
    script = (
        f"import sys\nfrom pipelines.{module} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stopped:\n    code = stopped.code\n"
        f"print('CODE', code, [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "CODE 0 []", done.stderr


def test_help_of_a_learner_imports_neither_torch_nor_ray_nor_mlflow() -> None:
    script = (
        "import sys\nfrom pipelines.learner import main\nmain(['--help'])\n"
        "try:\n    main(['init', '--help'])\nexcept SystemExit as stopped:\n    code = stopped.code\n"
        "print('CODE', code, [name for name in ('torch', 'ray', 'mlflow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "CODE 0 []", done.stderr


@pytest.mark.parametrize("method", NAMES)
def test_a_smoke_run_trains_little_beforehand_whatever_is_asked(method: str) -> None:
    large: dict[str, Any] = {
        "num_experts": 100,
        "min_start_epoch": 10,
        "max_start_epoch": 40,
        "first_max_start_epoch": 20,
        "replicas": 8,
        "trained_networks": 20,
        "training_passes": 100,
        "inner_steps": 200,
        "window": 60,
        "inner_epochs": 50,
    }
    asked = {name: value for name, value in large.items() if name in options_of(method).model_fields}
    settings = DistillCommand.of(method=method, **asked).shrunk().distill
    assert all(getattr(settings.options, name) <= 4 for name in asked)
    experts = [one for one in find_method(method).preparations(settings) if isinstance(one, Expert)]
    assert sum(one.epochs for one in experts) <= 6


def test_the_preset_of_the_paper_fills_what_neither_flags_nor_the_file_say(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("preset: paper\nmethod: mtt\nsyn_steps: 7\n")
    command = parse(DistillCommand, ["--config", str(config), "--iterations", "9"])
    options = command.distill.options.model_dump()
    assert (command.distill.iterations, options["syn_steps"], options["num_experts"]) == (9, 7, 100)
    assert (command.distill.lr_img, command.evaluate.protocol) == (100.0, "dm")
    by_ipc = parse(DistillCommand, ["--preset", "paper", "--method", "mtt", "--ipc", "12"])
    assert by_ipc.distill.options.model_dump()["syn_steps"] == 30
    assert parse(DistillCommand, ["--preset", "paper"]).evaluate.protocol == "datadam"
    with pytest.raises(ConfigError, match=r"--preset paper: of the method random no settings were published"):
        parse(DistillCommand, ["--preset", "paper", "--method", "random"])
    with pytest.raises(ConfigError, match="--ipc: received 0"):
        parse(DistillCommand, ["--preset", "paper", "--ipc", "0"])
    with pytest.raises(ConfigError, match="--preset paper: nothing was published for --images-in-all"):
        parse(DistillCommand, ["--preset", "paper", "--method", "datm", "--images-in-all", "5"])
    # However the number is written.
    config.write_text("preset: paper\nmethod: mtt\nipc: 10.0\n")
    for written in (["--config", str(config)], ["--preset", "paper", "--method", "mtt", "--ipc", "+10"]):
        assert parse(DistillCommand, written).distill.options.model_dump()["syn_steps"] == 30
    dm = parse(DistillCommand, ["--preset", "paper", "--method", "dm", "--ipc", "10"])
    told = (dm.distill.iterations, dm.distill.batch_real, dm.distill.lr_img, dm.distill.zca)
    assert told == (20000, 256, 1.0, "off")
    assert dm.shrunk().distill.iterations == 4


@pytest.mark.parametrize("method", ["atom", "dm", "dc", "dsa", "idc", "dd", "rat-bptt", "mtt", "datm"])
@pytest.mark.parametrize("ipc", ["1", "10", "20", "50"])
def test_published_settings_are_settings_of_the_method(method: str, ipc: str) -> None:
    command = parse(DistillCommand, ["--preset", "paper", "--method", method, "--ipc", ipc])
    shape = {"channels": 3, "height": 32, "width": 32, "num_classes": 10}
    resolve_settings(command.changed(network="convnet-w4").distill, device_kind="cpu", symbols=False, **shape)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("rat-bptt --inner-steps 30", "window", 30),
        ("rat-bptt --inner-optimizer sgd", "lr_inner", 0.1),
        ("dsa --ipc 10 --outer-steps 1", "inner_epochs", 1),
        ("datm --ipc 10 --max-start-epoch 5", "first_max_start_epoch", None),
        ("datm --ipc 50 --min-start-epoch 20", "growth_iterations", 1000),
    ],
)
def test_a_flag_takes_what_the_preset_ties_to_it_with_it(line: str, name: str, value: object) -> None:
    shape = {"channels": 3, "height": 32, "width": 32, "num_classes": 10}
    command = parse(
        DistillCommand, ["--preset", "paper", "--network", "convnet-w4", "--method", *line.split()]
    )
    options = resolve_settings(command.distill, device_kind="cpu", symbols=False, **shape).options
    assert options.model_dump()[name] == value


def test_smoke_leaves_flags_of_another_mode_alone() -> None:
    assert NasCommand().shrunk().nas.search_trials is None
    assert NasCommand.of(mode="search").shrunk().nas.search_trials == 4
    assert NasCommand.of(mode="search").shrunk().nas.retrain == 1
