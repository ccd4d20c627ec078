"""TensorBoard's event files: records with checksums, written many at a time and read back.

One record, little-endian:

    uint64  length of the data
    uint32  masked CRC32C of those eight bytes
    bytes   the data: an Event in protobuf's encoding
    uint32  masked CRC32C of the data

Why not torch's SummaryWriter: it makes one record, one protobuf object and one wake-up of a thread per scalar, some
0.5 ms for the dozen of a step, which a GPU may take 5 ms for. Here the steps between two reports are encoded as one
array: 0.01 ms a step, of half the bytes.
"""

from __future__ import annotations

import functools
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from swapfast.errors import SwapfastError

_HEADER, _FOOTER = 12, 4
_POLYNOMIAL = 0x82F63B78  # CRC32C (Castagnoli), bits reversed
_MASK = 0xA282EAD8
_ROW = 64  # bytes
_FEW_ROWS = 32  # below this Python's loop over bytes is faster than numpy's over columns
_LARGE = 4096  # bytes from which folding is faster

Row = tuple[float, int, Mapping[str, float]]  # wall time, step, tag -> value


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()
_TABLE_ARRAY = np.array(_TABLE, np.uint32)


def _register_of_rows(rows: np.ndarray, register: np.ndarray) -> np.ndarray:
    """The CRC's register, (N,) uint32, after each of (N, L) rows of bytes."""
    for column in np.ascontiguousarray(rows.T):
        register = _TABLE_ARRAY[(register ^ column) & 0xFF] ^ (register >> np.uint32(8))
    return register


def _moved_on(register: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(N,) registers after so many zero bytes as ``columns`` stands for: what becomes of each of the 32 bits."""
    bits = (register[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    return np.bitwise_xor.reduce(bits * columns, axis=1)


@functools.cache
def _row_of_zeros() -> np.ndarray:
    return _register_of_rows(np.zeros((32, _ROW), np.uint8), np.uint32(1) << np.arange(32, dtype=np.uint32))


def _crc_folded(data: bytes) -> int:
    """Rows of bytes side by side, then neighbours joined until one is left: a picture takes ms instead of s/10.

    Two facts make that so: a register of zeros stays so under zero bytes, so that the data can be filled up in front,
    and one of ones is one of zeros with the first four bytes inverted.
    """
    rows = 1 << (-(-len(data) // _ROW) - 1).bit_length()
    filled = np.zeros(rows * _ROW, np.uint8)
    filled[-len(data) :] = np.frombuffer(data, np.uint8)
    first = filled.size - len(data)
    filled[first : first + 4] ^= 0xFF
    register = _register_of_rows(filled.reshape(rows, _ROW), np.zeros(rows, np.uint32))
    columns = _row_of_zeros()
    while len(register) > 1:
        register = _moved_on(register[0::2], columns) ^ register[1::2]
        columns = _moved_on(columns, columns)
    return int(register[0]) ^ 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC32C of ``data``."""
    if len(data) >= _LARGE:
        return _crc_folded(data)
    register = 0xFFFFFFFF
    for byte in data:
        register = _TABLE[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def _crc32c_of_rows(rows: np.ndarray) -> np.ndarray:
    if len(rows) < _FEW_ROWS:
        return np.array([crc32c(row.tobytes()) for row in rows], np.uint32)
    return _register_of_rows(rows, np.full(len(rows), 0xFFFFFFFF, np.uint32)) ^ np.uint32(0xFFFFFFFF)


def _masked(crc):
    """As the format stores it, so that the CRC of data that holds CRCs is worth something. int, or uint32 array."""
    if isinstance(crc, np.ndarray):
        return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(_MASK)
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + _MASK) & 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """``data`` as one record."""
    length = struct.pack("<Q", len(data))
    return b"".join(
        [length, struct.pack("<I", _masked(crc32c(length))), data, struct.pack("<I", _masked(crc32c(data)))]
    )


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _field(number: int, content: bytes) -> bytes:
    """A field of text, bytes or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _event(time: float, step: int, rest: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time) + b"\x10" + _varint(step) + rest


def version_record(time: float) -> bytes:
    """The record that every event file begins with."""
    return record(b"\x09" + struct.pack("<d", time) + _field(3, b"brain.Event:2"))


def restart_record(time: float, step: int) -> bytes:
    """Tells TensorBoard that what it knows of ``step`` and later is void: a run goes on from before."""
    return record(_event(time, step, _field(7, b"\x08\x01")))  # session_log {status: START}


def image_record(time: float, step: int, tag: str, height: int, width: int, encoded: bytes) -> bytes:
    """A picture. encoded: the bytes of a PNG or JPEG file."""
    image = b"\x08" + _varint(height) + b"\x10" + _varint(width) + b"\x18\x03" + _field(4, encoded)  # 3: RGB
    return record(_event(time, step, _field(5, _field(1, _field(1, tag.encode()) + _field(4, image)))))


def scalar_records(rows: Sequence[Row]) -> bytes:
    """One record per row, holding all of its scalars."""
    alike: dict[tuple, list[int]] = {}  # accumulated gradients have a norm in every n-th step only
    for index, (_, step, values) in enumerate(rows):
        alike.setdefault((tuple(values), len(_varint(step))), []).append(index)
    records = [b""] * len(rows)
    for (tags, digits), indices in alike.items():
        for index, encoded in zip(indices, _alike([rows[index] for index in indices], tags, digits)):
            records[index] = encoded.tobytes()
    return b"".join(records)


@functools.lru_cache(64)
def _template(tags: tuple[str, ...], digits: int) -> tuple[np.ndarray, np.ndarray]:
    """An event with these tags and a step of so many bytes, all numbers 0, and where its values begin."""
    values = [_field(1, tag.encode()) + b"\x15" + bytes(4) for tag in tags]
    wrapped = [_field(1, value) for value in values]
    summary = b"".join(wrapped)
    data = b"\x09" + bytes(8) + b"\x10" + bytes(digits) + _field(5, summary)
    ends = np.cumsum([len(value) for value in wrapped])
    return np.frombuffer(data, np.uint8), len(data) - len(summary) + ends - 4


def _alike(rows: list[Row], tags: tuple[str, ...], digits: int) -> np.ndarray:
    """(N, L) bytes: the records of rows with equal tags, which differ in their numbers alone."""
    template, at = _template(tags, digits)
    data = np.repeat(template[None], len(rows), axis=0)
    data[:, 1:9] = np.array([row[0] for row in rows], "<f8").view(np.uint8).reshape(-1, 8)
    steps = np.array([row[1] for row in rows], np.int64)[:, None] >> (7 * np.arange(digits))
    data[:, 10 : 10 + digits] = (steps & 0x7F) | np.where(np.arange(digits) < digits - 1, 0x80, 0)
    values = np.array([[row[2][tag] for tag in tags] for row in rows], "<f4")
    data[:, (at[:, None] + np.arange(4)).ravel()] = values.view(np.uint8).reshape(len(rows), -1)
    length = struct.pack("<Q", len(template))
    header = np.frombuffer(length + struct.pack("<I", _masked(crc32c(length))), np.uint8)
    footer = _masked(_crc32c_of_rows(data)).astype("<u4").view(np.uint8).reshape(-1, 4)
    return np.concatenate([np.repeat(header[None], len(rows), axis=0), data, footer], axis=1)


class RecordIterator:
    """The records of an event file, as bytes. Each is an Event in protobuf's encoding.

    log_file: the file. is_live: it is being written: where the records end, iterating again later gives those that have
    come since. Otherwise the end is final.

    A record that is not all there yet ends the iteration like the file's end. Where one does not have the checksum it
    says, ``warn`` is told, ``damage`` says where, and nothing behind it is read: its length cannot be trusted either.
    Raises SwapfastError where there is no such file.
    """

    def __init__(
        self, log_file: str | Path, is_live: bool = False, warn: Callable[[str], None] = warnings.warn
    ) -> None:
        self._path, self._is_live, self._warn = Path(log_file), is_live, warn
        self.damage: str | None = None
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise SwapfastError(f"{self._path}: cannot be read ({error.strerror})") from error

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """The next record's data. Raises StopIteration where there is none, or none yet."""
        data = None if self._file.closed else self._read()
        if data is not None:
            return data
        if not self._is_live or self.damage:
            self._file.close()
        raise StopIteration

    def _read(self) -> bytes | None:
        """One record's data; the position moves on behind whole records only."""
        start = self._file.tell()
        header = self._file.read(_HEADER)
        if len(header) == _HEADER:
            length, crc = struct.unpack("<QI", header)
            if crc != _masked(crc32c(header[:8])):
                return self._damaged(start, "length")
            # Asked first, so that no length that was made up costs memory.
            if os.fstat(self._file.fileno()).st_size >= start + _HEADER + length + _FOOTER:
                data = self._file.read(length)
                if self._file.read(_FOOTER) != struct.pack("<I", _masked(crc32c(data))):
                    return self._damaged(start, "data")
                return data
        self._file.seek(start)
        return None

    def _damaged(self, start: int, what: str) -> None:
        self.damage = f"{self._path}: the {what} of the record at byte {start} is damaged; what follows is not read"
        self._warn(self.damage)

    def close(self) -> None:
        """Close the file; the iteration is at its end."""
        self._file.close()
