"""Is a JPEG whole, and how large is it."""

from __future__ import annotations

import struct

import cv2
import pytest

from swapfast.faces.image import decode_image
from swapfast.faces.jpeg import read_jpeg
from tests.faces.face_samples import a_picture


def jpeg_bytes(width: int = 90, height: int = 70, *options: int, gray: bool = False) -> bytes:
    picture = a_picture(width, height)
    return cv2.imencode(".jpg", picture[..., 0] if gray else picture, options)[1].tobytes()


def size_of(data: bytes) -> tuple[int, int]:
    info = read_jpeg(data)
    return info.width, info.height


def with_orientation(data: bytes, value: int, order: str = "<") -> bytes:
    tiff = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    tiff += struct.pack(order + "HHHIHHI", 1, 0x0112, 3, 1, value, 0, 0)
    exif = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


@pytest.mark.parametrize(
    "options",
    [
        (),
        (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        (cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        (cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_OPTIMIZE, 1),
        (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ],
)
def test_size_of_any_kind(options):
    assert size_of(jpeg_bytes(90, 70, *options)) == (90, 70)


def test_components_and_what_decoding_changes():
    assert read_jpeg(jpeg_bytes(gray=True)).notes == ("gray expanded",)
    assert read_jpeg(jpeg_bytes()).notes == ()


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_noted_and_pixels_stay_as_stored(order):
    turned = with_orientation(jpeg_bytes(90, 70), 6, order)
    info = read_jpeg(turned)
    assert (info.width, info.height, info.orientation) == (90, 70, 6)
    assert info.notes == ("EXIF orientation ignored",)
    assert decode_image(turned).shape == (70, 90, 3)


@pytest.mark.slow
def test_the_photographs_have_the_size_they_decode_to(photographs):
    seen = 0
    for path in [*(photographs / "full_frames").glob("*.jp*g"), *(photographs / "aligned/misc").glob("*.jpg")]:
        data = path.read_bytes()
        height, width = decode_image(data).shape[:2]
        assert size_of(data) == (width, height)
        seen += 1
    assert seen > 15


def test_what_follows_the_end_marker_and_fill_bytes_do_no_harm():
    data = jpeg_bytes()
    assert size_of(data + b"\0" * 100) == (90, 70)
    assert size_of(data[:2] + b"\xff\xff" + data[2:]) == (90, 70)


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)])
def test_a_cut_file_is_found_wherever_it_was_cut(options):
    data = jpeg_bytes(90, 70, *options)
    for length in [*range(min(700, len(data))), *range(700, len(data), 37), len(data) - 1]:
        with pytest.raises(ValueError, match=r"truncated|not a JPEG"):
            read_jpeg(data[:length])


def changed(data: bytes, marker: bytes, offset: int, value: bytes) -> bytes:
    at = data.index(marker) + offset
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a JPEG"),
        (b"\xff\xd8\xff\xd9", "no pixels"),
        (changed(jpeg_bytes(), b"\xff\xc0", 5, b"\0\0"), "width or height is 0"),
        (changed(jpeg_bytes(), b"\xff\xc0", 5, b"\xff\xff"), "larger than is read"),
        (changed(jpeg_bytes(), b"\xff\xc0", 4, b"\x0c"), "12 bits"),
        (changed(jpeg_bytes(), b"\xff\xc0", 9, b"\x07"), "7 components"),
        (changed(jpeg_bytes(), b"\xff\xc0", 1, b"\xc3"), "lossless"),
        (changed(jpeg_bytes(), b"\xff\xc0", 2, b"\0\1"), "impossible length"),
        (changed(jpeg_bytes(), b"\xff\xc0", 2, b"\xff\xff"), "truncated"),
        (changed(jpeg_bytes(), b"\xff\xdb", 0, b"\x00"), "a marker is missing"),
    ],
)
def test_damage_is_named(data, reason):
    with pytest.raises(ValueError, match=reason):
        read_jpeg(data)
