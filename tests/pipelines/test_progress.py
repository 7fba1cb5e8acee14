import io

import pytest

from pipelines.console.progress import Progress, Rate, format_duration, format_table, print_table


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_work_of_an_earlier_run_does_not_count_as_speed() -> None:
    clock = Clock()
    rate = Rate(120, done=60, clock=clock)
    for done in (60, 80):
        assert rate.per_second is None
        assert rate.left_s is None
        clock.now_s += 5
        rate.update(done)
    clock.now_s += 10
    rate.update(100)
    assert rate.per_second == 2
    assert rate.left_s == 10


def test_start_of_the_workers_is_no_speed() -> None:
    clock = Clock()
    rate = Rate(1000, clock=clock)
    said = []
    for second in range(1, 121):
        clock.now_s += 1
        rate.update(max(0, second - 50))
        said.append(rate.left_s)
    assert said[:100] == [None] * 100
    assert said[-1] == pytest.approx(1000 - 70)


def test_units_that_end_side_by_side_do_not_promise_an_early_end() -> None:
    clock = Clock()
    rate = Rate(32, clock=clock)
    said = []
    for batch in range(1, 4):
        clock.now_s += 57
        for unit in range(1, 5):
            clock.now_s += 1
            rate.update(4 * (batch - 1) + unit)
            said.append(rate.left_s)
    assert said[:4] == [None] * 4
    for done, seconds in enumerate(said[4:], start=5):
        assert 0.5 < (seconds or 0) / ((32 - done) / 4 * 61) < 2


def test_rare_units_are_not_timed_by_the_last_half_minute() -> None:
    clock = Clock()
    rate = Rate(10, clock=clock)
    for second in range(1, 1501):
        clock.now_s += 1
        rate.update(second // 300)
    assert rate.left_s == pytest.approx(5 * 300)


def test_speed_forgets_what_is_older_than_the_window() -> None:
    clock = Clock()
    rate = Rate(1000, clock=clock, window_s=30)
    for _ in range(100):
        clock.now_s += 1
        rate.update(rate.done + 1)
    for _ in range(40):
        clock.now_s += 1
        rate.update(rate.done + 5)
    assert rate.per_second == pytest.approx(5)


def test_lost_work_starts_the_measurement_anew() -> None:
    clock = Clock()
    rate = Rate(100, clock=clock)
    clock.now_s += 10
    rate.update(50)
    clock.now_s += 10
    rate.update(20)
    assert rate.per_second is None
    clock.now_s += 10
    rate.update(40)
    assert rate.per_second is None
    clock.now_s += 10
    rate.update(60)
    assert rate.per_second == 2


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
    table = format_table("Accuracy", ["set", "mean"], [["random", "14.2"], ["atom", 31]])
    assert table.splitlines() == [
        "Accuracy",
        "set     mean",
        "------  ----",
        "random  14.2",
        "atom      31",
    ]


def test_table_without_rows_is_its_head() -> None:
    assert format_table("Failed", ["class", "reason"], []).splitlines()[1] == "class  reason"


def test_table_on_a_terminal_shows_brackets_as_they_are() -> None:
    stream = Terminal()
    print_table("T", ["a", "b"], [["[red]x", 1]], stream=stream)
    assert "[red]x" in stream.getvalue()
