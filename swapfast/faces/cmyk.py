"""Decodes JPEGs of four inks, as DALI does.

With Adobe's marker the inks are stored inverted, without it they are not. OpenCV takes all for inverted, and makes
negatives of the second kind. Pillow also inverts all, but gives the inks themselves, so that this can be undone.
"""

from __future__ import annotations

import io
import struct

import numpy as np

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _ADOBE = 0xDA, 0xEE
_ROWS = 64  # converted at a time, so that a large picture needs little more than its own memory


def has_four_inks(data: bytes) -> tuple[bool, bool]:
    """Return whether a JPEG has four components, and whether it has Adobe's marker. Reads no further than a scan."""
    offset, four, adobe = 2, False, False
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == 0xFF:
            offset += 1  # a fill byte
            continue
        if marker == _SCAN:
            break
        (length,) = struct.unpack_from(">H", data, offset + 2)
        if marker in _FRAMES and length >= 8:
            four = data[offset + 9 : offset + 10] == b"\4"
        elif marker == _ADOBE and length >= 14:
            adobe |= data[offset + 4 : offset + 9] == b"Adobe"
        offset += 2 + length
    return four, adobe


def decode_inks(data: bytes, adobe: bool) -> np.ndarray:
    """Return a JPEG of four components as (H, W, 3) uint8 BGR. Raises ValueError with a short reason.

    adobe: whether the file has Adobe's marker.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
            inks = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError("pixels that cannot be decoded") from error
    if inks.ndim != 3 or inks.shape[2] != 4:
        raise ValueError("pixels that cannot be decoded")
    result = np.empty((*inks.shape[:2], 3), np.uint8)
    for first in range(0, len(inks), _ROWS):
        rows = slice(first, first + _ROWS)
        light = (~inks[rows] if adobe else inks[rows]).astype(np.uint16)
        result[rows] = (light[..., 2::-1] * light[..., 3:]) // 255  # exactly as DALI rounds
    return result
