"""The index: every field as a fresh scan finds it, only what changed read again, and nothing damaged trusted."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from swapfast.faces import table
from swapfast.faces.folder import FaceFolder, scan_folder
from swapfast.faces.png import write_header
from swapfast.faces.reader import BadFace, read_face
from swapfast.faces.record import FaceRecord
from swapfast.faces.table import FaceTable, index_path, load_index, pack, save_index
from swapfast.files import TEMPORARY
from swapfast.mapped import open_arrays, write_arrays
from tests import preloaded
from tests.faces.face_samples import a_face, a_payload, a_picture, a_stored_mask, png_bytes, write_head, write_plain

ROOT = Path(__file__).resolve().parents[2]
ODD_NAMES = (b"line\nbreak.png", b"not\xffutf8.png", "größe 臉.png".encode(), b" .png", b"quote'\".jpg")


def age(folder: Path, seconds: float = 3600) -> None:
    """Make every file that is new look as if it had been there for an hour."""
    now = time.time()
    for entry in os.scandir(folder):
        if entry.stat().st_mtime > now - 60:
            os.utime(entry.path, (now - seconds, now - seconds))


def describe(path: Path, landmarks: np.ndarray, **more) -> None:
    path.write_text(json.dumps({"landmarks": landmarks.tolist(), **more}))


def write_odd(folder: Path, name: bytes, seed: int) -> None:
    """A plain picture with a mask, under a name of any bytes."""
    stem, suffix = os.path.splitext(os.fsencode(folder) + b"/" + name)
    picture = a_picture(60, 70, seed)
    files = {
        suffix: cv2.imencode(".jpg", picture)[1].tobytes() if suffix == b".jpg" else png_bytes(picture),
        b".json": json.dumps({"landmarks": (a_face(20, (15, 12)) + seed).tolist()}).encode(),
        b"_mask.png": png_bytes(picture[..., 0]),
    }
    for ending, content in files.items():
        with open(stem + ending, "wb") as file:
            file.write(content)


@pytest.fixture
def folder(tmp_path) -> Path:
    """One face of every kind, all old enough to be known the next time."""
    place = tmp_path / "faces"
    place.mkdir()
    masks = {"components": a_stored_mask(32, "face", 1), "bisenet-fp_head": a_stored_mask(48, "head", 2)}
    write_head(place / "head.png")
    write_head(place / "head_masks.png", payload=a_payload(a_face(degrees=9), **masks), seed=1)
    write_head(place / "head_bare.png", payload=a_payload(a_face(degrees=-20)), seed=2)
    write_head(place / "no_suffix.png", seed=9).rename(place / "no_suffix")
    alpha = np.dstack([a_picture(64, 64, 3), a_picture(64, 64, 3)[..., :1]])
    (place / "alpha16.png").write_bytes(write_header(png_bytes(alpha.astype(np.uint16) * 257), a_payload(a_face())))
    (place / "gray.png").write_bytes(write_header(png_bytes(alpha[..., 0]), a_payload(a_face())))
    write_plain(place / "plain.png", a_picture(300, 320), a_face())
    write_plain(place / "selfie_mask.jpeg", a_picture(300, 320), a_face(degrees=5))
    write_plain(place / "photo.jpg", a_picture(400, 380, 4), a_face(), np.zeros((380, 400), np.uint8))
    write_plain(place / "named.png", a_picture(90, 80, 5), a_face(30, (20, 20)))
    describe(place / "named.json", a_face(30, (20, 20)), mask="some where.png")
    (place / "some where.png").write_bytes(png_bytes(np.full((80, 90), 9, np.uint8)))
    for seed, name in enumerate(ODD_NAMES):
        write_odd(place, name, seed)
    (place / "notes.txt").write_text("nothing to see here")
    age(place)
    return place


def fields(record: FaceRecord) -> dict:
    """Every field as plain values, masks with their pixels."""
    plain = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    alignment = {f.name: getattr(record.alignment, f.name) for f in dataclasses.fields(record.alignment)}
    alignment["offsets"] = {name: array.tolist() for name, array in alignment["offsets"].items()}
    plain["alignment"] = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in alignment.items()}
    plain["landmarks"] = (str(record.landmarks.dtype), record.landmarks.tolist())
    plain["stored_masks"] = {name: dataclasses.astuple(record.stored_masks[name]) for name in record.stored_masks}
    return plain


def assert_same(one: FaceFolder, other: FaceFolder) -> None:
    assert [fields(record) for record in one.records] == [fields(record) for record in other.records]
    assert one.bad == other.bad and one.notes == other.notes and one.path == other.path


@pytest.fixture
def indexed(folder, tmp_path):
    """``indexed()`` scans by the index that is there, keeps what it found, and says both."""
    path = index_path(tmp_path, folder)

    def scan() -> FaceFolder:
        found = scan_folder(folder, known=load_index(path, folder))
        save_index(path, found.records)
        return found

    scan.path = path
    return scan


# --- every field ------------------------------------------------------------------------------------------


def test_every_field_is_what_reading_the_file_finds(folder, indexed):
    """Compared with ``read_face`` itself, which knows of no table."""
    others = frozenset(os.listdir(folder))
    first = indexed()
    again = indexed()
    assert len(first.records) == len(again.records) == 10 + len(ODD_NAMES)
    for found in (first, again, scan_folder(folder)):
        for record in found.records:
            direct = read_face(folder, record.path.name, others)
            assert isinstance(direct, FaceRecord) and fields(record) == fields(direct), record.path
    assert {r.kind for r in again.records} == {"head", "plain"}
    assert {r.encoding for r in again.records} == {"png", "jpeg"}
    assert again.notes == {"16-bit scaled to 8": 1, "alpha dropped": 1, "gray expanded": 1}
    names = {os.fsencode(record.path.name) for record in again.records}
    assert names >= set(ODD_NAMES)
    assert {r.mask_file.name for r in again.records if r.mask_file} >= {"some where.png", "photo_mask.png"}


def test_masks_in_a_header_are_read_when_they_are_asked_for(folder, indexed):
    indexed()
    record = next(r for r in indexed().records if r.path.name == "head_masks.png")
    assert list(record.stored_masks) == ["components", "bisenet-fp_head"] and len(record.stored_masks) == 2
    assert "components" in record.stored_masks and "extended" not in record.stored_masks
    expected = np.frombuffer(zlib.decompress(a_stored_mask(32, "face", 1)["mask"]), np.uint8)
    assert np.array_equal(record.stored_masks["components"].pixels().ravel(), expected)
    with pytest.raises(KeyError):
        record.stored_masks["extended"]
    write_head(folder / "head_masks.png", payload=a_payload(a_face()))
    late = next(r for r in indexed().records[:] if r.path.name == "head_masks.png")
    assert list(late.stored_masks) == []
    stale = table.StoredMasks(record.path, ("components",))
    with pytest.raises(ValueError, match="changed since the folder was read"):
        stale["components"]


def test_a_second_scan_reads_no_file(folder, indexed):
    """Neither notes.txt nor a json counts, and the mask that a json names is no face."""
    (folder / "named.json").unlink()
    (folder / "named.png").unlink()
    (folder / "some where.png").unlink()
    first, second, third = indexed(), indexed(), indexed()
    assert (first.read, second.read, third.read) == (9 + len(ODD_NAMES), 0, 0)
    assert_same(first, third)
    for entry in os.scandir(folder):
        status = entry.stat()
        with open(entry.path, "wb") as file:
            file.write(b"\0" * status.st_size)  # whoever reads it again will not find a face
        os.utime(entry.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    fourth = scan_folder(folder, known=load_index(indexed.path, folder))
    assert fourth.read == 0 and len(fourth.records) == len(first.records)
    assert [r.content for r in fourth.records] == [r.content for r in first.records]


def test_a_mask_beside_a_head_is_no_reason_to_read_it_again(folder, indexed):
    (folder / "head_mask.png").write_bytes(png_bytes(np.zeros((64, 64), np.uint8)))
    (folder / "some where.png").unlink()
    describe(folder / "named.json", a_face(30, (20, 20)))
    age(folder)
    assert indexed().bad == []
    assert indexed().read == 0


# --- only what changed ------------------------------------------------------------------------------------


def _new_face(folder):
    write_head(folder / "aaa.png", seed=77)


def _mended(folder):
    write_plain(folder / "was_bad.png", a_picture(300, 320), a_face())


def _other_json(folder):
    describe(folder / "photo.json", a_face(degrees=8))


def _other_mask(folder):
    cv2.imwrite(str(folder / "photo_mask.png"), np.full((380, 400), 255, np.uint8))


def _new_mask(folder):
    cv2.imwrite(str(folder / "plain_mask.png"), np.full((320, 300), 255, np.uint8))


def _mask_of_another_name(folder):
    describe(folder / "photo.json", a_face(), mask="new.png")
    cv2.imwrite(str(folder / "new.png"), np.full((380, 400), 255, np.uint8))


CHANGES = {  # what happens -> (how, files that are read again beside those that are bad)
    "nothing": (lambda folder: None, 0),
    "a new face": (_new_face, 1),
    "a face removed": (lambda folder: (folder / "head.png").unlink(), 0),
    "a face renamed": (lambda folder: (folder / "head.png").rename(folder / "zzz.png"), 1),
    "two faces exchanged": (
        lambda folder: (
            [(folder / a).rename(folder / b) for a, b in (("head.png", "x"), ("gray.png", "head.png"))]
            and (folder / "x").rename(folder / "gray.png")
        ),
        2,
    ),
    "another picture": (lambda folder: cv2.imwrite(str(folder / "plain.png"), a_picture(301, 320, 8)), 1),
    "other masks in a header": (lambda folder: write_head(folder / "head.png", payload=a_payload(a_face())), 1),
    "another json": (_other_json, 1),
    "another mask": (_other_mask, 1),
    "a mask beside a picture that had none": (_new_mask, 1),
    "a mask under another name": (_mask_of_another_name, 2),
    "a mask removed": (lambda folder: (folder / "photo_mask.png").unlink(), 1),
    "a json removed": (lambda folder: (folder / "photo.json").unlink(), 1),
    "a picture damaged": (lambda folder: (folder / "head.png").write_bytes(b"\x89PNG\r\n\x1a\n"), 1),
    "a picture emptied": (lambda folder: (folder / "plain.png").write_bytes(b""), 1),
    "a mask damaged": (lambda folder: (folder / "photo_mask.png").write_bytes(b"x"), 1),
    "a bad one mended": (_mended, 0),
    "a bad one removed": (lambda folder: (folder / "was_bad.png").unlink(), -1),
    "a picture touched": (lambda folder: os.utime(folder / "head.png", (10**9, 10**9)), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_read_and_nothing_else(folder, indexed, what):
    change, expected = CHANGES[what]
    (folder / "was_bad.png").write_bytes(png_bytes(a_picture(300, 320)))
    for path in ("named.png", "named.json", "some where.png"):
        (folder / path).unlink()
    age(folder)
    assert [bad.path.name for bad in indexed().bad] == ["was_bad.png"]
    change(folder)
    age(folder, 1800)
    fresh, known = scan_folder(folder), indexed()
    assert_same(known, fresh)
    assert known.read == 1 + expected, "what is bad is always read again"
    assert_same(indexed(), fresh)


def test_files_as_new_as_the_scan_are_not_trusted(folder, indexed):
    """One that is written twice within a clock's tick has the same size and time both times."""
    path = write_head(folder / "new.png", seed=21)
    status = path.stat()
    first = indexed()
    other = write_head(folder / "other.png", seed=22).read_bytes()
    (folder / "other.png").unlink()
    padded = other + b"\0" * (status.st_size - len(other)) if len(other) < status.st_size else other
    path.write_bytes(padded)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = indexed()
    assert second.read >= 1
    assert_same(second, scan_folder(folder))
    contents = [{r.path.name: r.content for r in found.records}["new.png"] for found in (first, second)]
    assert contents[0] != contents[1]
    age(folder)
    assert indexed().read >= 1
    assert_same(indexed(), scan_folder(folder))


@pytest.mark.slow
def test_many_random_changes_leave_the_index_right(folder, indexed):
    rng = random.Random(4)
    for turn in range(25):
        faces = sorted(path for path in folder.iterdir() if path.name.startswith(("head", "gray", "turn")))
        what = rng.choice(["add", "remove", "replace", "swap", "break"])
        if what == "add" or len(faces) < 4:
            write_head(folder / f"turn{rng.randrange(10)}.png", edge=24, seed=turn)
        elif what == "remove":
            rng.choice(faces).unlink()
        elif what == "replace":
            rng.choice(faces).write_bytes(write_head(folder / "x.png", edge=24, seed=turn).read_bytes())
            (folder / "x.png").unlink()
        elif what == "swap":
            one, two = rng.sample(faces, 2)
            one.rename(folder / "x"), two.rename(one), (folder / "x").rename(two)
        else:
            rng.choice(faces).write_bytes(rng.choice([b"", b"\x89PNG\r\n\x1a\nxx", b"text"]))
        age(folder, 500 - turn)
        assert_same(indexed(), scan_folder(folder))


# --- an index that is none --------------------------------------------------------------------------------


@pytest.mark.long
def test_a_damaged_index_is_none(folder, indexed):
    indexed()
    whole = indexed.path.read_bytes()
    assert load_index(indexed.path, folder) is not None
    rng = np.random.default_rng(2)
    header = int.from_bytes(whole[:8], "little")
    places = [*range(8 + header), *rng.integers(8 + header, len(whole), 300).tolist()]
    for at in places:
        indexed.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
        assert load_index(indexed.path, folder) is None, at
    for length in (0, 1, 8, 9, header, header + 8, len(whole) // 2, len(whole) - 1):
        indexed.path.write_bytes(whole[:length])
        assert load_index(indexed.path, folder) is None, length
    for other in (whole + b"\0", b"{}", b"SQLite format 3\0" * 100, os.urandom(5000), b"\0" * 5000):
        indexed.path.write_bytes(other)
        assert load_index(indexed.path, folder) is None
    found = indexed()
    assert found.read == len(found.records) + len(found.bad) + 1, "all is read again, with the mask that a json names"


@pytest.mark.parametrize("what", ["nothing", "folder"])
def test_no_index_is_none(folder, indexed, what):
    if what == "folder":
        indexed.path.mkdir()
    assert load_index(indexed.path, folder) is None


FOREIGN = {
    "another format": lambda columns, told: told.update(format=str(table.INDEX_FORMAT + 1)),
    "no format": lambda columns, told: told.pop("format"),
    "another thing": lambda columns, told: told.update(what="swapfast store"),
    "no notes": lambda columns, told: told.pop("notes"),
    "too few notes": lambda columns, told: told.update(notes="[]"),
    "notes that are nested": lambda columns, told: told.update(notes="[" * 100_000),
    "notes that are numbers": lambda columns, told: told.update(notes="[1, 2, 3, 4, 5, 6, 7]"),
    "masks that are null": lambda columns, told: told.update(masks="null"),
    "a column less": lambda columns, told: columns.pop("roll", None) or columns.pop("width"),
    "no kinds": lambda columns, told: columns.pop("kind"),
    "no names": lambda columns, told: columns.pop("names"),
    "floats for integers": lambda columns, told: columns.update(width=columns["width"].astype(np.float32)),
    "rows less": lambda columns, told: columns.update(landmarks=columns["landmarks"][:-1]),
    "another shape": lambda columns, told: columns.update(angles=columns["angles"][:, :3]),
    "a kind that is none": lambda columns, told: columns["kind"].__setitem__(0, 9),
    "an encoding that is none": lambda columns, told: columns["encoding"].__setitem__(0, 9),
    "notes out of range": lambda columns, told: columns["notes"].__setitem__(0, 999),
    "notes below zero": lambda columns, told: columns["notes"].__setitem__(0, -1),
    "masks out of range": lambda columns, told: columns["masks"].__setitem__(0, 999),
    "names backwards": lambda columns, told: columns["names_at"].__setitem__(1, 10**6),
    "names that begin late": lambda columns, told: columns["names_at"].__setitem__(0, 1),
    "names beyond the end": lambda columns, told: columns["names_at"].__setitem__(-1, 10**6),
    "names too few": lambda columns, told: columns.update(names_at=columns["names_at"][:-1]),
    "texts backwards": lambda columns, told: columns["texts_at"].__setitem__(1, -5),
    "a landmark that is infinite": lambda columns, told: columns["landmarks"].__setitem__((0, 5), np.inf),
    "a landmark that is no number": lambda columns, told: columns["landmarks"].__setitem__((1, 7), np.nan),
    "a landmark beyond any picture": lambda columns, told: columns["landmarks"].__setitem__((0, 0), -3e38),
    "nothing at all": lambda columns, told: columns.clear(),
}


@pytest.mark.long
@pytest.mark.parametrize("what", FOREIGN)
def test_an_index_that_another_program_wrote_is_none(folder, indexed, what):
    """Its checksum is right."""
    indexed()
    columns, told = open_arrays(indexed.path)
    columns = {name: array.copy() for name, array in columns.items()}
    write_arrays(indexed.path, columns, told)
    assert load_index(indexed.path, folder) is not None
    FOREIGN[what](columns, told)
    write_arrays(indexed.path, columns, told)
    assert load_index(indexed.path, folder) is None


def test_an_index_of_another_folder_is_only_used_where_the_files_are_the_same(folder, tmp_path):
    """Its place follows from the folder, so this needs a hand that moves it."""
    other = tmp_path / "other"
    other.mkdir()
    write_head(other / "head.png", seed=50)
    age(other)
    save_index(index_path(tmp_path, folder), scan_folder(folder).records)
    assert index_path(tmp_path, folder) != index_path(tmp_path, other)
    found = scan_folder(other, known=load_index(index_path(tmp_path, folder), other))
    assert_same(found, scan_folder(other))


# --- many faces -------------------------------------------------------------------------------------------


def many(folder: Path, count: int) -> FaceTable:
    """``count`` faces and bad ones made of a few."""
    others = frozenset(os.listdir(folder))
    found = [pack(read_face(folder, name, others)) for name in sorted(others) if not name.endswith((".json", ".txt"))]
    packed = [found[i % len(found)] for i in range(count)]
    return FaceTable.build(folder, [f"face_{i:06}.png" for i in range(count)], packed, np.zeros((count, 3, 2), int))


SAVE = """
import sys
from pathlib import Path
from swapfast.faces.table import load_index, save_index
path = Path(sys.argv[1])
table = load_index(path, Path("/"))
table.columns = {name: array.copy() for name, array in table.columns.items()}
for number in range(10**9):
    table.columns["width"][:] = number
    save_index(path, table, number=str(number))
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_kill_while_the_index_is_written_leaves_a_whole_one(folder, tmp_path):
    path, whole = tmp_path / "index.safetensors", many(folder, 5000)
    seen = set()
    for written, wait in ((1, 0.0), (2, 0.004), (3, 0.011), (4, 0.019)):
        save_index(path, whole)
        command = [sys.executable, "-c", SAVE, str(path)]
        process = preloaded.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(written):
            process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        left = load_index(path, folder)
        assert left is not None and np.array_equal(left.columns["landmarks"], whole.columns["landmarks"])
        (width,) = set(left.columns["width"].tolist())
        assert str(width) == open_arrays(path)[1]["number"]
        seen.add(width)
        assert all(p in (path, folder) or p.name.startswith(TEMPORARY) for p in tmp_path.iterdir())
    assert len(seen) > 1


MEASURE = """
import sys, tracemalloc
from pathlib import Path
from swapfast.faces.table import load_index
path, folder = map(Path, sys.argv[1:])
load_index(path, folder)  # what is imported or cached on the first use
tracemalloc.start()
table = load_index(path, folder)
held, _ = tracemalloc.get_traced_memory()
total = sum(record.width for record in table) + len(table.file_names()) + int(table.column("content").sum())
table.accepted_by(lambda record: bool(record.stored_masks))
_, peak = tracemalloc.get_traced_memory()
print(len(table.columns["kind"]), held, peak)
"""


@pytest.mark.slow
def test_a_face_costs_less_than_one_and_a_half_kib(folder, tmp_path, within):
    path = tmp_path / "index.safetensors"
    save_index(path, many(folder, 20_000))
    command = [sys.executable, "-c", MEASURE, str(path), str(folder)]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    count, held, peak = map(int, out.split())
    assert count == 20_000
    within("held beside the file, bytes a face", held / count, 64)
    within("peak beside the file, bytes a face", peak / count, 1536)
    within("the file, bytes a face", path.stat().st_size / count, 1536)


# --- as a sequence ----------------------------------------------------------------------------------------


def test_selecting_faces(folder):
    records = scan_folder(folder).records
    names = [record.path.name for record in records]
    assert [records.name(i) for i in range(len(records))] == names
    for one, expected in (
        (records[2:9:3], names[2:9:3]),
        (records[::-1], names[::-1]),
        (records[:0], []),
        (records.select([5, 1, 1]), [names[5], names[1], names[1]]),
        (records[3:].select([0, 2])[1:], [names[5]]),
    ):
        assert isinstance(one, FaceTable)
        assert [record.path.name for record in one] == [one.name(i) for i in range(len(one))] == expected
        assert one.column("width").tolist() == [record.width for record in one]
        assert [fields(record) for record in one] == [fields(records[names.index(name)]) for name in expected]
    assert records[-1].path.name == names[-1]
    for beyond in (len(names), -len(names) - 1):
        with pytest.raises(IndexError):
            records[beyond]


def test_where_asks_every_kind_of_face_what_it_has(folder):
    records = scan_folder(folder).records
    questions = {
        "heads": lambda r: r.kind == "head",
        "a stored mask": lambda r: "bisenet-fp_face" in r.stored_masks,
        "any stored mask": lambda r: bool(r.stored_masks),
        "a mask file": lambda r: r.mask_file is not None,
        "all": lambda r: True,
        "none": lambda r: False,
    }
    for name, accepts in questions.items():
        for some in (records, records[::-2], records[:1], records[:0]):
            assert some.accepted_by(accepts).tolist() == [accepts(record) for record in some], name
    assert 0 < records.accepted_by(questions["heads"]).sum() < len(records)


def test_bad_files_and_notes_are_counted(folder):
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("x")
    found = scan_folder(folder)
    assert [(bad.path.name, bad.reason) for bad in found.bad] == [
        ("empty.png", "empty (zero bytes)"),
        ("text.jpg", "neither a PNG nor a JPEG, whatever its name says"),
    ]
    records = found.records
    assert {bad.path.name for bad in records.bad()} == {"empty.png", "text.jpg", "some where.png"}
    assert records.mask_files() >= {"some where.png", "photo_mask.png"}
    assert records.note_counts() == found.notes != {}
    assert records[:0].note_counts() == {}
    noted = [i for i, record in enumerate(records) if record.notes]
    assert records.select(noted[:1]).note_counts() == dict.fromkeys(sorted(records[noted[0]].notes), 1)
    less = found.without([BadFace(records[0].path, "for a test")])
    assert [r.path for r in less.records] == [r.path for r in records][1:] and less.bad[-1].reason == "for a test"
