"""How far long work is: a bar on a terminal, now and then a plain line where the output goes elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

INTERVAL_S = 10.0  # between two plain lines

Progress = Callable[[int, int], None]  # told (done, total)


@contextlib.contextmanager
def said_if_slow(log: Callable[[str], None], line: str, after_s: float = 2.0) -> Iterator[None]:
    """Say ``line``, once, where the block takes longer than that: who waits wants to know what for."""
    timer = threading.Timer(after_s, log, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Bars:
    """Bars on a terminal, one at a time, which is put right on leaving; elsewhere whole lines, as for a log file.

    wanted: False for neither. stream: by default stderr. interval_s: between two lines, and before the first one: of
    work that ends sooner nothing is said. clock: seconds.
    """

    def __init__(
        self,
        wanted: bool = True,
        stream: TextIO | None = None,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted = wanted
        self._stream = sys.stderr if stream is None else stream
        self._interval_s, self._clock = interval_s, clock
        self._shown = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_) -> None:
        if self._shown is not None:
            self._shown.stop()

    def _show(self, bar) -> None:
        if self._shown is not bar:
            self.__exit__()
            self._shown = bar
            bar.start()

    def __call__(self, description: str) -> Progress:
        """A bar or lines, from when what is returned is first called with (done, total) until they are equal."""
        if not self._wanted:
            return lambda done, total: None
        if not self._stream.isatty():
            return PlainLines(description, self._stream, self._interval_s, self._clock)
        from rich.console import Console
        from rich.progress import Progress as Bar

        bar = Bar(console=Console(file=self._stream), redirect_stdout=False)
        task = bar.add_task(description, total=None)

        def update(done: int, total: int) -> None:
            if done < total:
                self._show(bar)  # not before there is something to show: what is known already is never read
            bar.update(task, completed=done, total=total)
            if done >= total:
                bar.stop()

        return update


class PlainLines:
    """One work's lines: 'decoding faces/a: 12,000 of 50,000, 410/s, 1 min 33 s left', and in the end how long it took.

    Called with (done, total). Time counts from the first call: before, other work may have been going on.
    """

    def __init__(self, description: str, stream: TextIO, interval_s: float, clock: Callable[[], float]) -> None:
        self._description, self._stream = description, stream
        self._interval_s, self._clock = interval_s, clock
        self._begun: tuple[float, int] | None = None  # seconds, and how much was done by then
        self._last_s = 0.0
        self._has_spoken = False

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if self._begun is None:
            self._begun, self._last_s = (now, done), now
        elif done >= total:
            self._end(total, now - self._begun[0])
        elif now - self._last_s >= self._interval_s:
            self._last_s = now
            self._has_spoken = True
            self._say(f"{done:,} of {total:,}{self._pace(done, total, now)}")

    def _pace(self, done: int, total: int, now: float) -> str:
        begun, before = self._begun
        if done <= before or now <= begun:
            return ""
        rate = (done - before) / (now - begun)
        return f", {shown_rate(rate)}/s, {shown_seconds((total - done) / rate)} left"

    def _end(self, total: int, seconds: float) -> None:
        if self._has_spoken:
            self._has_spoken = False
            self._say(f"all {total:,} in {shown_seconds(seconds)}")

    def _say(self, text: str) -> None:
        """Whoever read the output may be gone: that must not end the work."""
        with contextlib.suppress(OSError, ValueError):
            print(f"{self._description}: {text}", file=self._stream, flush=True)


def shown_rate(rate: float) -> str:
    """1234.5 -> '1,234', 2.34 -> '2.3'."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def shown_seconds(seconds: float) -> str:
    """The two largest units: 93.4 -> '1 min 33 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
