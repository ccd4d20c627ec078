"""Reads pickles of plain values and arrays, without Python's unpickler.

A pickle is a program: it names functions and has them called. This reader calls nothing that a file names. It knows the
operations that make numbers, texts, bytes, lists, tuples, sets and dictionaries, and a short list of names by which
numpy writes arrays, for which it has functions of its own; whatever else occurs is refused by its name.
"""

from __future__ import annotations

import math
import mmap
import os
import pickletools
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from swapfast.errors import SwapfastError, shortened
from swapfast.files import open_plain

MOST_OPERATIONS = 1 << 25  # a million iterations' losses are five million
MOST_DEPTH = 100  # of values in values
VIEWED_FROM = 1 << 16  # bytes; larger ones are not copied
_MOST_DIMENSIONS = 32
_LONGEST_REASON = 120  # characters
_VALUES_PER_BYTE = 16  # of the file, where values occur in many others
_LARGEST_KEY = 1 << 32  # numbers up to here spread over a dictionary, larger ones can be made not to
NUMBERS = re.compile(r"[<>=|]?(\?|b1|[iu][1248]|f[248])")
_DAMAGE = (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error)


class _Global(NamedTuple):
    """What a file calls by a module and a name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Refusal(Exception):
    """Why a file is not read."""


class _Dtype:
    """An array's type. The file tells the order of its bytes behind it, when it may be known to others already."""

    def __init__(self, text: str) -> None:
        self.value = np.dtype(text)

    def build(self, state: object) -> None:
        """Take the byte order out of numpy's state: (3, '<', None, None, None, -1, -1, 0)."""
        if type(state) is not tuple or not 5 <= len(state) <= 9 or any(part is not None for part in state[2:5]):
            raise _Refusal("an array of records, which are not read")
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("a byte order that is none")
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """An array that has no numbers so far."""

    value: np.ndarray | None = None

    def build(self, state: object) -> None:
        """Take numpy's state: (1, shape, dtype, whether in Fortran's order, bytes)."""
        if type(state) is not tuple or len(state) != 5:
            raise ValueError("an array without its numbers")
        _, shape, dtype, is_fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if is_fortran is True else "C")


def _array(raw: object, dtype: object, shape: object, order: object) -> np.ndarray:
    """Return the array over ``raw``, which is copied only where its bytes are in another machine's order."""
    if not isinstance(dtype, _Dtype):
        raise ValueError("an array of no type")
    if not isinstance(raw, (bytes, memoryview)) or order not in ("C", "F"):
        raise ValueError("an array without its numbers")
    if type(shape) is not tuple or len(shape) > _MOST_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array of no shape")
    if math.prod(shape) * dtype.value.itemsize != len(raw):
        raise ValueError(f"an array whose bytes do not fit its shape {shortened(shape)}")
    flat = np.frombuffer(raw, dtype.value) if len(raw) else np.empty(0, dtype.value)
    flat = flat if dtype.value.isnative else flat.astype(dtype.value.newbyteorder("="))
    return flat.reshape(shape, order="F" if order == "F" else "C")


# --- what a file may name -----------------------------------------------------------------------------------


def _make_empty_array(*arguments: object) -> _Array:
    if not arguments or arguments[0] != _Global("numpy", "ndarray"):
        raise _Refusal("an array of a kind of its own")
    return _Array()


def _make_dtype(text: object, *_: object) -> _Dtype:
    if type(text) is not str or not NUMBERS.fullmatch(text):
        raise _Refusal(f"an array of {shortened(text)}, where only numbers are read")
    return _Dtype(text)


def _make_scalar(dtype: object, raw: object) -> object:
    return _array(raw, dtype, (), "C").item()


def _make_bytes(text: object, encoding: object) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise ValueError("a text that is no bytes")
    return text.encode("latin1")


def _make_empty_bytes(*arguments: object) -> bytes:
    if arguments:
        raise _Refusal("bytes that are made of other values")
    return b""


def _make_set(values: object) -> set:
    if type(values) is not list:
        raise ValueError("a set of no list")
    return set(map(_checked_key, values))


def _make_number(value: object) -> int:
    """Return the number of a member of DeepFaceLab's enumerations."""
    if type(value) is not int:
        raise ValueError("a kind that is no number")
    return value


def _make_nothing(*arguments: object) -> NoReturn:
    raise ValueError("a type that is called")


_MAKERS: dict[_Global, Callable[..., object]] = {
    _Global("numpy", "ndarray"): _make_nothing,
    _Global("numpy", "dtype"): _make_dtype,
    _Global("_codecs", "encode"): _make_bytes,  # bytes and sets, in protocols before there were operations for them
    _Global("__builtin__", "bytes"): _make_empty_bytes,
    _Global("__builtin__", "set"): _make_set,
    _Global("builtins", "set"): _make_set,
}
# Packs of faces hold these. Only the number is taken.
_MAKERS[_Global("samplelib.Sample", "SampleType")] = _make_number
_MAKERS[_Global("facelib.FaceType", "FaceType")] = _make_number
for _core in ("numpy.core", "numpy._core"):
    _MAKERS[_Global(f"{_core}.multiarray", "_reconstruct")] = _make_empty_array
    _MAKERS[_Global(f"{_core}.multiarray", "scalar")] = _make_scalar
    _MAKERS[_Global(f"{_core}.numeric", "_frombuffer")] = _array


# --- reading ------------------------------------------------------------------------------------------------


def read_pickle(data: bytes | memoryview, source: str, most_operations: int = MOST_OPERATIONS) -> Any:
    """Return the value of a pickle of protocol 2 to 5; what lies behind its end is not looked at.

    It consists of None, bool, int, float, str, bytes, list, tuple, set, frozenset, dict and arrays of numbers. Arrays,
    and bytes from VIEWED_FROM on (a memoryview), lie in ``data``: they are read-only, and keep it alive. Keys are texts
    and small numbers. source: how messages call the file. Raises SwapfastError for what is damaged, names anything but
    numpy's arrays, or is larger than ``most_operations`` or deeper than MOST_DEPTH.
    """
    reader = _Reader(memoryview(data))
    try:
        value = reader.read(most_operations)
        _check_tree(value, len(data))
    except _Refusal as error:
        raise SwapfastError(f"{source}: holds {error}; nothing in it was called. Give another file") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        raise SwapfastError(f"{source}: is damaged or no pickle ({reason}); give another copy") from None
    return value


def read_pickle_file(path: Path, most_operations: int = MOST_OPERATIONS) -> Any:
    """Return the value of the file at ``path``, see ``read_pickle``; large arrays are read when they are used.

    The file must not be changed while they are in use. Raises SwapfastError also where it cannot be read.
    """
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if size else memoryview(b"")
    except OSError as error:
        raise SwapfastError(f"{path}: cannot be read ({error.strerror or error}); give another file") from error
    return read_pickle(data, str(path), most_operations)


class _Reader:
    """Runs the operations of one pickle."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self, most_operations: int) -> object:
        """Return the value; raise one of _DAMAGE or _Refusal."""
        data, size = self._data, len(self._data)
        if size and data[0] != _PROTOCOL:
            raise ValueError("it does not begin as pickles of protocol 2 to 5 do")
        for _ in range(most_operations):
            if self._at >= size:
                raise ValueError(f"it ends after {size} bytes, before its end")
            code = data[self._at]
            self._at += 1
            if code == _STOP:
                return self._pop()
            operation = _OPERATIONS[code]
            if operation is None:
                raise _Refusal(_refused_operation(code))
            operation(self)
        raise _Refusal(f"more than {most_operations} operations")

    # Bytes of the file.

    def _take(self, count: int) -> memoryview:
        start = self._at
        if not 0 <= count <= len(self._data) - start:
            raise ValueError(f"{shortened(count)} bytes at {start}, of {len(self._data)} in all")
        self._at = start + count
        return self._data[start : start + count]

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _text(self, length_size: int) -> str:
        return str(self._take(self._number(length_size)), "utf-8", "surrogatepass")

    def _line(self) -> str:
        """Return the text up to the next line feed."""
        start, end = self._at, min(self._at + 256, len(self._data))
        line, feed, _ = bytes(self._data[start:end]).partition(b"\n")
        if not feed:
            raise ValueError("a name without end")
        self._at += len(line) + 1
        return line.decode()

    def _bytes(self, length_size: int) -> bytes | memoryview:
        raw = self._take(self._number(length_size))
        return raw if len(raw) >= VIEWED_FROM else bytes(raw)

    # The stack.

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("a value that is missing")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        """Return the value on top, which must be a ``kind`` that may still change."""
        value = self._stack[-1]
        if type(value) is not kind:
            raise ValueError(f"a {kind.__name__} that is a {type(value).__name__}")
        return value

    def _pop_to_mark(self) -> list:
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    # Operations.

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _pop_mark(self) -> None:
        self._pop_to_mark()

    def _tuple_of(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def _long(self, length_size: int) -> None:
        length = self._number(length_size)
        if length > 255:
            raise _Refusal(f"a number of {length} bytes")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def _append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _appends(self) -> None:
        values = self._pop_to_mark()
        self._top(list).extend(values)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._top(dict)[_checked_key(key)] = value

    def _set_items(self) -> None:
        values = self._pop_to_mark()
        self._top(dict).update(_pairs(values))

    def _add_items(self) -> None:
        values = self._pop_to_mark()
        self._top(set).update(map(_checked_key, values))

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError("a value that was never kept")
        value = self._memo[index]
        self._push(value.value if type(value) is _Array and value.value is not None else value)

    def _global(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is no text")
        named_global = _Global(module, name)
        if named_global not in _MAKERS:
            raise _Refusal(f"the name {shortened(str(named_global))}, where only numpy's arrays are read")
        self._push(named_global)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _reduce(self) -> None:
        arguments, named_global = self._pop(), self._pop()
        if type(named_global) is not _Global or type(arguments) is not tuple:
            raise ValueError("a value that is called")
        self._push(_MAKERS[named_global](*arguments))

    def _build(self) -> None:
        state, target = self._pop(), self._stack[-1]
        if type(target) not in (_Array, _Dtype):
            raise ValueError("a state of what has none")
        target.build(state)
        if type(target) is _Array:
            self._stack[-1] = target.value

    def _protocol(self) -> None:
        protocol = self._number(1)
        if not 2 <= protocol <= 5:
            raise _Refusal(f"a pickle of protocol {protocol}, where 2 to 5 are read")


_KEY_TYPES = (str, int, bytes)


def _checked_key(key: object) -> Any:
    """Return ``key``; raise _Refusal for what cannot be one, or takes long to look up."""
    if type(key) not in _KEY_TYPES or (type(key) is int and not -_LARGEST_KEY < key < _LARGEST_KEY):
        raise _Refusal(f"a key that is a {type(key).__name__}, where texts and small numbers are read")
    return key


def _pairs(values: list) -> Iterator[tuple[Any, Any]]:
    if len(values) % 2:
        raise ValueError("a key without a value")
    return zip(map(_checked_key, values[::2]), values[1::2], strict=True)


def _refused_operation(code: int) -> str:
    name = next((operation.name for operation in pickletools.opcodes if operation.code == chr(code)), hex(code))
    return f"the operation {name}, which plain values and arrays do not need"


_Operation = Callable[[_Reader], None]
_PROTOCOL, _STOP = 0x80, ord(".")


def _operations() -> list[_Operation | None]:
    """Return what each byte of a pickle does, None for what is refused."""
    r = _Reader
    by_code: dict[int, _Operation] = {
        _PROTOCOL: r._protocol,
        0x95: lambda s: _skip(s._take(8)),  # a frame: so many bytes follow
        ord("("): r._mark,
        ord("0"): lambda s: _skip(s._pop()),
        ord("1"): r._pop_mark,
        ord("2"): lambda s: s._push(s._stack[-1]),
        ord("N"): lambda s: s._push(None),
        0x88: lambda s: s._push(True),
        0x89: lambda s: s._push(False),
        ord("J"): lambda s: s._push(int.from_bytes(s._take(4), "little", signed=True)),
        ord("K"): lambda s: s._push(s._number(1)),
        ord("M"): lambda s: s._push(s._number(2)),
        0x8A: lambda s: s._long(1),
        0x8B: lambda s: s._long(4),
        ord("G"): lambda s: s._push(struct.unpack(">d", s._take(8))[0]),
        ord("X"): lambda s: s._push(s._text(4)),
        0x8C: lambda s: s._push(s._text(1)),
        0x8D: lambda s: s._push(s._text(8)),
        ord("B"): lambda s: s._push(s._bytes(4)),
        ord("C"): lambda s: s._push(s._bytes(1)),
        0x8E: lambda s: s._push(s._bytes(8)),
        0x96: lambda s: s._push(s._bytes(8)),  # a bytearray
        0x98: lambda s: None,  # what is on top is not to be changed
        ord(")"): lambda s: s._push(()),
        ord("t"): lambda s: s._push(tuple(s._pop_to_mark())),
        0x85: lambda s: s._tuple_of(1),
        0x86: lambda s: s._tuple_of(2),
        0x87: lambda s: s._tuple_of(3),
        ord("]"): lambda s: s._push([]),
        ord("l"): lambda s: s._push(s._pop_to_mark()),
        ord("a"): r._append,
        ord("e"): r._appends,
        ord("}"): lambda s: s._push({}),
        ord("d"): lambda s: s._push(dict(_pairs(s._pop_to_mark()))),
        ord("s"): r._set_item,
        ord("u"): r._set_items,
        0x8F: lambda s: s._push(set()),
        0x90: r._add_items,
        0x91: lambda s: s._push(frozenset(map(_checked_key, s._pop_to_mark()))),
        ord("q"): lambda s: s._put(s._number(1)),
        ord("r"): lambda s: s._put(s._number(4)),
        0x94: lambda s: s._put(len(s._memo)),
        ord("h"): lambda s: s._get(s._number(1)),
        ord("j"): lambda s: s._get(s._number(4)),
        ord("c"): lambda s: s._global(s._line(), s._line()),
        0x93: r._stack_global,
        ord("R"): r._reduce,
        ord("b"): r._build,
    }
    return [by_code.get(code) for code in range(256)]


def _skip(_: object) -> None:
    """Do nothing with a value."""


_OPERATIONS = _operations()
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, memoryview, np.ndarray})
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})


def _check_tree(value: object, size: int) -> None:
    """Raise _Refusal for a value that is deep, holds itself, or means more values than its file has bytes.

    A list of two that are one list, thirty times over, would keep everybody busy who walks through it.
    """
    level: list[object] = [(value,)]
    visited = 0
    for _ in range(MOST_DEPTH + 1):
        inner: list[object] = []
        for container in level:
            children: Iterable = container.values() if type(container) is dict else container  # type: ignore[assignment]
            for child in children:
                visited += 1
                kind = type(child)
                if kind in _CONTAINERS:
                    inner.append(child)
                elif kind not in _PLAIN:
                    raise _Refusal("an array without its numbers, or a type or function as a value")
            if visited > _VALUES_PER_BYTE * (size + 1):
                raise _Refusal("values that hold one another")
        level = inner
        if not level:
            return
    raise _Refusal(f"values in values, more than {MOST_DEPTH} deep")
