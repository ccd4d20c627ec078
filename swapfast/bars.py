"""Progress of long work: a bar on a terminal, and a plain line every few seconds where the output is no terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from swapfast.printing import printable, write_text

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

INTERVAL_S = 10.0  # between two plain lines

Progress = Callable[[int, int], None]  # called with (completed, total)
# What a bar ends in where its terminal is gone, or it gets no thread. The work goes on.
_UNSHOWN = (OSError, ValueError, RuntimeError)


@contextlib.contextmanager
def log_if_slow(log: Callable[[str], None], line: str, after_s: float = 2.0) -> Iterator[None]:
    """Log ``line`` once if the block takes longer than ``after_s`` seconds: who waits wants to know what for."""
    timer = threading.Timer(after_s, log, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Bars:
    """A maker of progress bars on a terminal, one at a time, or of whole lines where the stream is no terminal.

    enabled: False shows neither. stream: default stderr. interval_s: between two lines, and before the first one; work
    that ends sooner has no line. clock: returns seconds. On leaving, the terminal is as it was before.
    """

    def __init__(
        self,
        enabled: bool = True,
        stream: TextIO | None = None,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._enabled = enabled
        self._stream = sys.stderr if stream is None else stream
        self._interval_s, self._clock = interval_s, clock
        self._active_bar: Bar | None = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._active_bar is not None:
            with contextlib.suppress(*_UNSHOWN):
                self._active_bar.stop()

    def _activate(self, bar: Bar) -> None:
        if self._active_bar is not bar:
            self.__exit__()
            self._active_bar = bar
            bar.start()

    def __call__(self, description: str) -> Progress:
        """Return a function to call with (completed, total); the bar or lines last until both are equal."""
        if not self._enabled:
            return lambda completed, total: None
        lines = PlainLines(printable(description), self._stream, self._interval_s, self._clock)
        if self._stream is None or not self._stream.isatty():
            return lines
        from rich.console import Console
        from rich.progress import Progress as Bar
        from rich.progress import TextColumn

        # Not Rich's own column: in the name of a folder it reads [red] and [/red] as commands, and fails on the second.
        text = TextColumn("{task.description}", markup=False)
        bar = Bar(text, *Bar.get_default_columns()[1:], console=Console(file=self._stream), redirect_stdout=False)
        task = bar.add_task(printable(description), total=None)

        def update(completed: int, total: int) -> None:
            try:
                if completed < total:
                    self._activate(bar)  # work that is complete at once has no bar
                bar.update(task, completed=completed, total=total)
                if completed >= total:
                    bar.stop()
            except _UNSHOWN:
                lines(completed, total)

        return update


class PlainLines:
    """A writer of one task's lines, such as 'decoding faces/a: 12,000 of 50,000, 410/s, 1 min 33 s left'.

    Call it with (completed, total). The last line says how long the task took. Time counts from the first call: other
    work may have been going on before.
    """

    def __init__(self, description: str, stream: TextIO, interval_s: float, clock: Callable[[], float]) -> None:
        self._description, self._stream = description, stream
        self._interval_s, self._clock = interval_s, clock
        self._start: tuple[float, int] | None = None  # seconds, and what was complete by then
        self._last_line_s = 0.0
        self._has_written = False

    def __call__(self, completed: int, total: int) -> None:
        time_s = self._clock()
        if self._start is None:
            self._start, self._last_line_s = (time_s, completed), time_s
        elif completed >= total:
            self._end(total, time_s - self._start[0])
        elif time_s - self._last_line_s >= self._interval_s:
            self._last_line_s = time_s
            self._has_written = True
            self._write(f"{completed:,} of {total:,}{self._pace(*self._start, completed, total, time_s)}")

    @staticmethod
    def _pace(start_s: float, start_count: int, completed: int, total: int, time_s: float) -> str:
        if completed <= start_count or time_s <= start_s:
            return ""
        rate = (completed - start_count) / (time_s - start_s)
        return f", {format_rate(rate)}/s, {format_duration((total - completed) / rate)} left"

    def _end(self, total: int, seconds: float) -> None:
        if self._has_written:
            self._has_written = False
            self._write(f"all {total:,} in {format_duration(seconds)}")

    def _write(self, text: str) -> None:
        write_text(self._stream, f"{self._description}: {text}\n")


def format_rate(rate: float) -> str:
    """Return a rate with as many digits as help: 1234.5 -> '1,234', 2.34 -> '2.3'."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: 93.4 -> '1 min 33 s'."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600:,} h {rounded % 3600 // 60} min"
