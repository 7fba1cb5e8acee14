"""A user's own networks, each tried once in a process of its own before the command uses it: code of theirs that hangs,
ends its process or takes all memory ends with a sentence, not with the command.

python -m pipelines.own_networks '{"name": "my_net.py:my_net", ...}', as `try_networks` calls it
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atom import nets
from atom.errors import ConfigError
from pipelines.console.command import say

if TYPE_CHECKING:
    from atom.data import RealData

BUILD_TIMEOUT_S = 600.0
"""Most seconds that a network may take to be built and tried, or a list of them to be made. Chosen: every training
builds its network again, so one that takes longer is of no use."""
_START_S = 120.0
"""Most seconds that the process may take to begin. Chosen: Python and torch from a slow disk."""


def try_networks(names: Iterable[str], real: "RealData", *, timeout_s: float) -> None:
    """Build each of the user's own networks in a process of its own, and say so; other names cost nothing.

    Args:
        names: of any networks.
        real: has the sizes.
        timeout_s: of a network, `BUILD_TIMEOUT_S` at most.

    Raises:
        ConfigError: one cannot be built or tried, or not in this time.
    """
    channels, height, width = real.train.images.shape[1:]
    limit_s = min(timeout_s, BUILD_TIMEOUT_S)
    for name in filter(nets.is_own, dict.fromkeys(names)):
        say(f"building {name}")
        shape = {"channels": channels, "image_size": (height, width), "num_classes": real.train.num_classes}
        if problem := _problem({"name": name, **shape}, limit_s):
            raise ConfigError(problem)


def _problem(network: dict[str, object], limit_s: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        answer, errors = Path(folder, "answer"), Path(folder, "errors")
        told = json.dumps({**network, "limit_s": limit_s, "answer": str(answer)})
        with errors.open("wb") as stream:
            try:
                # The import path is this process's, without what -m puts before it; files, as the user's own
                # processes could hold a pipe open.
                code = subprocess.call(
                    [sys.executable, "-P", "-m", "pipelines.own_networks", told],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stream,
                    timeout=_START_S + limit_s,
                )
            except subprocess.TimeoutExpired:
                code = -signal.SIGALRM
        if answer.exists():
            return json.loads(answer.read_text(encoding="utf-8"))
        lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"network {network['name']!r}: {_ended(code, limit_s)}{f' ({lines[-1]})' if lines else ''}."


def _ended(code: int, limit_s: float) -> str:
    if code == -signal.SIGALRM:
        advice = "; if it is slow, not stuck, pass a larger --timeout-s" if limit_s < BUILD_TIMEOUT_S else ""
        return f"building it took longer than {limit_s:g} s{advice}"
    if code >= 0:
        return f"building it ended the process with exit code {code}"
    name = signal.Signals(-code).name
    memory = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    return f"the process that built it was ended by {name}{memory}"


def _try(*, limit_s: float, answer: str, name: str, **shape: Any) -> None:
    """What the process does: write what is wrong with the network, which is nothing for a sound one."""
    # Its own clock, so that imports do not count, and so that it ends even where the command was killed.
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    with suppress(OSError):  # else the system might end the command, or a worker, for the memory taken here
        Path("/proc/self/oom_score_adj").write_text("1000")
    problem = ""
    try:
        nets.identity(name, **shape)
    except ConfigError as error:
        problem = str(error)
    Path(answer).write_text(json.dumps(problem), encoding="utf-8")
    os._exit(0)  # whatever threads the user's code has begun


if __name__ == "__main__":
    _try(**json.loads(sys.argv[1]))
