"""Scalars and previews for TensorBoard."""

from __future__ import annotations

import contextlib
import os
import socket
import time as clock
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import cv2
import numpy as np

from swapfast.errors import SwapfastError
from swapfast.files import write_all
from swapfast.logs.records import (
    RecordIterator,
    Row,
    image_record,
    restart_record,
    scalar_records,
    version_record,
)

__all__ = ["RecordIterator", "TorchTensorBoard"]

FLUSH_S = 5.0
MOST_ROWS = 1024  # held back
IMAGE_EDGE = 1024  # px
IMAGES = 100  # of a run, before every second is left out; twice as many, and three of four are
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 90]


def flattened(logs: Mapping[str, float | Mapping[str, float]]) -> dict[str, float]:
    """Tags within tags joined by a slash."""
    flat: dict[str, float] = {}
    for tag, value in logs.items():
        if isinstance(value, Mapping):
            flat |= {f"{tag}/{inner}": number for inner, number in value.items()}
        else:
            flat[tag] = value
    return flat


def keeps_image(number: int) -> bool:
    """Whether the ``number``-th preview (from 1) is logged: of the later ones ever fewer, the same on every start."""
    stride = 1 << max(0, (number - 1) // IMAGES).bit_length()
    return number % stride == 0


class TorchTensorBoard:
    """Writes event files under ``log_dir``/train.

    write_graph: for callers of the peer; no graph is ever written. update_freq: log every that many iterations;
    'batch' is 1, and with 'epoch' only the newest values are logged, at ``on_save``. step: iterations that the run
    begins with; what an earlier run logged of later ones, TensorBoard then forgets.

    Writing is put off for up to FLUSH_S seconds. Logs are worth less than the run: where they cannot be written,
    ``warn`` is told once and no more is logged.
    """

    def __init__(
        self,
        log_dir: str | Path = "logs",
        write_graph: bool = True,
        update_freq: Literal["batch", "epoch"] | int = 1,
        warn: Callable[[str], None] = warnings.warn,
        step: int = 0,
    ) -> None:
        self._folder = Path(log_dir) / "train"
        self._on_save_only = update_freq == "epoch"
        self._update_freq = update_freq if isinstance(update_freq, int) else 1
        self._warn = warn
        self._rows: list[Row] = []
        self._flushed = clock.monotonic()
        self._lost = False
        self._file: BinaryIO | None = None
        try:
            goes_on = step or any(self._folder.glob("events.out.tfevents.*"))  # also a run that begins anew at 0
            self._write(restart_record(clock.time(), step + 1) if goes_on else b"")
        except OSError as error:
            raise SwapfastError(f"{self._folder}: no logs can be written there ({error.strerror}); use -n") from error

    def set_model(self, model: object) -> None:
        """Nothing to do: for callers of the peer."""

    def on_train_begin(self, logs: Mapping | None = None) -> None:
        """Nothing to do: for callers of the peer."""

    def on_train_batch_end(
        self, batch: int, logs: Mapping[str, float | Mapping[str, float]] | None = None, time: float | None = None
    ) -> None:
        """Log ``logs`` (tag -> value, or -> a table of them) at iteration ``batch``. time: since 1970, s; or now."""
        if not logs or self._lost or batch % self._update_freq:
            return
        if self._on_save_only:
            self._rows.clear()
        self._rows.append((clock.time() if time is None else time, batch, flattened(logs)))
        late = len(self._rows) >= MOST_ROWS or clock.monotonic() - self._flushed >= FLUSH_S
        if late and not self._on_save_only:
            self.flush()

    def on_preview(self, step: int, sheet: np.ndarray, number: int = 1) -> None:
        """Log a picture, (H, W, 3) uint8 BGR, at most IMAGE_EDGE px high and wide. number: the how-manieth, from 1."""
        if self._lost or not keeps_image(number):
            return
        scale = IMAGE_EDGE / max(sheet.shape[:2])
        if scale < 1:
            sheet = cv2.resize(sheet, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        height, width = sheet.shape[:2]
        encoded = cv2.imencode(".jpg", sheet, _JPEG)[1].tobytes()
        self.flush()
        with self._giving_up():
            self._write(image_record(clock.time(), step, "preview", height, width, encoded))

    def flush(self) -> None:
        """Write what was put off."""
        rows, self._rows = self._rows, []
        self._flushed = clock.monotonic()
        if rows and not self._lost:
            with self._giving_up():
                self._write(scalar_records(rows))

    def on_save(self) -> None:
        """Write what was put off."""
        self.flush()

    def on_train_end(self, logs: Mapping | None = None) -> None:
        """Write the rest and close the file; what is logged later goes to a new one."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            now = clock.time()
            # TensorBoard reads a folder's files in the order of their names: two runs may begin in one second.
            when = f"{int(now):010d}.{int(now % 1 * 1e9):09d}"
            name = f"events.out.tfevents.{when}.{socket.gethostname()}.{os.getpid()}"
            self._file = (self._folder / name).open("ab", buffering=0)
            data = version_record(now) + data
        write_all(self._file, data)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._lost = True
            self._rows.clear()
            self._warn(f"{self._folder}: logs cannot be written any more ({error.strerror or error}); training goes on")
