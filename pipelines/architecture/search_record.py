"""What a stage of a search has come to: the curve of every network that it tried, and what the table has of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from apps.nas.early import Report, report_epochs
from apps.nas.proxies import Proxy
from apps.nas.table import Row
from apps.nas.trial import Score, Unit
from pipelines.architecture.proxies import keys_of
from pipelines.output.ownership import settings_hash

if TYPE_CHECKING:
    from pipelines.architecture.case import NasCase

RECORD = "search.json"
"""What came of a search."""


class SearchRecord:
    """The networks that a stage tried, in the order in which they ended.

    The table is a cache: a curve that it has is told again instead of being trained again, and counts in every other
    way, for ASHA, for samplers and for the budget, as if it had been trained now. So a search depends on what it was
    asked for and not on what was searched before.

    Args:
        case: whose table is used. A row holds the score after some epochs and has a key of its own.
        proxy: what the networks are trained on.
        rungs: the epochs after which they are halved, up to the last.

    Attributes:
        curves: by network: the reports up to where it was stopped or ended.
        reasons: why a network came to nothing.
        lost_s: worker-seconds of networks that came to nothing, in this driver.
    """

    def __init__(self, case: "NasCase", proxy: Proxy, rungs: Sequence[int]) -> None:
        self._case = case
        self.rungs = tuple(rungs)
        self.source = proxy
        self.proxy = f"{proxy.name}@search"
        self.curves: dict[str, tuple[Report, ...]] = {}
        self.reasons: dict[str, str] = {}
        self.lost_s = 0.0
        units = [Unit(name, proxy.name, 0) for name in case.space.names]
        keys = keys_of(units, case.material, case.space, case.recipe, case.device_kind)
        self._keys = {unit.network: key for unit, key in keys.items()}
        self._cached = {(row.network, row.key): row for row in case.table.rows if row.proxy == self.proxy}

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
        """Of workers, in trainings and looks."""
        scores = [reports[-1].score for reports in self.curves.values()]
        return self.lost_s + sum(score.train_seconds + score.score_seconds for score in scores)

    def scores_at(self, rung: int) -> dict[str, float]:
        """Scores at the rung of so many epochs, of the networks that reached it."""
        return {
            network: report.score.score
            for network, reports in self.curves.items()
            for report in reports
            if report.epochs == rung
        }

    def known(self, network: str) -> tuple[Report, ...]:
        """The curve that the table has, from its first look on; empty where there is none, or a kill left a part."""
        found: list[Report] = []
        for epochs in report_epochs(self.rungs):
            row = self._cached.get((network, self._key(network, epochs)))
            if row is None:
                break
            found.append(Report(epochs, _score_of(row)))
        return tuple(found)

    def keep(self, network: str, reports: Sequence[Report]) -> None:
        """A network was trained to its end, or stopped."""
        self.curves[network] = tuple(reports)
        self.reasons.pop(network, None)
        if len(self.known(network)) < len(reports):
            for report in reports:
                self._append(Row.of(self._unit(network), report.score, key=self._key(network, report.epochs)))

    def fail(self, network: str, reason: str) -> None:
        """A network came to nothing."""
        self.reasons[network] = reason
        self._append(Row.failure(self._unit(network), reason, key=self._key(network, 0)))

    def _append(self, row: Row) -> None:
        self._case.table.append(row)
        self._cached[row.network, row.key] = row

    def _unit(self, network: str) -> Unit:
        return Unit(network, self.proxy, 0)

    def _key(self, network: str, epochs: int) -> str:
        return settings_hash({"unit": self._keys[network], "search": epochs})


def _score_of(row: Row) -> Score:
    return Score(float(row.score or 0.0), row.test_accuracy, row.steps, row.train_seconds, row.score_seconds)
