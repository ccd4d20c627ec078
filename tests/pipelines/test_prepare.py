"""``swapfast prepare``: the set holds what training cuts, and is there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.decode import dali_version
from pipelines.prepare import prepare, quality
from swapfast.batch import MASK_NAMES
from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from swapfast.faces.masks import training_masks
from swapfast.faces.png import write_header
from swapfast.faces.prepared import NewPreparedSet, make_sample, open_prepared
from swapfast.files import TEMPORARY
from tests import preloaded

ROOT = Path(__file__).resolve().parents[2]


def _prepare(folder, out, encoding="raw", size=64, mask_type="extended", **more):
    return prepare(folder, out, encoding, size, CropConfig(), MaskConfig(mask_type=mask_type), **more)


@pytest.fixture(scope="session")
def heads(tmp_path_factory, made_faces):
    """600 faceswap heads, which are one: links to the same file."""
    folder = tmp_path_factory.mktemp("heads")
    plain = scan_folder(made_faces / "a").records[0]
    payload = {
        "alignments": {
            **{"x": 0, "y": 0, "w": 96, "h": 96, "identity": {}, "mask": {}},
            "landmarks_xy": plain.landmarks.astype(float).tolist(),
        },
        "source": {
            **{"alignments_version": 2.4, "original_filename": "a_0.png", "face_index": 0, "source_filename": "a.png"},
            **{"source_is_video": False, "source_frame_dims": (96, 96)},
        },
    }
    picture = cv2.imencode(".png", read_image(plain.path))[1].tobytes()
    (folder / "0000.png").write_bytes(write_header(picture, payload))
    for number in range(1, 600):
        os.link(folder / "0000.png", folder / f"{number:04d}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_raw_is_what_training_cuts(made_faces, tmp_path, workers):
    told = []
    out = tmp_path / "set"
    report = _prepare(made_faces / "a", out, workers=workers, progress=lambda *now: told.append(now))
    made = open_prepared(out)
    records = scan_folder(made_faces / "a").records
    assert report.faces == len(made) == len(records) == 14 and report.bad == [] and report.seconds > 0
    assert report.bytes == sum(path.stat().st_size for path in out.iterdir())
    assert told == [(n, 14) for n in range(1, 15)]
    for row, record in enumerate(records):
        face, masks = made.read(row)
        assert np.array_equal(face, crop_face(record, read_image(record.path), CropConfig(), 64))
        assert np.array_equal(
            masks, training_masks(record, CropConfig(), MaskConfig(), 64, MASK_NAMES).transpose(2, 0, 1)
        )
        assert made.folder.records[row].content == record.content
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.long
def test_processes_write_what_threads_write(heads, tmp_path):
    """Also across the blocks in which faces are handed out, and over many shards."""
    for name, workers in (("one", 1), ("two", 2)):
        _prepare(heads, tmp_path / name, "jpeg", 32, workers=workers, shard_bytes=1 << 18)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(one) > 4
    made = open_prepared(tmp_path / "two")
    assert len(made) == 600 and made.verify() == []
    assert [made.folder.records.source_name(i) for i in (0, 300, 599)] == ["0000.png", "0300.png", "0599.png"]


@pytest.mark.skipif(dali_version() is None, reason="DALI is not installed here")
def test_dali_reads_the_same_pixels(made_faces, tmp_path):
    from nvidia.dali import fn, pipeline_def, types

    _prepare(made_faces / "a", tmp_path / "set", "jpeg", 72)
    made = open_prepared(tmp_path / "set")
    pairs = [made.bytes_of(row) for row in range(len(made))]

    @pipeline_def(batch_size=len(pairs), num_threads=2, device_id=None)
    def graph():
        faces, masks = fn.external_source(
            lambda _: tuple([np.frombuffer(pair[part], np.uint8) for pair in pairs] for part in (0, 1)),
            num_outputs=2,
            batch=True,
        )
        options = {"device": "cpu", "adjust_orientation": False}
        return (
            fn.decoders.image(faces, output_type=types.BGR, **options),
            fn.decoders.image(masks, output_type=types.GRAY, **options),
        )

    faces, masks = graph().run()
    for row in range(len(made)):
        face, extra_masks = made.read(row)
        assert np.array_equal(faces.at(row), face)
        assert np.array_equal(masks.at(row).reshape(3, 72, 72), extra_masks)


@pytest.mark.slow
def test_mask_types(made_faces, heads, tmp_path):
    _prepare(made_faces / "a", tmp_path / "file", mask_type="file")
    record = scan_folder(made_faces / "a").records[2]
    masks = open_prepared(tmp_path / "file").read(2)[1]
    expected = training_masks(record, CropConfig(), MaskConfig(mask_type="file"), 64, MASK_NAMES).transpose(2, 0, 1)
    assert np.array_equal(masks, expected)
    _prepare(made_faces / "a", tmp_path / "none", mask_type="none")
    made = open_prepared(tmp_path / "none")
    assert made.mask.mask_type == "none" and (made.read(2)[1][0] == 255).all()
    assert np.array_equal(made.read(2)[1][1:], expected[1:]), "eyes and mouth are drawn all the same"
    with pytest.raises(SwapfastError, match=r"0000.png: no mask 'bisenet-fp_face'"):
        _prepare(heads, tmp_path / "stored", mask_type="bisenet-fp_face", skip_bad=True)
    assert not (tmp_path / "stored").exists()


# --- bad files --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_picture_that_does_not_decode_is_named_or_left_out(damaged, tmp_path):
    out = tmp_path / "sets" / "set"
    with pytest.raises(SwapfastError, match=r"1 of 14 files cannot be used.*--skip-bad\n\s+0003.png: "):
        _prepare(damaged, out)
    assert not out.parent.exists(), "nothing is kept"
    report = _prepare(damaged, out, skip_bad=True)
    assert report.faces == 13 and [bad.path.name for bad in report.bad] == ["0003.png"]
    names = [open_prepared(out).folder.records.source_name(i) for i in range(13)]
    assert "0003.png" not in names and names == sorted(names)


def test_files_that_are_no_faces_and_faces_without_a_mask(damaged, tmp_path):
    (damaged / "0001.png").write_bytes(b"no picture")
    described = json.loads((damaged / "0002.json").read_text())
    del described["mask"]
    (damaged / "0002.json").write_text(json.dumps(described))
    (damaged / "0002_mask.png").unlink()
    with pytest.raises(SwapfastError, match=r"1 of 14 .*\n\s+0001.png: neither a PNG nor a JPEG"):
        _prepare(damaged, tmp_path / "set", mask_type="file")
    report = _prepare(damaged, tmp_path / "set", mask_type="file", skip_bad=True)
    assert report.faces == 11 and sorted(bad.path.name for bad in report.bad) == ["0001.png", "0002.png", "0003.png"]
    assert "no mask 'file'" in {bad.path.name: bad.reason for bad in report.bad}["0002.png"]


def test_no_face_left(made_faces, tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "x.png").write_bytes(b"no picture")
    with pytest.raises(SwapfastError, match="no face is left"):
        _prepare(tmp_path / "faces", tmp_path / "set", skip_bad=True)
    with pytest.raises(SwapfastError, match="no such folder"):
        _prepare(tmp_path / "nowhere", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


# --- what is refused ----------------------------------------------------------------------------------------


def test_places_and_options_that_are_refused(made_faces, tmp_path):
    folder = made_faces / "a"
    before = sorted(path.name for path in folder.iterdir())
    (tmp_path / "link").symlink_to(folder)
    for out in (folder / "set", folder / "deeper" / "set", tmp_path / "link" / "set", folder / "x" / ".." / "set"):
        with pytest.raises(SwapfastError, match="nothing is written into a folder of faces; give another place"):
            _prepare(folder, out)
    (tmp_path / "there").mkdir()
    with pytest.raises(SwapfastError, match="exists already; give a new folder"):
        _prepare(folder, tmp_path / "there")
    with pytest.raises(SwapfastError, match="--format 'png'"):
        _prepare(folder, tmp_path / "set", "png")
    with pytest.raises(SwapfastError, match="--size 8"):
        _prepare(folder, tmp_path / "set", size=8)
    (tmp_path / "file").write_text("")
    with pytest.raises(SwapfastError, match=r"set: cannot be written \(Not a directory\)") as caught:
        _prepare(folder, tmp_path / "file" / "set")
    assert caught.value.code == 1
    _prepare(folder, tmp_path / "set")
    with pytest.raises(SwapfastError, match="is a prepared set already"):
        _prepare(tmp_path / "set", tmp_path / "again")
    assert sorted(path.name for path in folder.iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "set", "there"]


# --- whole or not at all ----------------------------------------------------------------------------------


def _started(folder, out, before="", shard_bytes=1 << 20):
    """A process that prepares, once it has begun to write."""
    program = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from pipelines.prepare import prepare
        from swapfast.config import CropConfig, MaskConfig
        from swapfast.errors import SwapfastError
        {before}
        try:
            prepare(Path({str(folder)!r}), Path({str(out)!r}), "jpeg", 256, CropConfig(), MaskConfig(), workers=2,
                shard_bytes={shard_bytes})
        except SwapfastError as error:
            print(error.code, error)
        except KeyboardInterrupt:
            print("stopped")
    """)
    return preloaded.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _writes(process, out):
    """Wait until a shard is finished and another begun."""
    end = time.monotonic() + 120
    while not any(out.parent.glob(f"{TEMPORARY}*/shard-00001.tar")):
        assert process.poll() is None and time.monotonic() < end and not out.exists()
        time.sleep(0.002)


@pytest.mark.long
def test_killed_while_writing(heads, tmp_path):
    out = tmp_path / "set"
    process = _started(heads, out)
    _writes(process, out)
    process.kill()
    process.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(TEMPORARY) and left.name.endswith("-set") and not out.exists()
    _prepare(heads, out, size=32)
    assert open_prepared(out).verify() == []
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@contextlib.contextmanager
def begin_small_set(faces: Path, out: Path):
    """Begin a prepared set of one face, whoever else does."""
    crop = CropConfig()
    record = scan_folder(faces).records[0]
    face, masks = np.zeros((32, 32, 3), np.uint8), np.zeros((3, 32, 32), np.uint8)
    with NewPreparedSet(out, 32, "raw", crop, MaskConfig(), "a") as new:
        new.add(make_sample(record, face, masks, crop, 32, "raw"))
        yield new


@pytest.fixture
def small_set(made_faces, tmp_path):
    """A function that begins a prepared set of one face."""
    return lambda: begin_small_set(made_faces / "a", tmp_path / "set")


@pytest.mark.parametrize("number", ["1", "9" * 20])
def test_only_what_nobody_writes_any_more_is_removed(small_set, tmp_path, number):
    """A process number in a name says nothing, and an old folder is nobody's where there are no locks."""
    old, new, other = (tmp_path / f"{TEMPORARY}{number}{name}" for name in ("0-set", "1-set", "2-other"))
    for folder in (old, new, other):
        folder.mkdir()
    os.utime(old, (time.time() - 9999, time.time() - 9999))
    with small_set() as writer:
        writer.commit()
    assert {path.name for path in tmp_path.iterdir()} == {"set", new.name, other.name}


@pytest.mark.slow
def test_of_two_writers_of_one_set_the_first_wins(small_set, made_faces, tmp_path):
    """The other is a program of its own: a fork of the tests has none of their threads, but what those had locked."""
    program = textwrap.dedent(f"""
        from pathlib import Path
        from tests.pipelines.test_prepare import begin_small_set
        with begin_small_set(Path({str(made_faces / "a")!r}), Path({str(tmp_path / "set")!r})) as second:
            second.commit()
    """)
    with small_set() as first:
        other = preloaded.Popen([sys.executable, "-c", program], cwd=ROOT)
        try:
            assert other.wait(timeout=60) == 0
        finally:
            other.kill()
        with pytest.raises(SwapfastError, match="set: exists already; give a new folder"):
            first.commit()
    assert open_prepared(tmp_path / "set").verify() == []
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_writing(heads, tmp_path, number):
    process = _started(heads, tmp_path / "sets" / "set")
    _writes(process, tmp_path / "sets" / "set")
    try:
        process.send_signal(number)
        assert process.communicate(timeout=60)[0] == "stopped\n" and process.returncode == 0
    finally:
        process.kill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_exception_while_writing(heads, tmp_path):
    def stop(done, _total):
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _prepare(heads, tmp_path / "set", progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("shard_bytes", [1 << 20, 1 << 18])
def test_a_full_disk(heads, tmp_path, shard_bytes):
    """A limit on the size of written files, 400 KiB, stands for the disk: a shard meets it, or only the index."""
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400 << 10, 400 << 10))"
    line = _started(heads, tmp_path / "set", before, shard_bytes).communicate(timeout=120)[0]
    assert line.startswith(f"1 {tmp_path}/set: cannot be written (the disk is full); ") and line.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_folder(heads, tmp_path, within):
    """The set is 225 MiB, its writer slow, and what waits for it stays far below that."""
    program = textwrap.dedent(f"""
        import re, time
        from pathlib import Path
        from pipelines.prepare import prepare
        from swapfast.config import CropConfig, MaskConfig
        # ru_maxrss would be that of the process that started this one.
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        first = []
        def slow(done, total):
            first.append(peak())
            time.sleep(0.002)
        report = prepare(Path({str(heads)!r}), Path({str(tmp_path / "set")!r}), "raw", 256, CropConfig(), MaskConfig(),
            workers=2, progress=slow)
        print(report.bytes >> 20, peak() - first[0] >> 10)
    """)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    written, grown = map(int, done.stdout.split())
    assert written > 220, done.stdout
    within("MiB more than at the first face", grown, 100)


# --- how good -----------------------------------------------------------------------------------------------


def test_quality(made_faces):
    jpeg, raw = quality(made_faces / "a", 64, sample=5)
    assert (jpeg["format"], jpeg["faces"]) == ("jpeg", 5) and jpeg["face_bytes"] < 64 * 64 * 3
    assert jpeg["psnr_db"] > 38 and 0 < jpeg["max_error"] < 30 and 0 < jpeg["mask_max_error"] < 16
    assert (raw["face_bytes"], raw["mask_bytes"], raw["psnr_db"]) == (64 * 64 * 3, 64 * 64 * 3, None)
    assert raw["max_error"] == raw["mask_max_error"] == 0
