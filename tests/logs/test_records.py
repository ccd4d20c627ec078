"""Event files: TensorBoard's loader and our reader agree; live, cut and damaged files are read without errors."""

from __future__ import annotations

import io
import itertools
import os
import random
import resource
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader, RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter

from swapfast.errors import SwapfastError
from swapfast.logs.tensorboard import IMAGES, RecordIterator, TorchTensorBoard, keeps_image

ROOT = Path(__file__).resolve().parents[2]


def _only_file(folder):
    (path,) = (folder / "train").iterdir()
    return path


def _written(tmp_path, steps=5, **board):
    """The event file of a short run: its scalars are step / 8 (exact in float32) and a picture at the end."""
    board = TorchTensorBoard(tmp_path / "logs", **board)
    for step in range(1, steps + 1):
        board.on_train_batch_end(step, {"batch_total": step / 8, "deep": {"inner": -step}}, time=1000.5 + step)
    sheet = np.full((30, 40, 3), (10, 120, 240), np.uint8)
    board.on_preview(steps, sheet)
    board.on_train_end()
    return _only_file(tmp_path / "logs")


def record(data: bytes) -> bytes:
    file = io.BytesIO()
    RecordWriter(file).write(data)
    return file.getvalue()


def test_tensorboard_and_our_reader_see_the_same(tmp_path):
    path = _written(tmp_path, steps=200)
    ours = list(RecordIterator(path))
    assert ours == list(RawEventFileLoader(str(path)).Load()) and len(ours) == 1 + 200 + 1
    events = [Event.FromString(data) for data in ours]
    assert events[0].file_version == "brain.Event:2"
    for step, event in enumerate(events[1:-1], 1):
        assert (event.step, event.wall_time) == (step, 1000.5 + step)
        assert {v.tag: v.simple_value for v in event.summary.value} == {"batch_total": step / 8, "deep/inner": -step}

    seen = EventAccumulator(str(path.parent), {"scalars": 0})
    seen.Reload()
    assert [(s.step, s.value, s.wall_time) for s in seen.Scalars("batch_total")] == [
        (n, n / 8, 1000.5 + n) for n in range(1, 201)
    ]
    (image,) = seen.Images("preview")
    picture = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert (image.step, image.height, image.width) == (200, 30, 40) and picture.shape == (30, 40, 3)
    assert np.abs(picture.astype(int) - (10, 120, 240)).max() <= 4
    assert len(list(EventFileLoader(str(path)).Load())) == 202


@pytest.mark.slow
def test_a_file_that_is_cut_anywhere_never_raises(tmp_path, recwarn):
    """And gives the records that are whole, live or not."""
    path = _written(tmp_path, steps=3)
    whole, records = path.read_bytes(), list(RecordIterator(path))
    ends = np.cumsum([len(record(data)) for data in records])
    cut = tmp_path / "cut"
    for length in range(len(whole) + 1):
        cut.write_bytes(whole[:length])
        for live in (False, True):
            iterator = RecordIterator(cut, live)
            assert list(iterator) == records[: int((ends <= length).sum())], length
            assert iterator.damage is None
            iterator.close()
    assert not recwarn.list


def test_a_live_file_is_followed_byte_by_byte(tmp_path):
    whole = _written(tmp_path, steps=2).read_bytes()
    live = tmp_path / "live"
    live.write_bytes(b"")
    iterator, seen = RecordIterator(live, is_live=True), []
    with live.open("ab", buffering=0) as file:
        for byte in whole:
            file.write(bytes([byte]))
            seen += list(iterator)
    assert b"".join(map(record, seen)) == whole


def test_a_file_that_is_not_live_stays_at_its_end(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(record(b"one"))
    iterator = RecordIterator(path)
    assert list(iterator) == [b"one"]
    path.write_bytes(record(b"one") + record(b"two"))
    assert list(iterator) == []


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("byte, what", [(0, "length"), (7, "length"), (9, "length"), (13, "data"), (-2, "data")])
def test_damage_is_told_and_nothing_behind_it_read(tmp_path, byte, what, live):
    first, second = record(b"first"), bytearray(record(b"second"))
    second[byte] ^= 0x10
    path = tmp_path / "file"
    path.write_bytes(first + second + record(b"third"))
    said = []
    iterator = RecordIterator(path, live, said.append)
    assert list(iterator) == [b"first"] and list(iterator) == []
    assert said == [iterator.damage] and f"the {what} of the record at byte {len(first)} is damaged" in said[0]


def test_random_damage_never_raises_nor_invents(tmp_path):
    whole = _written(tmp_path, steps=4).read_bytes()
    records = list(RecordIterator(_only_file(tmp_path / "logs")))
    path, rng = tmp_path / "file", random.Random(1)
    for _ in range(300):
        broken = bytearray(whole)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        found = list(RecordIterator(path, warn=lambda line: None))
        assert found == records[: len(found)] and len(found) < len(records)


@pytest.mark.parametrize("length", [1 << 33, 1 << 60, (1 << 64) - 1])
def test_a_length_that_was_made_up_costs_no_memory(tmp_path, length):
    """With a checksum that fits."""
    encoded = struct.pack("<Q", length)
    path = tmp_path / "file"
    path.write_bytes(encoded + struct.pack("<I", masked_crc32c(encoded)) + bytes(100))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert list(RecordIterator(path, warn=lambda line: None)) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


def test_no_file(tmp_path):
    with pytest.raises(SwapfastError, match="cannot be read"):
        RecordIterator(tmp_path / "none")


def test_a_run_that_goes_on_replaces_what_was_logged_behind_it(tmp_path):
    """Ten steps, killed; the second run goes on from 6 and its values count."""
    for first, value in ((1, 1.0), (7, 2.0)):
        board = TorchTensorBoard(tmp_path, step=first - 1)
        for step in range(first, 11):
            board.on_train_batch_end(step, {"batch_total": value})
        board.on_train_end()
    seen = EventAccumulator(str(tmp_path / "train"), {"scalars": 0})
    seen.Reload()
    assert [(s.step, s.value) for s in seen.Scalars("batch_total")] == [
        *((step, 1.0) for step in range(1, 7)),
        *((step, 2.0) for step in range(7, 11)),
    ]


def test_a_run_that_begins_anew_does_too(tmp_path):
    """One that ended before its first checkpoint leaves its steps in the folder of the next."""
    for value in (1.0, 2.0):
        board = TorchTensorBoard(tmp_path)
        for step in range(1, 5):
            board.on_train_batch_end(step, {"batch_total": value})
        board.on_train_end()
    seen = EventAccumulator(str(tmp_path / "train"), {"scalars": 0})
    seen.Reload()
    assert [(s.step, s.value) for s in seen.Scalars("batch_total")] == [(step, 2.0) for step in range(1, 5)]


@pytest.mark.parametrize("update_freq, steps", [("batch", [1, 2, 3, 4, 5]), (2, [2, 4]), ("epoch", [5])])
def test_how_often(tmp_path, update_freq, steps):
    path = _written(tmp_path, update_freq=update_freq)
    events = [Event.FromString(data) for data in RecordIterator(path)]
    assert [e.step for e in events if e.summary.value and e.summary.value[0].tag == "batch_total"] == sorted(steps)


@pytest.mark.slow
def test_pictures_are_bounded_in_size_and_number(tmp_path):
    board = TorchTensorBoard(tmp_path)
    board.on_preview(1, np.random.default_rng(1).integers(0, 255, (3000, 1500, 3), np.uint8))
    board.on_train_end()
    assert _only_file(tmp_path).stat().st_size < 1_500_000
    (event,) = (e for e in map(Event.FromString, RecordIterator(_only_file(tmp_path))) if e.summary.value)
    assert (event.summary.value[0].image.height, event.summary.value[0].image.width) == (1024, 512)
    kept = [number for number in range(1, 4001) if keeps_image(number)]
    assert kept[:IMAGES] == list(range(1, IMAGES + 1)) and len(kept) < 5 * IMAGES
    assert all(later - earlier <= 64 for earlier, later in itertools.pairwise(kept))


def test_a_full_disk_ends_the_logs_and_not_the_run(tmp_path):
    said = []
    board = TorchTensorBoard(tmp_path, warn=said.append)
    board._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    for step in range(1, 4):
        board.on_train_batch_end(step, {"batch_total": 1.0})
        board.flush()
    board.on_train_end()
    assert len(said) == 1 and "No space left" in said[0] and "training goes on" in said[0]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(SwapfastError, match=r"no logs can be written there .*use -n"):
        TorchTensorBoard(tmp_path / "logs")


@pytest.mark.slow
def test_tensorflow_is_not_imported_where_it_is_installed(tmp_path):
    """It takes seconds, and all memory of a GPU."""
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('imported')")
    program = (
        "from swapfast.logs.tensorboard import TorchTensorBoard\n"
        f"board = TorchTensorBoard({str(tmp_path)!r})\n"
        "board.on_train_batch_end(1, {'batch_total': 1.0})\n"
        "board.on_train_end()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert len(list(RecordIterator(_only_file(tmp_path)))) == 2
