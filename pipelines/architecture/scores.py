"""The scores of a search, by unit."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean

from apps.nas.findings import Fit
from apps.nas.table import Row
from apps.nas.trial import Unit


@dataclass
class Scores:
    """Scores of a run.

    Attributes:
        rows: by unit, done and failed.
        stopped: whether a signal ended it.
        wall_seconds, unit_seconds: of this driver: from start to end, and summed over workers in units.
        fit: of the proxy "fitted", where there is one and it could be fitted.
    """

    rows: dict[Unit, Row] = field(default_factory=dict)
    stopped: bool = False
    wall_seconds: float = 0.0
    unit_seconds: float = 0.0
    fit: Fit | None = None

    def of(self, proxy: str) -> list[Row]:
        """The rows of a proxy that have a score."""
        return [row for unit, row in self.rows.items() if unit.proxy == proxy and row.status == "done"]

    @property
    def failed(self) -> list[Row]:
        """The rows without a score."""
        return [row for row in self.rows.values() if row.status == "failed"]

    @property
    def row_seconds(self) -> float:
        """Of trainings and scores in all rows, of all drivers."""
        return sum(row.train_seconds + row.score_seconds for row in self.rows.values())

    def means(self, proxy: str) -> dict[str, float]:
        """Mean score by network."""
        scores: dict[str, list[float]] = {}
        for row in self.of(proxy):
            scores.setdefault(row.network, []).append(float(row.score or 0.0))
        return {network: fmean(values) for network, values in scores.items()}

    def complete(self, proxy: str, networks: Iterable[str]) -> dict[str, tuple[float, ...]]:
        """Scores of the seeds by network, in the order of `networks`; one of which a seed failed has none."""
        failed = {row.network for row in self.failed if row.proxy == proxy}
        found: dict[str, list[float]] = {}
        for row in sorted(self.of(proxy), key=lambda row: row.seed):
            if row.network not in failed and row.score is not None:
                found.setdefault(row.network, []).append(row.score)
        return {network: tuple(found[network]) for network in networks if network in found}
