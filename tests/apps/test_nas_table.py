"""The table of results: what is written is what is read, seldom written, never half read."""

import io
import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apps.nas.table import WRITE_EVERY_S, Row, Table, from_parquet, to_parquet
from apps.nas.trial import Score, Unit
from atom.errors import StoreError

SCORE = Score(61.25, test_accuracy=60.5, steps=30, train_seconds=1.5, score_seconds=0.25)


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class File:
    """Takes what a table writes."""

    def __init__(self):
        self.contents: list[bytes] = []

    def __call__(self, content):
        self.contents.append(content)

    @property
    def rows(self):
        return from_parquet(self.contents[-1], where="here")


def row(network="a", proxy="atom", seed=0, key="k", score=1.0):
    return Row.of(Unit(network, proxy, seed), replace(SCORE, score=score), key=key)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def file():
    return File()


@pytest.fixture
def table(file, clock):
    return Table(file, clock=clock)


def test_rows_survive_the_file():
    rows = [
        Row.of(Unit("a", "atom", 0), SCORE, key="k1"),
        Row.of(Unit("b", "synflow", 1), Score(-math.inf), key="k2"),
        Row.of(Unit("c", "atom", 2), Score(0.1 + 0.2, train_seconds=1e-9), key="k3"),
        Row.failure(Unit('ü, "d"', "whole", 3), "ConfigError: it's\tbroken", key=""),
    ]
    assert from_parquet(to_parquet(rows), where="here") == rows


def test_an_empty_table_survives_the_file():
    assert from_parquet(to_parquet([]), where="here") == []


def test_columns_have_a_type_even_where_all_is_missing():
    schema = pq.read_schema(io.BytesIO(to_parquet([Row.failure(Unit("a", "atom", 0), "why", key="k")])))
    assert schema.field("score").type == schema.field("test_accuracy").type == pa.float64()
    assert schema.field("seed").type == pa.int64()


def test_a_row_knows_its_unit_and_score():
    made = Row.of(Unit("a", "atom", 4), SCORE, key="k")
    assert made.unit == Unit("a", "atom", 4)
    assert (made.status, made.reason, made.key) == ("done", "", "k")
    assert (made.score, made.test_accuracy, made.steps) == (61.25, 60.5, 30)
    assert (made.train_seconds, made.score_seconds) == (1.5, 0.25)


def test_a_failure_has_a_reason_and_no_score():
    made = Row.failure(Unit("a", "atom", 4), "NotFiniteError: NaN", key="k")
    assert made.unit == Unit("a", "atom", 4)
    assert (made.status, made.score, made.test_accuracy) == ("failed", None, None)
    assert made.reason == "NotFiniteError: NaN"


def test_the_first_row_is_written_at_once_and_the_next_ones_wait(table, file, clock):
    table.append(row(seed=0))
    assert len(file.contents) == 1
    for seed in (1, 2, 3):
        table.append(row(seed=seed))
    assert len(file.contents) == 1
    clock.now_s += WRITE_EVERY_S
    table.tick()
    assert len(file.contents) == 2
    assert file.rows == table.rows


def test_at_most_one_file_a_second_is_written_however_fast_rows_come(table, file, clock):
    for seed in range(100):
        table.append(row(seed=seed))
        clock.now_s += 0.125
    assert len(file.contents) == 13  # 12.5 seconds, and the first at once


def test_nothing_new_writes_nothing(table, file, clock):
    table.tick()
    table.flush()
    assert file.contents == []
    table.append(row())
    clock.now_s += 10
    table.tick()
    table.flush()
    assert len(file.contents) == 1


def test_a_flush_writes_what_waits(table, file):
    table.append(row(seed=0))
    table.append(row(seed=1))
    table.flush()
    assert len(file.contents) == 2
    assert file.rows == table.rows


def test_the_time_of_a_slow_writing_counts_from_its_end(clock):
    written_s = []

    def write(_content):
        written_s.append(clock.now_s)
        clock.now_s += 5

    table = Table(write, clock=clock)
    table.append(row(seed=0))
    table.append(row(seed=1))
    assert len(written_s) == 1


def test_a_writing_that_fails_is_tried_again(clock):
    full = [True]

    def write(_content):
        if full[0]:
            raise StoreError("the disk is full")

    table = Table(write, clock=clock)
    with pytest.raises(StoreError, match="full"):
        table.append(row())
    full[0] = False
    table.flush()
    assert table.rows == [row()]


def test_a_row_of_the_same_unit_and_key_replaces_the_older_one(table):
    table.append(Row.failure(Unit("a", "atom", 0), "lost", key="k"))
    table.append(row(score=5.0))
    assert table.rows == [row(score=5.0)]


def test_a_row_of_another_key_stays_beside_the_older_one(table):
    table.append(row(key="new", score=5.0))
    table.append(row(key="old", score=7.0))
    assert [each.key for each in table.rows] == ["new", "old"]


def test_rows_come_sorted_whatever_the_order_they_were_found_in(table):
    asked = [("b", "atom", 0), ("a", "whole", 1), ("a", "whole", 0), ("a", "atom", 10), ("a", "atom", 9)]
    for network, proxy, seed in asked:
        table.append(row(network, proxy, seed))
    assert [(r.network, r.proxy, r.seed) for r in table.rows] == sorted(asked)


def test_what_is_known_already_is_kept_and_not_written_again(file, clock):
    known = [row(seed=0), row(seed=1)]
    table = Table(file, rows=known, clock=clock)
    table.flush()
    assert file.contents == []
    table.append(row(seed=2))
    assert file.rows == [*known, row(seed=2)]


def test_rows_are_selected_by_unit_and_key_in_the_order_asked_for(table):
    for seed in range(4):
        table.append(row(seed=seed, key=f"k{seed}"))
    units = [Unit("a", "atom", seed) for seed in (3, 0, 2, 9)]
    keys = dict(zip(units, ("k3", "k0", "another", "k9"), strict=True))
    assert list(table.select(keys)) == units[:2]
    assert [each.seed for each in table.select(keys).values()] == [3, 0]


GOOD = to_parquet([row(seed=seed) for seed in range(50)])


def parquet(**columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a table at all",
        GOOD[:-20],
        GOOD[: len(GOOD) // 2],
        b"PAR1" + bytes(100) + b"PAR1",
        parquet(network=["a"], accuracy=[50.0]),
        parquet(**{name: [1] for name in (*Row.__dataclass_fields__, "extra")}),
    ],
    ids=["empty", "text", "cut", "half", "zeros", "columns", "more columns"],
)
def test_a_damaged_table_is_one_sentence(content):
    said = r"^out/results\.parquet is not a table of results \(.*\); delete it to begin anew, or pass another"
    with pytest.raises(StoreError, match=said) as caught:
        from_parquet(content, where="out/results.parquet")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
