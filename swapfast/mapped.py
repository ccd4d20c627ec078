"""Named arrays in a memory-mapped file: the format of the index, the store and prepared sets.

The layout is that of safetensors. Other programs can read it, and it holds no code:

    8 bytes   length of the header, little-endian
    header    JSON: {"NAME": {"dtype", "shape", "data_offsets"}, ..., "__metadata__": {"KEY": "text"}}, padded
    data      the arrays in C order, little-endian, one after another
"""

from __future__ import annotations

import json
import math
import mmap
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from swapfast.files import open_new, open_plain, put_in_place, temporary_name, try_lock, write_all

_DTYPES = {"U8": "|u1", "I32": "<i4", "I64": "<i8", "F32": "<f4", "F64": "<f8"}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
_MAX_HEADER = 100 << 20  # as safetensors
_ALIGN = 64
_CRC = '"crc32": "{}"'  # its text in the header; the checksum is that of the file with zeros in its place
_NO_CRC = "0" * 8

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype and shape


def _header(shapes: Shapes, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
    """Return the file's first bytes, the offset of each array in the file, and the file's size.

    Arrays of wide items come first, so that all arrays are aligned.
    """
    entries: dict = {"__metadata__": dict(metadata)}
    offset, starts = 0, {}
    for name, (dtype, shape) in sorted(shapes.items(), key=lambda item: -np.dtype(item[1][0]).itemsize):
        starts[name] = offset
        end = offset + math.prod(shape) * np.dtype(dtype).itemsize
        entries[name] = {"dtype": _CODES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in starts.items()}, len(head) + offset


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays and a checksum to ``path`` atomically. Raises OSError where it cannot be written."""
    shapes = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    head, starts, _ = _header(shapes, {**metadata, "crc32": _NO_CRC})
    names = sorted(starts, key=lambda name: starts[name])
    parts = [np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data for name in names]
    crc = zlib.crc32(head)
    for part in parts:
        crc = zlib.crc32(part, crc)
    head = head.replace(_CRC.format(_NO_CRC).encode(), _CRC.format(f"{crc:08x}").encode())
    temporary = temporary_name(path)
    try:
        with open_new(temporary) as file:
            try_lock(file)
            for part in (memoryview(head), *parts):
                write_all(file, part)
        put_in_place(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class NewArrays:
    """A new file of arrays, mapped for writing and shared with child processes.

    The file has a temporary name until ``commit``. Leaving the ``with`` block without ``commit`` removes it. The whole
    size is reserved at the start, so a full disk raises OSError here; later it would crash a write to mapped memory.
    """

    def __init__(self, path: Path, shapes: Shapes, metadata: Mapping[str, str]) -> None:
        self.path, self.temporary = path, temporary_name(path)
        head, starts, size = _header(shapes, metadata)
        try:
            self._file = open_new(self.temporary)  # locked as long as it is open: see writer_lives
            try_lock(self._file)
            write_all(self._file, head)
            _reserve(self._file.fileno(), size)
            self._memory = mmap.mmap(self._file.fileno(), size)
        except OSError:
            self.temporary.unlink(missing_ok=True)
            raise
        self.arrays = {
            name: np.ndarray(shape, dtype, self._memory, starts[name]) for name, (dtype, shape) in shapes.items()
        }

    def commit(self) -> None:
        """Flush the file and give it its name. Raises OSError where that fails."""
        self._memory.flush()
        put_in_place(self.temporary, self.path)

    def __enter__(self) -> NewArrays:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.temporary.unlink(missing_ok=True)


def _reserve(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)


def open_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return a file's arrays, mapped read-only, and its metadata.

    Raises ValueError with a short reason for a file of another format or a wrong checksum, and OSError where it cannot
    be read. Files without a checksum are accepted.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ValueError("not a file of arrays")
        entries = _entries(file.read(length))
        data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    metadata = entries.pop("__metadata__", {})
    first = 8 + length
    arrays, end = {}, first
    for name, (dtype, shape, start, stop) in sorted(
        ((name, _entry(entry)) for name, entry in entries.items()), key=lambda item: item[1][2:]
    ):
        if first + start != end:
            raise ValueError("arrays that leave gaps or overlap")
        end = first + stop
        if end > size:
            raise ValueError("truncated")
        arrays[name] = np.ndarray(shape, dtype, data, first + start)
    if end != size:
        raise ValueError("truncated or too long")
    if "crc32" in metadata:
        head = data[:first].replace(_CRC.format(metadata["crc32"]).encode(), _CRC.format(_NO_CRC).encode())
        if metadata["crc32"] != f"{zlib.crc32(memoryview(data)[first:], zlib.crc32(head)):08x}":
            raise ValueError("damaged (checksum)")
    return arrays, metadata


def _entries(text: bytes) -> dict:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("a header that is not JSON") from error
    metadata = entries.get("__metadata__", {}) if isinstance(entries, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("a header that is not a table of arrays")
    return entries


def _entry(entry: dict) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Return (dtype, shape, start, stop) of one array, checked against each other."""
    try:
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        numbers = (*shape, start, stop)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("a header with an array that is not described") from error
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise ValueError("a header with impossible sizes")
    if math.prod(shape) * dtype.itemsize != stop - start:
        raise ValueError("a header with an array of another size than its shape")
    return dtype, shape, start, stop
