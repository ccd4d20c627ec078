"""CLAHE's curves as one Triton kernel: what each lightness becomes in each tile of each face.

A program makes the curve of one tile. A face has a grid of its own; programs of tiles that it has not return at once.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def log2(x):
    """Binary logarithm by one instruction of the GPU; ``tl.log2`` is a polynomial of some 15."""
    if INTERPRETED:  # which knows no assembly
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def to_even(x):
    """Round to whole numbers, ties to even, for |x| < 2^22; what is added leaves no bit for a fraction."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def load_quarters(faces, at, inside, CHANNELS: tl.constexpr):
    """Return blue, green and red in quarter levels 0..1020, and the face mask 0..255, int32.

    faces: one face. *int32: four bytes of a px as a word; *uint8: bytes; *float32: 0..1
    at: px, row by row
    """
    mask = tl.zeros(at.shape, tl.int32)
    if faces.dtype.element_ty == tl.int32:
        word = tl.load(faces + at, mask=inside, other=0)
        blue = (word << 2) & 1020
        green = (word >> 6) & 1020
        red = (word >> 14) & 1020
        mask = (word >> 24) & 255
    elif faces.dtype.element_ty == tl.uint8:
        blue = tl.load(faces + at * CHANNELS, mask=inside, other=0).to(tl.int32) * 4
        green = tl.load(faces + at * CHANNELS + 1, mask=inside, other=0).to(tl.int32) * 4
        red = tl.load(faces + at * CHANNELS + 2, mask=inside, other=0).to(tl.int32) * 4
    else:
        blue = _counted(tl.load(faces + at * CHANNELS, mask=inside, other=0.0), 1020.0)
        green = _counted(tl.load(faces + at * CHANNELS + 1, mask=inside, other=0.0), 1020.0)
        red = _counted(tl.load(faces + at * CHANNELS + 2, mask=inside, other=0.0), 1020.0)
        if CHANNELS == 4:
            mask = _counted(tl.load(faces + at * CHANNELS + 3, mask=inside, other=0.0), 255.0)
    return blue, green, red, mask


@triton.jit
def _counted(value, top):
    """Return 0..1 as whole numbers 0..top; what lies outside is clipped, as it would run into the next channel."""
    return tl.minimum(tl.maximum(to_even(value * top), 0.0), top).to(tl.int32)


@triton.jit
def whole_level(blue, green, red, steps, levels, factor, offset):
    """Return L after the jitter in whole levels, int32: OpenCV's 8-bit conversion to the bit, of quarter levels."""
    of_blue = tl.load(steps + blue)
    of_green = tl.load(steps + green)
    of_red = tl.load(steps + red)
    luminance = (of_blue * 296 + of_green * 2929 + of_red * 871 + 2048) >> 12  # whole numbers: exact
    level = to_even(tl.load(levels + luminance).to(tl.float32) * factor + offset)
    return tl.minimum(tl.maximum(level, 0.0), 255.0).to(tl.int32)


@triton.jit
def curves_kernel(
    faces,  # (M, S, S, C) as ``load_quarters`` takes them
    rows,  # *int64 (N,) which of them
    amounts,  # *float32 (N, A), see ``amounts.py``
    steps,  # *int32 (1021,)
    levels,  # *uint8 (2041,)
    curves,  # *uint8 (N, G * G, 256), written: a face's tiles row by row
    A: tl.constexpr,
    S: tl.constexpr,
    G: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    own = amounts + n * A
    grid = tl.load(own + 7).to(tl.int32)
    if tile >= grid * grid:
        return
    edge = tl.load(own + 16).to(tl.int32)
    area = edge * edge
    # Half a tile, or px, from the next row at least: the quotient may be off by less than that.
    tile_row = ((tile.to(tl.float32) + 0.5) / grid.to(tl.float32)).to(tl.int32)
    top = tile_row * edge
    left = (tile - tile_row * grid) * edge
    factor = tl.load(own)
    offset = tl.load(own + 1)
    WORDS: tl.constexpr = 1 if faces.dtype.element_ty == tl.int32 else CHANNELS
    face = faces + tl.load(rows + n) * (S * S * WORDS)
    rows_per_pixel = tl.load(own + 17)
    histogram = tl.zeros([256], tl.int32)
    first = area * 0
    while first < area:  # no `for`: Triton 3.6's interpreter takes no bound from a tensor with NumPy 2.4
        at = first + tl.arange(0, BLOCK)
        inside = at < area
        row = ((at.to(tl.float32) + 0.5) * rows_per_pixel).to(tl.int32)
        y = top + row
        x = left + at - row * edge
        y = tl.where(y < S, y, 2 * (S - 1) - y)  # the border mirrors the image without its edge
        x = tl.where(x < S, x, 2 * (S - 1) - x)
        blue, green, red, _ = load_quarters(face, y * S + x, inside, CHANNELS)
        level = whole_level(blue, green, red, steps, levels, factor, offset)
        histogram += tl.histogram(level, 256, mask=inside)
        first += BLOCK
    clipped = tl.minimum(histogram, tl.load(own + 8).to(tl.int32))
    excess = area - tl.sum(clipped, 0)
    rest = excess & 255
    apart = tl.maximum(256 // tl.maximum(rest, 1), 1)
    bin = tl.arange(0, 256)
    one_more = ((bin % apart == 0) & (bin // apart < rest)).to(tl.int32)
    counts = tl.cumsum(clipped + (excess >> 8) + one_more, 0)
    # The plain quotient of a GPU is off by a unit in the last place, which moves ties.
    scale = tl.div_rn(255.0, area.to(tl.float32))
    tl.store(curves + (n * (G * G) + tile) * 256 + bin, to_even(counts.to(tl.float32) * scale).to(tl.uint8))
