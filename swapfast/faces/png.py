"""Reads faceswap's face PNGs: ordinary PNGs with a text chunk that describes the face and its source.

    8 bytes   signature
    chunks    length (4, big-endian) | type (4) | data | CRC32 of type and data (4)
    IHDR      width (4) height (4) bit depth (1) colour type (1) compression (1) filter (1) interlace (1)
    iTXt      keyword \\0 compressed? (1) method (1) language \\0 translated keyword \\0 text
The chunk with keyword ``faceswap`` lies uncompressed before the first IDAT. Its text is the repr of a dictionary.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swapfast.faces.alignment import CENTERINGS, to_68
from swapfast.faces.image import read_bytes
from swapfast.faces.literal import MAX_CHARS, parse_literal
from swapfast.faces.record import MAX_STORED_SIZE, StoredMask

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_EDGE = 32_766  # OpenCV resamples pictures below 2**15 px
MAX_PIXELS = 1 << 26  # half as many of 16 bits, for which OpenCV needs 12 bytes each

LONG_TEXT = 4 << 20
# Notes of PNGs whose profiles and texts libpng may complain of on stderr.
PROFILE_IGNORED, LONG_TEXT_IGNORED = "colour profile ignored", "long text ignored"

_KEYWORD = b"faceswap"
_LENGTH_AND_KIND, _CRC = struct.Struct(">I4s").unpack_from, struct.Struct(">I").unpack_from
_BIT_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


@dataclass(frozen=True)
class PngInfo:
    """The fields of IHDR, and the text of the faceswap chunk if there is one."""

    width: int
    height: int
    bit_depth: int
    colour_type: int
    transparent: bool
    faceswap_text: bytes | None
    has_profile: bool = False
    has_long_text: bool = False  # or other data of more than LONG_TEXT bytes beside the pixels

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what decoding to 8-bit BGR changes."""
        changes = {
            "alpha dropped": self.transparent,
            "16-bit scaled to 8": self.bit_depth == 16,
            "gray expanded": self.colour_type in (0, 4),
            "palette expanded": self.colour_type == 3,
            PROFILE_IGNORED: self.has_profile,
            LONG_TEXT_IGNORED: self.has_long_text,
        }
        return tuple(note for note, applies in changes.items() if applies)


@dataclass(frozen=True, eq=False)
class FaceswapHeader:
    """The checked content of a faceswap chunk.

    landmarks: (68, 2) float32, px of the source frame.
    box: the detector's x, y, width, height in the frame.
    frame_dims: (height, width) of the frame, if known.
    version: 2.1 to 2.4.
    """

    landmarks: np.ndarray
    masks: dict[str, StoredMask]
    identity: dict[str, list[float]]
    box: tuple[int, int, int, int] | None
    version: float
    original_filename: str
    face_index: int
    source_filename: str
    source_is_video: bool
    frame_dims: tuple[int, int] | None


def walk_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (type, data) of every chunk up to IEND, its CRC checked. Raises ValueError with a short reason."""
    if data[:8] != SIGNATURE:
        raise ValueError("not a PNG")
    view, offset, size = memoryview(data), 8, len(data)
    while True:
        if offset + 12 > size:
            raise ValueError("truncated")
        length, kind = _LENGTH_AND_KIND(data, offset)
        end = offset + 8 + length
        if end + 4 > size:
            raise ValueError("truncated")
        if zlib.crc32(view[offset + 4 : end]) != _CRC(data, end)[0]:
            raise ValueError(f"damaged (CRC mismatch in {kind.decode('ascii', 'replace')})")
        yield kind, view[offset + 8 : end]
        if kind == b"IEND":
            return
        offset = end + 4


def read_png(data: bytes) -> PngInfo:
    """Check a PNG and read its header. Raises ValueError with a short reason; pixels are not decoded."""
    chunks = walk_chunks(data)
    kind, ihdr = next(chunks)
    if kind != b"IHDR" or len(ihdr) != 13:
        raise ValueError("damaged (no IHDR at the start)")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", ihdr)
    check_dimensions(width, height, depth)
    if depth not in _BIT_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise ValueError("damaged (an IHDR that no PNG has)")
    text, seen, longest = None, set(), 0
    for kind, content in chunks:
        seen.add(kind)
        if kind != b"IDAT":
            longest = max(longest, len(content))
        if kind == b"iTXt" and text is None:
            text = _faceswap_text(content)
    if b"IDAT" not in seen or (colour == 3 and b"PLTE" not in seen):
        raise ValueError("damaged (no pixels or no palette)")
    transparent = colour in (4, 6) or b"tRNS" in seen
    return PngInfo(width, height, depth, colour, transparent, text, b"iCCP" in seen, longest > LONG_TEXT)


def find_pixels(data: bytes) -> int:
    """Return the offset of the first IDAT's type, 0 if there is none or ``data`` is no PNG.

    The chunks are followed one by one, since a text may contain these four letters. No CRC is checked.
    """
    offset = len(SIGNATURE) if data.startswith(SIGNATURE) else len(data)
    while offset + 8 <= len(data):
        length, kind = _LENGTH_AND_KIND(data, offset)
        if kind == b"IDAT":
            return offset + 4
        offset += 12 + length
    return 0


def check_dimensions(width: int, height: int, bit_depth: int = 8) -> None:
    """Raise ValueError for a picture that is empty or too large."""
    limit = MAX_PIXELS // 2 if bit_depth == 16 else MAX_PIXELS
    if width == 0 or height == 0:
        raise ValueError("damaged (width or height is 0)")
    if max(width, height) > MAX_EDGE or width * height > limit:
        raise ValueError(f"{width}x{height} px, larger than is read ({MAX_EDGE} px, {limit / 1e6:.0f} million)")


def _faceswap_text(content: memoryview) -> bytes | None:
    if bytes(content[: len(_KEYWORD) + 1]) != _KEYWORD + b"\0":
        return None
    if len(content) > 4 * MAX_CHARS:  # UTF-8 needs at most 4 bytes a character; checked before copying
        raise ValueError(f"a faceswap header longer than {MAX_CHARS} characters")
    payload = bytes(content[len(_KEYWORD) + 1 :])
    if len(payload) < 4:
        raise ValueError("a faceswap header that is cut short")
    if payload[0] != 0:
        raise ValueError("a faceswap header that is compressed, which no version of faceswap writes")
    _language, _, payload = payload[2:].partition(b"\0")
    _translated, _, text = payload.partition(b"\0")
    return text


def read_header(source: Path | bytes) -> FaceswapHeader | None:
    """Return the faceswap header of a PNG, None if it has none. Raises ValueError with a short reason."""
    info = read_png(source if isinstance(source, bytes) else read_bytes(Path(source)))
    return None if info.faceswap_text is None else parse_header(info.faceswap_text)


def write_header(png: bytes, header: FaceswapHeader | Mapping) -> bytes:
    """Return ``png`` with ``header`` as its only faceswap chunk, before the first IDAT."""
    payload = to_payload(header) if isinstance(header, FaceswapHeader) else header
    content = _KEYWORD + b"\0" * 5 + repr(payload).encode("utf-8")
    out, written = [SIGNATURE], False
    for kind, view in walk_chunks(png):
        data = bytes(view)
        if kind == b"iTXt" and data.startswith(_KEYWORD + b"\0"):
            continue
        if kind == b"IDAT" and not written:
            out.append(_chunk(b"iTXt", content))
            written = True
        out.append(_chunk(kind, data))
    return b"".join(out)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def to_payload(header: FaceswapHeader) -> dict:
    """Return the dictionary that faceswap 2.4 writes, in plain Python values."""
    x, y, width, height = header.box or (0, 0, 0, 0)
    masks = {
        name: {
            "mask": mask.data,
            "affine_matrix": [list(row) for row in mask.affine],
            "interpolator": mask.interpolator,
            "stored_size": mask.stored_size,
            "stored_centering": mask.stored_centering,
        }
        for name, mask in header.masks.items()
    }
    return {
        "alignments": {
            "x": x,
            "y": y,
            "w": width,
            "h": height,
            "landmarks_xy": header.landmarks.astype(float).tolist(),
            "mask": masks,
            "identity": header.identity,
        },
        "source": {
            "alignments_version": header.version,
            "original_filename": header.original_filename,
            "face_index": header.face_index,
            "source_filename": header.source_filename,
            "source_is_video": header.source_is_video,
            "source_frame_dims": header.frame_dims,
        },
    }


# --- the text, checked ------------------------------------------------------------------------------------


def parse_header(text: bytes) -> FaceswapHeader:
    """Return the header of versions 2.1 to 2.4; fields an older one lacks get its default. Raises ValueError."""
    try:
        payload = parse_literal(text.decode("utf-8"))
    except ValueError as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise ValueError(f"a faceswap header that cannot be read: {reason}") from error
    payload = _typed(payload, dict, "header")
    face = _typed(payload.get("alignments"), dict, "alignments")
    source = _typed(payload.get("source", {}), dict, "source")
    masks = _typed(face.get("mask", {}), dict, "mask")
    return FaceswapHeader(
        landmarks=to_68(_matrix(face.get("landmarks_xy"), "landmarks_xy")),
        masks={_typed(name, str, "mask name"): _mask(name, mask) for name, mask in masks.items()},
        identity=_identity(face.get("identity", {})),
        box=_box(face),
        version=_number(source.get("alignments_version", 2.1), "alignments_version"),
        original_filename=_typed(source.get("original_filename", ""), str, "original_filename"),
        face_index=_typed(source.get("face_index", 0), int, "face_index"),
        source_filename=_typed(source.get("source_filename", ""), str, "source_filename"),
        source_is_video=_typed(source.get("source_is_video", False), bool, "source_is_video"),
        frame_dims=_frame_dims(source.get("source_frame_dims")),
    )


def _typed(value: Any, kind: type, name: str) -> Any:
    if kind is list and isinstance(value, tuple):
        return list(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        problem = "missing" if value is None else f"of type {type(value).__name__}"
        raise ValueError(f"a faceswap header whose {name} is {problem}, expected {kind.__name__}")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"a faceswap header whose {name} is not a finite number")
    return value


def _matrix(value: Any, name: str) -> np.ndarray:
    """Return a list of rows as a float64 array of any shape."""
    rows = _typed(value, list, name)
    try:
        return np.array(rows, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"a faceswap header whose {name} are not rows of numbers") from error


def _mask(name: str, entry: Any) -> StoredMask:
    label = f"mask {name!r}"
    entry = _typed(entry, dict, label)
    size = _typed(entry.get("stored_size"), int, f"{label} stored_size")
    if not 1 <= size <= MAX_STORED_SIZE:
        raise ValueError(f"{label} with stored_size {size}, expected 1 to {MAX_STORED_SIZE}")
    centering = entry.get("stored_centering", "face")  # before 2.2 all masks were made on face crops
    if centering not in CENTERINGS:
        raise ValueError(f"{label} with stored_centering {centering!r}, expected one of {', '.join(CENTERINGS)}")
    affine = _matrix(entry.get("affine_matrix"), f"{label} affine_matrix")
    if affine.shape not in ((2, 3), (3, 3)):
        raise ValueError(f"{label} with an affine_matrix that is neither 2x3 nor 3x3")
    mask = StoredMask(
        data=_typed(entry.get("mask"), bytes, f"{label} data"),
        stored_size=size,
        stored_centering=centering,
        affine=tuple(map(tuple, affine.tolist())),
        interpolator=_typed(entry.get("interpolator", 1), int, f"{label} interpolator"),
    )
    try:
        mask.pixels()
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error
    return mask


def _identity(value: Any) -> dict[str, list[float]]:
    return {
        _typed(name, str, "identity name"): _typed(vector, list, f"identity {name!r}")
        for name, vector in _typed(value, dict, "identity").items()
    }


def _box(face: Mapping) -> tuple[int, int, int, int] | None:
    if not all(key in face for key in "xywh"):
        return None
    x, y, width, height = (int(_number(face[key], key)) for key in "xywh")
    return x, y, width, height


def _frame_dims(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    dims = tuple(_typed(value, list, "source_frame_dims"))
    if len(dims) != 2 or not all(isinstance(edge, int) and edge > 0 for edge in dims):
        raise ValueError("a faceswap header whose source_frame_dims are not (height, width)")
    return dims
