"""What is around every command: exit codes, the output's place, the first lines."""

import subprocess
import sys
from pathlib import Path

import pytest

from atom.errors import ConfigError, DataError
from pipelines.console.command import output_location, run_command, say_header
from pipelines.console.commands import DistillCommand
from pipelines.output.provenance import project_version
from pipelines.output.store import Store
from pipelines.workers.nodes import ClusterInfo
from pipelines.workers.resources import ActorSize


def run(work: object, *arguments: str) -> int:
    return run_command(DistillCommand, work, arguments)  # pyrefly: ignore[bad-argument-type]


def test_code_of_the_work_is_the_code_of_the_command() -> None:
    assert run(lambda command: command.distill.ipc, "--ipc", "7") == 7


def test_bad_input_is_one_sentence_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def work(_: DistillCommand) -> int:
        raise DataError("a.jpg: broken; replace it.")

    assert run(work) == 2
    assert capsys.readouterr() == ("", "DataError: a.jpg: broken; replace it.\n")


def test_value_out_of_range_is_refused_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda _: pytest.fail("the work began"), "--ipc", "0") == 2
    assert capsys.readouterr().err.startswith("ConfigError: --ipc: received 0: ")


def test_interrupt_is_code_130_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def work(_: DistillCommand) -> int:
        raise KeyboardInterrupt

    assert run(work) == 130
    assert "The same command goes on from the last checkpoint" in capsys.readouterr().err


def test_bug_keeps_its_traceback() -> None:
    def work(_: DistillCommand) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(work)


TABLE = """
from pipelines.console.command import while_read
from pipelines.console.progress import print_table
raise SystemExit(while_read(lambda: print_table("a", ["b"], [["c"]]) or 0))
"""


@pytest.mark.parametrize(
    "program",
    [
        ["-m", "pipelines.distill", "--help"],
        ["-m", "pipelines.learner", "--help"],
        ["-m", "pipelines.learner", "export", "--help"],
        ["-c", TABLE],
    ],
    ids=["long help", "usage", "short help", "table"],
)
def test_a_reader_who_has_enough_ends_the_command_without_a_traceback(program: list[str]) -> None:
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *program], **piped) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        assert (command.stderr.read(), command.wait(timeout=60)) == (b"", 141)


def test_other_broken_pipes_keep_their_traceback() -> None:
    def work(_: DistillCommand) -> int:
        raise BrokenPipeError("of a server")

    with pytest.raises(BrokenPipeError):
        run(work)


def test_output_is_where_the_user_says_or_under_runs() -> None:
    assert output_location(DistillCommand.of(output="here"), "name") == "here"
    assert Path(output_location(DistillCommand(), "name")) == Path("runs/name")
    assert Path(output_location(DistillCommand.of(smoke=True), "name")) == Path("runs/smoke-name")


@pytest.mark.parametrize("output", ["/shared/a", "s3://bucket/a"])
def test_place_that_outlives_a_ray_job_is_taken(monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert output_location(DistillCommand.of(output=output, tracking_uri="http://server"), "name") == output


def test_output_that_cannot_hold_the_records_is_refused_before_anything_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="no place for its database; pass --tracking-uri"):
        output_location(DistillCommand.of(output="s3://bucket/a"), "name")
    assert output_location(DistillCommand.of(output="file:///tmp/a"), "name") == "file:///tmp/a"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert output_location(DistillCommand.of(output="s3://bucket/a"), "name") == "s3://bucket/a"


@pytest.mark.parametrize("output", ["results", None])
def test_place_that_dies_with_a_ray_job_is_refused(
    monkeypatch: pytest.MonkeyPatch, output: str | None
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"deleted after it; pass an absolute path .* or a URI such as s3:"):
        output_location(DistillCommand.of(output=output), "name")


def test_first_lines_name_version_settings_resources_and_output(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cluster = ClusterInfo("local", cpus=4, gpus=0, num_nodes=1, node_cpus=(4.0,), node_gpus=(0.0,))
    settings = {f"setting_{number}": "x-y" * 5 for number in range(12)} | {"sizes": "8,2"}
    say_header(
        "atom-distill", {**settings, "sizes": (8, 2)}, cluster, ActorSize(2, 2.0, 0.0), Store.open(tmp_path)
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"atom-distill {project_version()}"
    assert lines[1].startswith("settings: setting_0=")
    assert max(map(len, lines[1:-2])) <= 100
    assert all(f"{name}={value}" in " ".join(lines[1:-2]).split() for name, value in settings.items())
    assert lines[-2].endswith("private local cluster: 1 node, 4 CPUs, 0 GPUs; 2 workers, 2 CPUs each")
    assert lines[-1] == f"output: {tmp_path}"


def test_first_lines_name_lists_of_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Such as --order-seeds and --step-classes."""
    cluster = ClusterInfo("local", cpus=1, gpus=0, num_nodes=1, node_cpus=(1.0,), node_gpus=(0.0,))
    say_header("atom", {"order_seeds": (1993, 7)}, cluster, ActorSize(1, 1.0, 0.0), Store.open(tmp_path))
    assert "order_seeds=1993,7" in capsys.readouterr().out


def test_signal_before_the_work_begins_ends_the_process_quietly() -> None:
    script = (
        # A shell that starts a job in the background has it ignore Ctrl-C.
        "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pipelines.console.command import run_command\nfrom pipelines.console.commands import DistillCommand\n"
        "raise SystemExit(run_command(DistillCommand, lambda c: os.kill(os.getpid(), signal.SIGINT), []))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "Stopped. The same command goes on from the last checkpoint.\n"


@pytest.mark.parametrize("files", [("atom/__init__.py", "apps/__init__.py"), ("atom.py",), ("apps.py",)])
def test_command_started_as_a_module_passes_by_its_names_in_the_working_directory(
    tmp_path: Path, files: tuple[str, ...]
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    command = [sys.executable, "-m", "pipelines.distill", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_passwords_stay_off_the_screen() -> None:
    script = (
        "import logging\nfrom pipelines.console.command import run_command, say\n"
        "from pipelines.console.commands import DistillCommand\n"
        "def work(command):\n"
        "    say(f'MLflow at {command.tracking.tracking_uri}')\n"
        "    logging.getLogger('urllib3').warning('retrying %s', command.tracking.tracking_uri)\n"
        "    raise RuntimeError(command.tracking.tracking_uri)\n"
        "run_command(DistillCommand, work, ['--tracking-uri', 'http://alice:s3cret@host'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == "MLflow at http://***@host\n"
    assert done.stderr.startswith("WARNING: retrying http://***@host\nTraceback (most recent call last):")
    assert done.stderr.endswith("RuntimeError: http://***@host\n")
