"""How far a command is: a live line on a terminal, plain flushed lines in a job's log; and tables.

Rich is imported inside functions: `--help` does not wait for it.
"""

import io
import re
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_LINE_EVERY_S, _LINE_SHARE = 5.0, 0.01
"""A log gets a line so often, seconds, or after so large a share of the time so far: a run of a day has
some six hundred lines."""
_MANY_ITEMS = 100
"""Of more items than these, the end of each has no line of its own."""
_WINDOW_S = 30.0
"""How far back the speed looks, or twice as far as the first sign of progress took, if that is more."""
_NAMED = 2
"""So many of the items under way are named."""
_LEAST_S = 2.0
"""What is shorter is no measurement."""
_NUMBER = re.compile(r"[-−+±<>≥≤~[(]*\s?(\d|inf|nan|∞)")
_BLANK = ("", "–", "?")


def format_duration(seconds: float | None) -> str:
    """Two units at most, such as "1 h 03 min", "4 min 05 s", "7 s"; "?" for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(num_bytes: float) -> str:
    """Bytes for people, such as "3.1 GB"."""
    size, unit = next(
        (s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if num_bytes >= s or s == 1e3
    )
    return f"{num_bytes / size:.3g} {unit}"


class Progress:
    """Progress of one command, a context manager.

    Args:
        label: what is going on, such as "distilling".
        total: the work in all, in `unit`.
        num_items: how many items there are, such as classes.
        unit: name of a piece of work, plural.
        item: name of an item, plural; where it is the unit itself, it is shown once.
        done: work done by an earlier run, which says nothing about the speed.
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
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._label, self._num_items, self._unit, self._item = label, num_items, unit, item
        self._stream = stream or sys.stdout
        self._clock = clock
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            console=_console(self._stream),
            transient=True,
            disable=not self._stream.isatty(),
            get_time=clock,
            speed_estimate_period=_WINDOW_S,
        )
        self._bar.add_task("", total=total)
        (self._task,) = self._bar.tasks
        self._task.completed = done
        self._first_s: float | None = None
        self._items_done = 0
        self._loss: float | None = None
        self._read_bytes = 0
        self._doing: tuple[str, ...] = ()
        self._line_s = self._begun_s = clock()
        self._written: tuple[object, ...] | None = None

    def __enter__(self) -> "Progress":
        self._bar.update(self._task.id, description=self.line())
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._bar.disable:
            self._bar.stop()
        if self._state != self._written:
            self._write_line()

    def line(self) -> str:
        """The state in one line: items done, work done, speed, loss, time left."""
        done, total, speed = self._task.completed, self._task.total or 0, self._speed
        parts = [f"{done:.0f}/{total:.0f} {self._unit}"]
        if self._item != self._unit:
            parts.insert(0, f"{self._items_done}/{self._num_items} {self._item}")
        if speed is not None:
            parts.append(f"{speed:.3g}/s")
            if done < total:
                parts.append(f"{format_duration((total - done) / speed)} left")
        if self._read_bytes:
            parts.append(f"{format_bytes(self._read_bytes)} read")
        # Last, since a narrow terminal cuts the end off.
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4g}")
        if self._doing and done < total:
            more = f" and {len(self._doing) - _NAMED} more" if len(self._doing) > _NAMED else ""
            parts.append(f"at {', '.join(self._doing[:_NAMED])}{more}")
        return f"{self._label}: {', '.join(parts)}"

    def update(
        self,
        done: float,
        *,
        items_done: int,
        loss: float | None = None,
        read_bytes: int = 0,
        total: float | None = None,
        doing: Sequence[str] = (),
    ) -> None:
        """Show the work done so far, what of the images was read, and what is under way.

        A loss of None leaves the last one, and so do a total of None and no bytes.
        """
        self._doing = tuple(doing)
        if total is not None:
            self._bar.update(self._task.id, total=total)
        # Where an item is a unit, a line for each would flood a log.
        changed = (
            items_done != self._items_done and self._item != self._unit and self._num_items <= _MANY_ITEMS
        )
        self._items_done = items_done
        self._loss = self._loss if loss is None else loss
        self._read_bytes = read_bytes or self._read_bytes
        self._measure(done)
        if not self._bar.disable:
            self._bar.update(self._task.id, description=self.line())
        elif changed or self._clock() - self._line_s >= self._pause_s:
            self._write_line()

    def say(self, text: str) -> None:
        """Print a line without disturbing the display."""
        if not self._bar.disable:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._write(text)

    def _measure(self, done: float) -> None:
        """Take the work done so far. Going back, as after a lost worker, starts the measurement anew."""
        if done < self._task.completed:
            self._bar.reset(self._task.id)
            self._task.completed = done
            self._first_s = None
        elif done > self._task.completed and self._first_s is None:
            self._first_s = max(_LEAST_S, self._task.elapsed or 0.0)
            # Of rare units the window holds two at least.
            self._bar.speed_estimate_period = max(_WINDOW_S, 2 * self._first_s)
        self._bar.update(self._task.id, completed=done)

    @property
    def _pause_s(self) -> float:
        return max(_LINE_EVERY_S, _LINE_SHARE * (self._clock() - self._begun_s))

    @property
    def _speed(self) -> float | None:
        """Work a second, or None while as much time has not been measured as the first sign of progress took.

        Starting workers is no speed, and of units that are done side by side the first ones come together.
        """
        if self._first_s is None or (self._task.elapsed or 0.0) < 2 * self._first_s:
            return None
        return self._task.speed or None

    @property
    def _state(self) -> tuple[object, ...]:
        # Without the speed: it changes with the clock, and would print the end twice.
        return self._items_done, self._task.completed, self._loss

    def _write_line(self) -> None:
        self._line_s, self._written = self._clock(), self._state
        self._write(self.line())

    def _write(self, text: str) -> None:
        # A job's log is a pipe: without the flush lines would arrive minutes late.
        print(text, file=self._stream, flush=True)


def format_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned plain text: words left, numbers right; ends without a newline."""
    written = io.StringIO()
    print_table(title, columns, rows, stream=written)
    return written.getvalue().rstrip("\n")


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, stream: TextIO | None = None
) -> None:
    """Print a table: drawn on a terminal, aligned plain text elsewhere."""
    from rich.box import HEAVY_HEAD, Box
    from rich.table import Table
    from rich.text import Text

    stream = stream or sys.stdout
    drawn = stream.isatty()
    dashes = Box("    \n    \n -  \n    \n    \n    \n    \n    \n", ascii=True)
    table = (
        Table(box=HEAVY_HEAD)
        if drawn
        else Table(box=dashes, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    )
    for place, column in enumerate(columns):
        told = [cell for row in rows if (cell := str(row[place])) not in _BLANK]
        numbers = 2 * sum(bool(_NUMBER.match(cell)) for cell in told) > len(told)
        table.add_column(Text(column), justify="right" if place and numbers else "left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = _console(stream)
    # Not as the table's own title, which is folded to the table's width.
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    stream.flush()


def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to `while_read`; rich would end the program with 1."""
            raise  # what is being handled

    # Only a terminal has a width, and takes colours whatever the environment says of others.
    live = stream.isatty()
    return Plain(file=stream, force_terminal=live, force_jupyter=False, width=None if live else 10**6)
