"""Checks a JPEG's markers and reads its size, without decoding it.

A JPEG has no checksum. Truncated files and broken markers are found; flipped bits inside the entropy code are not.

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
MAX_SCANS = 100  # each is a pass over the whole picture; progressive JPEGs have about ten
MAX_SCANNED = 1 << 31  # px over all scans
CMYK_CONVERTED = "CMYK converted"
_EXIF = b"Exif\0\0"


@dataclass(frozen=True)
class JpegInfo:
    """A JPEG's size in px, number of colour components and EXIF orientation (1: as stored)."""

    width: int
    height: int
    components: int
    orientation: int = 1
    app15: bytes | None = None  # the last segment APP15, where DeepFaceLab keeps a face's landmarks

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what decoding to BGR changes or ignores."""
        changes = {
            "gray expanded": self.components == 1,
            CMYK_CONVERTED: self.components == 4,
            "EXIF orientation ignored": self.orientation != 1,
        }
        return tuple(note for note, applies in changes.items() if applies)


def read_jpeg(data: bytes) -> JpegInfo:
    """Check a JPEG from its start to its end marker. Raises ValueError with a short reason."""
    if data[:3] != SIGNATURE:
        raise ValueError("not a JPEG")
    offset, frame, orientation, scans, app15 = 2, None, 1, 0, None
    while True:
        marker, offset = _next_marker(data, offset)
        if marker == 0xD9:
            break
        if marker in (0x01, *range(0xD0, 0xD9)):
            continue  # markers without a segment
        content, offset = _segment(data, offset)
        if marker in _SOF:
            if frame is not None:
                raise ValueError("damaged (two frame headers)")
            frame = _frame(marker, content)
        elif marker == 0xE1 and content.startswith(_EXIF):
            orientation = _orientation(content[len(_EXIF) :])
        elif marker == 0xEF:
            app15 = bytes(content)
        elif marker == 0xDA:
            if frame is None:
                raise ValueError("damaged (pixels before the frame header)")
            scans += 1
            offset = _end_of_scan(data, offset)
    if frame is None or scans == 0:
        raise ValueError("damaged (no pixels)")
    if scans > MAX_SCANS or scans * frame[0] * frame[1] > MAX_SCANNED:
        raise ValueError(f"a JPEG of {scans} scans, which would take minutes to decode: save it again")
    return JpegInfo(*frame, orientation, app15)


def _next_marker(data: bytes, offset: int) -> tuple[int, int]:
    if offset >= len(data):
        raise ValueError("truncated (no end marker)")
    if data[offset] != 0xFF:
        raise ValueError("damaged (a marker is missing)")
    while offset < len(data) and data[offset] == 0xFF:
        offset += 1  # any number of fill bytes may stand before a marker
    if offset >= len(data):
        raise ValueError("truncated (no end marker)")
    return data[offset], offset + 1


def _segment(data: bytes, offset: int) -> tuple[bytes, int]:
    if offset + 2 > len(data):
        raise ValueError("truncated (no end marker)")
    (length,) = struct.unpack_from(">H", data, offset)
    if length < 2:
        raise ValueError("damaged (a segment of impossible length)")
    if offset + length > len(data):
        raise ValueError("truncated (no end marker)")
    return data[offset + 2 : offset + length], offset + length


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


def _end_of_scan(data: bytes, offset: int) -> int:
    marker = _AFTER_SCAN.search(data, offset)
    if marker is None:
        raise ValueError("truncated (no end marker)")
    return marker.start()


def _orientation(tiff: bytes) -> int:
    """Return the orientation tag of the first EXIF directory, 1 if it has none."""
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
