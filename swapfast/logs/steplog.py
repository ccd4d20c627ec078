"""The log of a model: lines of JSON, one per logged step, for scripts and for ``swapfast log``.

    {"run_from": 250, "time": 1789.1, ...}             a run begins: earlier lines of later steps are void
    {"step": 251, "time": 1790.2, "loss": 0.21, "loss_a": 0.1, "loss_b": 0.11, "ssim_a": 0.08, ...}

Lines are only ever added. A kill may tear the last one; the next run begins a new line, and readers skip it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import time as clock
import warnings
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import BinaryIO, cast

from swapfast.errors import SwapfastError
from swapfast.files import code_of, open_plain, write_all

NAME = "steps.jsonl"
MOST_ROWS = 1024  # held back
# What a reader believes; a line that says otherwise is damaged or of another hand.
_MOST_STEPS = 10**12  # as many as -i takes
_MOST_SECONDS = 1e11  # since 1970: the year 5138
_LONGEST_GAP_S = 6 * 3600.0  # between two lines; in a longer one the clock was set, or the run was suspended
_SET_BACK_S = 60.0
_MOST_COLUMNS = 1000  # a log of ours has some thirty
_SHORT = {"batch_total": "loss", "gradient/norm": "gradient_norm"}
_SIDE = re.compile(r"(?:batch|validation)_(face|unweighted|mask)_([A-Z])(?:/(.+))?")


def short_key(tag: str) -> str | None:
    """Return the key of a TensorBoard tag: batch_unweighted_A/ssim -> ssim_a. None: the log leaves it out.

    A function's weighted loss is left out: it is the unweighted one times a number that the checkpoints hold.
    """
    if tag in _SHORT:
        return _SHORT[tag]
    match = _SIDE.fullmatch(tag)
    if match is not None:
        kind, side, function = match.groups()
        name = {"face": "loss", "mask": "mask"}.get(kind, function)
        prefix = "validation_" if tag.startswith("validation") else ""
        return f"{prefix}{name}_{side.lower()}"
    if tag.startswith("batch_weighted"):
        return None
    return tag.removeprefix("speed/").replace("/", "_")


class StepLog:
    """A writer of ``folder``/steps.jsonl.

    step: iterations that this run begins with. about: what else its first line holds. update_freq: log every so many
    iterations. Lines are held back until ``flush``. Where they cannot be written, ``warn`` is called once and nothing
    more is logged. Raises SwapfastError where the first line cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        step: int = 0,
        about: Mapping[str, object] | None = None,
        update_freq: int = 1,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.path = Path(folder) / NAME
        self._update_freq, self._warn = update_freq, warn
        self._rows: list[tuple[float, int, dict[str, float]]] = []
        self._keys: dict[str, str | None] = {}
        self._failed = False
        self._file: BinaryIO | None = None
        first = {"run_from": step, "time": round(clock.time(), 3), **(about or {})}
        try:
            self._write(json.dumps(first) + "\n")
        except OSError as error:
            message = f"{self.path}: cannot be written ({error.strerror}); use -n"
            raise SwapfastError(message, code_of(error)) from error

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float], time: float | None = None) -> None:
        """Log ``logs`` at iteration ``batch``; all values of an iteration between two flushes become one line.

        logs: TensorBoard's tag -> value. time: since 1970, s; default now.
        """
        if not logs or self._failed or batch % self._update_freq:
            return
        if self._rows and self._rows[-1][1] == batch:
            self._rows[-1][2].update(logs)
            return
        if len(self._rows) >= MOST_ROWS:
            self.flush()
        self._rows.append((clock.time() if time is None else time, batch, dict(logs)))

    def flush(self) -> None:
        """Write the lines that are held back."""
        rows, self._rows = self._rows, []
        if rows and not self._failed:
            with self._stop_at_error():
                self._write("".join(self._line(*row) for row in rows))

    def on_save(self) -> None:
        """Write the lines that are held back."""
        self.flush()

    def on_train_end(self) -> None:
        """Write the rest and close the file."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _line(self, time: float, step: int, values: Mapping[str, float]) -> str:
        # Formatted by hand: a third of the time that json takes.
        parts = [f'{{"step": {step}, "time": {time:.3f}']
        for tag, value in values.items():
            key = self._keys.get(tag, "")
            if key == "":
                key = self._keys[tag] = short_key(tag)
            if key is not None and isfinite(value):
                parts.append(f'"{key}": {value:.6g}')
        return ", ".join(parts) + "}\n"

    def _write(self, text: str) -> None:
        data = text.encode()
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_plain(self.path, "ab")
            if _is_torn(self.path):
                data = b"\n" + data
        write_all(self._file, data)

    @contextlib.contextmanager
    def _stop_at_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            self._warn(f"{self.path}: cannot be written any more ({error.strerror or error}); training goes on")


def _is_torn(path: Path) -> bool:
    with open_plain(path) as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


@dataclass
class LoggedRun:
    """One start of the program. step: iterations that it began with. start, end: since 1970, s.

    lines: that it has logged. seconds: that it has trained, whatever the clock was set to meanwhile.
    """

    step: int
    start: float
    end: float
    about: dict = field(default_factory=dict)
    lines: int = 0
    seconds: float = 0.0

    def add(self, time: float) -> None:
        """Count a line of ``time``, since 1970, s."""
        self.lines += 1
        elapsed = time - self.end
        if 0 < elapsed < _LONGEST_GAP_S:
            self.seconds += elapsed
        if not -_SET_BACK_S < elapsed <= 0:  # lines come a little out of order
            self.end = time


@dataclass
class History:
    """The content of a model's log, without the steps that a later run repeated.

    steps: ascending. columns: key -> one value per step, NaN where there is none. void: number of repeated steps.
    damaged: number of lines that cannot be read.
    """

    steps: array = field(default_factory=lambda: array("q"))
    columns: dict[str, array] = field(default_factory=dict)
    runs: list[LoggedRun] = field(default_factory=list)
    void: int = 0
    damaged: int = 0

    def column(self, key: str) -> array:
        """Return the values of ``key``, one per step; all NaN where it was never logged."""
        return self.columns.get(key) or array("d", [nan]) * len(self.steps)

    def latest(self, key: str) -> float | None:
        """Return the last finite value of ``key``, or None."""
        return next((value for value in reversed(self.column(key)) if isfinite(value)), None)

    def _begin(self, line: dict) -> None:
        step, time = line.pop("run_from"), float(line.pop("time"))
        self._forget(bisect_right(self.steps, step))
        self.runs.append(LoggedRun(step, time, time, line))

    def _forget(self, first: int) -> None:
        self.void += len(self.steps) - first
        for values in (self.steps, *self.columns.values()):
            del values[first:]

    def _add(self, line: dict) -> None:
        step = line.pop("step")
        numbers = {key: float(value) for key, value in line.items()}
        if len(self.columns) + len(numbers) > _MOST_COLUMNS and len(self.columns | numbers) > _MOST_COLUMNS:
            raise ValueError
        if self.steps and step < self.steps[-1]:  # of a run whose first line was lost
            self._forget(bisect_right(self.steps, step - 1))
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            for values in self.columns.values():
                values.append(nan)
        for key, value in numbers.items():
            if key not in self.columns:
                self.columns[key] = array("d", [nan]) * len(self.steps)
            self.columns[key][-1] = value
        if self.runs:
            self.runs[-1].add(numbers["time"])

    def read(self, line: bytes) -> None:
        """Add one line of the log."""
        try:
            parsed = json.loads(line)
            step = parsed.get("run_from", parsed.get("step"))
            if type(step) is not int or not 0 <= step <= _MOST_STEPS or not 0 <= parsed["time"] <= _MOST_SECONDS:
                raise ValueError
            self._begin(parsed) if "run_from" in parsed else self._add(parsed)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            self.damaged += 1


def read_steps(path: str | Path) -> History:
    """Return the content of the log at ``path``. Raises SwapfastError where it cannot be read."""
    history = History()
    try:
        with open_plain(Path(path)) as raw, io.BufferedReader(cast(io.RawIOBase, raw)) as file:
            for line in file:
                if line.strip():
                    history.read(line)
    except OSError as error:
        raise SwapfastError(f"{path}: cannot be read ({error.strerror})") from error
    return history
