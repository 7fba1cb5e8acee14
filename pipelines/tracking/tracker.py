"""One MLflow run of a command, and its children.

MLflow is imported inside functions: it takes two seconds.

Only the driver talks to MLflow, through `MlflowClient`, never through the fluent API with its global run.
Trouble with MLflow at the start is the user's error; later it is a warning, and records wait in memory,
since a distillation must not be lost to its bookkeeping. Nor may it wait for it: all that is recorded is handed to a
thread, see `Sender`, and only the end of the run waits for that, for a while.
"""

import atexit
import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from atom.redact import without_secrets
from pipelines.output.provenance import continued_tags, run_tags
from pipelines.tracking.backend import answering, dataset_input, describe_run, open_client
from pipelines.tracking.history import History
from pipelines.tracking.models import Model, Registered, point, publish
from pipelines.tracking.opening import INTERRUPTED, child_run, open_run, take_up
from pipelines.tracking.sender import END_S, Point, RefusedError, Sender
from pipelines.tracking.uri import trouble_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

_STOP_S = 0.7
"""After Ctrl-C, how long all calls may take: two seconds later the command is to be over."""

_NOTE_LENGTH = 8000
"""Characters of a tag that MLflow keeps; it warns where it cuts, and cuts anywhere."""

_ends: list[Callable[[], None]] = []


@atexit.register
def finish() -> None:
    """Wait for what stopped runs still send, within their limit, and tell what did not arrive.

    Done as the process ends: Ray takes a second to end before, and the calls go on meanwhile.
    """
    while _ends:
        _ends.pop()()


Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """One MLflow run, a context manager that leaves it with a final status.

    FINISHED on a clean exit, KILLED on Ctrl-C, FAILED on any other exception, or what `mark` said. Leaving the run
    of the command waits for the records that are on their way; a run below it has no end of its own to wait for.
    """

    def __init__(
        self, client: "MlflowClient", sender: Sender, run_id: str, *, experiment_id: str, below: bool = False
    ) -> None:
        self._client = client
        self._sender = sender
        self._experiment_id = experiment_id
        self._below = below
        self.run_id = run_id
        self.tracking_uri = client.tracking_uri
        self.took_over = False
        """Whether the run's last driver was killed before it could end it."""
        self._history = History(client, run_id)
        self._status: Status | None = None
        self._samples = False
        self._monitor: Any = None

    @classmethod
    def start(
        cls,
        *,
        tracking_uri: str,
        experiment: str | None,
        command: str,
        run_name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str] | None = None,
        resume_run_id: str | None = None,
        system_metrics: bool = True,
    ) -> "Tracker":
        """A new run, or the run of an earlier driver continued; below the run that MLFLOW_RUN_ID names.

        Args:
            tracking_uri: see `backend.default_tracking_uri`.
            experiment: made if it does not exist; None: see `opening.chosen_experiment`.
            command: name of the experiment where nobody named one.
            run_name: for people.
            params: flat, dotted names; a run that has another value of one is not continued, since MLflow
                never changes a parameter. Names that begin with "cluster." may differ.
            tags: further tags; `provenance.run_tags` are always set.
            resume_run_id: run to continue; if it is gone or of other parameters, a new one is made.
            system_metrics: sample processor, memory, disk and GPU figures of this machine.

        Raises:
            ConfigError: the URI is of a kind MLflow no longer takes, nothing answers there, or the experiment or the
                run above was deleted.
        """
        client = open_client(tracking_uri)
        sender = Sender(client.tracking_uri, lambda: trouble_at(tracking_uri))
        with answering(tracking_uri):
            run, resumed, told = open_run(
                client,
                experiment=experiment,
                command=command,
                run_name=run_name,
                params=params,
                resume_run_id=resume_run_id,
            )
            tracker = cls(client, sender, run.info.run_id, experiment_id=run.info.experiment_id)
            tracker.took_over = INTERRUPTED in told
            own = continued_tags(run.data.tags, run_tags()) if resumed else run_tags()
            try:
                tracker._describe(run, params, own | dict(tags or {}) | told, resumed=resumed)
            except BaseException as error:
                # Nobody else knows of the run yet, so nobody else would ever end it.
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                tracker._terminate("KILLED" if stopped else "FAILED", first=True)
                sender.drain(_STOP_S)
                raise
        if system_metrics:
            tracker._start_monitor(resumed=resumed)
        return tracker

    def child(
        self,
        run_name: str,
        *,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> "Tracker":
        """A run shown below this one; the one of that name continued, if an earlier driver made it.

        Its `run_id` is empty until it has been made.
        """
        child = Tracker(self._client, self._sender, "", experiment_id=self._experiment_id, below=True)
        begun_ms = _now_ms()

        def open_child() -> None:
            known = child_run(self._client, self._experiment_id, self.run_id, run_name)
            above = {"mlflow.parentRunId": self.run_id}
            run = known or self._client.create_run(
                self._experiment_id, start_time=begun_ms, tags=above, run_name=run_name
            )
            child.run_id = run.info.run_id
            child._describe(run, params or {}, tags or {}, resumed=known is not None)

        self._put("open a run", open_child, lasting=True)
        return child

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._status is None:
            killed = isinstance(error, KeyboardInterrupt | SystemExit)
            self.mark("KILLED" if killed else "FAILED", reason=f"{type(error).__name__}: {error}")
        status = self._status or "FINISHED"
        # After SIGTERM a job has three seconds: the status comes first then, the rest if there is time.
        first = status == "KILLED" and not self._below
        if first:
            self._terminate(status, first=True)
        if self._samples:
            self._put("stop the system figures", self._stop_monitor)
        if not first:
            self._terminate(status)
        if not self._below:
            self._wait_for_the_rest(status)

    def _wait_for_the_rest(self, status: Status) -> None:
        if status == "KILLED":
            begun_s = self._sender.hurry()
            _ends.append(lambda: self._finish(since_s=begun_s))
            return
        try:
            self._sender.drain(END_S)
        except BaseException:
            self._terminate(status, first=True)
            self._sender.drain(_STOP_S)
            raise
        finally:
            self._finish(since_s=None)

    def _finish(self, *, since_s: float | None) -> None:
        if since_s is not None:
            self._sender.drain(_STOP_S, since_s=since_s)
        if missing := self._sender.missing():
            logger.warning(
                "%s of this run did not reach MLflow at %s. The same command records them when MLflow works again.",
                missing,
                without_secrets(self.tracking_uri),
            )

    def _terminate(self, status: Status, *, first: bool = False) -> None:
        ended_ms = _now_ms()
        self._put(
            "end the run",
            lambda: self._client.set_terminated(self.run_id, status=status, end_time=ended_ms),
            first=first,
            lasting=True,
        )

    def _describe(
        self, run: "Run", params: Mapping[str, object], tags: Mapping[str, str], *, resumed: bool
    ) -> None:
        if resumed:
            take_up(self._client, run)
            self._history = History(self._client, run.info.run_id, run.data.metrics)
        new = {key: value for key, value in params.items() if key not in run.data.params}
        describe_run(self._client, run.info.run_id, params=new, tags=tags)

    def mark(self, status: Status, *, reason: str = "") -> None:
        """Decide the final status, as after a signal or with failed classes; the reason becomes a tag."""
        self._status = status
        if reason:
            self.set_tags({"error": reason})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log numbers; they are sent in batches."""
        self.log_history((key, value, step) for key, value in metrics.items())

    def log_history(self, points: Iterable[tuple[str, float, int]]) -> None:
        """Log many (name, value, step) at once; what a continued run holds already is not sent again."""
        now_ms = _now_ms()
        with self._sender.preparing("log metrics"):
            self._sender.put_points(
                (Point(key, float(value), int(step), now_ms) for key, value, step in points), self._send
            )

    def flush(self) -> None:
        """Wait until all records have been sent, or the server does not answer any more."""
        self._sender.drain()

    def _send(self, batch: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        self._check_opened()
        metrics = [
            Metric(point.key, point.value, point.time_ms, point.step) for point in self._history.new(batch)
        ]
        if metrics:
            self._client.log_batch(self.run_id, metrics=metrics)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a name that starts with "mlflow." has a meaning in the user interface."""
        self._put("set tags", lambda: describe_run(self._client, self.run_id, params={}, tags=tags))

    def set_note(self, markdown: str) -> None:
        """Set the summary at the top of the run's page, cut to what MLflow keeps of it."""
        note = _within(without_secrets(markdown), _NOTE_LENGTH)
        self._put("set the note", lambda: self._client.set_tag(self.run_id, "mlflow.note.content", note))

    def log_dataset(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        context: Literal["real", "distilled"],
        source: str,
        fingerprint: str | None = None,
    ) -> None:
        """Record a set as an input of the run: name, digest, shapes; not the images themselves.

        Args:
            name: such as "cifar10".
            images: (N, C, H, W).
            labels: (N,).
            context: what it is to this run.
            source: where it came from, such as the spec string.
            fingerprint: its digest, at most 36 characters are kept; computed if None.
        """
        about = {"context": context, "source": source, "fingerprint": fingerprint}
        with self._sender.preparing("log the dataset"):
            found = dataset_input(name, images, labels, **about)
            self._put("log the dataset", lambda: self._client.log_inputs(self.run_id, [found]))

    def log_artifacts(self, write: Callable[[Path], object], *, path: str | None = None) -> None:
        """Upload files into the artifact folder `path`.

        Args:
            write: puts them into the directory that it is given; called in another thread when their turn comes.
            path: POSIX; None for the top.
        """

        def upload() -> None:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder))
                self._client.log_artifacts(self.run_id, folder, path)

        self._put("log artifacts", upload)

    def log_model(self, model: Model, at: Registered) -> None:
        """Log a network as a model and register it under the alias `candidate`; see `models.publish`."""
        self._put("log the model", lambda: publish(self._client, self.run_id, self._experiment_id, model, at))

    def use_model(self, at: Registered) -> None:
        """Move the alias `current` to a registered version."""
        self._put("move the alias of the model", lambda: point(self._client, at))

    def log_dict(self, value: dict[str, Any], file: str) -> None:
        """Store a JSON-compatible value as an artifact, YAML or JSON by the file's ending."""
        with self._sender.preparing(f"log {file}"):
            told = json.loads(without_secrets(json.dumps(value)))
            self._put(f"log {file}", lambda: self._client.log_dict(self.run_id, told, file))

    def log_figure(self, figure: "Figure", file: str) -> None:
        """Store a matplotlib figure as an artifact."""
        folder, _, name = file.rpartition("/")
        with self._sender.preparing(f"log {file}"):
            # Drawn here: matplotlib draws in one thread only.
            drawn = io.BytesIO()
            figure.savefig(drawn, format=file.rpartition(".")[2])
            self.log_artifacts(lambda to: (to / name).write_bytes(drawn.getvalue()), path=folder or None)

    def log_text(self, text: str, file: str) -> None:
        """Store text as an artifact."""
        self._put(f"log {file}", lambda: self._client.log_text(self.run_id, without_secrets(text), file))

    def _start_monitor(self, *, resumed: bool) -> None:
        def start() -> None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(
                self.run_id, resume_logging=resumed, tracking_uri=self.tracking_uri
            )
            self._monitor.start()

        self._samples = True
        self._put("sample system figures", start)

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()

    def _put(
        self, what: str, action: Callable[[], object], *, first: bool = False, lasting: bool = False
    ) -> None:
        def act() -> None:
            self._check_opened()
            action()

        self._sender.put(what, act, first=first, lasting=lasting)

    def _check_opened(self) -> None:
        if not self.run_id:
            raise RefusedError("its run could not be made")


def _now_ms() -> int:
    return int(time.time() * 1000)


def _within(note: str, length: int) -> str:
    """As many whole lines as fit, and where some do not, a word that there are more."""
    if len(note) <= length:
        return note
    told = "\n\nThere is more in the artifacts."
    # A table that stands between fences must not go on below it.
    cut = note[: length - len(told) - len("\n```")]
    kept = cut.rpartition("\n")[0] or cut
    return kept + ("\n```" if kept.count("```") % 2 else "") + told
