"""The table of results: one row a network, proxy and seed. It is the truth that a search resumes from."""

import io
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields

import pyarrow as pa
import pyarrow.parquet as pq

from apps.nas.trial import Score, Unit
from atom.errors import StoreError

_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "float | None": pa.float64()}
WRITE_EVERY_S = 1.0
"""Seconds between two writings, more for a large table; a kill loses the rows since the last, which are found again."""


@dataclass(frozen=True)
class Row:
    """One unit's result.

    Attributes:
        network, proxy, seed: the unit.
        status: "done" or "failed".
        score, test_accuracy, steps, train_seconds, score_seconds: see `apps.nas.trial.Score`.
        reason: why it failed, in one line.
        key: digest of all that decides the score; a row with another key is another question's answer.
    """

    network: str
    proxy: str
    seed: int
    status: str
    score: float | None
    test_accuracy: float | None
    steps: int
    train_seconds: float
    score_seconds: float
    reason: str
    key: str

    @property
    def unit(self) -> Unit:
        """Whose result this is."""
        return Unit(self.network, self.proxy, self.seed)

    @classmethod
    def of(cls, unit: Unit, score: Score, *, key: str) -> "Row":
        """A row of a score found."""
        return cls(unit.network, unit.proxy, unit.seed, "done", **asdict(score), reason="", key=key)

    @classmethod
    def failure(cls, unit: Unit, reason: str, *, key: str) -> "Row":
        """A row of a unit that failed."""
        return cls(unit.network, unit.proxy, unit.seed, "failed", None, None, 0, 0.0, 0.0, reason, key)


class Table:
    """Rows by unit and key, written whole and atomically at most once a second.

    Args:
        write: takes the bytes of the parquet file and replaces the old one whole or not at all.
        rows: what is known already.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        *,
        rows: Iterable[Row] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._clock = clock
        self._rows: dict[tuple[Unit, str], Row] = {(row.unit, row.key): row for row in rows}
        self._written_s = -WRITE_EVERY_S
        self._wait_s = WRITE_EVERY_S
        self._dirty = False

    @property
    def rows(self) -> list[Row]:
        """All rows, sorted by network, proxy, seed and key."""
        return sorted(self._rows.values(), key=lambda row: (row.network, row.proxy, row.seed, row.key))

    def append(self, row: Row) -> None:
        """Add a row, or replace that of the same unit and key; written now, or within `WRITE_EVERY_S` by `tick`."""
        self._rows[row.unit, row.key] = row
        self._dirty = True
        self.tick()

    def tick(self) -> None:
        """Write what waits, if the last writing is long enough ago."""
        if self._dirty and self._clock() - self._written_s >= self._wait_s:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._dirty:
            begun_s = self._clock()
            self._write(to_parquet(self.rows))
            self._written_s, self._dirty = self._clock(), False
            # A table of thousands of rows takes a second to write: at most a twentieth of the time goes there.
            self._wait_s = max(WRITE_EVERY_S, 20 * (self._written_s - begun_s))

    def select(self, keys: Mapping[Unit, str]) -> dict[Unit, Row]:
        """The rows of these units with these keys, in the order of the units."""
        return {unit: self._rows[unit, key] for unit, key in keys.items() if (unit, key) in self._rows}


def to_parquet(rows: Iterable[Row]) -> bytes:
    """A parquet file with one column a field of `Row`."""
    listed = list(rows)
    schema = pa.schema([(field.name, _TYPES[str(_name(field.type))]) for field in fields(Row)])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in listed], schema=schema), buffer)
    return buffer.getvalue()


def from_parquet(content: bytes, *, where: str) -> list[Row]:
    """The rows of a file of `to_parquet`.

    Raises:
        StoreError: it is damaged, or another table.
    """
    try:
        listed = pq.read_table(io.BytesIO(content)).to_pylist()
        return [Row(**row) for row in listed]
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
        raise StoreError(
            f"{where} is not a table of results ({problem}); delete it to begin anew, or pass another --output."
        ) from error


def _name(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
