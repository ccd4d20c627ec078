"""What a person sees while training, as whole lines: losses, the speed behind them, and how long the rest will take."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from swapfast.bars import format_duration
from swapfast.printing import complain, printable, write_text

FIRST_S = 60.0  # of training, whose speed says how long the rest will take


@dataclass(frozen=True)
class Speed:
    """The speed of the steps since the last report. data_wait: share of the time spent waiting for data, 0..1."""

    iterations_per_s: float
    faces_per_s: float
    data_wait: float

    def __str__(self) -> str:
        return (
            f"{self.iterations_per_s:.2f} it/s, {self.faces_per_s:.0f} faces/s, "
            f"waiting for data {100 * self.data_wait:.1f} %"
        )


class SpeedMeter:
    """Counts steps, faces and the time spent waiting for data."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._steps = self._faces = 0
        self._waited = 0.0

    def add(self, faces: int, waited_s: float) -> None:
        """Count a step of ``faces`` faces whose batch came after ``waited_s`` seconds."""
        self._steps += 1
        self._faces += faces
        self._waited += waited_s

    def take(self) -> Speed:
        """Return the speed since the last call."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        speed = Speed(self._steps / elapsed, self._faces / elapsed, min(self._waited / elapsed, 1.0))
        self._reset()
        return speed


class ProgressLine:
    """Prints faceswap's loss line every ten seconds, and other lines as they come.

    stream: default standard output. iterations: at which the run ends, None where nobody knows. Subclasses show the
    same otherwise. Lines may come from any thread.
    """

    interval_s = 10.0  # between two loss lines

    def __init__(self, stream: TextIO | None = None, iterations: int | None = None) -> None:
        self._stream = stream or sys.stdout
        self._iterations = iterations
        self._lock = threading.RLock()  # a signal's handler may print while its own thread does
        self._first: tuple[float, int] | None = None  # when and at which step losses were first shown
        self._has_estimated = False

    def _write(self, text: str, end: str = "\n") -> None:
        with self._lock:
            write_text(self._stream, text + end)

    def start(self, rows: Mapping[str, str]) -> None:
        """Print a table of what is about to be trained, one row a line."""
        self.log("\n".join(f"{name:<14}{text}" for name, text in rows.items()))

    def losses(self, step: int, sides: dict[str, float], speed: Speed) -> None:
        """Show the losses of a step; after the first minute also how long the rest will take."""
        self.show_losses(step, sides, speed)
        rate = self._first_rate(step)
        if rate is not None and self._iterations is not None:
            self.estimate(step, rate, (self._iterations - step) / rate)

    def _first_rate(self, step: int) -> float | None:
        """Return the iterations/s of the first minute once it is over, and None at every other time."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, step  # from behind the first step, which may have been compiled
        start, first = self._first
        if self._has_estimated or now - start < FIRST_S or step <= first:
            return None
        self._has_estimated = True
        return (step - first) / (now - start)

    def show_losses(self, step: int, sides: dict[str, float], speed: Speed) -> None:
        """Print the line "[HH:MM:SS] [#01234] Loss A: 0.01234, Loss B: 0.01234 | 9.81 it/s, ..."."""
        self._write(loss_line(step, sides, speed))

    def estimate(self, step: int, rate: float, left_s: float) -> None:
        """Print how long the iterations that are left will take. rate: iterations/s of the first minute."""
        if left_s > 0:
            self.log(
                f"[{time.strftime('%H:%M:%S')}] [#{step:05d}] {self._iterations:,} iterations: "
                f"{format_duration(left_s)} more at the speed of the first minute, {rate:.2f} it/s, until "
                f"{end_time(left_s)}"
            )

    def validation(
        self,
        step: int,
        sides: dict[str, float],
        quality: float | None = None,
        leak: float | None = None,
        gains: Mapping[str, float] | None = None,
        verdict: Sequence[str] = (),
    ) -> None:
        """Print the line "[HH:MM:SS] [#01234] Validation A: 0.01234, Validation B: 0.01234, swap 21.30 dB".

        Behind it stands ", keeps 12 % of A's skin" where the leak is known, and on a line of its own what tells when it
        is done, in sentences as of ``Verdict.gains``. gains: in dB per 1,000 iterations, by name.
        """
        losses = ", ".join(f"Validation {side.upper()}: {value:.5f}" for side, value in sides.items())
        swap = "" if quality is None else f", swap {quality:.2f} dB"
        skin = "" if leak is None else f", keeps {max(0, round(100 * leak))} % of A's skin"
        start = f"[{time.strftime('%H:%M:%S')}] [#{step:05d}]"
        self.log(f"{start} {losses}{swap}{skin}")
        if verdict:
            self.log(f"{start} {'; '.join(verdict)}")

    def saved(self, step: int, text: str = "") -> None:
        """Say that the checkpoint of ``step`` is whole. text: what is printed of it."""
        if text:
            self.log(text)

    def end(self, step: int, text: str, code: int | None = None) -> None:
        """Say how the run ended. code: the exit code, None where the run failed and another line says so."""
        if text:
            self.log(text)

    def log(self, text: str) -> None:
        """Print a whole line, which stays."""
        self._write(printable(text))


class NoProgress(ProgressLine):
    """A progress line that shows nothing, for all processes but the first."""

    def _write(self, text: str, end: str = "\n") -> None:
        pass


class WarningsOnly(NoProgress):
    """Shows warnings alone, on standard error: ``--quiet``."""

    def log(self, text: str) -> None:
        """Print a line that begins with 'warning', and no other."""
        if text.startswith("warning"):
            complain(text)


def loss_line(step: int, sides: Mapping[str, float], speed: Speed) -> str:
    """Return faceswap's loss line, with the time in front and the speed behind."""
    losses = ", ".join(f"Loss {side.upper()}: {value:.5f}" for side, value in sides.items())
    return f"[{time.strftime('%H:%M:%S')}] [#{step:05d}] {losses} | {speed}"


def end_time(left_s: float) -> str:
    """Return when it will be in so many seconds, such as 'Mon 30 Nov 17:40'; the year where that is far away."""
    if left_s > 36525 * 86400:
        return "the next century"
    pattern = "%a %d %b %H:%M" if left_s < 300 * 86400 else "%b %Y"
    return time.strftime(pattern, time.localtime(time.time() + left_s))
