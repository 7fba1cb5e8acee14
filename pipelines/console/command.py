"""What every command does around its work: exit codes, one-sentence errors, a plain log, the output's place."""

import atexit
import gc
import logging
import os
import select
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from atom.errors import AtomError
from atom.redact import without_secrets
from pipelines.console.options import CommandSettings, parse

if TYPE_CHECKING:
    from pipelines.output.store import Store
    from pipelines.tracking import Tracker
    from pipelines.workers.nodes import ClusterInfo
    from pipelines.workers.resources import ActorSize

C = TypeVar("C", bound=CommandSettings)

_REMOTE = ("s3://", "gs://", "gcs://", "abfs://", "abfss://", "hdfs://", "viewfs://")
"""Places without a local path; what else PyArrow opens is refused later, before any work."""

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 130
EXIT_UNREAD = 141  # as a shell says of SIGPIPE


def run_command(command: type[C], work: Callable[[C], int], argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn what went wrong into an exit code.

    Returns:
        0 on success, 1 if a part of the work failed, 2 on bad input with one sentence on standard error, 130
        after Ctrl-C or SIGTERM, 141 where nobody reads on, as after `| head`. A bug keeps its traceback.
    """
    logs = logging.StreamHandler(sys.stderr)
    logs.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[logs])
    sys.excepthook = _print_traceback
    # Else Python's last collections walk through all that torch, Ray and MLflow made: seconds after Ctrl-C.
    atexit.register(gc.freeze)
    # Torch without a GPU and libraries under way to their next version warn of what no user can change.
    warnings.simplefilter("ignore")
    return while_read(lambda: _run(command, work, argv))


def _run(command: type[C], work: Callable[[C], int], argv: Sequence[str] | None) -> int:
    try:
        return work(parse(command, argv))
    except AtomError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from the last checkpoint.", file=sys.stderr, flush=True)
        return EXIT_STOPPED


def while_read(work: Callable[[], int]) -> int:
    """What `work` returns, or 141 without a word where nobody reads standard output on."""
    try:
        try:
            return work()
        finally:
            # Else it fails when Python ends, where nothing can be done.
            sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():
            raise
        # What is left in the buffer would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNREAD


def _unread() -> bool:
    """Whether standard output is a pipe that nobody reads from."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def output_location(command: CommandSettings, default_name: str) -> str:
    """Where results go: --output, or runs/NAME.

    Raises:
        ConfigError: a relative path inside a Ray job, whose directory is deleted when the job has ended; or a place
            that cannot hold MLflow's database, and no other one was named.
    """
    # PyArrow comes with it, which --help must not wait for.
    from pipelines.output.store import check_lasting

    location = command.output or str(Path("runs") / f"{'smoke-' if command.smoke else ''}{default_name}")
    check_lasting(location, flag="--output")
    if location.startswith(_REMOTE) and not command.tracking.tracking_uri:
        from pipelines.tracking import default_tracking_uri

        default_tracking_uri(None)
    return location


def say_header(
    prog: str, settings: Mapping[str, object], cluster: "ClusterInfo", size: "ActorSize", store: "Store"
) -> None:
    """First lines of a command: version, settings as resolved, resources, output."""
    from pipelines.output.provenance import project_version

    say(f"{prog} {project_version()}")
    options = settings.get("options")
    # What is the method's own is shown like all else.
    flat = {**settings, **options} if isinstance(options, Mapping) else settings
    shown = " ".join(
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in flat.items()
        if not isinstance(value, Mapping)
    )
    say(textwrap.fill(f"settings: {shown}", 100, subsequent_indent="  ", break_on_hyphens=False))
    each = counted(size.gpus, "GPU") if size.gpus else counted(size.cpus, "CPU")
    say(f"{cluster.describe()}; {counted(size.num_actors, 'worker')}, {each} each{_kind(size)}")
    if size.left_out:
        say(f"left out, since all work is done on one kind of device: {size.left_out}")
    say(f"output: {store}")


def _kind(size: "ActorSize") -> str:
    return f", of {size.accelerator}" if size.accelerator else ""


def counted(number: float, what: str) -> str:
    """Such as "1 worker" or "2 workers"."""
    told = f"{number:,.0f}" if number == int(number) else f"{number:g}"
    return f"{told} {what}" if number == 1 else f"{told} {what}s"


def stopped(tracker: "Tracker", signal_name: str | None) -> int:
    """Leave after Ctrl-C or SIGTERM: the MLflow run is KILLED; returns the exit code."""
    tracker.mark("KILLED", reason=f"stopped by {signal_name or 'a signal'}")
    print("Stopped. The same command goes on from the last checkpoint.", file=sys.stderr, flush=True)
    return EXIT_STOPPED


def say(text: str = "") -> None:
    """Print a line at once, so that it shows in a job's log when it happens; without passwords."""
    print(without_secrets(text), flush=True)


class _Formatter(logging.Formatter):
    """Takes the passwords out of the addresses that libraries name."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(without_secrets(text), end="", file=sys.stderr, flush=True)
