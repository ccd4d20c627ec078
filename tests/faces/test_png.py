"""faceswap's PNG header: read, checked, and written."""

from __future__ import annotations

import copy
import json
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest

from swapfast.faces.image import decode_image
from swapfast.faces.png import read_header, read_png, to_payload, walk_chunks, write_header
from tests.faces.face_samples import a_face, a_payload, a_picture, a_stored_mask, png_bytes, write_head


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header_of(payload: dict):
    return read_header(write_header(png_bytes(a_picture(32, 32)), payload))


def a_full_payload() -> dict:
    return a_payload(a_face(), **{"bisenet-fp_face": a_stored_mask(), "unet-dfl": a_stored_mask(96, "legacy", 1)})


@pytest.mark.golden
def test_the_golden_headers_hold_what_faceswap_says(golden):
    expected = json.loads((golden.folder / "faces/expected_headers.json").read_text())
    for name, facts in expected.items():
        header = read_header(golden.folder / "faces" / name)
        assert header.box == tuple(facts[key] for key in "xywh")
        np.testing.assert_array_equal(header.landmarks[:3], np.float32(facts["landmarks_xy_first3"]))
        assert header.landmarks.astype(float).sum() == pytest.approx(facts["landmarks_sum"], abs=1e-6)
        assert header.masks.keys() == facts["masks"].keys()
        for kind, mask in facts["masks"].items():
            ours = header.masks[kind]
            assert (ours.stored_size, ours.stored_centering) == (mask["stored_size"], mask["stored_centering"])
            assert (ours.interpolator, len(ours.data)) == (mask["interpolator"], mask["compressed_len"])
            np.testing.assert_array_equal(ours.affine, mask["affine_matrix"])
            assert int(ours.pixels().sum()) == mask["mask_sum"]
        assert {kind: len(vector) for kind, vector in header.identity.items()} == facts["identity"]
        source = facts["source"]
        assert header.version == source["alignments_version"]
        assert header.original_filename == source["original_filename"]
        assert header.face_index == source["face_index"]
        assert header.source_filename == source["source_filename"]
        assert header.source_is_video == source["source_is_video"]
        assert list(header.frame_dims) == source["source_frame_dims"]


@pytest.mark.golden
def test_reading_and_writing_a_golden_header_gives_the_same_chunk(golden):
    for path in sorted((golden.folder / "faces").glob("*.png")):
        data = path.read_bytes()
        assert write_header(data, read_header(data)) == data


def test_what_is_written_is_read_back_and_the_pixels_stay(tmp_path):
    picture = a_picture(48, 48)
    plain = png_bytes(picture)
    data = write_header(plain, a_full_payload())
    header = read_header(data)
    assert to_payload(header) == a_full_payload()
    np.testing.assert_array_equal(decode_image(data), picture)
    kinds = [kind for kind, _ in walk_chunks(data)]
    assert kinds.index(b"iTXt") + 1 == kinds.index(b"IDAT")
    assert write_header(data, header) == data, "a header it has already is replaced"
    path = tmp_path / "x.png"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_header(path).landmarks, header.landmarks)
    assert read_header(plain) is None


def older(version: float) -> dict:
    """A header as that version wrote it."""
    payload = a_full_payload()
    payload["source"]["alignments_version"] = version
    if version < 2.4:
        payload["source"]["source_filename"] = "video_000001.png"
    if version < 2.3:
        del payload["alignments"]["identity"]
    if version < 2.2:
        payload["alignments"]["mask"]["unet-dfl"]["stored_centering"] = "face"
        for mask in payload["alignments"]["mask"].values():
            del mask["stored_centering"]
        del payload["source"]["source_frame_dims"]
    return payload


@pytest.mark.parametrize("version", [2.1, 2.2, 2.3, 2.4])
def test_older_versions_are_read_with_what_they_meant(version):
    header = header_of(older(version))
    assert header.version == version
    np.testing.assert_array_equal(header.landmarks, a_face())
    assert header.identity == ({} if version < 2.3 else {"vggface2": [0.25, -1.5e-3]})
    assert header.masks["unet-dfl"].stored_centering == ("face" if version < 2.2 else "legacy")
    assert header.frame_dims == (None if version < 2.2 else (720, 1280))


def test_masks_and_identity_may_be_absent_and_affine_may_be_3x3():
    payload = a_full_payload()
    payload["alignments"]["mask"]["unet-dfl"]["affine_matrix"].append([0.0, 0.0, 1.0])
    assert len(header_of(payload).masks["unet-dfl"].affine) == 3
    del payload["alignments"]["mask"], payload["alignments"]["identity"]
    assert header_of(payload).masks == {}


def test_98_points_are_read_as_68():
    payload = a_full_payload()
    payload["alignments"]["landmarks_xy"] = [[float(i), 0.5] for i in range(98)]
    assert header_of(payload).landmarks.shape == (68, 2)
    assert header_of(payload).landmarks[16, 0] == 32


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(payload: dict) -> None:
        for key in path:
            payload = payload[key]
        payload[last] = value

    return change


MASK = ("alignments", "mask", "unet-dfl")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("alignments", "landmarks_xy", [[1.0, 2.0]] * 4), "4-point"),
        (put("alignments", "landmarks_xy", [[1.0, 2.0]] * 67), "67x2"),
        (put("alignments", "landmarks_xy", [[1.0, 2.0]] * 67 + [[1.0]]), "not rows of numbers"),
        (put("alignments", "landmarks_xy", [["a", "b"]] * 68), "not rows of numbers"),
        (put("alignments", "landmarks_xy", [[1.0, 10**400]] * 68), "not rows of numbers"),
        (put("alignments", "landmarks_xy", [[1e30, 2.0]] * 68), "not finite"),
        (put("alignments", "landmarks_xy", "abc"), "landmarks_xy is of type str"),
        (put("alignments", "landmarks_xy", None), "landmarks_xy is missing"),
        (put("alignments", None), "alignments is missing"),
        (put("alignments", []), "alignments is of type list"),
        (put("source", 5), "source is of type int"),
        (put("source", "alignments_version", "new"), "alignments_version is not a finite number"),
        (put("source", "face_index", True), "face_index is of type bool"),
        (put("source", "source_frame_dims", (1, 2, 3)), "source_frame_dims"),
        (put("alignments", "mask", []), "mask is of type list"),
        (put("alignments", "identity", {"a": 5}), "identity 'a' is of type int"),
        (put("alignments", "mask", {b"x": a_stored_mask()}), "mask name is of type bytes"),
        (put(*MASK, "mask", "text"), "mask 'unet-dfl' data is of type str"),
        (put(*MASK, "mask", b"no zlib"), "mask 'unet-dfl': mask data that are not valid zlib"),
        (put(*MASK, "mask", zlib.compress(bytes(96 * 96 - 1))), "9215 bytes, expected 9216"),
        (put(*MASK, "mask", zlib.compress(bytes(96 * 96 + 1))), "more than 9216 bytes"),
        (put(*MASK, "mask", zlib.compress(bytes(96 * 96))[:-3]), "truncated"),
        (put(*MASK, "stored_size", 10**9), "stored_size 1000000000"),
        (put(*MASK, "stored_size", 96.0), "stored_size is of type float"),
        (put(*MASK, "stored_centering", "nose"), "stored_centering 'nose'"),
        (put(*MASK, "affine_matrix", [[1.0, 2.0]]), "neither 2x3 nor 3x3"),
        (put(*MASK, 7), "mask 'unet-dfl' is of type int"),
    ],
)
def test_a_wrong_header_is_refused_with_its_reason(change, reason):
    payload = copy.deepcopy(a_full_payload())
    change(payload)
    with pytest.raises(ValueError, match=reason) as caught:
        header_of(payload)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.slow
def test_a_bomb_in_a_mask_does_not_inflate():
    payload = a_full_payload()
    payload["alignments"]["mask"]["unet-dfl"]["mask"] = zlib.compress(bytes(200 << 20), 9)
    data = write_header(png_bytes(a_picture(32, 32)), payload)
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 9216 bytes"):
        read_header(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def text_chunk(text: bytes) -> bytes:
    data = png_bytes(a_picture(32, 32))
    at = data.index(b"IDAT") - 4
    return data[:at] + chunk(b"iTXt", text) + data[at:]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"faceswap\0\0\0\0\0[1, 2", "cannot be read"),
        (b"faceswap\0\0\0\0\0\xff\xfe", "not UTF-8"),
        (b"faceswap\0\0\0\0\0" + b"[" * 100_000, "nested deeper"),
        (b"faceswap\0\0\0\0\0__import__('os').system('true')", "the name '__import__'"),
        (b"faceswap\0\0\0\0\0cos\nsystem\n(S'true'\ntR.", "cannot be read"),
        (b"faceswap\0\1\0\0\0" + zlib.compress(b"{}"), "compressed"),
        (b"faceswap\0\0", "cut short"),
        (b"faceswap\0\0\0\0\0{}", "alignments is missing"),
        (b"faceswap\0\0\0\0\0" + b"'" + b"a" * 9_000_000 + b"'", "longer than"),
    ],
)
def test_a_text_that_is_no_header_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_header(text_chunk(text))


def test_other_text_chunks_are_passed_over():
    assert read_header(text_chunk(b"Comment\0\0\0\0\0faceswap")) is None
    assert read_header(text_chunk(b"faceswap2\0\0\0\0\0{}")) is None
    data = write_header(text_chunk(b"XML:com.adobe.xmp\0\0\0\0\0<x/>"), a_full_payload())
    assert read_header(data) is not None


def test_a_flipped_bit_is_found_in_every_chunk_and_a_cut_at_every_length(tmp_path):
    data = write_head(tmp_path / "x.png", edge=24).read_bytes()
    for at in [*range(8, 60), *range(60, len(data), 41), len(data) - 5, len(data) - 1]:
        flipped = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        with pytest.raises(ValueError, match=r"CRC|truncated|damaged"):
            read_png(flipped)
    for length in [*range(60), *range(60, len(data), 53), len(data) - 1]:
        with pytest.raises(ValueError, match=r"truncated|not a PNG"):
            read_png(data[:length])
    assert read_png(data + b"anything after the end").width == 24


def an_ihdr(*fields: int) -> bytes:
    rest = png_bytes(a_picture(32, 32))[33:]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *fields)) + rest


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (an_ihdr(0, 9, 8, 2, 0, 0, 0), "width or height is 0"),
        (an_ihdr(2**31, 9, 8, 2, 0, 0, 0), "larger than is read"),
        (an_ihdr(30000, 30000, 8, 2, 0, 0, 0), "larger than is read"),
        (an_ihdr(32, 32, 3, 2, 0, 0, 0), "no PNG has"),
        (an_ihdr(32, 32, 8, 5, 0, 0, 0), "no PNG has"),
        (an_ihdr(32, 32, 8, 2, 1, 0, 0), "no PNG has"),
        (an_ihdr(32, 32, 8, 2, 0, 0, 2), "no PNG has"),
        (an_ihdr(32, 32, 8, 3, 0, 0, 0), "no palette"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"") + chunk(b"IEND", b""), "no IHDR"),
        (png_bytes(a_picture(32, 32))[:33] + chunk(b"IEND", b""), "no pixels"),
        (png_bytes(a_picture(32, 32))[:33] + b"\xff\xff\xff\xffIDAT", "truncated"),
    ],
)
def test_an_impossible_png_is_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        read_png(data)


def palette_png(colours: np.ndarray, indices: np.ndarray, alpha: bytes = b"") -> bytes:
    height, width = indices.shape
    rows = b"".join(b"\0" + row.tobytes() for row in indices.astype(np.uint8))
    chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
    chunks += chunk(b"PLTE", colours[:, ::-1].astype(np.uint8).tobytes())
    chunks += chunk(b"tRNS", alpha) if alpha else b""
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_every_kind_of_png_reads_as_the_same_bgr_picture():
    picture = a_picture(40, 30)
    wide = picture.astype(np.uint16) * 257
    alpha = np.random.default_rng(0).integers(0, 256, (30, 40, 1), np.uint8)
    colours = np.random.default_rng(1).integers(0, 256, (256, 3))
    indices = np.random.default_rng(2).integers(0, 256, (30, 40))
    kinds = [
        (png_bytes(picture), picture, ()),
        (png_bytes(wide), picture, ("16-bit scaled to 8",)),
        (png_bytes(np.dstack([picture, alpha])), picture, ("alpha dropped",)),
        (png_bytes(np.dstack([wide, alpha.astype(np.uint16) * 257])), picture, ("alpha dropped", "16-bit scaled to 8")),
        (png_bytes(picture[..., 0]), cv2.merge([picture[..., 0]] * 3), ("gray expanded",)),
        (png_bytes(wide[..., 0]), cv2.merge([picture[..., 0]] * 3), ("16-bit scaled to 8", "gray expanded")),
        (palette_png(colours, indices), colours[indices], ("palette expanded",)),
        (palette_png(colours, indices, bytes(range(256))), colours[indices], ("alpha dropped", "palette expanded")),
    ]
    for data, expected, notes in kinds:
        info = read_png(data)
        assert (info.width, info.height, info.notes) == (40, 30, notes)
        np.testing.assert_array_equal(decode_image(data), expected, err_msg=str(notes))
    rounded = png_bytes(np.full((16, 16, 3), 1000, np.uint16))
    assert decode_image(rounded)[0, 0, 0] == round(1000 / 257)
