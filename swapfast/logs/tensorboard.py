"""Scalars and previews for TensorBoard.

It uses TensorBoard's own protocol buffers and framing, with one event per step that holds all of its scalars. It does
without TensorBoard's EventFileWriter, which hands every event to a thread (0.085 ms of CPU time for 12 scalars against
0.06), raises that thread's errors at a later call, names files by the second, so that two runs that begin within one
may be read in the wrong order, and imports TensorFlow where that is installed.
"""

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
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

from swapfast.errors import SwapfastError
from swapfast.files import code_of, open_plain, write_all
from swapfast.logs.records import RecordIterator, encode_record

__all__ = ["RecordIterator", "TorchTensorBoard"]

FLUSH_S = 5.0
MOST_RECORDS = 1024  # held back
IMAGE_EDGE = 1024  # px
IMAGES = 100  # of a run, before every second is left out; twice as many, and three of four are
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 90]
_RGB = 3  # channels, as Summary.Image counts them


def flattened(logs: Mapping[str, float | Mapping[str, float]]) -> dict[str, float]:
    """Return ``logs`` with tags within tags joined by a slash."""
    flat: dict[str, float] = {}
    for tag, value in logs.items():
        if isinstance(value, Mapping):
            flat |= {f"{tag}/{inner}": number for inner, number in value.items()}
        else:
            flat[tag] = value
    return flat


def keeps_image(number: int) -> bool:
    """Return whether the preview of that number (from 1) is logged: ever fewer, and the same ones on every start."""
    stride = 1 << max(0, (number - 1) // IMAGES).bit_length()
    return number % stride == 0


class TorchTensorBoard:
    """A writer of event files under ``log_dir``/train.

    write_graph: accepted and not used; no graph is ever written. update_freq: log every so many iterations; 'batch' is
    1, and with 'epoch' only the newest values are logged, at ``on_save``. step: iterations that the run begins with;
    TensorBoard then forgets what an earlier run logged of later ones.

    Records are written up to FLUSH_S seconds late. Logs are worth less than the run: where they cannot be written,
    ``warn`` is called once and nothing more is logged. Raises SwapfastError where the first file cannot be written.
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
        self._records: list[bytes] = []  # encoded and not written yet
        self._flush_time = clock.monotonic()
        self._failed = False
        self._file: BinaryIO | None = None
        try:
            follows_a_run = step or any(self._folder.glob("events.out.tfevents.*"))  # also one that begins anew at 0
            self._write(_restart_record(step + 1) if follows_a_run else b"")
        except OSError as error:
            message = f"{self._folder}: no logs can be written there ({error.strerror}); use -n"
            raise SwapfastError(message, code_of(error)) from error

    def set_model(self, model: object) -> None:
        """Do nothing: part of the peer's interface."""

    def on_train_begin(self, logs: Mapping | None = None) -> None:
        """Do nothing: part of the peer's interface."""

    def on_train_batch_end(
        self, batch: int, logs: Mapping[str, float | Mapping[str, float]] | None = None, time: float | None = None
    ) -> None:
        """Log ``logs`` at iteration ``batch``.

        logs: tag -> value, or tag -> a table of them. time: since 1970, s; default now.
        """
        if not logs or self._failed or batch % self._update_freq:
            return
        if self._on_save_only:
            self._records.clear()
        self._records.append(_scalar_record(batch, flattened(logs), clock.time() if time is None else time))
        is_due = len(self._records) >= MOST_RECORDS or clock.monotonic() - self._flush_time >= FLUSH_S
        if is_due and not self._on_save_only:
            self.flush()

    def on_preview(self, step: int, sheet: np.ndarray, number: int = 1) -> None:
        """Log a picture, shrunk to IMAGE_EDGE px.

        sheet: (H, W, 3) uint8 BGR. number: counts the run's previews from 1; see ``keeps_image``.
        """
        if self._failed or not keeps_image(number):
            return
        scale = IMAGE_EDGE / max(sheet.shape[:2])
        if scale < 1:
            sheet = cv2.resize(sheet, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        self._records.append(_image_record(step, "preview", sheet))
        self.flush()

    def flush(self) -> None:
        """Write the records that are held back."""
        records, self._records = self._records, []
        self._flush_time = clock.monotonic()
        if records and not self._failed:
            with self._stop_at_error():
                self._write(b"".join(records))

    def on_save(self) -> None:
        """Write the records that are held back."""
        self.flush()

    def on_train_end(self, logs: Mapping | None = None) -> None:
        """Write the rest and close the file; what is logged later goes to a new one."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, records: bytes) -> None:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            seconds = clock.time()
            # TensorBoard reads a folder's files in the order of their names: two runs may begin in one second.
            name = f"{int(seconds):010d}.{int(seconds % 1 * 1e9):09d}.{socket.gethostname()}.{os.getpid()}"
            self._file = open_plain(self._folder / f"events.out.tfevents.{name}", "ab")
            records = encode_record(Event(wall_time=seconds, file_version="brain.Event:2")) + records
        write_all(self._file, records)

    @contextlib.contextmanager
    def _stop_at_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            self._warn(f"{self._folder}: logs cannot be written any more ({error.strerror or error}); training goes on")


def _scalar_record(step: int, values: Mapping[str, float], time: float) -> bytes:
    scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    return encode_record(Event(wall_time=time, step=step, summary=Summary(value=scalars)))


def _image_record(step: int, tag: str, picture: np.ndarray) -> bytes:
    height, width = picture.shape[:2]
    encoded = cv2.imencode(".jpg", picture, _JPEG)[1].tobytes()
    image = Summary.Image(height=height, width=width, colorspace=_RGB, encoded_image_string=encoded)
    summary = Summary(value=[Summary.Value(tag=tag, image=image)])
    return encode_record(Event(wall_time=clock.time(), step=step, summary=summary))


def _restart_record(step: int) -> bytes:
    """Return the record that voids what TensorBoard knows of ``step`` and later: a run resumes before it."""
    return encode_record(Event(wall_time=clock.time(), step=step, session_log=SessionLog(status=SessionLog.START)))
