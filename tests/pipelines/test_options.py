"""Flags, their defaults, the YAML file, and what `--help` costs and says."""

import subprocess
import sys
from pathlib import Path

import pytest

from atom.settings import DistillSettings, EvaluateSettings
from pipelines.console.options import (
    ClusterSettings,
    CommandSettings,
    DataSettings,
    DistillCommand,
    EvaluateCommand,
    TrackingSettings,
    parse,
)

COMMANDS = {"atom-distill": DistillCommand, "atom-evaluate": EvaluateCommand}


def parsed(*arguments: str) -> DistillCommand:
    return parse(DistillCommand, arguments, prog="atom-distill")


def help_text(command: type[CommandSettings], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(command, ["--help"], prog="the-command")
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", "digits"),
        ("mode", "atom"),
        ("power", 4),
        ("loss_scale", 100.0),
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
        ("baselines", ("random", "herding", "kcenter")),
    ],
)
def test_default_is_the_one_that_the_papers_or_the_documents_name(name: str, value: object) -> None:
    assert getattr(parsed(), name) == value


def test_values_that_depend_on_data_or_device_are_left_open() -> None:
    command = parsed()
    open_names = ("iterations", "lr_img", "task_balance", "epochs", "num_actors", "gpus_per_actor", "output")
    assert [name for name in open_names if getattr(command, name) is not None] == []


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
    assert getattr(parsed(*arguments), name) == value


@pytest.mark.parametrize("separate", [True, False])
def test_flag_wins_over_the_config_file_and_the_file_over_the_default(tmp_path: Path, separate: bool) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("ipc: 10\nlr-img: 0.5\neval_networks: [vgg11, vit]\n")
    config = ["--config", str(path)] if separate else [f"--config={path}"]
    command = parsed("--ipc", "50", *config)
    assert (command.ipc, command.lr_img, command.eval_networks) == (50, 0.5, ("vgg11", "vit"))
    assert command.batch_real == 128
    assert command.config == path


@pytest.mark.parametrize("word", ["on", "off"])
def test_words_of_a_switch_are_words_in_the_config_file(tmp_path: Path, word: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"zca: {word}\ncompile: {word}\nsymbols: {word}\ndownload: {word}\nsmoke: yes\n")
    command = parsed("--config", str(path))
    assert (command.zca, command.compile, command.symbols) == (word, word, word)
    assert (command.download, command.smoke) == (word == "on", True)


def test_flag_given_back_its_default_wins_over_the_config_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("ipc: 10\nsmoke: true\niterations: 7\n")
    command = parsed("--config", str(path), "--ipc", "1", "--no-smoke", "--iterations", "None")
    assert (command.ipc, command.smoke, command.iterations) == (1, False, None)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parsed().ipc = 2  # pyrefly: ignore[read-only]


def test_part_holds_the_settings_of_one_component() -> None:
    command = parsed("--ipc", "3", "--epochs", "9", "--num-actors", "2")
    assert command.part(DistillSettings).ipc == 3
    assert command.part(EvaluateSettings).epochs == 9
    assert command.part(ClusterSettings).num_actors == 2
    assert command.part(DataSettings).dataset == "digits"
    assert command.part(TrackingSettings).tracking_uri is None


def test_smoke_run_shrinks_but_keeps_what_is_smaller() -> None:
    small = parsed("--iterations", "2", "--batch-real", "8").shrunk()
    assert (small.iterations, small.batch_real) == (2, 8)
    large = parsed("--iterations", "8000", "--epochs", "1000", "--eval-seeds", "0", "--ipc", "7").shrunk()
    assert (large.iterations, large.epochs, large.batch_real, large.eval_seeds) == (4, 2, 16, 0)
    assert large.ipc == 7


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_every_setting_has_a_line_of_help(
    command: type[CommandSettings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = help_text(command, capsys)
    for name, field in command.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description, name
        assert len(field.description) <= 150, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize("module", ["distill", "evaluate"])
def test_help_imports_neither_torch_nor_ray_nor_mlflow(module: str) -> None:
    heavy = ("torch", "ray", "mlflow", "torchvision", "sklearn", "pyarrow", "scipy", "numpy")
    script = (
        f"import sys\nfrom pipelines.{module} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stopped:\n    code = stopped.code\n"
        f"print('CODE', code, [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "CODE 0 []", done.stderr
