"""Marks pictures as synthetic: IPTC's DigitalSourceType in an XMP packet, where editors and platforms look for it.

    PNG     an iTXt chunk "XML:com.adobe.xmp" behind IHDR
    JPEG    an APP1 segment that begins with "http://ns.adobe.com/xap/1.0/"
What is kept of the picture that was read: its colour profile, resolution and EXIF data. An XMP packet of its own is
replaced.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import cv2

from swapfast.faces.jpeg import SIGNATURE as JPEG_SIGNATURE
from swapfast.faces.png import SIGNATURE as PNG_SIGNATURE
from swapfast.faces.png import walk_chunks
from swapfast.swap.png_writer import png_chunk

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
).encode()
_PNG_KEYWORD, _JPEG_KEYWORD = b"XML:com.adobe.xmp", b"http://ns.adobe.com/xap/1.0/\0"
_PNG_KEPT = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"pHYs", b"eXIf")
_EXIF, _PROFILE = b"Exif\0\0", b"ICC_PROFILE\0"
_APP1, _APP2, _SCAN = 0xE1, 0xE2, 0xDA
_MOST_KEPT = 16 << 20  # bytes
_SUBSAMPLING = {  # by the factors of luma over those of chroma
    0x11: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    0x21: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    0x12: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    0x22: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
}


def kept_of_png(data: bytes) -> bytes:
    """Return the chunks of a PNG that go with its pixels into a new one."""
    chunks: dict[bytes, bytes] = {}
    for kind, content in walk_chunks(data):
        if kind in _PNG_KEPT:
            chunks.setdefault(kind, png_chunk(kind, bytes(content)))
    kept_bytes = b"".join(chunks[kind] for kind in _PNG_KEPT if kind in chunks)
    return kept_bytes if len(kept_bytes) <= _MOST_KEPT else b""


def kept_of_jpeg(data: bytes, keeps_profile: bool = True) -> bytes:
    """Return the segments of a JPEG that go with its pixels into a new one.

    keeps_profile: not where the colours were converted, as those of four inks are.
    """
    kept_bytes = b""
    for marker, content in _segments(data):
        is_exif = marker == _APP1 and content.startswith(_EXIF)
        if is_exif or (keeps_profile and marker == _APP2 and content.startswith(_PROFILE)):
            kept_bytes += _segment(marker, content)
    return kept_bytes if len(kept_bytes) <= _MOST_KEPT else b""


def subsampling(data: bytes) -> int:
    """Return how a JPEG stores its colours, as OpenCV's flag has it; that of 4:2:0 where it is unusual."""
    for marker, content in _segments(data):
        if marker in (0xC0, 0xC1, 0xC2) and len(content) >= 15 and content[5] == 3:
            luma, *chroma = content[7], content[10], content[13]
            if chroma == [0x11, 0x11]:
                return _SUBSAMPLING.get(luma, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)
    return cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420


def mark_png(data: bytes, kept: bytes = b"", is_synthetic: bool = True) -> bytes:
    """Return an encoded PNG with the chunks of ``kept_of_png``, and the mark of a synthetic one, behind its IHDR."""
    end = len(PNG_SIGNATURE) + 25  # of IHDR
    mark = png_chunk(b"iTXt", _PNG_KEYWORD + b"\0" * 5 + XMP) if is_synthetic else b""
    return data[:end] + kept + mark + data[end:]


def mark_jpeg(data: bytes, kept: bytes = b"", is_synthetic: bool = True) -> bytes:
    """Return an encoded JPEG with the segments of ``kept_of_jpeg``, and the mark of a synthetic one, behind JFIF's."""
    start = 2
    if data[2:4] == b"\xff\xe0":
        start += 2 + int.from_bytes(data[4:6], "big")
    mark = _segment(_APP1, _JPEG_KEYWORD + XMP) if is_synthetic else b""
    return data[:start] + kept + mark + data[start:]


def is_marked(data: bytes) -> bool:
    """Return whether an encoded picture has the mark."""
    return SOURCE_TYPE.encode() in data[: _MOST_KEPT + (64 << 10)]


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the segments of a checked JPEG up to its first scan."""
    offset = 2 if data.startswith(JPEG_SIGNATURE) else len(data)
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == 0xFF:
            offset += 1
            continue
        if marker == _SCAN:
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            offset += 2
            continue
        (length,) = struct.unpack_from(">H", data, offset + 2)
        yield marker, data[offset + 4 : offset + 2 + length]
        offset += 2 + length
