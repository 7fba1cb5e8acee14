"""What a stage of a search has come to so far, in the table of results: the curve of every network that was tried."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apps.nas.early import Report, report_epochs, rungs_passed
from apps.nas.proxies import Proxy
from apps.nas.table import WRITE_EVERY_S, Row
from apps.nas.trial import Score, Unit
from pipelines.architecture.proxies import keys_of
from pipelines.output.ownership import settings_hash

if TYPE_CHECKING:
    from pipelines.architecture.case import NasCase

RECORD = "search.json"
"""The networks of each stage in the order they were tried, and after the end what came of the search."""


class SearchRecord:
    """The curves of the networks tried, in the order they ended, of this run and of earlier ones.

    A row holds the score after some epochs and has a key of its own; a network's last row is what it came to. As
    the rows of one network are added from its last to its first, a file written in between lacks only early ones.

    Args:
        case: whose table and store are used.
        proxy: what the networks are trained on.
        rungs: the epochs after which they are halved, up to the last.
    """

    def __init__(self, case: "NasCase", proxy: Proxy, rungs: Sequence[int]) -> None:
        self._case = case
        self.rungs = tuple(rungs)
        self.source = proxy
        self.proxy = search_name(proxy.name)
        self.curves: dict[str, tuple[Report, ...]] = {}
        self.reasons: dict[str, str] = {}
        units = [Unit(name, proxy.name, 0) for name in case.space.names]
        keys = keys_of(units, case.material, case.space, case.recipe, case.device_kind)
        self._keys = {unit.network: key for unit, key in keys.items()}
        self._written_s = -WRITE_EVERY_S
        self._dirty = False
        kept: dict[str, dict[str, Row]] = {}
        for row in case.table.rows:
            if row.proxy == self.proxy:
                kept.setdefault(row.network, {})[row.key] = row
        for network in self._in_order():
            if network in kept:
                self._recall(network, kept[network])

    @property
    def failed(self) -> list[str]:
        """Networks that failed and have not been tried since."""
        return [network for network in self.reasons if network not in self.curves]

    @property
    def finished(self) -> dict[str, float]:
        """Scores of the networks that were trained to the end, in the order they ended."""
        return {
            network: reports[-1].score.score
            for network, reports in self.curves.items()
            if reports[-1].epochs == self.rungs[-1]
        }

    @property
    def seconds(self) -> float:
        """Of trainings and looks, of all drivers, in the networks that came to an end."""
        scores = [reports[-1].score for reports in self.curves.values()]
        return sum(score.train_seconds + score.score_seconds for score in scores)

    def scores_at(self, rung: int) -> dict[str, float]:
        """Scores at the rung of so many epochs, of the networks that reached it."""
        return {
            network: report.score.score
            for network, reports in self.curves.items()
            for report in reports
            if report.epochs == rung
        }

    def passed(self, network: str) -> int:
        """How many rungs a network has reached."""
        return rungs_passed(self.curves[network][-1].epochs, self.rungs) if network in self.curves else 0

    def keep(self, network: str, reports: Sequence[Report]) -> None:
        """A network was trained to its end, or stopped."""
        self.curves[network] = tuple(reports)
        self.reasons.pop(network, None)
        for report in reversed(reports):
            self._case.table.append(self._row(network, report))
        self._dirty = True

    def fail(self, network: str, reason: str) -> None:
        """A network came to nothing."""
        self.reasons[network] = reason
        self._case.table.append(Row.failure(self._unit(network), reason, key=self._key(network, 0)))
        self._dirty = True

    def rows(self) -> dict[Unit, Row]:
        """What every network came to, in the order they ended."""
        rows = {
            self._unit(network): self._row(network, reports[-1]) for network, reports in self.curves.items()
        }
        for network in self.failed:
            unit = self._unit(network)
            rows[unit] = Row.failure(unit, self.reasons[network], key=self._key(network, 0))
        return rows

    def tick(self) -> None:
        """Write what waits, if the last writing is long enough ago."""
        self._case.table.tick()
        if self._dirty and time.monotonic() - self._written_s >= WRITE_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        self._case.table.flush()
        if self._dirty:
            order = {**self._orders(), self.proxy: [*self.curves, *self.failed]}
            self._case.store.write_json(RECORD, {"order": order})
            self._written_s, self._dirty = time.monotonic(), False

    def _unit(self, network: str) -> Unit:
        return Unit(network, self.proxy, 0)

    def _key(self, network: str, epochs: int) -> str:
        return settings_hash({"unit": self._keys[network], "search": epochs})

    def _row(self, network: str, report: Report) -> Row:
        return Row.of(self._unit(network), report.score, key=self._key(network, report.epochs))

    def _in_order(self) -> list[str]:
        """The networks of the space, those first whose order an earlier run left."""
        listed: Any = self._orders().get(self.proxy)
        kept = [name for name in listed if name in self._keys] if isinstance(listed, list) else []
        return list(dict.fromkeys([*kept, *self._keys]))

    def _orders(self) -> dict[str, Any]:
        if not self._case.store.exists(RECORD):
            return {}
        try:
            found = json.loads(self._case.store.read_bytes(RECORD))["order"]
        except (ValueError, KeyError, TypeError):
            return {}  # the scores are in the table, and begin in its order
        return found if isinstance(found, dict) else {}

    def _recall(self, network: str, rows: Mapping[str, Row]) -> None:
        """Take over what the table has."""
        report_at = report_epochs(self.rungs)
        found = ((epochs, rows.get(self._key(network, epochs))) for epochs in report_at)
        reports = [Report(epochs, _score_of(row)) for epochs, row in found if row is not None]
        failure = rows.get(self._key(network, 0))
        # One that was stopped at a rung of another ladder has to be trained again.
        if reports and reports[-1].epochs in self.rungs:
            self.curves[network] = tuple(reports)
        elif failure is not None:
            self.reasons[network] = failure.reason


def search_name(proxy: str) -> str:
    """Name of the rows of a search by that proxy; they are no scores to rank by."""
    return f"{proxy}@search"


def _score_of(row: Row) -> Score:
    return Score(float(row.score or 0.0), row.test_accuracy, row.steps, row.train_seconds, row.score_seconds)
