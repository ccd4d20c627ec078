"""Reduces a PNG to its pixels, so that OpenCV's decoder meets nothing it could refuse or complain of.

libpng refuses chunks of more than 8 MB, and writes what it thinks of texts, profiles and damaged pixels to stderr. None
of these chunks changes a pixel here: colours are taken as stored, and alpha is dropped. The pixels are inflated and
checked first, and handed on as one stream of stored blocks, which costs a copy.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
UNDECODABLE = "pixels that cannot be decoded"

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of each colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PALETTE = 3
_LAST_FILTER = 4
_MAX_BYTES = 1 << 30  # of inflated pixels; the largest picture that is read has half as many
# First column and row, and steps, of each pass of an interlaced picture.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def reduce_png(data: bytes, keeps_transparency: bool = False) -> bytes:
    """Return a PNG that has the pixels of ``data`` and nothing else. Raises ValueError with a short reason.

    keeps_transparency: the colour that is transparent, or the palette's alpha, too.
    CRCs are not checked: ``walk_chunks`` (png.py) does that when a folder is read.
    """
    chunks = _chunks(data)
    header = chunks.get(b"IHDR", [b""])[0]
    if len(header) != 13:
        raise ValueError(UNDECODABLE)
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", header)
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise ValueError(UNDECODABLE)
    passes = _pass_sizes(width, height, depth * _CHANNELS[colour], interlace)
    expected = sum(rows * row_bytes for rows, row_bytes in passes)
    pixels = _inflate(chunks.get(b"IDAT", []), expected)
    _check_filters(pixels, passes)
    parts = [SIGNATURE, _chunk(b"IHDR", bytes(header))]
    if colour == _PALETTE:
        # A pixel beyond the palette is black, as libpng has it, which complains of it.
        palette = bytes(chunks.get(b"PLTE", [b""])[0])[: 3 << depth]
        parts.append(_chunk(b"PLTE", palette[: len(palette) // 3 * 3].ljust(3 << depth, b"\0")))
    if keeps_transparency and b"tRNS" in chunks:
        parts.append(_chunk(b"tRNS", bytes(chunks[b"tRNS"][0])))
    parts += [_chunk(b"IDAT", zlib.compress(pixels, 0)), _chunk(b"IEND", b"")]
    return b"".join(parts)


def _chunks(data: bytes) -> dict[bytes, list[memoryview]]:
    """Return the contents of the chunks that make the pixels, by their types."""
    view, offset = memoryview(data), len(SIGNATURE)
    chunks: dict[bytes, list[memoryview]] = {}
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind == b"IEND":
            break
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            chunks.setdefault(kind, []).append(view[offset + 8 : offset + 8 + length])
        offset += 12 + length
    return chunks


def _pass_sizes(width: int, height: int, bits: int, interlace: int) -> list[tuple[int, int]]:
    """Return the rows and the bytes a row, with its filter's, of each pass. bits: per pixel."""
    passes = _PASSES if interlace else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // step_x), -(-(height - y) // step_y)) for x, y, step_x, step_y in passes]
    return [(rows, 1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0]


def _inflate(contents: list[memoryview], expected: int) -> bytes:
    if not 0 < expected <= _MAX_BYTES:
        raise ValueError(UNDECODABLE)
    try:
        pixels = zlib.decompressobj().decompress(b"".join(contents), expected)
    except zlib.error as error:
        raise ValueError(UNDECODABLE) from error
    if len(pixels) < expected:
        raise ValueError(UNDECODABLE)
    return pixels


def _check_filters(pixels: bytes, passes: list[tuple[int, int]]) -> None:
    start = 0
    for rows, row_bytes in passes:
        filters = np.frombuffer(pixels, np.uint8, rows * row_bytes, start)[::row_bytes]
        if filters.max() > _LAST_FILTER:
            raise ValueError(UNDECODABLE)
        start += rows * row_bytes


def _chunk(kind: bytes, content: bytes) -> bytes:
    return b"".join(
        [struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))]
    )
