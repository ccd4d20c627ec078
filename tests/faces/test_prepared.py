"""Prepared sets: what is written is read back, by us and by tar, and whatever is wrong with one is said in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from pipelines.decode import BatchDecoder, dali_version
from pipelines.fill import FaceSource
from swapfast.batch import MASK_NAMES
from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.faces.alignment import align
from swapfast.faces.crop import crop_face, crop_landmarks
from swapfast.faces.folder import describe, scan_folder
from swapfast.faces.image import read_image
from swapfast.faces.masks import training_masks
from swapfast.faces.prepared import (
    INDEX,
    NewPreparedSet,
    check_format,
    decode,
    encode,
    inspect_prepared,
    is_prepared,
    make_sample,
    open_prepared,
)
from swapfast.faces.reader import BadFace
from swapfast.mapped import open_arrays, write_arrays
from tests.faces.face_samples import a_face, a_picture, write_plain

SIZE = 48
CROP = CropConfig(coverage=87.5, vertical_offset=5.0)
MASK = MaskConfig(dilation=2.0)


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """40 plain pictures, in whose landmarks and sizes they differ."""
    folder = tmp_path_factory.mktemp("sources")
    for number in range(40):
        face = a_face(scale=40 + number / 4, shift=(28, 25), degrees=number - 20)
        write_plain(folder / f"{number:02d}.png", a_picture(96 + number % 3, 96, number), face)
    return scan_folder(folder).records


def _cut(record):
    masks = training_masks(record, CROP, MASK, SIZE, MASK_NAMES).transpose(2, 0, 1)
    return crop_face(record, read_image(record.path), CROP, SIZE), np.ascontiguousarray(masks)


def _write(out, records, encoding, shard_bytes=100_000):
    with NewPreparedSet(out, SIZE, encoding, CROP, MASK, "sources", shard_bytes) as new:
        for record in records:
            new.add(make_sample(record, *_cut(record), CROP, SIZE, encoding))
        new.commit()
    return out


@pytest.fixture(scope="session")
def jpegs(sources, tmp_path_factory):
    return _write(tmp_path_factory.mktemp("sets") / "jpegs", sources, "jpeg")


@pytest.fixture(scope="session")
def raws(sources, tmp_path_factory):
    return _write(tmp_path_factory.mktemp("sets") / "raws", sources, "raw")


@pytest.fixture
def mine(jpegs, tmp_path):
    """A set to be spoilt."""
    return shutil.copytree(jpegs, tmp_path / "mine")


def test_raw_is_what_training_cuts_bit_for_bit_in_any_order(sources, raws):
    made = open_prepared(raws)
    assert len(made) == 40 and len(made.shards) > 2, "several shards"
    for row in (39, 0, 17, 17, 3):
        for read, cut in zip(made.read(row), _cut(sources[row])):
            assert np.array_equal(read, cut) and read.flags.writeable


def test_jpeg_is_near_and_what_its_bytes_decode_to(sources, jpegs, at_least, within):
    made = open_prepared(jpegs)
    assert len(made.shards) > 2
    for row in (5, 38, 21):
        (face, masks), cut = made.read(row), _cut(sources[row])
        at_least("PSNR of a noisy face, dB", 10 * np.log10(255**2 / np.square(face - cut[0].astype(float)).mean()), 38)
        within("masks, levels", np.abs(masks - cut[1].astype(int)).max(), 16)
        assert masks.shape == (3, SIZE, SIZE) and face.shape == (SIZE, SIZE, 3)


def _segments(data: bytes) -> list[tuple[int, bytes]]:
    """Marker and content of a JPEG's segments up to its first scan, and the markers after it."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + length
    rest = data[at:]
    return found + [
        (rest[i + 1], b"") for i in range(len(rest) - 1) if rest[i] == 0xFF and rest[i + 1] not in (0, 0xFF)
    ]


def test_the_jpegs_are_what_a_gpu_takes(jpegs):
    """Baseline, one scan, no subsampling, no EXIF."""
    for data, frame in zip(
        open_prepared(jpegs).bytes_of(7),
        (
            bytes([8, 0, SIZE, 0, SIZE, 3, 1, 0x11, 0, 2, 0x11, 1, 3, 0x11, 1]),
            bytes([8, 0, 3 * SIZE, 0, SIZE, 1, 1, 0x11, 0]),
        ),
    ):
        segments = _segments(bytes(data))
        markers = [marker for marker, _ in segments]
        assert [content for marker, content in segments if marker == 0xC0] == [frame]
        assert not {0xC1, 0xC2, 0xE1} & set(markers)
        assert markers.count(0xDA) == 1 and markers[-1] == 0xD9


@pytest.mark.parametrize("kind", ["jpegs", "raws"])
def test_any_tar_tool_reads_the_shards(kind, sources, request):
    made = open_prepared(request.getfixturevalue(kind))
    members = {}
    for name, size in made.shards:
        assert (made.path / name).stat().st_size == size <= 100_000
        with tarfile.open(made.path / name, "r:") as tar:
            members |= {f"{name}/{m.name}": tar.extractfile(m).read() for m in tar}
    expected = {}
    for row, record in enumerate(made.folder.records):
        path = str(record.path.relative_to(made.path))
        face, masks = map(bytes, made.bytes_of(row))
        expected |= {path: face, path.replace(".jpg", ".mask.jpg"): masks} if kind == "jpegs" else {path: face + masks}
    assert members == expected
    assert made.folder.records[0].path.name == ("00.jpg" if kind == "jpegs" else "00.raw")


def test_records_tell_of_the_crop_and_of_the_source(sources, jpegs):
    made = open_prepared(jpegs)
    assert (made.size, made.encoding, made.crop, made.mask, made.source) == (SIZE, "jpeg", CROP, MASK, "sources")
    assert is_prepared(jpegs) and not is_prepared(sources.folder) and not is_prepared(jpegs / INDEX)
    records = made.folder.records
    assert made.folder.bad == [] and len(records) == 40
    for index in (0, 22):
        record, source = records[index], sources[index]
        assert (record.kind, record.encoding, record.width, record.height) == ("prepared", "jpeg", SIZE, SIZE)
        assert record.crop == CROP and record.mask_file is None and not record.stored_masks
        assert (record.content, record.pixels) == (source.content, source.pixels) and any(record.content)
        assert np.array_equal(record.landmarks, crop_landmarks(source, CROP, SIZE))
        assert np.array_equal(record.alignment.legacy_matrix, align(record.landmarks).legacy_matrix)
        assert (record.alignment.yaw, record.alignment.pitch) == (source.alignment.yaw, source.alignment.pitch)
        assert records.name(index) == record.path.name and records.source_name(index) == source.path.name


def test_some_of_the_faces(sources, raws):
    made = open_prepared(raws)
    some = made.folder.records.select([30, 2])[1:]
    assert len(some) == 1 and some[0].path == made.folder.records[2].path and some.source_name(0) == "02.png"
    assert np.array_equal(made.read(some.rows[0])[0], _cut(sources[2])[0])
    less = made.folder.without([BadFace(made.folder.records[1].path, "for a test")])
    assert len(less.records) == 39 and less.records[1].path == made.folder.records[2].path
    assert less.records[1].crop == CROP


@pytest.mark.slow
def test_threads_and_forked_processes_share_a_set(jpegs):
    made = open_prepared(jpegs)
    with ThreadPoolExecutor(8) as pool:
        faces = list(pool.map(lambda row: made.read(row % 40)[0], range(160)))
    assert all(np.array_equal(faces[row], faces[row + 120]) for row in range(40))
    assert made.verify(workers=2) == [], "by two processes, which inherit the mapped shards"


def test_two_sets_of_the_same_faces_are_the_same_bytes(sources, jpegs, tmp_path):
    again = _write(tmp_path / "again", sources, "jpeg")
    assert {p.name: zlib.crc32(p.read_bytes()) for p in again.iterdir()} == {
        p.name: zlib.crc32(p.read_bytes()) for p in jpegs.iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.png", "a.b.png", "a_b.png", "a.mask.png", "a_2.png", "a-2.png"],
        [
            "Ünïcödé 面 🙂.png",
            "with spaces & 'quotes'.png",
            "new\nline.png",
            "-x.png",
            "n" * 240 + ".png",
            "n" * 241 + ".png",
        ],
        ["bad\udcff.png", "bad\udcfe.png"],
    ],
)
@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_names_of_all_kinds_stay_apart(names, encoding, sources, tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    for number, name in enumerate(names):
        write_plain(tmp_path / "one.png", a_picture(96, 96, number), a_face(scale=40, shift=(28, 25)))
        (tmp_path / "one.png").rename(folder / name)
        (tmp_path / "one.json").rename((folder / name).with_suffix(".json"))
    found = scan_folder(folder)
    assert not found.bad and len(found.records) == len(names)
    made = open_prepared(_write(tmp_path / "set", found.records, encoding))
    assert [made.folder.records.source_name(i) for i in range(len(names))] == sorted(names)
    members = []
    for shard, _ in made.shards:
        with tarfile.open(made.path / shard, "r:") as tar:
            members += tar.getnames()
            tar.extractall(tmp_path / "unpacked", filter="data")
    assert len(set(members)) == len(members) == len(names) * (2 if encoding == "jpeg" else 1)
    assert sorted(p.name for p in (tmp_path / "unpacked").iterdir()) == sorted(members)
    for index, record in enumerate(made.folder.records):
        unpacked = (tmp_path / "unpacked" / record.path.name).read_bytes()
        assert unpacked.startswith(bytes(made.bytes_of(index)[0]))


# --- damage ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("part", ["face", "masks"])
def test_a_flipped_bit_is_that_faces_and_no_others(mine, part):
    columns, _ = open_arrays(mine / INDEX)
    shard = mine / f"shard-{columns['shard'][25]:05d}.tar"
    data = bytearray(shard.read_bytes())
    data[columns[f"{part}_at"][25] + columns[f"{part}_bytes"][25] // 2] ^= 4
    shard.write_bytes(data)
    made = open_prepared(mine)
    with pytest.raises(ValueError, match=r"^damaged \(checksum\)$"):
        made.read(25)
    assert made.damage(25) == "damaged (checksum)" and made.damage(24) is None
    assert [(bad.path, bad.reason) for bad in made.verify()] == [(made.folder.records[25].path, "damaged (checksum)")]
    report = inspect_prepared(mine)
    name = made.folder.records.name(25)
    assert report["faces"] == 39 and report["bad"] == [{"file": name, "reason": "damaged (checksum)"}]


@pytest.mark.slow
def test_inspecting_a_set_tells_what_it_holds(jpegs):
    report = inspect_prepared(jpegs)
    assert json.loads(json.dumps(report)) == report
    assert (report["faces"], report["kinds"], report["sizes"]) == (40, {"prepared": 40}, {"48x48": 40})
    assert report["masks"] == {"eye": 40, "face": 40, "mouth": 40} and report["bad"] == []
    assert "every file is good" in describe(report)


def _refused(path, match):
    with pytest.raises(SwapfastError, match=match) as caught:
        open_prepared(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_shard_that_is_not_what_it_was(mine):
    shard = mine / "shard-00001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    _refused(mine, r"shard-00001.tar: \d+ bytes, the index says \d+; copy the set again")
    shard.write_bytes(whole + b"more")
    _refused(mine, "shard-00001.tar: .* bytes")
    shard.unlink()
    _refused(mine, "shard-00001.tar: missing; copy the set again")


def test_a_shard_that_goes_while_the_set_is_open(mine):
    made = open_prepared(mine)
    (mine / "shard-00000.tar").unlink()
    with pytest.raises(ValueError, match=r"shard-00000.tar cannot be read"):
        made.read(0)
    assert "cannot be read" in made.damage(0)


@pytest.mark.parametrize("opened_before", [True, False])
def test_a_shard_that_is_cut_short_while_the_set_is_open(mine, opened_before):
    made = open_prepared(mine)
    last = len(made) - 1
    if opened_before:
        made.read(0)
    with open(mine / made.shards[-1][0], "r+b") as file:
        file.truncate(600)
    with pytest.raises(ValueError, match=r"shard-\d+.tar has changed since the set was opened"):
        made.read(last)


def test_no_set_at_all(mine, tmp_path):
    _refused(tmp_path / "nowhere", f"no prepared set, it has no {INDEX}")
    (mine / INDEX).unlink()
    assert is_prepared(mine)
    _refused(mine, f"no prepared set, it has no {INDEX}")


@pytest.mark.slow
def test_every_flipped_byte_of_the_index_is_noticed(mine):
    """Of the header every one, of the arrays some."""
    index = mine / INDEX
    whole = index.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    text = whole[8 : 8 + header].rstrip()
    rng = np.random.default_rng(1)
    for at in [*range(8), *range(8, 8 + len(text), 7), *rng.integers(8 + header, len(whole), 40).tolist()]:
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SwapfastError, match=INDEX) as caught:
            open_prepared(mine)
        assert "\n" not in str(caught.value)
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        index.write_bytes(whole[:length])
        _refused(mine, f"{INDEX}: damaged: .*; copy the set again")


def test_an_index_of_another_version(mine):
    columns, metadata = open_arrays(mine / INDEX)
    columns = {name: array.copy() for name, array in columns.items()}
    metadata.pop("crc32")
    write_arrays(mine / INDEX, columns, {**metadata, "format": "2"})
    _refused(mine, r"another version of swapfast \(format 2, this one reads 1\); make the set again")
    write_arrays(mine / INDEX, columns, {"what": "swapfast store"})
    _refused(mine, "not the index of a prepared set")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda c, m: c["shard"].__setitem__(3, 99), "column shard out of range"),
        (lambda c, m: c["face_at"].__setitem__(3, -1), "column face_at out of range"),
        (lambda c, m: c["masks_at"].__setitem__(3, 2**62), "column masks_at beyond its shard"),
        (lambda c, m: c["face_bytes"].__setitem__(3, 10**6), "column face_at beyond its shard"),
        (lambda c, m: c.pop("face_crc"), "no face_crc"),
        (lambda c, m: c["kind"].__setitem__(3, 0), "faces of another kind"),
        (lambda c, m: c.__setitem__("shard", c["shard"].astype(np.int32)), "column shard of another shape"),
        (lambda c, m: m.update(size="1e9"), "invalid literal"),
        (lambda c, m: m.update(size="9999"), "--size 9999"),
        (lambda c, m: m.update(crop='{"coverage": 1}'), "--coverage"),
        (lambda c, m: m.update(shards='[["../../etc/passwd", 1]]'), "other shards"),
        (lambda c, m: m.update(shards="[" * 100_000), "recursion"),
        (lambda c, m: m.update(shards="Infinity"), "not iterable"),
        (lambda c, m: m.update(count="7"), "another number of faces"),
    ],
)
def test_an_index_made_up_by_somebody(mine, change, reason):
    """Its checksums are right, and yet it is refused before anything is read by it."""
    columns, metadata = open_arrays(mine / INDEX)
    columns = {name: array.copy() for name, array in columns.items()}
    change(columns, metadata)
    for name in ("crc32", "checksum"):
        metadata.pop(name)
    checksum = str(zlib.crc32(json.dumps(metadata, sort_keys=True).encode()))
    write_arrays(mine / INDEX, columns, {**metadata, "checksum": checksum})
    _refused(mine, f"damaged: .*{reason}")


# --- writing ---------------------------------------------------------------------------------------------


def test_left_without_a_commit_nothing_stays(sources, tmp_path):
    with pytest.raises(KeyError), NewPreparedSet(tmp_path / "x" / "y" / "set", SIZE, "raw", CROP, MASK, "s") as new:
        new.add(make_sample(sources[0], *_cut(sources[0]), CROP, SIZE, "raw"))
        assert new.temporary.is_dir() and not new.out.exists()
        raise KeyError
    assert list(tmp_path.iterdir()) == [], "the folders that were made for it are gone too"


def test_what_is_there_is_never_overwritten(sources, tmp_path):
    out = tmp_path / "set"
    for made in (
        out.mkdir,
        lambda: (out.rmdir(), out.write_text("a file")),
        lambda: (out.unlink(), out.symlink_to("x")),
    ):
        made()
        with (
            pytest.raises(SwapfastError, match="exists already; give a new folder"),
            NewPreparedSet(out, SIZE, "raw", CROP, MASK, "s"),
        ):
            pass
    out.unlink()
    with pytest.raises(SwapfastError, match="exists already"), NewPreparedSet(out, SIZE, "raw", CROP, MASK, "s") as new:
        new.add(make_sample(sources[0], *_cut(sources[0]), CROP, SIZE, "raw"))
        out.mkdir()  # somebody else was quicker
        new.commit()
    assert list(tmp_path.iterdir()) == [out] and not any(out.iterdir())


def test_formats_and_sizes_that_no_set_has():
    with pytest.raises(SwapfastError, match=r"--format 'jpg'. Did you mean 'jpeg'\? Known: jpeg, raw"):
        check_format("jpg", 64)
    for size in (15, 2049, 64.0, "64", True):
        with pytest.raises(SwapfastError, match=rf"--size {size!r}: must be a whole number of pixels from 16 to 2048"):
            check_format("raw", size)


@pytest.mark.parametrize("size", [16, 17, 130])
def test_sizes_that_blocks_of_eight_do_not_divide(size, within):
    rng = np.random.default_rng(3)
    face = np.full((size, size, 3), (40, 90, 200), np.uint8) + rng.integers(0, 3, (size, size, 3)).astype(np.uint8)
    masks = np.stack([np.full((size, size), level, np.uint8) for level in (255, 0, 128)])
    for encoding, tolerance in (("raw", 0), ("jpeg", 12)):
        back = decode(*encode(face, masks, encoding), encoding, size)
        within(
            f"{encoding} at {size} px",
            max(np.abs(a.astype(int) - b).max() for a, b in zip(back, (face, masks))),
            tolerance,
        )


@pytest.mark.slow
@pytest.mark.parametrize("part", ["face", "masks"])
@pytest.mark.parametrize("edge", [32, 4096])
def test_a_jpeg_of_another_size_than_the_sets_is_one_bad_face(sources, tmp_path, part, edge):
    channels = (3,) if part == "face" else ()
    other = cv2.imencode(".jpg", np.zeros((edge, edge, *channels), np.uint8))[1].tobytes()
    with NewPreparedSet(tmp_path / "set", SIZE, "jpeg", CROP, MASK, "sources") as new:
        for number, record in enumerate(sources[:4]):
            sample = make_sample(record, *_cut(record), CROP, SIZE, "jpeg")
            new.add(dataclasses.replace(sample, **{part: other}) if number == 2 else sample)
        new.commit()
    prepared = open_prepared(tmp_path / "set")
    (bad,) = prepared.verify(1)
    assert f"{edge}x{edge} px" in bad.reason
    source = FaceSource(prepared.folder, prepared)
    for use_dali in (False, True) if dali_version() else (False,):
        decoder = BatchDecoder([source], lambda step: [(0, index) for index in range(4)], 2, use_dali=use_dali)
        decoded = decoder(0)
        decoder.close()
        assert f"{edge}x{edge} px" in decoded[2]
        assert [pair[1].shape for i, pair in enumerate(decoded) if i != 2] == [(3, SIZE, SIZE)] * 3
