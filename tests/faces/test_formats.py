"""Every kind of picture on every path of the data: the same pixels, or the same refusal."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.decode import BatchDecoder, dali_version, decode_pictures
from pipelines.fill import FaceSource
from swapfast.faces.folder import inspect_folder, scan_folder
from swapfast.faces.image import read_gray, read_image
from swapfast.faces.jpeg import MAX_SCANS
from swapfast.faces.png import SIGNATURE
from tests.faces.face_samples import a_face

EDGE = 160
DALI = [False, *([True] if dali_version() else [])]
MARKER_WITHOUT_TRANSFORM = b"\xff\xee\x00\x0eAdobe\0d\0\0\0\0"


def _picture() -> np.ndarray:
    """Return (EDGE, EDGE, 3) uint8 RGB with all levels and no sharp edges."""
    noise = np.random.default_rng(1).uniform(0, 255, (6, 6, 3)).astype(np.float32)
    return np.clip(cv2.resize(noise, (EDGE, EDGE), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


RGB = _picture()


def _saved(mode: str, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", EDGE, EDGE, depth, colour, 0, 0, 0)
    parts = [_chunk(b"IHDR", header), *extra, _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(parts)


def _rows(pixels: np.ndarray) -> bytes:
    """Return big-endian rows, each after its filter's byte."""
    flat = np.frombuffer(pixels.astype(pixels.dtype.newbyteorder(">")).tobytes(), np.uint8).reshape(EDGE, -1)
    return np.pad(flat, ((0, 0), (1, 0))).tobytes()


def _with(png: bytes, *extra: bytes) -> bytes:
    return png[:33] + b"".join(extra) + png[33:]


def _inks(adobe: bytes | None, progressive: bool = False) -> bytes:
    """Return a JPEG of four inks that shows RGB. adobe: the marker to have, None for none."""
    inks, file = np.asarray(Image.fromarray(RGB).convert("CMYK")), io.BytesIO()
    stored = inks if adobe is not None else 255 - inks  # Pillow inverts as it writes
    Image.fromarray(stored, "CMYK").save(file, "JPEG", quality=98, progressive=progressive)
    data, offset = file.getvalue(), 2
    parts = [data[:2], adobe or b""]
    while data[offset + 1] != 0xDA:
        end = offset + 2 + struct.unpack_from(">H", data, offset + 2)[0]
        parts.append(b"" if data[offset + 1] == 0xEE else data[offset:end])
        offset = end
    return b"".join([*parts, data[offset:]])


LONG = np.random.default_rng(2).integers(0, 256, 9 << 20, np.uint8).tobytes()
LONG_CHUNKS = {
    "text": _chunk(b"tEXt", b"parameters\0" + bytes(9 << 20).replace(b"\0", b"x")),
    "xmp": _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + bytes(9 << 20).replace(b"\0", b"y")),
    "profile": _chunk(b"iCCP", b"big\0\0" + zlib.compress(LONG, 0)),
}
WIDE = RGB.astype(np.uint16) * 250 + np.arange(EDGE, dtype=np.uint16)[:, None] * 7

GOOD = {
    "rgb.png": _saved("RGB"),
    "rgba.png": _saved("RGBA"),
    "gray.png": _saved("L"),
    "gray_alpha.png": _saved("LA"),
    "palette.png": _saved("P"),
    "palette_clear.png": _saved("P", transparency=bytes(range(256))),
    "gray_clear.png": _saved("L", transparency=100),
    "bits.png": _saved("1"),
    "gray16.png": _png(16, 0, _rows(WIDE[..., 0])),
    "rgb16.png": _png(16, 2, _rows(WIDE)),
    "rgba16.png": _png(16, 6, _rows(np.dstack([WIDE, WIDE[..., :1]]))),
    "gamma.png": _with(_saved("L"), _chunk(b"gAMA", struct.pack(">I", 100_000))),
    "bad_profile.png": _with(_saved("P"), _chunk(b"iCCP", b"odd\0\0" + zlib.compress(b"x"))),
    "palette_short.png": _png(8, 3, _rows(RGB[..., 0]), _chunk(b"PLTE", bytes(range(60)))),
    **{
        f"{mode}_{kind}.png": _with(_saved(mode), c)
        for mode in ("RGB", "RGBA", "L", "P")
        for kind, c in LONG_CHUNKS.items()
    },
    "baseline.jpg": _saved("RGB", "JPEG", quality=90, subsampling=2),
    "full_colour.jpg": _saved("RGB", "JPEG", quality=90, subsampling=0),
    "progressive.jpg": _saved("RGB", "JPEG", quality=90, progressive=True),
    "gray.jpg": _saved("L", "JPEG", quality=90),
    "inks_adobe.jpg": _inks(MARKER_WITHOUT_TRANSFORM + b"\0"),
    "inks_bare.jpg": _inks(None),
    "inks_progressive.jpg": _inks(None, progressive=True),
}


def _repeat_scans(jpeg: bytes, times: int) -> bytes:
    """Return a progressive JPEG whose last scan comes ``times`` more often."""
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * times + jpeg[-2:]


REFUSED = {
    "scans.jpg": (_repeat_scans(_saved("L", "JPEG", progressive=True), 2000), "scans"),
    "arithmetic.jpg": (_saved("RGB", "JPEG").replace(b"\xff\xc0", b"\xff\xc9", 1), "arithmetic"),
    "filter.png": (_png(8, 0, (b"\7" + bytes(EDGE)) * EDGE), "cannot be decoded"),
    "short.png": (_png(8, 3, bytes(EDGE), _chunk(b"PLTE", bytes(768))), "cannot be decoded"),
    "garbage.png": (_png(16, 0, b"").replace(zlib.compress(b""), b"garbage!"), "damaged"),
    "stream.png": (SIGNATURE + _png(8, 4, b"")[8:33] + _chunk(b"IDAT", b"no stream") + _chunk(b"IEND", b""), "decoded"),
}


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    points = (a_face() * (EDGE / 400)).tolist()
    for name, data in files.items():
        (folder / name).write_bytes(data)
        (folder / f"{Path(name).stem}.json").write_text(json.dumps({"landmarks": points}))
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    files = {name.replace(".jpg", "_jpg.jpg"): data for name, data in GOOD.items()}
    return _write(tmp_path_factory.mktemp("formats") / "good", files)


@pytest.mark.slow
@pytest.mark.parametrize("use_dali", DALI)
def test_all_paths_give_the_same_pixels(good, use_dali, capfd):
    source = FaceSource(scan_folder(good, workers=1))
    records = list(source.folder.records)
    assert len(records) == len(GOOD) and not source.folder.bad
    alone = {record.path.name: read_image(record.path) for record in records}
    members = [(0, index) for index in range(len(records))]
    decoder = BatchDecoder([source], lambda step: members, threads=2, use_dali=use_dali)
    for record, pixels in zip(records, decoder(0)):
        np.testing.assert_array_equal(pixels, alone[record.path.name], err_msg=record.path.name)
    decoder.close()
    jpegs = [record.path for record in records if record.encoding == "jpeg"]
    batches = (picture.copy() for batch in decode_pictures(jpegs, 2, use_dali) for picture in batch)
    for path, pixels in zip(jpegs, batches, strict=True):
        np.testing.assert_array_equal(pixels, alone[path.name], err_msg=path.name)
    assert capfd.readouterr().err == ""


def test_colours_are_the_true_ones(good):
    for name in ("rgba.png", "rgb16.png", "RGBA_text.png", "inks_adobe_jpg.jpg", "inks_bare_jpg.jpg"):
        error = np.abs(read_image(good / name)[..., ::-1].astype(int) - RGB).mean()
        assert error < 4, f"{name}: {error:.1f} levels"
    for mode in ("RGB", "L", "P"):
        plain = read_image(good / {"RGB": "rgb.png", "L": "gray.png", "P": "palette.png"}[mode])
        for kind in LONG_CHUNKS:
            np.testing.assert_array_equal(read_image(good / f"{mode}_{kind}.png"), plain)


@pytest.mark.slow
def test_masks_of_every_kind_are_read_as_gray(good, capfd):
    for path in sorted(good.glob("*.png")):
        gray, colour = read_gray(path), cv2.cvtColor(read_image(path), cv2.COLOR_BGR2GRAY)
        assert np.abs(gray.astype(int) - colour).max() <= 1, path.name
    bare = read_gray(good / "inks_bare_jpg.jpg").astype(int)
    assert np.abs(bare - cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)).mean() < 4
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decoded_is_refused_alike_and_silently(tmp_path, name, capfd):
    data, reason = REFUSED[name]
    folder = _write(tmp_path / "faces", {name: data})
    report = inspect_folder(folder, workers=1)
    (bad,) = report["bad"]
    assert bad["file"] == name and reason in bad["reason"]
    assert capfd.readouterr().err == ""


def test_a_jpeg_may_have_as_many_scans_as_encoders_write(tmp_path):
    data = _saved("L", "JPEG", progressive=True)
    few = MAX_SCANS - data.count(b"\xff\xda")
    assert not scan_folder(_write(tmp_path / "few", {"one.jpg": _repeat_scans(data, few)}), workers=1).bad
    (bad,) = scan_folder(_write(tmp_path / "many", {"one.jpg": _repeat_scans(data, few + 1)}), workers=1).bad
    assert f"{MAX_SCANS + 1} scans" in bad.reason
