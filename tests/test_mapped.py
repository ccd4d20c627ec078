"""Files of mapped arrays: what goes in comes out, others read it, and damage of any kind is one ValueError."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from swapfast.files import TEMPORARY
from swapfast.mapped import NewArrays, open_arrays, write_arrays

ROOT = Path(__file__).resolve().parents[1]
DTYPES = ("u1", "<i4", "<i8", "<f4", "<f8")


def some_arrays() -> dict[str, np.ndarray]:
    """Every dtype, shapes of 0 to 4 dimensions, empty ones, and one that is not in C order."""
    rng = np.random.default_rng(1)
    shapes = [(), (0,), (7,), (3, 0, 2), (2, 3, 5), (1, 2, 3, 1)]
    made = {
        f"{dtype.strip('<')} {'x'.join(map(str, shape))}": rng.integers(0, 200, shape).astype(dtype)
        for dtype in DTYPES
        for shape in shapes
    }
    return {**made, "turned": np.arange(12, dtype=np.float32).reshape(3, 4).T, "": np.arange(3, dtype=np.uint8)}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


def a_file(entries: dict | bytes, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="U8", shape=(4,), offsets=(0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# --- what goes in comes out -------------------------------------------------------------------------------


def test_every_kind_of_array_comes_back_and_is_read_only_and_aligned(tmp_path):
    arrays = some_arrays()
    metadata = {"what": "test", "ünï \ud800": '{"a": "crc32": "00000000"}\n'}
    write_arrays(tmp_path / "x", arrays, metadata)
    read, told = open_arrays(tmp_path / "x")
    assert same(read, arrays)
    assert {name: told[name] for name in metadata} == metadata and told.keys() - metadata.keys() == {"crc32"}
    for name, array in read.items():
        assert not array.flags.writeable and array.flags.aligned, name
        assert array.ctypes.data % array.itemsize == 0
    with pytest.raises(ValueError):
        read["u1 7"][0] = 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_is_read_can_be_written_again_over_itself(tmp_path):
    """Metadata with the old checksum included; who has the old file mapped keeps it."""
    path = tmp_path / "x"
    write_arrays(path, {"a": np.zeros(1 << 16, np.uint8)}, {"n": "1"})
    old, metadata = open_arrays(path)
    write_arrays(path, {"a": old["a"] + np.uint8(1)}, metadata)
    new, _ = open_arrays(path)
    assert (new["a"] == 1).all() and (old["a"] == 0).all()


def test_no_arrays_at_all(tmp_path):
    write_arrays(tmp_path / "x", {}, {})
    assert open_arrays(tmp_path / "x")[0] == {}


def test_safetensors_reads_what_we_write(tmp_path):
    arrays = some_arrays()
    write_arrays(tmp_path / "x", arrays, {"what": "test"})
    assert same(load_file(tmp_path / "x"), arrays)
    shapes = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    with NewArrays(tmp_path / "y", shapes, {"what": "test"}) as new:
        for name, array in arrays.items():
            new.arrays[name][...] = array
        new.commit()
    assert same(load_file(tmp_path / "y"), arrays) and same(open_arrays(tmp_path / "y")[0], arrays)


def test_we_read_what_safetensors_writes(tmp_path):
    arrays = {name: np.ascontiguousarray(array) for name, array in some_arrays().items()}
    save_file(arrays, tmp_path / "x", {"from": "others"})
    assert same(open_arrays(tmp_path / "x")[0], arrays) and open_arrays(tmp_path / "x")[1] == {"from": "others"}
    save_file({"a": np.zeros((2, 2), np.int32)}, tmp_path / "y")
    assert open_arrays(tmp_path / "y")[1] == {}
    save_file({"half": np.zeros(4, np.float16)}, tmp_path / "z")
    with pytest.raises(ValueError, match="not described"):
        open_arrays(tmp_path / "z")


def test_arrays_may_be_described_in_any_order(tmp_path):
    """An empty one too, which begins where another does."""
    entries = {"b": entry(offsets=(4, 8)), "a": entry(), "none": entry(shape=(0,), offsets=(0, 0))}
    (tmp_path / "x").write_bytes(a_file(entries, b"abcdefgh"))
    arrays, _ = open_arrays(tmp_path / "x")
    assert {name: bytes(array) for name, array in arrays.items()} == {"a": b"abcd", "b": b"efgh", "none": b""}


# --- damage -----------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path) -> tuple[Path, bytes]:
    path = tmp_path / "small"
    write_arrays(path, {"a": np.arange(9, dtype=np.int32), "b": np.ones((2, 3)), "none": np.zeros(0)}, {"k": "v, 'w'"})
    return path, path.read_bytes()


@pytest.mark.long
def test_a_file_cut_anywhere_is_refused(small):
    path, whole = small
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError):
            open_arrays(path)
    for more in (b"\0", whole):
        path.write_bytes(whole + more)
        with pytest.raises(ValueError):
            open_arrays(path)


@pytest.mark.long
def test_a_bit_flipped_anywhere_is_refused(small):
    """In the header too. Only one that strikes the name of the checksum turns the file into one that has none."""
    path, whole = small
    at_name = range(whole.index(b"crc32"), whole.index(b"crc32") + 5)
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            try:
                _, metadata = open_arrays(path)
            except ValueError:
                continue
            assert at in at_name and "crc32" not in metadata, (at, bit)


HUGE = 2**63
DAMAGE = {
    "a length beyond the file": (10**6).to_bytes(8, "little") + b"{}",
    "a huge length": b"\xff" * 8 + b"{}" * 40,
    "a length of one": (1).to_bytes(8, "little") + b"{",
    "no bytes": b"",
    "three bytes": b"abc",
    "text": b"this is no file of arrays, and long enough to be one " * 9,
    "not UTF-8": a_file(b'{"\xff\xfe": 1}'),
    "half a header": a_file(b'{"a": {"dtype": "U8", "shape"'),
    "nested": a_file(b"[" * 200_000),
    "nested and closed": a_file(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "nested in the metadata": a_file(b'{"__metadata__": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "digits without end": a_file(b'{"a": ' + b"9" * 100_000 + b"}"),
    "a list": a_file(b"[1, 2]"),
    "null": a_file(b"null"),
    "a number": a_file(b"123456"),
    "metadata that are a list": a_file({"__metadata__": ["a"]}),
    "metadata that are null": a_file({"__metadata__": None}),
    "metadata of numbers": a_file({"__metadata__": {"a": 1}}),
    "a checksum that is none": a_file({"__metadata__": {"crc32": "\ud800"}}),
    "a checksum of the old kind": a_file({"__metadata__": {"crc32": "0"}}),
    "an array that is null": a_file({"a": None}),
    "an array that is text": a_file({"a": "dtype"}),
    "an array that is a list": a_file({"a": [1]}),
    "no shape": a_file({"a": {"dtype": "U8", "data_offsets": [0, 4]}}, b"abcd"),
    "no offsets": a_file({"a": {"dtype": "U8", "shape": [4]}}, b"abcd"),
    "three offsets": a_file({"a": entry(offsets=(0, 4, 8))}, b"abcd"),
    "offsets of text": a_file({"a": entry(offsets=("0", "4"))}, b"abcd"),
    "offsets of floats": a_file({"a": entry(offsets=(0.0, 4.0))}, b"abcd"),
    "a shape of bools": a_file({"a": entry(shape=(True,), offsets=(0, 1))}, b"a"),
    "a shape that is a number": a_file({"a": entry(shape=4)}, b"abcd"),
    "a shape that is text": a_file({"a": entry(shape="4")}, b"abcd"),
    "a shape of lists": a_file({"a": entry(shape=[[4]])}, b"abcd"),
    "a shape of NaN": a_file(b'{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 4]}}', b"abcd"),
    "an unknown dtype": a_file({"a": entry(dtype="BF16", shape=(2,))}, b"abcd"),
    "an object dtype": a_file({"a": entry(dtype="O", shape=(1,))}, b"abcdefgh"),
    "a dtype that is a list": a_file({"a": entry(dtype=["U8"])}, b"abcd"),
    "a negative shape": a_file({"a": entry(shape=(-4,), offsets=(0, -4))}, b"abcd"),
    "two negative shapes": a_file({"a": entry(shape=(-2, -2))}, b"abcd"),
    "a negative offset": a_file({"a": entry(offsets=(-4, 0))}, b"abcd"),
    "offsets backwards": a_file({"a": entry(offsets=(4, 0))}, b"abcd"),
    "a huge shape": a_file({"a": entry(shape=(HUGE,), offsets=(0, HUGE))}, b"abcd"),
    "a shape whose product overflows": a_file({"a": entry(shape=(2**32, 2**32), offsets=(0, 0))}),
    "a huge shape of nothing": a_file({"a": entry(dtype="F64", shape=(2**61, 2**61, 0), offsets=(0, 0))}),
    "a thousand dimensions": a_file({"a": entry(shape=(1,) * 1000, offsets=(0, 1))}, b"a"),
    "offsets beyond the file": a_file({"a": entry(shape=(2**40,), offsets=(0, 2**40))}, b"abcd"),
    "a shape of another size": a_file({"a": entry(shape=(3,))}, b"abcd"),
    "items that do not fit": a_file({"a": entry(dtype="I32", shape=(4,))}, b"abcd"),
    "a gap before": a_file({"a": entry(offsets=(4, 8))}, b"abcdefgh"),
    "a gap between": a_file({"a": entry(), "b": entry(offsets=(5, 9))}, b"abcdefghi"),
    "an overlap": a_file({"a": entry(), "b": entry(offsets=(2, 6))}, b"abcdef"),
    "the same bytes twice": a_file({"a": entry(), "b": entry()}, b"abcd"),
    "bytes of no array": a_file({"a": entry()}, b"abcde"),
    "bytes and no array": a_file({}, b"abcde"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_no_such_file_is_refused(tmp_path, what):
    (tmp_path / "x").write_bytes(DAMAGE[what])
    with pytest.raises(ValueError) as caught:
        open_arrays(tmp_path / "x")
    assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.long
def test_noise_is_refused(tmp_path):
    rng = np.random.default_rng(5)
    for size in rng.integers(0, 3000, 200):
        noise = rng.bytes(int(size))
        for content in (noise, a_file(noise[:40], noise[40:])):
            (tmp_path / "x").write_bytes(content)
            with pytest.raises(ValueError):
                open_arrays(tmp_path / "x")


def test_a_file_that_is_not_there_or_is_a_folder_is_an_oserror(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(OSError):
            open_arrays(path)


# --- there whole or not at all ----------------------------------------------------------------------------

SHAPES = {"a": ("u1", (1000, 1000)), "b": ("<f8", (3,))}


def test_new_arrays_leave_nothing_without_a_commit(tmp_path):
    with NewArrays(tmp_path / "x", SHAPES, {}) as new:
        new.arrays["a"][:] = 1
        assert [path.name.startswith(TEMPORARY) for path in tmp_path.iterdir()] == [True]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), NewArrays(tmp_path / "x", SHAPES, {}):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_new_arrays_begin_as_zeros_and_keep_what_was_there_until_the_commit(tmp_path):
    write_arrays(tmp_path / "x", {"a": np.arange(5, dtype=np.int64)}, {})
    with NewArrays(tmp_path / "x", SHAPES, {"what": "new"}) as new:
        assert not new.arrays["a"].any() and not new.arrays["b"].any()
        new.arrays["b"][:] = 1, 2, 3
        assert open_arrays(tmp_path / "x")[0]["a"].tolist() == [0, 1, 2, 3, 4]
        new.commit()
    arrays, metadata = open_arrays(tmp_path / "x")
    assert arrays["b"].tolist() == [1, 2, 3] and arrays["a"].shape == (1000, 1000) and metadata == {"what": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


FILL = """
import sys, time
from pathlib import Path
from swapfast.mapped import NewArrays
with NewArrays(Path(sys.argv[1]), {"a": ("u1", (1000, 1000))}, {}) as new:
    new.arrays["a"][:] = 7
    print("filled", flush=True)
    time.sleep(60)
    new.commit()
"""

REWRITE = """
import sys
from pathlib import Path
import numpy as np
from swapfast.mapped import write_arrays
for number in range(10**9):
    write_arrays(Path(sys.argv[1]), {"a": np.full(1 << 20, number, np.int32)}, {"number": str(number)})
    print(number, flush=True)
"""


def _started(program: str, *arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)


def _killed(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)


@pytest.mark.slow
def test_a_kill_before_the_commit_leaves_a_temporary_name_only(tmp_path):
    process = _started(FILL, tmp_path / "x")
    assert process.stdout.readline() == "filled\n"
    _killed(process)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(TEMPORARY) and left.name.endswith("-x")


@pytest.mark.slow
def test_a_kill_at_any_time_leaves_a_whole_file(tmp_path):
    numbers = []
    for wait in (0.0, 0.003, 0.007, 0.012, 0.5):
        process = _started(REWRITE, tmp_path / "x")
        process.stdout.readline()
        time.sleep(wait)
        _killed(process)
        arrays, metadata = open_arrays(tmp_path / "x")
        assert (arrays["a"] == int(metadata["number"])).all() and len(arrays["a"]) == 1 << 20
        numbers.append(metadata["number"])
        assert all(path.name == "x" or path.name.startswith(TEMPORARY) for path in tmp_path.iterdir())
    assert numbers[0] != numbers[-1], "some were written to the end before the kill"


FULL = """
import errno, sys
from pathlib import Path
import numpy as np
from swapfast.mapped import NewArrays, write_arrays
path = Path(sys.argv[1])
for make in (
    lambda: NewArrays(path, {"a": ("u1", (10**6,))}, {}),
    lambda: write_arrays(path, {"a": np.zeros(10**6, np.uint8)}, {}),
):
    try:
        make()
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.mark.slow
def test_a_full_disk_is_an_oserror_and_leaves_what_was_there(tmp_path):
    write_arrays(tmp_path / "x", {"a": np.arange(5, dtype=np.int64)}, {})

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    process = _started(FULL, tmp_path / "x", preexec_fn=limit)
    out, errors = process.communicate(timeout=60)
    assert out.split() == ["EFBIG", "EFBIG"] and process.returncode == 0, errors
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert open_arrays(tmp_path / "x")[0]["a"].tolist() == [0, 1, 2, 3, 4]
