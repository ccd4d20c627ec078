"""Is this JPEG whole, and how large is it? Its markers are walked; nothing is decoded.

A JPEG has no checksum: cut files and broken markers are found, flipped bits inside the entropy code are not.

    FF D8                       start of image
    FF xx length(2) content     segments; SOFn holds precision (1) height (2) width (2) components (1)
    FF DA length(2) content     start of scan, then entropy code in which FF is followed by 00 or D0..D7
    FF D9                       end of image; what follows it is ignored
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from swapfast.faces.png import check_dimensions

SIGNATURE = b"\xff\xd8\xff"

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_READABLE_SOF = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive; Huffman coded
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_EXIF = b"Exif\0\0"


@dataclass(frozen=True)
class JpegInfo:
    """Size in px, number of colour components, and EXIF orientation (1: as stored)."""

    width: int
    height: int
    components: int
    orientation: int = 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What decoding to BGR changes or leaves out."""
        found = {
            "gray expanded": self.components == 1,
            "CMYK converted": self.components == 4,
            "EXIF orientation ignored": self.orientation != 1,
        }
        return tuple(note for note, applies in found.items() if applies)


def read_jpeg(data: bytes) -> JpegInfo:
    """Walks a whole JPEG from start to end marker. Raises ValueError with a short reason."""
    if data[:3] != SIGNATURE:
        raise ValueError("not a JPEG")
    at, frame, orientation, scans = 2, None, 1, 0
    while True:
        marker, at = _next_marker(data, at)
        if marker == 0xD9:
            break
        if marker in (0x01, *range(0xD0, 0xD9)):
            continue  # these stand alone
        content, at = _segment(data, at)
        if marker in _SOF:
            if frame is not None:
                raise ValueError("damaged (two frame headers)")
            frame = _frame(marker, content)
        elif marker == 0xE1 and content.startswith(_EXIF):
            orientation = _orientation(content[len(_EXIF) :])
        elif marker == 0xDA:
            if frame is None:
                raise ValueError("damaged (pixels before the frame header)")
            scans += 1
            at = _end_of_scan(data, at)
    if frame is None or scans == 0:
        raise ValueError("damaged (no pixels)")
    return JpegInfo(*frame, orientation)


def _next_marker(data: bytes, at: int) -> tuple[int, int]:
    if at >= len(data):
        raise ValueError("truncated (no end marker)")
    if data[at] != 0xFF:
        raise ValueError("damaged (a marker is missing)")
    while at < len(data) and data[at] == 0xFF:
        at += 1  # any number of fill bytes may stand before a marker
    if at >= len(data):
        raise ValueError("truncated (no end marker)")
    return data[at], at + 1


def _segment(data: bytes, at: int) -> tuple[bytes, int]:
    if at + 2 > len(data):
        raise ValueError("truncated (no end marker)")
    (length,) = struct.unpack_from(">H", data, at)
    if length < 2:
        raise ValueError("damaged (a segment of impossible length)")
    if at + length > len(data):
        raise ValueError("truncated (no end marker)")
    return data[at + 2 : at + length], at + length


def _frame(marker: int, content: bytes) -> tuple[int, int, int]:
    if marker not in _READABLE_SOF:
        raise ValueError("a lossless or arithmetic-coded JPEG, which is not read: convert to PNG")
    if len(content) < 6:
        raise ValueError("damaged (a short frame header)")
    precision, height, width, components = struct.unpack_from(">BHHB", content)
    if precision != 8:
        raise ValueError(f"a JPEG of {precision} bits, which is not read: convert to PNG")
    if components not in (1, 3, 4) or len(content) < 6 + 3 * components:
        raise ValueError(f"damaged (a frame header of {components} components)")
    check_dimensions(width, height)
    return width, height, components


def _end_of_scan(data: bytes, at: int) -> int:
    found = _AFTER_SCAN.search(data, at)
    if found is None:
        raise ValueError("truncated (no end marker)")
    return found.start()


def _orientation(tiff: bytes) -> int:
    """The orientation tag of the first EXIF directory, 1 where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 10:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, _kind, _n, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == 0x0112:
            return value if 1 <= value <= 8 else 1
    return 1
