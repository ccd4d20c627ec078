"""What a person sees while training: one loss line, and the speed behind it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

from swapfast.printing import printable, write_text


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
    """Prints faceswap's loss line: rewritten in place on a terminal, now and then a whole line elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._terminal = self._stream is not None and self._stream.isatty()
        self.interval_s = 0.5 if self._terminal else 10.0
        self._width = 0

    def _write(self, text: str, end: str = "\n") -> None:
        write_text(self._stream, text + end)

    def losses(self, step: int, sides: dict[str, float], speed: Speed) -> None:
        """Show the line "[HH:MM:SS] [#01234] Loss A: 0.01234, Loss B: 0.01234 | 9.81 it/s, ..."."""
        losses = ", ".join(f"Loss {side.upper()}: {value:.5f}" for side, value in sides.items())
        line = f"[{time.strftime('%H:%M:%S')}] [#{step:05d}] {losses} | {speed}"
        if self._terminal:
            self._write(f"\r{line:<{self._width}}", end="")
            self._width = len(line)
        else:
            self._write(line)

    def validation(
        self,
        step: int,
        sides: dict[str, float],
        quality: float | None = None,
        leak: float | None = None,
        gains: Mapping[str, float] | None = None,
    ) -> None:
        """Print the line "[HH:MM:SS] [#01234] Validation A: 0.01234, Validation B: 0.01234, swap 21.30 dB".

        Behind it stand ", keeps 12 % of A's skin" where the leak is known, and " | gain in 1,000 iterations: A +0.31
        dB, B +0.05 dB, swap -0.02 dB" where there are gains, in dB by name.
        """
        losses = ", ".join(f"Validation {side.upper()}: {value:.5f}" for side, value in sides.items())
        swap = "" if quality is None else f", swap {quality:.2f} dB"
        skin = "" if leak is None else f", keeps {max(0, round(100 * leak))} % of A's skin"
        parts = ", ".join(f"{name} {value:+.2f} dB" for name, value in (gains or {}).items())
        gained = f" | gain in 1,000 iterations: {parts}" if parts else ""
        self.log(f"[{time.strftime('%H:%M:%S')}] [#{step:05d}] {losses}{swap}{skin}{gained}")

    def log(self, text: str) -> None:
        """Print a whole line, which stays."""
        if self._width:
            self._write("")
            self._width = 0
        self._write(printable(text))


class NoProgress(ProgressLine):
    """A progress line that shows nothing, for all processes but the first."""

    def _write(self, text: str, end: str = "\n") -> None:
        pass
