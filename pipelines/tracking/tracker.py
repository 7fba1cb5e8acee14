"""One MLflow run of a command, and its children.

MLflow is imported inside functions: it takes two seconds.

Only the driver talks to MLflow, through `MlflowClient`, never through the fluent API with its global run.
Trouble with MLflow at the start is the user's error; later it is a warning, and metrics wait in memory,
since a distillation must not be lost to its bookkeeping.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from atom.redact import without_secrets
from pipelines.provenance import run_tags
from pipelines.tracking.backend import (
    answering,
    as_value,
    dataset_input,
    describe_run,
    experiment_id,
    find_run,
    open_client,
)
from pipelines.tracking.metric_queue import MetricQueue, Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """One MLflow run, a context manager that leaves it with a final status.

    FINISHED on a clean exit, KILLED on Ctrl-C, FAILED on any other exception, or what `mark` said.
    """

    def __init__(self, client: "MlflowClient", run_id: str, *, experiment_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self.run_id = run_id
        self.tracking_uri = client.tracking_uri
        self._status: Status | None = None
        self._queue = MetricQueue(self._send)
        self._troubled = False
        self._monitor: Any = None

    @classmethod
    def start(
        cls,
        *,
        tracking_uri: str,
        experiment: str,
        run_name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str] | None = None,
        resume_run_id: str | None = None,
        system_metrics: bool = True,
    ) -> "Tracker":
        """A new run, or the run of an earlier driver continued.

        Args:
            tracking_uri: see `backend.default_tracking_uri`.
            experiment: made if it does not exist.
            run_name: for people.
            params: flat, dotted names; a run that has another value of one is not continued, since MLflow
                never changes a parameter. Names that begin with "cluster." may differ.
            tags: further tags; `provenance.run_tags` are always set.
            resume_run_id: run to continue; if it is gone or of other parameters, a new one is made.
            system_metrics: sample processor, memory, disk and GPU figures of this machine.

        Raises:
            ConfigError: the URI is of a kind MLflow no longer takes, or nothing answers there.
        """
        client = open_client(tracking_uri)
        with answering(tracking_uri):
            run = find_run(client, resume_run_id) if resume_run_id else None
            if resume_run_id and run is None:
                logger.warning("The MLflow run %s of this output is gone; a new one is made.", resume_run_id)
            if run is not None and _differs(run.data.params, params):
                tags, run = {**(tags or {}), "resumed_from": run.info.run_id}, None
            resumed = run is not None
            if run is None:
                run = client.create_run(experiment_id(client, experiment), run_name=run_name)
            else:
                client.update_run(run.info.run_id, status="RUNNING")
                if "error" in run.data.tags:
                    client.delete_tag(run.info.run_id, "error")
            new = {key: value for key, value in params.items() if key not in run.data.params}
            try:
                describe_run(client, run.info.run_id, params=new, tags=run_tags() | dict(tags or {}))
            except BaseException as error:
                # Nobody else knows of the run yet, so nobody else would ever end it.
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                client.set_terminated(run.info.run_id, "KILLED" if stopped else "FAILED")
                raise
        tracker = cls(client, run.info.run_id, experiment_id=run.info.experiment_id)
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

        If MLflow does not answer, its records go nowhere, with a warning.
        """
        tags = {"mlflow.parentRunId": self.run_id, **(tags or {})}

        def find_or_create() -> Any:
            found = self._client.search_runs(
                [self._experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{self.run_id}'"
            )
            known = next((run for run in found if run.info.run_name == run_name), None)
            if known is not None and "error" in known.data.tags:
                self._client.delete_tag(known.info.run_id, "error")
            return known or self._client.create_run(self._experiment_id, tags=tags, run_name=run_name)

        run = self._try("create a child run", find_or_create)
        run_id = run.info.run_id if run else ""
        tracker = Tracker(self._client, run_id, experiment_id=self._experiment_id)
        tracker._try(
            "log parameters", lambda: describe_run(self._client, run_id, params=params or {}, tags={})
        )
        return tracker

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
        if status == "KILLED":
            self._terminate(status)
        self.flush()
        if self.run_id and self._queue:
            logger.warning("%d metrics never reached MLflow at %s.", len(self._queue), self.tracking_uri)
        if self._monitor is not None:
            self._try("stop the system figures", self._monitor.finish)
        if status != "KILLED":
            self._terminate(status)

    def _terminate(self, status: Status) -> None:
        self._try("end the run", lambda: self._client.set_terminated(self.run_id, status=status))

    def mark(self, status: Status, *, reason: str = "") -> None:
        """Decide the final status, as after a signal or with failed classes; the reason becomes a tag."""
        self._status = status
        if reason:
            self.set_tags({"error": reason})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log numbers; sent about once a second, in batches."""
        self.log_history((key, value, step) for key, value in metrics.items())

    def log_history(self, points: Iterable[tuple[str, float, int]]) -> None:
        """Log many (name, value, step) at once."""
        self._queue.add(points)

    def flush(self) -> None:
        """Send the metrics that wait; on failure they stay, and the next try comes in half a minute."""
        self._queue.flush()

    def _send(self, batch: Sequence[Point]) -> bool:
        def send() -> bool:
            from mlflow.entities import Metric

            metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in batch]
            self._client.log_batch(self.run_id, metrics=metrics)
            return True

        return bool(self._try("log metrics", send))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a name that starts with "mlflow." has a meaning in the user interface."""
        self._try("set tags", lambda: describe_run(self._client, self.run_id, params={}, tags=tags))

    def set_note(self, markdown: str) -> None:
        """Set the summary at the top of the run's page."""
        note = without_secrets(markdown)
        self._try("set the note", lambda: self._client.set_tag(self.run_id, "mlflow.note.content", note))

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

        def log() -> None:
            about = {"context": context, "source": source, "fingerprint": fingerprint}
            self._client.log_inputs(self.run_id, [dataset_input(name, images, labels, **about)])

        self._try("log the dataset", log)

    def log_artifacts(self, directory: Path, *, path: str | None = None) -> None:
        """Upload a directory's files, into the artifact folder `path`."""
        self._try("log artifacts", lambda: self._client.log_artifacts(self.run_id, str(directory), path))

    def log_dict(self, value: dict[str, Any], file: str) -> None:
        """Store a JSON-compatible value as an artifact, YAML or JSON by the file's ending."""
        told = json.loads(without_secrets(json.dumps(value)))
        self._try(f"log {file}", lambda: self._client.log_dict(self.run_id, told, file))

    def log_figure(self, figure: "Figure", file: str) -> None:
        """Store a matplotlib figure as an artifact."""
        self._try(f"log {file}", lambda: self._client.log_figure(self.run_id, figure, file))

    def log_text(self, text: str, file: str) -> None:
        """Store text as an artifact."""
        self._try(f"log {file}", lambda: self._client.log_text(self.run_id, without_secrets(text), file))

    def _start_monitor(self, *, resumed: bool) -> None:
        def start() -> Any:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor = SystemMetricsMonitor(
                self.run_id, resume_logging=resumed, tracking_uri=self.tracking_uri
            )
            monitor.start()
            return monitor

        self._monitor = self._try("sample system figures", start)

    def _try(self, what: str, action: Callable[[], Any]) -> Any:
        """Value of an MLflow call, or None and one warning for each spell of trouble."""
        if not self.run_id:
            return None
        try:
            value = action()
        # Everything: artifact stores raise what their clients raise, and none of it may end a distillation.
        except Exception as error:
            if not self._troubled:
                text = " ".join(str(error).split())[:300]
                logger.warning(
                    "MLflow at %s could not %s: %s. The work goes on.", self.tracking_uri, what, text
                )
            self._troubled = True
            return None
        self._troubled = False
        return value


def _differs(known: Mapping[str, str], params: Mapping[str, object]) -> bool:
    """Whether a run was started with other values of what may change its results."""
    return any(
        key in known and known[key] != as_value(value)
        for key, value in params.items()
        if not key.startswith("cluster.")
    )
