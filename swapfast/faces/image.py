"""Decodes pictures on the host: PNGs, masks and, where DALI is missing, JPEGs.

kornia_rs decodes ordinary PNGs (8-bit RGB): 1.7 ms of CPU for a 512 px face, against 4.2 ms for OpenCV and 6.6 ms for
DALI, which decodes PNGs on the CPU only (benchmarks/decode.py). The pixels are equal. OpenCV decodes everything else,
of PNGs the pixels alone (bare_png.py), but for JPEGs of four inks (cmyk.py).

Gray and palette pictures become BGR, alpha is dropped, 16 bits are scaled to 8. The EXIF orientation is ignored, as it
is in DALI's part of the data path: landmarks are in stored pixels.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import cv2
import kornia_rs
import numpy as np

from swapfast.faces.bare_png import UNDECODABLE, reduce_png
from swapfast.faces.cmyk import decode_inks, has_four_inks
from swapfast.faces.faceset_pack import read_member

MAX_FILE_BYTES = 1 << 29
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
# IHDR's bit depth and colour type -> kornia_rs's mode, and OpenCV's conversion to BGR.
_ORDINARY = {
    b"\x08\x02": ("rgb", cv2.COLOR_RGB2BGR),
    b"\x08\x06": ("rgba", cv2.COLOR_RGBA2BGR),
    (_GRAY8 := b"\x08\x00"): ("mono", cv2.COLOR_GRAY2BGR),
}


def read_bytes(path: Path) -> bytes:
    """Return the content of an ordinary file, or of a face in a pack (faceset_pack.py).

    Raises ValueError with a short reason, also for a pipe or device.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file that can be read (a pipe or a device)")
        if status.st_size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except NotADirectoryError as error:
        if (content := read_member(path)) is not None:
            return content
        raise ValueError(f"cannot be read ({error.strerror or error})") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from error


def decode_image(data: bytes) -> np.ndarray:
    """Return the decoded picture, (H, W, 3) uint8 BGR. Raises ValueError with a short reason."""
    ordinary = _decode_ordinary_png(data)
    if ordinary is None:
        return _decode(data, cv2.IMREAD_COLOR)
    pixels, conversion = ordinary
    return cv2.cvtColor(pixels, conversion, dst=pixels if pixels.shape[2] == 3 else None)


def _decode_ordinary_png(data: bytes) -> tuple[Any, int] | None:
    """Return the pixels of an 8-bit PNG and OpenCV's conversion of them to BGR, None if kornia_rs cannot decode it."""
    if data[:8] != _PNG_SIGNATURE or data[24:26] not in _ORDINARY:
        return None
    height, width = int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    mode, conversion = _ORDINARY[data[24:26]]
    try:
        return kornia_rs.io.decode_image_png_u8(data, (height, width), mode), conversion
    except Exception:  # kornia_rs has no narrower error; OpenCV tries next and gives the reason
        return None


def read_image(path: Path) -> np.ndarray:
    """Return the picture in a file, (H, W, 3) uint8 BGR. Raises ValueError with a short reason."""
    return decode_image(read_bytes(path))


def read_gray(path: Path) -> np.ndarray:
    """Return the mask in a file, (H, W) uint8. Raises ValueError with a short reason."""
    return decode_gray(read_bytes(path))


def decode_gray(data: bytes) -> np.ndarray:
    """Return a decoded mask, (H, W) uint8. Raises ValueError with a short reason."""
    if data[24:26] == _GRAY8 and (ordinary := _decode_ordinary_png(data)) is not None:
        return ordinary[0][..., 0]
    return _decode(data, cv2.IMREAD_GRAYSCALE)


def read_reduced(path: Path, span: float) -> tuple[np.ndarray, float]:
    """Return a picture shrunk to an eighth, a quarter or a half where a face of ``span`` px stays large enough to see.

    Returns (H, W, 3) uint8 BGR and its scale. A JPEG is decoded at that size, in a fraction of the time.
    Raises ValueError with a short reason.
    """
    for divisor, mode in (
        (8, cv2.IMREAD_REDUCED_COLOR_8),
        (4, cv2.IMREAD_REDUCED_COLOR_4),
        (2, cv2.IMREAD_REDUCED_COLOR_2),
    ):
        if span / divisor >= 96:
            data = np.frombuffer(read_bytes(path), np.uint8)
            picture = cv2.imdecode(data, mode | cv2.IMREAD_IGNORE_ORIENTATION)
            if picture is None:
                raise ValueError("pixels that cannot be decoded")
            return picture, 1 / divisor
    return read_image(path), 1.0


def read_unconverted(path: Path) -> np.ndarray | None:
    """Return a picture with the type and the channels that it is stored with, None if it cannot be decoded."""
    try:
        return cv2.imdecode(np.frombuffer(read_bytes(path), np.uint8), cv2.IMREAD_UNCHANGED)
    except (ValueError, cv2.error):
        return None


_ROWS = 64  # of a 16-bit picture that are converted at a time


def _decode(data: bytes, mode: int) -> np.ndarray:
    if not data:
        raise ValueError("empty (zero bytes)")
    if data.startswith(_PNG_SIGNATURE):
        data = reduce_png(data)
    elif data.startswith(_JPEG_SIGNATURE):
        four_inks, adobe = has_four_inks(data)
        if four_inks:
            colours = decode_inks(data, adobe)
            return cv2.cvtColor(colours, cv2.COLOR_BGR2GRAY) if mode == cv2.IMREAD_GRAYSCALE else colours
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError(UNDECODABLE) from error
    if pixels is None:
        raise ValueError(UNDECODABLE)
    if pixels.dtype == np.uint16:
        pixels = _eight_bits(pixels)
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels of type {pixels.dtype}, expected 8 or 16 bits")
    return pixels


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Return 16-bit pixels rounded to 8 bits, a few rows at a time: all of the largest picture would take 2 GiB."""
    result = np.empty(pixels.shape, np.uint8)
    for first in range(0, len(pixels), _ROWS):
        rows = slice(first, first + _ROWS)
        result[rows] = (pixels[rows].astype(np.uint32) + 128) // 257
    return result
