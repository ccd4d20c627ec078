"""Folders: what is a face, what is bad and why, and that no file whatever can stop the scan."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import xxhash

from swapfast import system
from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face
from swapfast.faces.folder import describe, inspect_folder, scan_folder
from swapfast.faces.image import read_image
from swapfast.faces.masks import training_masks
from swapfast.faces.png import write_header
from tests.faces.face_samples import a_face, a_payload, a_picture, a_stored_mask, png_bytes, write_head, write_plain


def reasons(folder) -> dict[str, str]:
    return {bad.path.name: bad.reason for bad in scan_folder(folder).bad}


def test_frames_are_told_from_faces(tmp_path):
    for name in ("one.jpg", "two.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(SwapfastError, match="2 of 2 files cannot be used; no face is left: if these are frames, give"):
        scan_folder(tmp_path).require_all_good()


def test_both_kinds_are_found_in_the_order_of_their_names(tmp_path):
    write_head(tmp_path / "b.png")
    write_plain(tmp_path / "c.jpg", a_picture(400, 380), a_face(), np.zeros((380, 400), np.uint8))
    write_plain(tmp_path / "a.png", a_picture(300, 320), a_face())
    (tmp_path / "B.png").write_bytes((tmp_path / "b.png").read_bytes())
    found = scan_folder(tmp_path)
    assert [record.path.name for record in found.records] == ["B.png", "a.png", "b.png", "c.jpg"]
    assert [record.kind for record in found.records] == ["head", "plain", "head", "plain"]
    assert [(record.width, record.height) for record in found.records] == [(64, 64), (300, 320), (64, 64), (400, 380)]
    assert found.bad == [] and found.notes == {}
    head, plain = found.records[2], found.records[3]
    np.testing.assert_array_equal(head.landmarks, a_face())
    assert list(head.stored_masks) == ["bisenet-fp_face"] and head.mask_file is None
    np.testing.assert_allclose(plain.landmarks, a_face())
    assert plain.mask_file == tmp_path / "c_mask.png" and plain.stored_masks == {}
    found.require_all_good()


def test_content_decides_and_not_the_name(tmp_path):
    write_head(tmp_path / "x.png").rename(tmp_path / "head.jpg")
    write_plain(tmp_path / "y.jpg", a_picture(300, 300), a_face()).rename(tmp_path / "y.png")
    write_head(tmp_path / "z.png").rename(tmp_path / "without_suffix")
    assert [r.path.name for r in scan_folder(tmp_path).records] == ["head.jpg", "without_suffix", "y.png"]


def test_what_is_no_face_is_passed_over(tmp_path):
    write_head(tmp_path / "face.png")
    for name in ("notes.txt", "alone.json", "x.fsa", ".hidden.png", "._face.png", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"whatever")
    (tmp_path / "sub").mkdir()
    write_head(tmp_path / "sub/other.png")
    (tmp_path / "folder.png").mkdir()
    found = scan_folder(tmp_path)
    assert len(found.records) == 1 and not found.bad


def test_companions_are_found_in_any_case_of_their_endings(tmp_path):
    mask = np.zeros((300, 300), np.uint8)
    for name in ("IMG_1.PNG", "b.jpg", "c.png"):
        write_plain(tmp_path / name, a_picture(300, 300), a_face(), mask)
    (tmp_path / "IMG_1_mask.png").rename(tmp_path / "IMG_1_MASK.PNG")
    (tmp_path / "b.json").rename(tmp_path / "b.JSON")
    (tmp_path / "c_mask.png").rename(tmp_path / "c_mask.Png")
    (tmp_path / "c.json").write_text(json.dumps({"landmarks": a_face().tolist(), "mask": "c_mask.png"}))
    for path in tmp_path.iterdir():
        os.utime(path, (10**9, 10**9))
    first = scan_folder(tmp_path)
    again = scan_folder(tmp_path, known=first.records)
    for faces in (first, again):
        names = [(record.path.name, record.mask_file.name) for record in faces.records]
        assert names == [("IMG_1.PNG", "IMG_1_MASK.PNG"), ("b.jpg", "b_mask.png"), ("c.png", "c_mask.Png")]
    assert (first.read, again.read) == (3, 0)


def test_a_face_that_is_named_like_a_mask_is_a_face(tmp_path):
    for name in ("bob.png", "bob_mask.png"):
        write_head(tmp_path / name)
    write_plain(tmp_path / "ann.png", a_picture(300, 300), a_face())
    write_head(tmp_path / "ann_mask.png")
    write_plain(tmp_path / "eve.png", a_picture(300, 300), a_face(), np.zeros((300, 300), np.uint8))
    names = ["ann.png", "ann_mask.png", "bob.png", "bob_mask.png", "eve.png"]
    first = scan_folder(tmp_path)
    assert [record.path.name for record in first.records] == names and not first.bad
    assert [record.path.name for record in scan_folder(tmp_path, known=first.records).records] == names
    assert [record.mask_file and record.mask_file.name for record in first.records] == [None] * 4 + ["eve_mask.png"]


@pytest.mark.parametrize("fault", ["size", "lost", "damaged"])
def test_a_mask_is_judged_only_where_it_is_used(tmp_path, fault):
    for name in ("a", "b"):
        write_plain(tmp_path / f"{name}.png", a_picture(300, 300), a_face(), np.zeros((300, 300), np.uint8))
    mask = tmp_path / "a_mask.png"
    if fault == "lost":
        described = json.loads((tmp_path / "a.json").read_text())
        (tmp_path / "a.json").write_text(json.dumps({**described, "mask": "a_mask.png"}))
        mask.unlink()
    else:
        mask.write_bytes(b"no mask" if fault == "damaged" else png_bytes(np.zeros((9, 9), np.uint8)))
    for path in tmp_path.iterdir():
        os.utime(path, (10**9, 10**9))
    first = scan_folder(tmp_path)
    for faces in (first, scan_folder(tmp_path, known=first.records)):
        assert len(faces.records) == 2 and not faces.bad
        (bad,) = faces.with_mask("file").bad
        assert bad.path.name == "a.png" and "a_mask.png" in bad.reason
    mask.write_bytes(png_bytes(np.zeros((300, 300), np.uint8)))
    mended = scan_folder(tmp_path, known=first.records)
    assert mended.read == 1 and mended.records[0].mask_file == mask
    assert not mended.with_mask("file").bad


def test_masks_are_not_faces(tmp_path):
    mask = np.zeros((300, 300), np.uint8)
    write_plain(tmp_path / "a.jpg", a_picture(300, 300), a_face(), mask)
    write_plain(tmp_path / "b.png", a_picture(300, 300), a_face())
    cv2.imwrite(str(tmp_path / "named.png"), mask)
    described = json.loads((tmp_path / "b.json").read_text())
    (tmp_path / "b.json").write_text(json.dumps({**described, "mask": "named.png"}))
    found = scan_folder(tmp_path)
    assert [(r.path.name, r.mask_file.name) for r in found.records] == [("a.jpg", "a_mask.png"), ("b.png", "named.png")]
    assert not found.bad


def test_pictures_that_decoding_will_change_are_counted(tmp_path):
    picture = a_picture(64, 64)
    payload = a_payload(a_face())
    alpha = np.dstack([picture, picture[..., :1]])
    for name, kind in {"a": alpha, "b": alpha, "c": picture.astype(np.uint16) * 257, "d": picture[..., 0]}.items():
        (tmp_path / f"{name}.png").write_bytes(write_header(png_bytes(kind), payload))
    found = scan_folder(tmp_path)
    assert found.notes == {"16-bit scaled to 8": 1, "alpha dropped": 2, "gray expanded": 1}
    for record in found.records:
        patch = crop_face(record, read_image(record.path), CropConfig(), 32)
        assert patch.shape == (32, 32, 3) and patch.dtype == np.uint8


@pytest.mark.slow
def test_every_bad_file_is_named_with_its_reason(tmp_path):
    good = write_head(tmp_path / "good.png").read_bytes()
    points, picture = a_face(), a_picture(300, 300)
    plain = write_plain(tmp_path / "plain.jpg", picture, points).read_bytes()

    def described(name: str, data: bytes = plain, **values) -> None:
        (tmp_path / f"{name}.jpg").write_bytes(data)
        (tmp_path / f"{name}.json").write_text(json.dumps({"landmarks": points.tolist(), **values}))

    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "cut.png").write_bytes(good[:3000])
    (tmp_path / "flipped.png").write_bytes(good[:-60] + bytes([good[-60] ^ 1]) + good[-59:])
    (tmp_path / "nothing.png").write_bytes(png_bytes(picture))
    (tmp_path / "nothing.jpg").write_bytes(plain)
    (tmp_path / "picture.webp").write_bytes(b"RIFF")
    (tmp_path / "picture.TIF").write_bytes(b"II*\0")
    (tmp_path / "unsquare.png").write_bytes(write_header(png_bytes(a_picture(64, 48)), a_payload(points)))
    (tmp_path / "tiny.png").write_bytes(write_header(png_bytes(a_picture(9, 9)), a_payload(points)))
    (tmp_path / "away.png").write_bytes(write_header(png_bytes(a_picture(64, 64)), a_payload(points + 9000)))
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe_mask.png")
    described("mask_pipe", mask="pipe_mask.png")
    described("cut_jpeg", plain[:-900])
    described("nan", landmarks=[[float("nan")] * 2] * 68)
    described("same", landmarks=[[50, 50]] * 68)
    described("outside", landmarks=(points + 2000).tolist())
    described("few", landmarks=points[:60].tolist())
    described("text_points", landmarks=[["a", "b"]] * 68)
    described("no_points", landmarks=None)
    described("mask_gone", mask="gone.png")
    described("mask_number", mask=5)
    described("mask_up", mask="../secret.png")
    described("mask_size", mask="good_mask.png")
    (tmp_path / "good_mask.png").write_bytes(png_bytes(picture[:99, :, 0]))
    described("mask_bad", mask="text_mask.jpeg")
    (tmp_path / "text_mask.jpeg").write_text("no mask")
    (tmp_path / "list.jpg").write_bytes(plain)
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "broken.jpg").write_bytes(plain)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "deep.jpg").write_bytes(plain)
    (tmp_path / "deep.json").write_text('{"landmarks": ' + "[" * 200_000 + "]" * 200_000 + "}")
    (tmp_path / "huge.jpg").write_bytes(plain)
    (tmp_path / "huge.json").write_text('{"x": "' + "a" * (5 << 20) + '"}')
    expected = {
        "away.png": "far outside its source frame (1280x720 px)",
        "broken.jpg": "broken.json is not valid JSON",
        "cut.png": "truncated",
        "cut_jpeg.jpg": "truncated (no end marker)",
        "dangling.png": "broken link",
        "deep.jpg": "deep.json is nested too deep",
        "empty.png": "empty (zero bytes)",
        "few.jpg": "60x2",
        "flipped.png": "CRC mismatch in IDAT",
        "huge.jpg": "huge.json is larger than 4 MiB",
        "list.jpg": "list.json is not a table",
        "nan.jpg": "not finite",
        "no_points.jpg": 'no list "landmarks"',
        "nothing.jpg": "no nothing.json with landmarks beside it",
        "nothing.png": "no faceswap header",
        "outside.jpg": "far outside the picture (300x300 px)",
        "picture.TIF": "a TIFF, which is not read: convert to PNG or JPEG",
        "picture.webp": "webp pictures are not read: convert to PNG or JPEG",
        "pipe.png": "not a file that can be read",
        "same.jpg": "all lie on one spot",
        "text.png": "neither a PNG nor a JPEG",
        "text_points.jpg": "not rows of two numbers",
        "tiny.png": "9x9 px, too small",
        "unsquare.png": "64x48 px, expected a square",
    }
    found = scan_folder(tmp_path)
    told = {bad.path.name: bad.reason for bad in found.bad}
    assert told.keys() == expected.keys()
    for name, phrase in expected.items():
        assert phrase in told[name], (name, told[name])
        assert "\n" not in told[name]
    masks = {
        "mask_bad.jpg": "its mask text_mask.jpeg is neither a PNG nor a JPEG",
        "mask_gone.jpg": "its mask 'gone.png', named by the json, is not beside it",
        "mask_number.jpg": "is not a file name",
        "mask_pipe.jpg": "its mask pipe_mask.png is not a file",
        "mask_size.jpg": "its mask good_mask.png is 300x99 px, the picture 300x300",
        "mask_up.jpg": "is not beside it",
    }
    assert [record.path.name for record in found.records] == ["good.png", *masks, "plain.jpg"]
    assert found.notes["mask file unusable"] == 6  # which matters with --mask-type file alone
    assert found.with_mask("extended") is found
    unmasked = {bad.path.name: bad.reason for bad in found.with_mask("file").bad}
    assert all(phrase in unmasked[name] for name, phrase in masks.items())
    with pytest.raises(SwapfastError) as caught:
        found.require_all_good()
    first, *rest = str(caught.value).split("\n")
    assert "24 of 32 files" in first and "--skip-bad" in first and str(tmp_path) in first
    assert len(rest) == 24 and all(name in "\n".join(rest) for name in expected)
    found.require_all_good(skip_bad=True)


def test_a_folder_of_bad_files_only_is_an_error_even_when_skipping(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(SwapfastError, match="no face is left"):
        scan_folder(tmp_path).require_all_good(skip_bad=True)


@pytest.mark.parametrize("make", ["missing", "file", "empty", "no_picture"])
def test_a_folder_that_cannot_be_one_is_an_error_with_a_way_out(tmp_path, make):
    place = tmp_path / make
    if make == "file":
        place.write_text("x")
    elif make != "missing":
        place.mkdir()
    if make == "no_picture":
        (place / "notes.txt").write_text("x")
        (place / "deeper").mkdir()
    phrase = {"missing": "no such folder", "file": "is a file; give the folder"}.get(make, "no PNG or JPEG")
    with pytest.raises(SwapfastError, match=phrase) as caught:
        scan_folder(place)
    assert str(place) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_bad(tmp_path):
    write_head(tmp_path / "x.png").chmod(0)
    assert "Permission" in reasons(tmp_path)["x.png"]


def test_names_of_any_kind_stay_on_one_line(tmp_path):
    for name in (b"line\nbreak.png", b"not\xffutf8.png", "größe 臉.png".encode()):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"no picture")
    with pytest.raises(SwapfastError) as caught:
        scan_folder(tmp_path).require_all_good()
    message = str(caught.value)
    assert len(message.split("\n")) == 4 and "größe 臉.png" in message
    message.encode("utf-8")


def test_progress_is_told_to_the_end_and_the_folder_is_left_alone(tmp_path):
    for index in range(5):
        write_head(tmp_path / f"{index}.png", seed=index)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    seen = []
    scan_folder(tmp_path, workers=2, progress=lambda done, total: seen.append((done, total)))
    inspect_folder(tmp_path)
    assert seen == [(index, 5) for index in range(1, 6)]
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_processes_and_threads_find_the_same(tmp_path, monkeypatch):
    source = write_head(tmp_path / "0000.png", edge=24)
    for index in range(1, 40):
        shutil.copy(source, tmp_path / f"{index:04}.png")
    (tmp_path / "0007.png").write_bytes(b"")
    found = []
    for smallest in (10**9, 1):
        monkeypatch.setattr(system, "PROCESSES_FROM", smallest)
        found.append(scan_folder(tmp_path, workers=2))
    threads, processes = found
    assert [r.path for r in threads.records] == [r.path for r in processes.records] and len(threads.records) == 39
    assert threads.bad == processes.bad and len(threads.bad) == 1
    for one, other in zip(threads.records, processes.records, strict=True):
        np.testing.assert_array_equal(one.landmarks, other.landmarks)
        np.testing.assert_array_equal(one.alignment.matrix(64, "face"), other.alignment.matrix(64, "face"))
        assert {**one.stored_masks} == {**other.stored_masks}


# --- the processes of a scan ------------------------------------------------------------------------------

# Reads a folder, and after the first face tells its workers' ids and waits, as a long scan would.
SLOW_SCAN = """
import multiprocessing, signal, sys, time
from pathlib import Path
from swapfast.faces.folder import scan_folder

def progress(done, total):
    if done == 1:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(30)

def heard(*_):
    print("heard", flush=True)
    sys.exit(3)

signal.signal(signal.SIGTERM, heard)
try:
    scan_folder(Path(sys.argv[1]), workers=2, progress=progress)
except KeyboardInterrupt:
    heard()
"""


@pytest.fixture
def slow_scan(tmp_path):
    """A scan in a session of its own that has come to its first face: (process, ids of its workers)."""
    source = write_head(tmp_path / "0000.png", edge=32)
    for index in range(1, system.PROCESSES_FROM + 20):
        (tmp_path / f"{index:04}.png").hardlink_to(source)
    command = [sys.executable, "-c", SLOW_SCAN, str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2 and all(is_alive(worker) for worker in workers), process.poll()
    yield process, workers
    for pid in (process.pid, *workers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=10)


def is_alive(pid: int) -> bool:
    """Running or asleep; what has ended and waits to be noticed by its parent is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def are_gone(pids: list[int], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_workers_do_not_outlive_a_killed_parent(slow_scan):
    process, workers = slow_scan
    process.kill()
    process.wait(timeout=10)
    assert are_gone(workers)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads do the reading")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_group_is_the_parents_alone(slow_scan, name):
    """As Ctrl-C in a terminal sends it: one answer, no traceback of a worker, nothing left behind."""
    process, workers = slow_scan
    os.killpg(process.pid, getattr(signal, name))
    told, errors = process.communicate(timeout=10)
    assert (process.returncode, told, errors) == (3, "heard\n", "")
    assert are_gone(workers)


# --- digests --------------------------------------------------------------------------------------------


def test_a_name_is_no_part_of_the_pixels_digest(tmp_path):
    """Nor are the letters IDAT, with which the pixels begin, in a name or in a comment before it."""
    for number, name in enumerate(("frame.png", "IDAT.png", "an IDAT, and IDAT again.png")):
        payload = a_payload(a_face())
        payload["source"]["original_filename"] = name
        head = write_head(tmp_path / f"head{number}.png", payload=payload)
        comment = b"iTXtComment" + bytes(5) + name.encode()
        comment = (len(comment) - 4).to_bytes(4, "big") + comment + zlib.crc32(comment).to_bytes(4, "big")
        data = head.read_bytes()
        (tmp_path / f"with_comment{number}.png").write_bytes(data[:33] + comment + data[33:])
    records = scan_folder(tmp_path).records
    assert len(records) == 6
    picture = png_bytes(a_picture(64, 64))  # before it was given a header
    assert {record.pixels for record in records} == {xxhash.xxh3_64_digest(picture[picture.index(b"IDAT") :])}
    assert len({record.content for record in records}) == 6, "each is a file of its own all the same"


# --- inspect ----------------------------------------------------------------------------------------------


def break_pixels(data: bytes) -> bytes:
    """The same PNG with a pixel stream that is no zlib stream, under a correct CRC."""
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    body = b"IDAT" + b"\x00" * length
    return data[:at] + body + zlib.crc32(body).to_bytes(4, "big") + data[at + 8 + length :]


def test_inspecting_finds_what_only_the_pixels_show(tmp_path, capfd):
    good = write_head(tmp_path / "good.png").read_bytes()
    write_plain(tmp_path / "plain.png", a_picture(300, 300), a_face(), np.zeros((300, 300), np.uint8))
    (tmp_path / "broken.png").write_bytes(break_pixels(good))
    (tmp_path / "empty.png").write_bytes(b"")
    assert reasons(tmp_path) == {"empty.png": "empty (zero bytes)"}
    report = inspect_folder(tmp_path)
    assert json.loads(json.dumps(report)) == report
    assert report["faces"] == 2 and report["kinds"] == {"head": 1, "plain": 1}
    assert report["sizes"] == {"300x300": 1, "64x64": 1}
    assert report["masks"] == {"bisenet-fp_face": 1, "file": 1}
    assert [one["file"] for one in report["bad"]] == ["broken.png", "empty.png"]
    assert report["yaw"]["min"] <= report["yaw"]["mean"] <= report["yaw"]["max"]
    text = describe(report)
    for phrase in ("2 faces", "bisenet-fp_face: 1", "broken.png: ", "empty.png: empty (zero bytes)", "2 bad"):
        assert phrase in text


def test_a_damaged_mask_is_found_when_inspecting(tmp_path, capfd):
    write_plain(tmp_path / "a.png", a_picture(300, 300), a_face(), np.zeros((300, 300), np.uint8))
    (tmp_path / "a_mask.png").write_bytes(break_pixels((tmp_path / "a_mask.png").read_bytes()))
    (bad,) = inspect_folder(tmp_path)["bad"]
    assert bad["file"] == "a.png" and "a_mask.png" in bad["reason"]


@pytest.mark.slow
def test_the_photographs_and_the_golden_faces_are_all_good(photographs, golden):
    for folder, count in (
        (photographs / "aligned/a", 62),
        (photographs / "aligned/misc", 4),
        (golden.folder / "faces", 6),
    ):
        report = inspect_folder(folder)
        assert (report["faces"], report["bad"]) == (count, [])
        assert "every file is good" in describe(report)


# --- hostile and damaged files ----------------------------------------------------------------------------


class Attack:
    """Unpickled, it would leave a file behind."""

    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One way in which a file can have gone wrong."""
    at, kind = rng.randrange(len(data)), rng.randrange(5)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]
    if kind == 3:
        return data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]
    return data[:at] + data[at + rng.randrange(1, 200) :]


def recrc(data: bytes) -> bytes:
    """Chunks under correct CRCs again, as a hostile writer would leave them, as far as the lengths hold."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        out.append(data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big"))
        at += 12 + length
    return b"".join([*out, data[at:]])


@pytest.mark.slow
def test_no_file_can_stop_the_scan(tmp_path, capfd):
    folder = tmp_path / "faces"
    folder.mkdir()
    payload = a_payload(a_face(), **{"bisenet-fp_face": a_stored_mask(), "vgg-clear": a_stored_mask(32)})
    head = write_header(png_bytes(a_picture(48, 48)), payload)
    jpeg = cv2.imencode(".jpg", a_picture(300, 300))[1].tobytes()
    described = json.dumps({"landmarks": a_face().tolist()}).encode()
    rng = random.Random(7)
    for index in range(60):
        (folder / f"head{index}.png").write_bytes(damaged(head, rng))
        (folder / f"forged{index}.png").write_bytes(recrc(damaged(head[:4000], rng) + head[4000:]))
        (folder / f"jpeg{index}.jpg").write_bytes(damaged(jpeg, rng))
        (folder / f"jpeg{index}.json").write_bytes(described)
        (folder / f"json{index}.jpg").write_bytes(jpeg)
        (folder / f"json{index}.json").write_bytes(damaged(described, rng))
    for name, attack in {"pickle.png": b"", "header.png": head[:33]}.items():
        (folder / name).write_bytes(attack + pickle.dumps(Attack(tmp_path / "attacked")))
    (folder / "good.png").write_bytes(head)
    found = scan_folder(folder)
    assert len(found.records) + len(found.bad) == 4 * 60 + 3
    assert len(found.bad) > 120 and "good.png" in {record.path.name for record in found.records}
    assert all(bad.reason and "\n" not in bad.reason and len(bad.reason) < 300 for bad in found.bad)
    assert {"pickle.png", "header.png"} <= {bad.path.name for bad in found.bad}
    assert not (tmp_path / "attacked").exists()
    report = inspect_folder(folder)
    broken = {one["file"] for one in report["bad"]}
    for record in found.records:
        if record.path.name not in broken:
            patch = crop_face(record, read_image(record.path), CropConfig(), 32)
            masks = training_masks(record, CropConfig(), MaskConfig(), 32, ["face", "eye", "mouth"])
            assert patch.shape == masks.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("start", "phrase"),
    [
        (b"RIFF\0\0\0\0WEBPVP8 ", "a WebP"),
        (b"GIF89a", "a GIF"),
        (b"BM\x36\0", "a BMP"),
        (b"II*\0", "a TIFF"),
        (b"\0\0\0\x18ftypheic", "a HEIC"),
        (b"\0\0\0\x18ftypavif", "an AVIF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
    ],
)
def test_a_file_is_named_as_what_it_is(tmp_path, start, phrase):
    (tmp_path / "one.jpg").write_bytes(start + bytes(400))
    (bad,) = scan_folder(tmp_path).bad
    assert phrase in bad.reason


@pytest.mark.parametrize(
    ("name", "phrase"),
    [("faces.zip", "unpack"), ("aligned/one.png", "aligned holds pictures")],
)
def test_a_folder_without_pictures_is_told_where_they_are(tmp_path, name, phrase):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\1\0\0\0")
    with pytest.raises(SwapfastError, match=phrase):
        scan_folder(tmp_path)


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "faces.zip").write_bytes(b"PK\3\4")
    with pytest.raises(SwapfastError, match="unpacks to"):
        scan_folder(tmp_path / "faces.zip")
