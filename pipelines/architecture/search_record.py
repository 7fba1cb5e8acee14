"""What a search has come to so far, in the table of results: the curve of every network that was tried."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apps.nas.early import Report
from apps.nas.table import WRITE_EVERY_S, Row
from apps.nas.trial import Score, Unit
from pipelines.architecture.proxies import keys_of
from pipelines.output.ownership import settings_hash

if TYPE_CHECKING:
    from pipelines.architecture.case import NasCase

RECORD = "search.json"
"""The networks in the order they were tried, and after the end what came of the search."""


class SearchRecord:
    """The curves of the networks tried, in the order they ended, of this run and of earlier ones.

    A row holds the score after some epochs and has a key of its own; a network's last row is what it came to. As
    the rows of one network are added from its last to its first, a file written in between lacks only early ones.

    Args:
        case: whose table and store are used.
        report_at: the epochs after which a network is looked at, up to the last.
    """

    def __init__(self, case: "NasCase", report_at: Sequence[int]) -> None:
        self._case = case
        self.report_at = tuple(report_at)
        self.proxy = search_name(case.primary.name)
        self.curves: dict[str, tuple[Report, ...]] = {}
        self.reasons: dict[str, str] = {}
        units = [Unit(name, case.primary.name, 0) for name in case.space.names]
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
            self._case.store.write_json(RECORD, {"order": [*self.curves, *self.failed]})
            self._written_s, self._dirty = time.monotonic(), False

    def _unit(self, network: str) -> Unit:
        return Unit(network, self.proxy, 0)

    def _key(self, network: str, epochs: int) -> str:
        return settings_hash({"unit": self._keys[network], "search": epochs})

    def _row(self, network: str, report: Report) -> Row:
        return Row.of(self._unit(network), report.score, key=self._key(network, report.epochs))

    def _in_order(self) -> list[str]:
        """The networks of the space, those first whose order an earlier run left."""
        listed: Any = []
        if self._case.store.exists(RECORD):
            try:
                listed = json.loads(self._case.store.read_bytes(RECORD))["order"]
            except (ValueError, KeyError, TypeError):
                listed = []  # only the order in the report depends on it
        return list(dict.fromkeys([*(name for name in listed if name in self._keys), *self._keys]))

    def _recall(self, network: str, rows: Mapping[str, Row]) -> None:
        """Take over what the table has; the epochs looked at may have been others then."""
        found = (
            (epochs, rows.get(self._key(network, epochs))) for epochs in range(1, self.report_at[-1] + 1)
        )
        reports = [Report(epochs, _score_of(row)) for epochs, row in found if row is not None]
        failure = rows.get(self._key(network, 0))
        if reports:
            self.curves[network] = tuple(reports)
        elif failure is not None:
            self.reasons[network] = failure.reason


def search_name(proxy: str) -> str:
    """Name of the rows of a search by that proxy; they are no scores to rank by."""
    return f"{proxy}@search"


def _score_of(row: Row) -> Score:
    return Score(float(row.score or 0.0), row.test_accuracy, row.steps, row.train_seconds, row.score_seconds)
