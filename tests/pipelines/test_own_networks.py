"""A user's own network is tried in a process of its own: whatever it does there, the command says so and goes on."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_digits import digits_set

from atom import data
from atom.errors import ConfigError
from pipelines import continual, distill, evaluate, own_networks
from pipelines.own_networks import BUILD_TIMEOUT_S, try_networks

REAL = data.load("digits", data_dir=Path("unused"))
MINE = """
import os
import time

from atom import nets
from neighbour import NAME


def sound(**shape):
    print("not shown")
    return nets.build(NAME, **shape)


def hangs(**shape):
    time.sleep(600)


def leaves(**shape):
    os._exit(0)


def raises(**shape):
    raise KeyError("no such layer")
"""


def end_with(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process that tries a network end so, without its start."""

    def end(*_: object, stderr: Any, **__: object) -> int:
        stderr.write(b"first\nlast words\n")
        return code

    monkeypatch.setattr(own_networks.subprocess, "call", end)


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What is said of a function of the file above, called from a directory that must not shadow the project."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "neighbour.py").write_text('NAME = "convnet-w4-d1"\n', encoding="utf-8")
    (tmp_path / "tempfile.py").write_text(
        "raise ImportError('from the working directory')\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)

    def say(function: str, *, timeout_s: float = 60.0) -> str:
        try:
            try_networks([f"mine.py:{function}"], REAL, timeout_s=timeout_s)
        except ConfigError as error:
            return str(error)
        return ""

    return say


def test_a_sound_network_is_announced_and_passes(
    tried: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert tried("sound") == ""
    assert capfd.readouterr().out == "building mine.py:sound\n"


def test_a_network_that_hangs_is_refused_after_its_time(tried: Callable[..., str]) -> None:
    assert tried("hangs", timeout_s=0.5) == (
        "network 'mine.py:hangs': building it took longer than 0.5 s;"
        " if it is slow, not stuck, pass a larger --timeout-s."
    )


def test_a_network_that_ends_its_process_is_refused(tried: Callable[..., str]) -> None:
    assert tried("leaves") == "network 'mine.py:leaves': building it ended the process with exit code 0."


def test_a_network_that_raises_is_refused_as_everywhere(tried: Callable[..., str]) -> None:
    assert "network 'mine.py:raises': the function failed with KeyError: 'no such layer'" in tried("raises")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-signal.SIGKILL, "ended by SIGKILL, as the system does when memory runs out (last words)."),
        (-signal.SIGSEGV, "ended by SIGSEGV (last words)."),
    ],
)
def test_what_ended_the_process_is_said_with_its_last_words(
    code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_with(code, monkeypatch)
    with pytest.raises(ConfigError) as refused:
        try_networks(["mine.py:net"], REAL, timeout_s=BUILD_TIMEOUT_S)
    assert str(refused.value) == f"network 'mine.py:net': the process that built it was {said}"


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (distill.main, ["--dataset", "digits", "--network", "mine.py:net"]),
        (distill.main, ["--dataset", "digits", "--eval-networks", "convnet", "mine.py:net"]),
        (evaluate.main, ["--set", "set", "--eval-networks", "mine.py:net"]),
        (continual.main, ["--network", "mine.py:net"]),
        (continual.main, ["--distil-network", "mine.py:net"]),
    ],
)
def test_every_command_tries_a_users_network_before_its_own_process_imports_it(
    main: Callable[[list[str]], int],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--set" in arguments:
        digits_set().save(tmp_path / "set")
    (tmp_path / "mine.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    end_with(-signal.SIGKILL, monkeypatch)
    assert main([*arguments, "--output", "out"]) == 2
    out, err = capsys.readouterr()
    assert out == "building mine.py:net\n"
    assert err.startswith(
        "ConfigError: network 'mine.py:net': the process that built it was ended by SIGKILL"
    )
    assert not (tmp_path / "out").exists()


def test_networks_of_the_project_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(own_networks.subprocess, "call")
    try_networks(["convnet", "no-such-net"], REAL, timeout_s=1.0)
