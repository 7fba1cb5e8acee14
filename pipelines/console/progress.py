"""How far a command is: a live line on a terminal, plain flushed lines in a job's log; and tables."""

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_LINE_EVERY_S = 5.0
_WINDOW_S = 30.0
_LEAST_S = 2.0
"""What is shorter is no measurement."""


class Rate:
    """Speed over the last half minute, and the time left at that speed.

    Nothing is said until as much time was measured as the first sign of progress took: starting workers is no speed,
    and of units that are done side by side the first ones come together.

    Args:
        total: the work in all.
        done: work done before the start, which says nothing about the speed.
        clock: seconds, monotonic.
        window_s: how far back the speed looks.

    Example:
        >>> now_s = iter([0.0, 10.0, 20.0])
        >>> rate = Rate(100, clock=lambda: next(now_s))
        >>> rate.update(20)
        >>> rate.per_second
        >>> rate.update(40)
        >>> rate.per_second, rate.left_s
        (2.0, 30.0)
    """

    def __init__(
        self,
        total: float,
        *,
        done: float = 0,
        clock: Callable[[], float] = time.monotonic,
        window_s: float = _WINDOW_S,
    ) -> None:
        self.total = total
        self.done = done
        self._clock = clock
        self._window_s = window_s
        self._begun_s = clock()
        self._measured_s = _LEAST_S
        self._points: deque[tuple[float, float]] = deque()

    def update(self, done: float) -> None:
        """Set the work done so far. Going back, as after a lost worker, starts the measurement anew."""
        now_s = self._clock()
        if done < self.done:
            self._begun_s = now_s
            self._points.clear()
        elif done > self.done and not self._points:
            self._measured_s = max(_LEAST_S, now_s - self._begun_s)
            self._points.append((now_s, done))
        elif self._points:
            self._points.append((now_s, done))
        self.done = done
        # The oldest point kept is the last one outside the window, so that the window is covered.
        window_s = max(self._window_s, 2 * self._measured_s)
        while len(self._points) > 2 and now_s - self._points[1][0] >= window_s:
            self._points.popleft()

    @property
    def per_second(self) -> float | None:
        """Work a second, or None before anything is known."""
        if not self._points:
            return None
        (first_s, first), (last_s, last) = self._points[0], self._points[-1]
        measured = last > first and last_s - first_s >= self._measured_s
        return (last - first) / (last_s - first_s) if measured else None

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at the present speed, or None if that is unknown."""
        speed = self.per_second
        return None if speed is None else max(0.0, self.total - self.done) / speed


def format_duration(seconds: float | None) -> str:
    """Two units at most, such as "1 h 03 min", "4 min 05 s", "7 s"; "?" for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Progress of one command, a context manager.

    Args:
        label: what is going on, such as "distilling".
        total: the work in all, in `unit`.
        num_items: how many items there are, such as classes.
        unit: name of a piece of work, plural.
        item: name of an item, plural; where it is the unit itself, it is shown once.
        done: work done by an earlier run.
        stream: where to write; a live display if it is a terminal.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        label: str,
        total: float,
        *,
        num_items: int,
        unit: str = "iterations",
        item: str = "classes",
        done: float = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._num_items, self._unit, self._item = label, num_items, unit, item
        self._stream = stream or sys.stdout
        self._clock = clock
        self._rate = Rate(total, done=done, clock=clock)
        self._items_done = 0
        self._loss: float | None = None
        self._line_s = clock()
        self._written: tuple[object, ...] | None = None
        self._live: RichProgress | None = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            self._live = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                console=Console(file=self._stream),
                transient=True,
            )
            self._task = self._live.add_task(self.line(), total=self._rate.total)
            self._live.update(self._task, completed=self._rate.done)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._state != self._written:
            self._write_line()

    def line(self) -> str:
        """The state in one line: items done, work done, speed, loss, time left."""
        rate = self._rate
        parts = [f"{rate.done:.0f}/{rate.total:.0f} {self._unit}"]
        if self._item != self._unit:
            parts.insert(0, f"{self._items_done}/{self._num_items} {self._item}")
        if rate.per_second is not None:
            parts.append(f"{rate.per_second:.3g}/s")
        if rate.left_s is not None and rate.done < rate.total:
            parts.append(f"{format_duration(rate.left_s)} left")
        # Last, since a narrow terminal cuts the end off.
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4g}")
        return f"{self._label}: {', '.join(parts)}"

    def update(self, done: float, *, items_done: int, loss: float | None = None) -> None:
        """Show the work done so far; a loss of None leaves the last one."""
        # Where an item is a unit, a line for each would flood a log.
        changed = items_done != self._items_done and self._item != self._unit
        self._items_done = items_done
        self._loss = self._loss if loss is None else loss
        self._rate.update(done)
        if self._live is not None:
            self._live.update(self._task, completed=done, description=self.line())
        elif changed or self._clock() - self._line_s >= _LINE_EVERY_S:
            self._write_line()

    def say(self, text: str) -> None:
        """Print a line without disturbing the display."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            self._write(text)

    @property
    def _state(self) -> tuple[object, ...]:
        # Without the speed: it changes with the clock, and would print the end twice.
        return self._items_done, self._rate.done, self._loss

    def _write_line(self) -> None:
        self._line_s, self._written = self._clock(), self._state
        self._write(self.line())

    def _write(self, text: str) -> None:
        # A job's log is a pipe: without the flush lines would arrive minutes late.
        print(text, file=self._stream, flush=True)


def format_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned plain text: first column left, the others right; ends without a newline."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def aligned(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([title, aligned(cells[0]), rule, *map(aligned, cells[1:])])


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, stream: TextIO | None = None
) -> None:
    """Print a table: drawn on a terminal, aligned plain text elsewhere."""
    stream = stream or sys.stdout
    if not stream.isatty():
        print(format_table(title, columns, rows), file=stream, flush=True)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for place, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console = Console(file=stream)
    # Not as the table's own title, which is folded to the table's width.
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
