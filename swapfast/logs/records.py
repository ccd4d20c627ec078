"""Records of TensorBoard's event files: encode one, and read a file that may be live, cut or damaged."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.errors import DataLossError, OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.summary.writer.record_writer import RecordWriter

from swapfast.errors import SwapfastError
from swapfast.files import open_plain

_FRAME_BYTES = 16  # of a record: length and checksum before the data, checksum after it


def encode_record(event: Event) -> bytes:
    """Return ``event`` as an event file holds it: between its length and its checksums."""
    record = io.BytesIO()
    RecordWriter(record).write(event.SerializeToString())
    return record.getvalue()


class RecordIterator:
    """An iterator over the records of an event file: bytes, each a serialized ``Event``.

    log_file: the file. is_live: the file is being written; at its end the iteration stops, and iterating again later
    gives the records that were added since. Otherwise the first end is final.

    A record that is not complete yet ends the iteration like the end of the file. Where a checksum does not match,
    ``warn`` is called with the place, ``damage`` keeps that line, and nothing behind it is read: its length cannot be
    trusted either. Raises SwapfastError where the file cannot be opened.
    """

    def __init__(
        self, log_file: str | Path, is_live: bool = False, warn: Callable[[str], None] = warnings.warn
    ) -> None:
        self._path, self._is_live, self._warn = Path(log_file), is_live, warn
        self._position = 0  # bytes, of the next record
        self.damage: str | None = None
        try:
            open_plain(self._path).close()
        except OSError as error:
            raise SwapfastError(f"{self._path}: cannot be read ({error.strerror})") from error
        # Absolute, so that no name looks like the URL of another file system to the reader.
        self._reader: PyRecordReader_New | None = PyRecordReader_New(str(self._path.absolute()))

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the data of the next record. Raises StopIteration where there is none, or none yet."""
        record = None if self._reader is None else self._read(self._reader)
        if record is not None:
            self._position += len(record) + _FRAME_BYTES
            return record
        if not self._is_live or self.damage:
            self.close()
        raise StopIteration

    def _read(self, reader: PyRecordReader_New) -> bytes | None:
        try:
            reader.GetNext()
        except OutOfRangeError:
            return None
        except DataLossError as error:  # for a record that is cut as for one that is damaged: only the text differs
            if "truncated" not in str(error):
                self._report_damage("length" if "header" in str(error) else "data")
            return None
        except (MemoryError, OverflowError):
            self._report_damage("length")
            return None
        return reader.record()

    def _report_damage(self, part: str) -> None:
        self.damage = (
            f"{self._path}: the {part} of the record at byte {self._position} is damaged; what follows is not read"
        )
        self._warn(self.damage)

    def close(self) -> None:
        """End the iteration."""
        self._reader = None
