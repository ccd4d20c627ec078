"""What a person sees while training on a terminal: a block of lines that is drawn anew twice a second.

Not Rich's ``Live``: that hides the cursor, so that a program that is killed or stopped by Ctrl-Z leaves a shell without
one, and it draws from a thread of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TextIO

from swapfast.bars import format_duration
from swapfast.printing import printable, write_text
from swapfast.terminal import is_foreground
from swapfast.training.progress import ProgressLine, Speed, end_time, loss_line

KEYS = "Enter: save and leave   S: save   P: preview"
_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=*#"
_TREND_WIDTH = 20
_MOST_POINTS = 12 * _TREND_WIDTH
_SMOOTHING = 0.2  # the weight of the newest speed


def trend_line(values: Sequence[float], width: int = _TREND_WIDTH, bars: str = _BARS) -> str:
    """Return a line of ``width`` characters or fewer whose heights are those of ``values``, the highest a full bar.

    Values that are no finite numbers are left out. A line of equal values is low.
    """
    finite = [value for value in values if abs(value) < float("inf")]
    if not finite:
        return ""
    width = min(width, len(finite))
    edges = [len(finite) * column // width for column in range(width + 1)]
    means = [sum(finite[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(bars[round((mean - low) / span * (len(bars) - 1))] for mean in means)


class Trend:
    """The course of a loss since the start, in at most ``_MOST_POINTS`` points of equally many values each."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self._per_point = 1
        self._open: list[float] = []

    def add(self, value: float) -> None:
        """Add a value. Where there are too many points, two become one."""
        self._open.append(value)
        if len(self._open) < self._per_point:
            return
        self.points.append(sum(self._open) / len(self._open))
        self._open = []
        if len(self.points) >= _MOST_POINTS:
            self.points = [sum(pair) / 2 for pair in zip(self.points[::2], self.points[1::2])]
            self._per_point *= 2


class LiveBlock(ProgressLine):
    """Keeps losses with their trends, speed, time left and the last save in view, below the lines that stay.

    While the program is in the background it prints plain lines instead, one every ten seconds: the terminal is
    somebody else's. clock: returns seconds.
    """

    interval_s = 0.5

    def __init__(
        self,
        stream: TextIO | None = None,
        iterations: int | None = None,
        has_keys: bool = False,
        clock: Callable[[], float] = time.monotonic,
        is_ours: Callable[[TextIO | None], bool] = is_foreground,
    ) -> None:
        super().__init__(stream, iterations)
        self._has_keys, self._clock, self._is_ours = has_keys, clock, is_ours
        self._trends: dict[str, Trend] = {}
        self._latest: tuple[int, dict[str, float], Speed] | None = None
        self._rate = 0.0  # smoothed iterations/s
        self._saved: tuple[float, int] | None = None
        self._drawn: list[str] = []  # the block's lines on the screen
        self._plain_at = float("-inf")
        self._bars = _BARS if _takes(self._stream, _BARS) else _PLAIN_BARS

    def show_losses(self, step: int, sides: dict[str, float], speed: Speed) -> None:
        """Draw the block anew."""
        with self._lock:
            self._latest = step, sides, speed
            for side, value in sides.items():
                self._trends.setdefault(side, Trend()).add(value)
            newest = speed.iterations_per_s
            self._rate = newest if not self._rate else self._rate + _SMOOTHING * (newest - self._rate)
            if self._is_ours(self._stream):
                self._write_all("")
            elif self._clock() - self._plain_at >= ProgressLine.interval_s:
                self._plain_at = self._clock()
                self._drawn = []
                write_text(self._stream, loss_line(step, sides, speed) + "\n")

    def saved(self, step: int, text: str = "") -> None:
        """Note the save, which the block shows from then on; the line of it is printed too."""
        self._saved = self._clock(), step
        super().saved(step, text)

    def log(self, text: str) -> None:
        """Print a whole line above the block."""
        self._write(printable(text))

    def _write(self, text: str, end: str = "\n") -> None:
        with self._lock:
            if self._drawn and self._is_ours(self._stream):
                self._write_all(text + end)
            else:
                self._drawn = []
                write_text(self._stream, text + end)

    def forget(self) -> None:
        """Leave the block where it is: somebody else has written below it. The next one is drawn at the cursor."""
        self._drawn = []

    def end(self, step: int, text: str, code: int | None = None) -> None:
        """Put the last loss line in place of the block, and print ``text``."""
        with self._lock:
            latest, self._latest = self._latest, None
            if latest is not None:
                self._write(loss_line(*latest))
        super().end(step, text, code)

    def _write_all(self, text: str) -> None:
        """Write ``text`` in place of the block, and the block below it, all at once."""
        width, height = _size(self._stream)
        lines = [line[: width - 1] for line in self._lines()][: max(1, height - 1)]
        # A terminal that has become narrower since has broken its lines.
        rows = sum(max(1, -(-len(line) // width)) for line in self._drawn)
        up = f"\r\x1b[{min(rows, height - 1)}A" if rows else ""
        erased = text.replace("\n", "\x1b[K\n")
        block = "".join(f"{line}\x1b[K\n" for line in lines)
        write_text(self._stream, f"{up}{erased}{block}\x1b[J")
        self._drawn = lines

    def _lines(self) -> list[str]:
        if self._latest is None:
            return []
        step, sides, speed = self._latest
        losses = [
            f"Loss {side.upper()} {value:.5f} {trend_line(self._trends[side].points, bars=self._bars)}"
            for side, value in sides.items()
        ]
        saved = "not saved yet"
        if self._saved is not None:
            saved = f"saved at {self._saved[1]:,}, {format_duration(self._clock() - self._saved[0])} ago"
        keys = f"   {KEYS}" if self._has_keys else ""
        return [self._position(step), "   ".join(losses), str(speed), saved + keys]

    def _position(self, step: int) -> str:
        if not self._iterations:
            return f"iteration {step:,}"
        share = 100 * step / self._iterations
        position = f"iteration {step:,} of {self._iterations:,}, {share:.1f} %"
        if not self._rate or step >= self._iterations:
            return position
        left_s = (self._iterations - step) / self._rate
        return f"{position}, {format_duration(left_s)} left, until {end_time(left_s)}"


def _takes(stream: TextIO | None, text: str) -> bool:
    """Return whether the encoding of ``stream`` has these characters."""
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _size(stream: TextIO | None) -> tuple[int, int]:
    """Return columns and rows of the terminal as it is now; 80 and 24 where it says nothing or nonsense."""
    try:
        columns, rows = os.get_terminal_size((stream or sys.stdout).fileno())
    except (OSError, ValueError, AttributeError):
        columns, rows = shutil.get_terminal_size()
    return (columns if columns > 1 else 80), (rows if rows > 1 else 24)
