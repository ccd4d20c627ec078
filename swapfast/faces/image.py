"""Decoding on the host with OpenCV: for checks, for masks, and where DALI is not.

Gray and palette pictures become BGR, alpha is dropped, 16 bits are scaled to 8. Pixels are taken as stored: an EXIF
orientation is not applied, since landmarks are in stored pixels and DALI is told the same.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import cv2
import numpy as np

MAX_FILE_BYTES = 1 << 29


def read_bytes(path: Path) -> bytes:
    """The content of an ordinary file. Raises ValueError with a short reason; never waits, as a pipe would make it."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file that can be read (a pipe or a device)")
        if status.st_size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from error


def decode_image(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8 BGR. Raises ValueError with a short reason."""
    return _decode(data, cv2.IMREAD_COLOR)


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR of a picture file. Raises ValueError with a short reason."""
    return decode_image(read_bytes(path))


def read_gray(path: Path) -> np.ndarray:
    """(H, W) uint8 of a mask file. Raises ValueError with a short reason."""
    return _decode(read_bytes(path), cv2.IMREAD_GRAYSCALE)


def _decode(data: bytes, mode: int) -> np.ndarray:
    if not data:
        raise ValueError("empty (zero bytes)")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError("pixels that cannot be decoded") from error
    if pixels is None:
        raise ValueError("pixels that cannot be decoded")
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels of type {pixels.dtype}, expected 8 or 16 bits")
    return pixels
