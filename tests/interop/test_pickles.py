"""The reader of pickles: what it reads, what it refuses, and that it calls nothing."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import warnings

import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.interop.pickle_writer import write_pickle
from swapfast.interop.pickles import MOST_DEPTH, VIEWED_FROM, read_pickle, read_pickle_file

PLAIN = {
    "numbers": [0, -1, 255, 256, 65536, -(2**31), 2**31, 2**63, -(2**70), 1.5, float("inf")],
    "others": (None, True, False, "tü\udc80", b"", b"xy", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "nested": [{"a": [], "b": {}}, [[1, [2]]]],
    "long": "x" * 70_000,
}
ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
    np.array([True, False]),
    np.array(3.5),
    np.zeros((0, 7)),
    np.full((2, 2), np.nan, np.float16),
    np.arange(40_000.0),
]


class BeforeNumpy2(pickle.Unpickler):
    """An unpickler that knows only the names of numpy before 2, as the one that DeepFaceLab has."""

    def find_class(self, module: str, name: str) -> object:
        known = {"numpy.core.multiarray": ("_reconstruct", "scalar"), "numpy": ("ndarray", "dtype")}
        assert name in known[module]
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def same(first: object, second: object) -> bool:
    """Return whether two values are equal to the bit, arrays in type and shape too."""
    if isinstance(first, np.ndarray):
        return (
            isinstance(second, np.ndarray)
            and (first.dtype, first.shape) == (second.dtype, second.shape)
            and first.tobytes() == second.tobytes()
        )
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and list(first) == list(second) and all(same(first[k], second[k]) for k in first)
        )
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def _written(value: object, tmp_path) -> bytes:
    path = tmp_path / "value.pickle"
    with open(path, "wb", buffering=0) as file:
        write_pickle(file, value)
    return path.read_bytes()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_values_and_arrays_of_every_protocol(protocol):
    value = {**PLAIN, "arrays": ARRAYS, "sets": [{1, 2}, set()]}
    with warnings.catch_warnings(action="ignore"):
        data = pickle.dumps(value, protocol)
    assert same(read_pickle(data, "x"), value)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_names_of_numpy_before_and_after_2(protocol, module):
    data = pickle.dumps({"w": ARRAYS[0], "n": np.int64(-5), "f": np.float32(0.1)}, protocol)
    before, after = (text.encode() for text in ("numpy._core", module))
    length = struct.pack("<B", len(module) + len(".multiarray")) if protocol == 4 else b""
    found = struct.pack("<B", len("numpy._core.multiarray")) + before if protocol == 4 else before
    assert found in data
    data = data[:2] + data[11:] if protocol == 4 else data  # without its frame, whose length is another now
    value = read_pickle(data.replace(found, length + after), "x")
    assert same(value, {"w": ARRAYS[0], "n": -5, "f": float(np.float32(0.1))})


def test_an_array_in_another_byte_order_is_turned_round():
    read = read_pickle(pickle.dumps([np.array([1, -2], ">i4")], 4), "x")
    assert same(read, [np.array([1, -2], np.int32)])


def test_what_is_shared_is_read_once():
    row = [1, 2]
    value = read_pickle(pickle.dumps([row, row, ARRAYS[0], ARRAYS[0]], 4), "x")
    assert value[0] is value[1] and value[2] is value[3]


def test_large_arrays_are_not_copied(tmp_path):
    array = np.arange(VIEWED_FROM, dtype=np.float32)
    path = tmp_path / "weights"
    path.write_bytes(pickle.dumps({"w": array, "again": [array]}, 4))
    data = path.read_bytes()
    value = read_pickle(data, "x")
    assert np.shares_memory(value["w"], np.frombuffer(data, np.uint8)) and not value["w"].flags.writeable
    assert same(read_pickle_file(path)["w"], array)


def test_what_is_written_is_read_by_numpy_before_2_and_by_us(tmp_path):
    value = {
        **PLAIN,
        "sets": [{1, 2}, frozenset("a"), set()],
        "arrays": [*ARRAYS, np.arange(60_000, dtype=np.float32).reshape(300, 200).T],
    }
    data = _written(value | {"n": np.int64(7)}, tmp_path)
    assert data.startswith(b"\x80\x04") and b"numpy._core" not in data
    read = BeforeNumpy2(io.BytesIO(data)).load()
    assert type(read.pop("n")) is np.int64 and same(read, value)
    assert same(read_pickle(data, "x"), value | {"n": 7})


@pytest.mark.parametrize("value", [object(), np.array(["text"]), np.array([None]), 1j, 1 << 2100])
def test_what_is_not_written(value, tmp_path):
    with pytest.raises(TypeError, match="is not written"):
        _written([value], tmp_path)


# --- hostile files ------------------------------------------------------------------------------------------


class _Calls:
    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def _nested(depth: int) -> bytes:
    return b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."


def _doubled(times: int) -> bytes:
    """Return lists of two that are one list, over and over: 2^times values."""
    return b"\x80\x04]\x94" + b"".join(b"]\x94(h%ch%ce" % (n, n) for n in range(times)) + b"."


def _array_of(shape: bytes, dtype: bytes = b"X\x02\x00\x00\x00f4", raw: bytes = b"C\x08" + bytes(8)) -> bytes:
    return (
        b"\x80\x04cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\n"
        + dtype
        + b"\x89\x88\x87R(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89"
        + raw
        + b"tb."
    )


HOSTILE = {
    "a call": (pickle.dumps(_Calls(os.system, "touch called"), 4), r"the name '(posix|nt)\.system'"),
    "an import": (pickle.dumps(_Calls(__import__, "antigravity"), 2), r"the name '__builtin__\.__import__'"),
    "a call in a weight": (pickle.dumps({"w": _Calls(eval, "1")}, 4), r"the name 'builtins\.eval'"),
    "another of numpy": (b"\x80\x04cnumpy\nload\nX\x01\x00\x00\x00x\x85R.", r"the name 'numpy\.load'"),
    "a class": (pickle.dumps(io.BytesIO(), 4), r"the name '_io\.BytesIO'"),
    "a function as a value": (b"\x80\x04]cnumpy\nndarray\na.", "a type or function as a value"),
    "an instance": (b"\x80\x04(cnumpy\nndarray\no.", "the operation OBJ"),
    "a persistent id": (b"\x80\x04K\x01Q.", "the operation BINPERSID"),
    "an extension": (b"\x80\x04\x82\x01.", "the operation EXT1"),
    "no operation": (b"\x80\x04\xff.", "the operation 0xff"),
    "protocol 9": (b"\x80\x09N.", "protocol 9"),
    "protocol 0": (pickle.dumps({"a": 1}, 0), "does not begin as pickles of protocol 2 to 5"),
    "nesting": (_nested(MOST_DEPTH + 2), "more than 100 deep"),
    "endless nesting": (_nested(100_000), "more than 100 deep"),
    "itself": (b"\x80\x04]\x94h\x00a.", "deep|hold one another"),
    "itself in a table": (b"\x80\x04}\x94X\x01\x00\x00\x00ah\x00s.", "deep|hold one another"),
    "a bomb": (_doubled(60), "hold one another"),
    "a key of many": (b"\x80\x04})s.", "is damaged"),
    "a tuple as key": (b"\x80\x04})Ns.", "a key that is a tuple"),
    "a large number as key": (b"\x80\x04}\x8a\x08" + b"\x7f" * 8 + b"Ns.", "a key that is a int"),
    "a huge number": (b"\x80\x04\x8b\x00\x00\x00\x40.", "a number of 1073741824 bytes"),
    "a huge text": (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "is damaged or no pickle .*bytes at"),
    "huge bytes": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "is damaged or no pickle .*bytes at"),
    "no text": (b"\x80\x04X\x02\x00\x00\x00\xff\xfe.", "is damaged"),
    "a huge array": (_array_of(b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft"), "do not fit its shape"),
    "an empty huge array": (_array_of(b"(K\x00\x8a\x08" + b"\x7f" * 8 + b"t", raw=b"C\x00"), "is damaged"),
    "a negative shape": (_array_of(b"(J\xff\xff\xff\xffJ\xfe\xff\xff\xfft"), "an array of no shape"),
    "a shape of 40": (_array_of(b"(" + b"K\x01" * 40 + b"t"), "an array of no shape"),
    "a shape of texts": (_array_of(b"(X\x01\x00\x00\x00xt"), "an array of no shape"),
    "an array of objects": (pickle.dumps(np.array([None, {}]), 4), "an array of 'O8', where only numbers"),
    "an array of texts": (pickle.dumps(np.array(["x"]), 4), "an array of 'U1'"),
    "an array of records": (pickle.dumps(np.zeros(2, [("a", "f4"), ("b", "i4")]), 4), "an array of 'V8'"),
    "an array without numbers": (
        b"\x80\x04cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R.",
        "an array without its numbers",
    ),
    "a matrix": (
        b"\x80\x04cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85C\x01b\x87R.",
        "an array of a kind of its own",
    ),
    "an empty stack": (b"\x80\x04.", "is damaged"),
    "a state of a list": (b"\x80\x04]Nb.", "a state of what has none"),
    "a list that is a table": (b"\x80\x04}Na.", "a list that is a dict"),
    "what was never kept": (b"\x80\x04h\x07.", "never kept"),
    "nothing": (b"", "it ends after 0 bytes"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "is damaged"),
    "a folder's archive": (b"PK\x03\x04" + bytes(64), "does not begin"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_in_one_line(name, tmp_path, monkeypatch):
    data, said = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SwapfastError, match=rf"^some\.dat: .*({said})") as refusal:
        read_pickle(data, "some.dat")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300
    assert not list(tmp_path.iterdir())


def test_more_operations_than_are_allowed():
    data = pickle.dumps(list(range(1000)), 4)
    assert len(read_pickle(data, "x")) == 1000
    with pytest.raises(SwapfastError, match=r"^x: holds more than 500 operations"):
        read_pickle(data, "x", most_operations=500)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_truncated_pickle_is_refused(protocol):
    with warnings.catch_warnings(action="ignore"):
        data = pickle.dumps({"numbers": PLAIN["numbers"], "others": PLAIN["others"], "arrays": ARRAYS[:-1]}, protocol)
    for length in range(0, len(data), 37):
        with pytest.raises(SwapfastError, match=r"^x: "):
            read_pickle(data[:length], "x")


def test_a_changed_pickle_is_read_or_refused():
    """Whatever the bytes, the answer is a value or one line."""
    with warnings.catch_warnings(action="ignore"):
        originals = [
            pickle.dumps({"numbers": PLAIN["numbers"], "others": PLAIN["others"], "arrays": ARRAYS[:-1]}, protocol)
            for protocol in (2, 3, 4, 5)
        ]
    outcomes = {"read": 0, "refused": 0}
    for seed in range(800):
        draw = random.Random(seed)
        data = bytearray(draw.choice(originals))
        for _ in range(draw.randint(1, 4)):
            position = draw.randrange(len(data))
            kind = draw.random()
            if kind < 0.6:
                data[position] = draw.randrange(256)
            elif kind < 0.8:
                del data[position : position + draw.randint(1, 20)]
            else:
                data[position:position] = data[draw.randrange(len(data)) :][: draw.randint(1, 40)]
        try:
            read_pickle(bytes(data), "x")
            outcomes["read"] += 1
        except SwapfastError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "pipe", ""):
        with pytest.raises(SwapfastError, match="cannot be read"):
            read_pickle_file(tmp_path / name)
