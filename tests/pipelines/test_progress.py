import io
import re

import pytest

from pipelines.console.progress import Progress, format_bytes, format_duration, format_table, print_table


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(total: float, clock: Clock, *, done: float = 0) -> Progress:
    return Progress(
        "work", total, num_items=1, unit="units", item="units", done=done, stream=io.StringIO(), clock=clock
    )


def test_work_of_an_earlier_run_does_not_count_as_speed() -> None:
    clock = Clock()
    progress = work(120, clock, done=60)
    for done in (60, 80):
        assert progress.line() == "work: 60/120 units"
        clock.now_s += 5
        progress.update(done, items_done=0)
    clock.now_s += 10
    progress.update(100, items_done=0)
    assert progress.line() == "work: 100/120 units, 2/s, 10 s left"


def test_start_of_the_workers_is_no_speed() -> None:
    clock = Clock()
    progress = work(1000, clock)
    said = []
    for second in range(1, 121):
        clock.now_s += 1
        progress.update(max(0, second - 50), items_done=0)
        said.append(progress.line())
    assert not any("left" in line for line in said[:100])
    assert said[-1] == "work: 70/1000 units, 1/s, 15 min 30 s left"


def test_units_that_end_side_by_side_do_not_promise_an_early_end() -> None:
    clock = Clock()
    progress = work(32, clock)
    said = []
    for batch in range(1, 4):
        clock.now_s += 57
        for unit in range(1, 5):
            clock.now_s += 1
            progress.update(4 * (batch - 1) + unit, items_done=0)
            said.append(re.search(r"(\S+)/s", progress.line()))
    assert said[:4] == [None] * 4
    for speed in said[4:]:
        assert speed is not None
        assert 0.5 < float(speed[1]) / (4 / 61) < 2


def test_rare_units_are_not_timed_by_the_last_half_minute() -> None:
    clock = Clock()
    progress = work(10, clock)
    for second in range(1, 1501):
        clock.now_s += 1
        progress.update(second // 300, items_done=0)
    assert progress.line() == "work: 5/10 units, 0.00333/s, 25 min 00 s left"


def test_speed_forgets_what_is_older_than_half_a_minute() -> None:
    clock = Clock()
    progress = work(1000, clock)
    for second in range(1, 141):
        clock.now_s += 1
        progress.update(second + 4 * max(0, second - 100), items_done=0)
    assert progress.line() == "work: 300/1000 units, 5/s, 2 min 20 s left"


def test_lost_work_starts_the_measurement_anew() -> None:
    clock = Clock()
    progress = work(100, clock)
    for done in (50, 20, 40):
        clock.now_s += 10
        progress.update(done, items_done=0)
        assert progress.line() == f"work: {done}/100 units"
    clock.now_s += 10
    progress.update(60, items_done=0)
    assert progress.line() == "work: 60/100 units, 2/s, 20 s left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0.2, "0 s"),
        (59.4, "59 s"),
        (245, "4 min 05 s"),
        (3780, "1 h 03 min"),
        (90000, "25 h 00 min"),
    ],
)
def test_durations_are_readable(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


def test_pipe_gets_a_line_at_changes_and_every_five_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("distilling", 100, num_items=2, stream=stream, clock=clock) as progress:
        for done in range(1, 12):
            clock.now_s += 1
            progress.update(done, items_done=0, loss=0.5)
        progress.update(50, items_done=1)
        progress.say("class 1: done")
        progress.update(100, items_done=2)
    assert stream.getvalue().splitlines() == [
        "distilling: 0/2 classes, 5/100 iterations, 1/s, 1 min 35 s left, loss 0.5",
        "distilling: 0/2 classes, 10/100 iterations, 1/s, 1 min 30 s left, loss 0.5",
        "distilling: 1/2 classes, 50/100 iterations, 4.9/s, 10 s left, loss 0.5",
        "class 1: done",
        "distilling: 2/2 classes, 100/100 iterations, 9.9/s, loss 0.5",
    ]


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(64, "0.064 kB"), (1_500, "1.5 kB"), (2_930_000, "2.93 MB"), (15.7e9, "15.7 GB")]
)
def test_bytes_are_readable_and_told_once_some_are_read(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text
    progress = work(10, Clock())
    assert "read" not in progress.line()
    progress.update(1, items_done=1, read_bytes=int(num_bytes))
    progress.update(2, items_done=2)
    assert f", {text} read" in progress.line()


def test_the_log_of_a_long_run_stays_short() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("distilling", 8640, num_items=1000, stream=stream, clock=clock) as progress:
        for done in range(8640):
            clock.now_s += 10
            progress.update(done, items_done=done // 9)
    lines = stream.getvalue().splitlines()
    assert 100 < len(lines) < 700
    assert lines[-1].startswith("distilling: 959/1000 classes")


def test_terminal_gets_a_live_display_and_a_last_line() -> None:
    stream = Terminal()
    with Progress("distilling", 10, num_items=1, stream=stream) as progress:
        progress.update(5, items_done=0, loss=1.25)
        progress.say("[not markup]")
        progress.update(10, items_done=1)
    text = stream.getvalue()
    assert "[not markup]" in text
    assert "\x1b[" in text
    assert "distilling: 1/1 classes, 10/10 iterations" in text.splitlines()[-1]


def test_plain_table_is_aligned() -> None:
    rows = [["random", "14.2", "8 x 8 images"], ["atom", 31, "a set"], ["whole", "", "all"]]
    table = format_table("Accuracy", ["set", "mean", "of"], [[*row[:2], f"of {row[2]}"] for row in rows])
    assert [line.rstrip() for line in table.splitlines()] == [
        "Accuracy",
        "set     mean  of",
        "------ ----- ----------------",
        "random  14.2  of 8 x 8 images",
        "atom      31  of a set",
        "whole         of all",
    ]


def test_table_without_rows_is_its_head() -> None:
    assert format_table("Failed", ["class", "reason"], []).splitlines()[1] == "class  reason"


def test_table_on_a_terminal_shows_brackets_as_they_are() -> None:
    stream = Terminal()
    print_table("T", ["a", "b"], [["[red]x", 1]], stream=stream)
    assert "[red]x" in stream.getvalue()


def test_log_gets_wide_tables_whole_and_no_colours_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    print_table("T" * 50, ["a", "b"], [["x" * 100, "[red]y"]], stream=stream)
    title, _, _, row = stream.getvalue().splitlines()
    assert (title, row) == ("T" * 50, f"{'x' * 100}  [red]y")


def test_what_is_under_way_is_named_until_the_end() -> None:
    clock = Clock()
    progress = work(4, clock)
    progress.update(1, items_done=1, doing=["a", "b", "c", "d"])
    assert progress.line() == "work: 1/4 units, at a, b and 2 more"
    progress.update(4, items_done=4, doing=["d"])
    assert progress.line() == "work: 4/4 units"
