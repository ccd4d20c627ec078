"""Writes pickles of plain values and arrays that Python 3.4 and numpy 1 can open too.

numpy writes arrays by the names of its own modules, and since numpy 2 these are others, which older ones do not have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from swapfast.files import write_all
from swapfast.interop.pickles import NUMBERS, VIEWED_FROM


def write_pickle(file: BinaryIO, value: object) -> None:
    """Write plain values, numpy's numbers and arrays as a pickle of protocol 4, which numpy before 2 can open too.

    file: opened for writing, without a buffer. Arrays are not copied where they are in C's order. Raises TypeError for
    a value of another kind, and OSError.
    """
    pending = bytearray(b"\x80\x04")
    for piece in _pieces(value):
        if len(piece) >= VIEWED_FROM:
            write_all(file, bytes(pending))
            pending.clear()
            write_all(file, piece)
        else:
            pending += piece
            if len(pending) >= VIEWED_FROM:
                write_all(file, bytes(pending))
                pending.clear()
    write_all(file, bytes(pending) + b".")


def _pieces(value: object) -> Iterator[bytes | memoryview]:
    """Give the operations that make ``value``, in pieces."""
    if value is None or isinstance(value, bool):
        yield {None: b"N", True: b"\x88", False: b"\x89"}[value]
    elif isinstance(value, np.ndarray):
        yield from _array_pieces(value)
    elif isinstance(value, np.generic):
        raw = value.tobytes()
        yield _named("numpy.core.multiarray", "scalar") + _dtype_piece(value.dtype) + _bytes_piece(raw) + b"\x86R"
    elif isinstance(value, int):
        yield _int_piece(value)
    elif isinstance(value, float):
        yield b"G" + struct.pack(">d", value)
    elif isinstance(value, str):
        yield _text_piece(value)
    elif isinstance(value, (bytes, memoryview)):
        yield _bytes_piece(value, only_length=True)
        yield value
    elif isinstance(value, dict):
        yield b"}("
        for key, item in value.items():
            yield from _pieces(key)
            yield from _pieces(item)
        yield b"u"
    elif isinstance(value, (set, frozenset)):
        yield b"(" if isinstance(value, frozenset) else b"\x8f("
        for item in value:
            yield from _pieces(item)
        yield b"\x91" if isinstance(value, frozenset) else b"\x90"
    elif isinstance(value, (list, tuple)):
        yield b"(" if isinstance(value, tuple) else b"]("
        for item in value:
            yield from _pieces(item)
        yield b"t" if isinstance(value, tuple) else b"e"
    else:
        raise TypeError(f"{type(value).__name__} is not written")


def _array_pieces(array: np.ndarray) -> Iterator[bytes | memoryview]:
    dtype = _dtype_piece(array.dtype)
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    yield _named("numpy.core.multiarray", "_reconstruct") + _named("numpy", "ndarray")
    yield b"K\x00\x85" + _bytes_piece(b"b") + b"\x87R"
    yield b"(K\x01(" + b"".join(_int_piece(n) for n in array.shape) + b"t" + dtype + b"\x89"
    yield _bytes_piece(raw, only_length=True)
    yield raw
    yield b"tb"


def _dtype_piece(dtype: np.dtype) -> bytes:
    if not NUMBERS.fullmatch(dtype.str):
        raise TypeError(f"an array of {dtype} is not written")
    order = {"=": "<", "|": "|"}.get(dtype.byteorder, dtype.byteorder) if dtype.str[0] != ">" else ">"
    state = b"(K\x03" + _text_piece(order) + b"NNN" + _int_piece(-1) + _int_piece(-1) + b"K\x00t"
    return _named("numpy", "dtype") + _text_piece(dtype.str[1:]) + b"\x89\x88\x87R" + state + b"b"


def _named(module: str, name: str) -> bytes:
    return _text_piece(module) + _text_piece(name) + b"\x93"


def _int_piece(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(raw) > 255:
        raise TypeError("a number of more than 255 bytes is not written")
    return b"\x8a" + bytes([len(raw)]) + raw


def _text_piece(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _bytes_piece(raw: bytes | memoryview, only_length: bool = False) -> bytes:
    head = b"\x8e" + struct.pack("<Q", len(raw))
    return head if only_length else head + bytes(raw)
