"""Reading a growing steps.jsonl on from where it was, whatever its size and whoever wrote it."""

from __future__ import annotations

import json
import os
import time as clock
from collections import deque
from pathlib import Path
from typing import BinaryIO

from swapfast.files import open_plain
from swapfast.logs.verdict import Measurements, Verdict, is_held_out
from swapfast.watch.curves import Curves

CHUNK = 1 << 18  # bytes read at a time: some 1,200 lines, 20 ms
MOST_READ = 64 << 20  # bytes of a log that are read when it is opened; of a longer one even samples
SAMPLE = 1 << 16
LONGEST_LINE = 1 << 16  # bytes; ours have some 400
MOST_LINES = 200  # of the tail
_MOST_STEPS = 10**12
_LARGEST = 1e30  # a larger number is damage, and would make a line of hundreds of digits
_MOST_SECONDS = 1e11  # since 1970: the year 5138
_ABOUT = ("iterations", "batch_size", "precision", "processes")
_SPEED = 0.3  # weight of a report's speed in the running mean


class LogFollower:
    """What a log has said so far.

    curves: of all its columns. latest: the last value of each key. about: the first line of the last run. tail: lines
    as a terminal would show them, oldest first. damaged: lines that cannot be read. rate: iterations per second, a
    running mean over reports, None before the first. generation: changes where the log has been replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reset()

    def _reset(self) -> None:
        self.curves = Curves()
        self.latest: dict[str, float] = {}
        self._measured: dict[str, Measurements] = {}  # of held-out faces
        self._verdict: Verdict | None = None
        self.about: dict[str, object] = {}
        self.tail: deque[str] = deque(maxlen=MOST_LINES)
        self.lines = 0  # all that the tail has ever had
        self.step: int | None = None
        self.damaged = 0
        self.rate: float | None = None
        self.is_sampled = False
        self._file: tuple[int, int] | None = None  # device and inode
        self._offset = 0
        self._rest = b""
        self._skips = False  # whether it is within a line that is too long
        self._samples: deque[int] = deque()  # where the samples of a long log begin

    @property
    def verdict(self) -> Verdict:
        """When is it done, by what has been read of the log."""
        if self._verdict is None:
            self._verdict = Verdict.of(self._measured)
        return self._verdict

    @property
    def progress(self) -> float | None:
        """The share of a log's samples that are read, None where there are none left to be read."""
        return round(1 - len(self._samples) * SAMPLE / MOST_READ, 2) if self._samples else None

    def poll(self) -> bool:
        """Read the next chunk; return whether there may be more right now. Never raises for what the disk does."""
        try:
            with open_plain(self.path) as file:
                return self._read(file)
        except OSError:
            return False

    def _read(self, file: BinaryIO) -> bool:
        status = os.fstat(file.fileno())
        if self._file != (status.st_dev, status.st_ino) or status.st_size < self._offset:
            generation = self.curves.generation
            self._reset()
            self.curves.generation = generation + 1
            self._file = status.st_dev, status.st_ino
            self._plan_samples(status.st_size)
        if self._samples:
            self._read_sample(file, status.st_size)
            return True
        file.seek(self._offset)
        data = file.read(CHUNK) or b""
        self._offset += len(data)
        self._add(data)
        return len(data) == CHUNK

    def _plan_samples(self, size: int) -> None:
        if size <= MOST_READ:
            return
        count = MOST_READ // SAMPLE
        self._samples = deque(size * number // count for number in range(count))
        self.is_sampled = True

    def _read_sample(self, file: BinaryIO, size: int) -> None:
        """Read the whole lines of the next sample; behind the last one the log is followed from its end."""
        start = self._samples.popleft()
        file.seek(start)
        data = file.read(SAMPLE) or b""
        self._rest, self._skips = b"", start > 0  # the first line is torn
        self._add(data)
        self._offset = start + len(data)

    def _add(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._skips:  # the end of a line that was given up
                self._skips = False
            elif line.strip():
                self._add_line(line)
        if len(self._rest) > LONGEST_LINE:
            if not self._skips:
                self.damaged += 1
            self._rest, self._skips = b"", True

    def _add_line(self, line: bytes) -> None:
        try:
            if len(line) > LONGEST_LINE:
                raise ValueError
            row = json.loads(line)
            step, time = row.get("run_from", row.get("step")), row["time"]
            if type(step) is not int or not 0 <= step <= _MOST_STEPS:
                raise ValueError
            if type(time) not in (int, float) or not 0 <= time <= _MOST_SECONDS:
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self.damaged += 1
            return
        if "run_from" in row:
            self._begin(step, time, row)
        else:
            self._add_row(step, time, row)

    def _begin(self, step: int, time: float, row: dict) -> None:
        self._forget_after(step)
        self.step, self.rate = step, None
        self.about = {key: row[key] for key in _ABOUT if type(row.get(key)) in (int, str)}
        self.about = {key: value for key, value in self.about.items() if len(str(value)[:40]) < 40}
        iterations = self.about.get("iterations")
        wanted = f" of {iterations}" if isinstance(iterations, int) else ""
        self._say(f"{_time(time)} a run begins at iteration {step}{wanted}")

    def _forget_after(self, step: int) -> None:
        if self.step is not None and self.step > step:
            self.curves.forget_after(step)
            for measured in self._measured.values():
                measured.forget_after(step)
            self._verdict = None

    def _add_row(self, step: int, time: float, row: dict) -> None:
        if self.step is not None and step < self.step:  # of a run whose first line was lost
            self._forget_after(step - 1)
        self.step = step
        self.curves.add(step, row)
        numbers = _numbers(row)
        self.latest |= {key: value for key, value in numbers.items() if key in self.curves.by_key}
        self._measure(step, numbers)
        rate = numbers.get("iterations_per_s", 0.0)
        if rate > 0:
            self.rate = rate if self.rate is None else _SPEED * rate + (1 - _SPEED) * self.rate
            self._say(_loss_line(step, time, numbers))
        if any(key.startswith("validation_loss_") for key in numbers):
            self._say(_validation_line(step, time, numbers))

    def _measure(self, step: int, numbers: dict[str, float]) -> None:
        for key in filter(is_held_out, numbers):
            self._measured.setdefault(key, Measurements()).add(step, numbers[key])
            self._verdict = None

    def note(self, text: str) -> None:
        """Add a line of now to the tail."""
        self._say(f"{_time(clock.time())} {text}")

    def _say(self, text: str) -> None:
        self.tail.append(text)
        self.lines += 1


def _time(seconds: float) -> str:
    try:
        return clock.strftime("[%H:%M:%S]", clock.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "[--:--:--]"


def _numbers(row: dict) -> dict[str, float]:
    """Return the finite numbers of a row; one such as 0.5 is written as a whole number where it is one."""
    return {
        key: value
        for key, value in row.items()
        if type(value) in (int, float) and abs(value) < _LARGEST  # False for what is not a number
    }


def _sides(row: dict[str, float], prefix: str) -> str:
    """Return such as 'A 0.01234, B 0.01234' of a row's keys that begin with ``prefix``."""
    keys = sorted(key for key in row if key.startswith(prefix) and len(key) == len(prefix) + 1)
    return ", ".join(f"{key[-1].upper()} {row[key]:.5g}" for key in keys)


def _loss_line(step: int, time: float, row: dict[str, float]) -> str:
    parts = [f"loss {_sides(row, 'loss_')}", f"{row['iterations_per_s']:.2f} it/s"]
    if "faces_per_s" in row:
        parts.append(f"{row['faces_per_s']:.0f} faces/s")
    if "data_wait" in row:
        parts.append(f"waiting for data {100 * row['data_wait']:.1f} %")
    return f"{_time(time)} [#{step:05d}] {', '.join(parts)}"


def _validation_line(step: int, time: float, row: dict[str, float]) -> str:
    swap = f", swap {row['swap_quality']:.2f} dB" if "swap_quality" in row else ""
    return f"{_time(time)} [#{step:05d}] validation {_sides(row, 'validation_loss_')}{swap}"
