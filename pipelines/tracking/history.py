"""What a continued run already holds, so that a rerun records every point once."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pipelines.tracking.sender import Point

if TYPE_CHECKING:
    from mlflow import MlflowClient


class History:
    """The points of a run at the time it was opened, asked for metric by metric.

    Args:
        client: of MLflow.
        run_id: the run.
        names: metrics that it has; none for a new run, of which nothing is asked then.
    """

    def __init__(self, client: "MlflowClient", run_id: str, names: Iterable[str] = ()) -> None:
        self._client = client
        self._run_id = run_id
        self._unasked = set(names)
        self._points: dict[str, set[tuple[int, str]]] = {}

    def new(self, points: Sequence[Point]) -> list[Point]:
        """Those that the run does not hold with this step and value."""
        for name in self._unasked & {point.key for point in points}:
            found = self._client.get_metric_history(self._run_id, name)
            # As text, since NaN equals nothing.
            self._points[name] = {(metric.step, repr(float(metric.value))) for metric in found}
            self._unasked.remove(name)
        return [p for p in points if (p.step, repr(p.value)) not in self._points.get(p.key, ())]
