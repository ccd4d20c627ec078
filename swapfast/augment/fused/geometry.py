"""Geometry as one Triton kernel: feed, target and masks from packed pixels, each px read once at its composed position.

A program makes one tile of a face's feed, or the same of its target and masks. Smaller results are the exact mean of
the area that each px covers: every px within it is read at its own position, as at the processing size.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The packed numbers are 1024ths of 1020 quarter levels, and 256ths of 255 levels: both short of 1 by this factor.
ONE: tl.constexpr = tl.constexpr(256 / 255)
ONE_BITS = 0x3F800000  # of the float 1


@triton.jit
def _unit(word, one_bits, LEFT: tl.constexpr, MANTISSA: tl.constexpr):
    """Return 1 + a channel of a packed word, a channel's largest number being just below 1.

    one_bits: those of the float 1. An argument, as the assembler would make two instructions of two constants
    LEFT: by how many bits the word is rotated for the channel to lie at the top of a float's mantissa
    MANTISSA: its bits there

    Bits in a mantissa are a number already: two cheap instructions in place of a conversion, of which a GPU does a
    quarter as many. The ones of the four corners add up to the sum of their weights, which is known: ONE.
    """
    if LEFT > 0:
        word = (word << LEFT) | (word >> (32 - LEFT))
    return ((word & MANTISSA) | one_bits).to(tl.float32, bitcast=True)


@triton.jit
def _add(mean, words, weights, one_bits, LEFT: tl.constexpr, MANTISSA: tl.constexpr):
    """Return ``mean`` plus the weighted sum of a channel in four words, each plus one."""
    mean = _unit(words[0], one_bits, LEFT, MANTISSA) * weights[0] + mean
    mean = _unit(words[1], one_bits, LEFT, MANTISSA) * weights[1] + mean
    mean = _unit(words[2], one_bits, LEFT, MANTISSA) * weights[2] + mean
    return _unit(words[3], one_bits, LEFT, MANTISSA) * weights[3] + mean


@triton.jit
def _add_color(mean, words, weights, one_bits, CHANNEL: tl.constexpr):
    return _add(mean, words, weights, one_bits, (0, 12, 22)[CHANNEL], 0x7FE000)


@triton.jit
def _add_mask(mean, words, weights, one_bits, MASK: tl.constexpr):
    return _add(mean, words, weights, one_bits, (0, 24, 8, 16)[MASK], 0x7F8000)


@triton.jit
def _corners(x, y, weight, S: tl.constexpr):
    """Return the offset of the upper left px of the four around a position, and their weights, ``weight`` in sum.

    Outside the face its edge is repeated. Positions end at the float before the last px, so the four always exist.
    """
    last: tl.constexpr = (S - 1.0) * (1 - 2.0**-24)
    x = tl.minimum(tl.maximum(x, 0.0), last)
    y = tl.minimum(tl.maximum(y, 0.0), last)
    left = x.to(tl.int32)
    top = y.to(tl.int32)
    right_share = x - left.to(tl.float32)
    lower = (y - top.to(tl.float32)) * weight
    upper = weight - lower
    lower_right = right_share * lower
    upper_right = right_share * upper
    return top * S + left, (upper - upper_right, upper_right, lower - lower_right, lower_right)


@triton.jit
def _covered(i, tap, S: tl.constexpr, SIZE: tl.constexpr, TAPS: tl.constexpr):
    """Return the ``tap``-th of the S px that px i of SIZE covers, and how much of it, in units of 1 / SIZE."""
    if SIZE == S:
        first = i
        share = i * 0 + SIZE
    elif S % SIZE == 0:
        first = i * TAPS + tap
        share = i * 0 + SIZE
    else:
        first = (i * S) // SIZE + tap
        share = tl.maximum(tl.minimum((first + 1) * SIZE, (i + 1) * S) - tl.maximum(first * SIZE, i * S), 0)
        first = tl.minimum(first, S - 1)
    return first, share


@triton.jit
def _between(i, S: tl.constexpr, K: tl.constexpr):
    """Return the lower of the two nodes that px i lies between, and the upper one's weight; see ``taps.hat_taps``."""
    if K == 5:
        position = (i.to(tl.float32) + 0.5) * (4.0 / S)
    else:
        position = i.to(tl.float32) * ((K - 1.0) / (S - 1.0))
    node = tl.minimum(position.to(tl.int32), K - 2)
    return node, position - node.to(tl.float32)


@triton.jit
def _bilinear(node, u, v, K: tl.constexpr):
    """Return x (or y, with the next address) between four nodes of K x K."""
    a = tl.load(node)
    b = tl.load(node + 2)
    c = tl.load(node + 2 * K)
    d = tl.load(node + 2 * K + 2)
    # As a polynomial: where the cell is one for the whole tile, its coefficients are a program's and not a px's.
    return (b - a) * u + a + v * ((a - b - c + d) * u + (c - a))


@triton.jit
def _read(words, at, S: tl.constexpr):
    """Return the four words around a position: upper left, upper right, lower left, lower right."""
    words = words.to(tl.pointer_type(tl.uint32), bitcast=True)
    return tl.load(words + at), tl.load(words + at + 1), tl.load(words + at + S), tl.load(words + at + S + 1)


@triton.jit
def _weight(row_share, column_share, ONE: tl.constexpr, S: tl.constexpr, SIZE: tl.constexpr):
    """Return the share that a px has in the mean, times ONE; the shares of a row's and a column's px sum up to S."""
    if SIZE == S:
        return tl.full([row_share.shape[0], column_share.shape[1]], ONE, tl.float32)
    else:
        return (row_share * column_share).to(tl.float32) * (ONE / (S * S))


@triton.jit
def _store(out, value, inside, EVEN: tl.constexpr):
    if EVEN:
        tl.store(out, value.to(out.dtype.element_ty))
    else:
        tl.store(out, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _store_image(out, px, inside, b, g, r, RGB: tl.constexpr, EVEN: tl.constexpr):
    """Write three channels side by side."""
    _store(out + px * 3 + (2 if RGB else 0), b, inside, EVEN)
    _store(out + px * 3 + 1, g, inside, EVEN)
    _store(out + px * 3 + (0 if RGB else 2), r, inside, EVEN)


@triton.jit
def _make_feed(
    image, own, out, tile, one_bits,
    S: tl.constexpr, K: tl.constexpr, SIZE: tl.constexpr, TAPS: tl.constexpr, RGB: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, ONE_CELL: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = (SIZE + TW - 1) // TW
    top = (tile // across) * TH
    left = (tile % across) * TW
    i = top + tl.arange(0, TH)[:, None]
    j = left + tl.arange(0, TW)[None, :]
    b = tl.full([TH, TW], -ONE, tl.float32)
    g = tl.full([TH, TW], -ONE, tl.float32)
    r = tl.full([TH, TW], -ONE, tl.float32)
    for tap in range(TAPS * TAPS):
        row, row_share = _covered(i, tap // TAPS, S, SIZE, TAPS)
        column, column_share = _covered(j, tap % TAPS, S, SIZE, TAPS)
        if ONE_CELL:
            node_row = top // (SIZE // 4)
            node_column = left // (SIZE // 4)
            v = (row.to(tl.float32) + 0.5) * (4.0 / S) - node_row.to(tl.float32)
            u = (column.to(tl.float32) + 0.5) * (4.0 / S) - node_column.to(tl.float32)
        else:
            node_row, v = _between(row, S, K)
            node_column, u = _between(column, S, K)
        node = own + 18 + (node_row * K + node_column) * 2
        weight = _weight(row_share, column_share, ONE, S, SIZE)
        at, weights = _corners(_bilinear(node, u, v, K), _bilinear(node + 1, u, v, K), weight, S)
        pixels = _read(image, at, S)
        b = _add_color(b, pixels, weights, one_bits, 0)
        g = _add_color(g, pixels, weights, one_bits, 1)
        r = _add_color(r, pixels, weights, one_bits, 2)
    even: tl.constexpr = SIZE % TH == 0 and SIZE % TW == 0
    _store_image(out, i * SIZE + j, (i < SIZE) & (j < SIZE), b, g, r, RGB, even)


@triton.jit
def _make_target(
    image, words, own, out, out_masks, tile, one_bits,
    S: tl.constexpr, SIZE: tl.constexpr, MASKS: tl.constexpr, TAPS: tl.constexpr, RGB: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = (SIZE + TW - 1) // TW
    i = (tile // across) * TH + tl.arange(0, TH)[:, None]
    j = (tile % across) * TW + tl.arange(0, TW)[None, :]
    xx = tl.load(own + 10)
    xy = tl.load(own + 11)
    x0 = tl.load(own + 12)
    yx = tl.load(own + 13)
    yy = tl.load(own + 14)
    y0 = tl.load(own + 15)
    b = tl.full([TH, TW], -ONE, tl.float32)
    g = tl.full([TH, TW], -ONE, tl.float32)
    r = tl.full([TH, TW], -ONE, tl.float32)
    m0 = tl.full([TH, TW], -ONE, tl.float32)
    m1 = tl.full([TH, TW], -ONE, tl.float32)
    m2 = tl.full([TH, TW], -ONE, tl.float32)
    m3 = tl.full([TH, TW], -ONE, tl.float32)
    for tap in range(TAPS * TAPS):
        row, row_share = _covered(i, tap // TAPS, S, SIZE, TAPS)
        column, column_share = _covered(j, tap % TAPS, S, SIZE, TAPS)
        weight = _weight(row_share, column_share, ONE, S, SIZE)
        v = row.to(tl.float32)
        u = column.to(tl.float32)
        at, weights = _corners(xx * u + (xy * v + x0), yx * u + (yy * v + y0), weight, S)
        pixels = _read(image, at, S)
        b = _add_color(b, pixels, weights, one_bits, 0)
        g = _add_color(g, pixels, weights, one_bits, 1)
        r = _add_color(r, pixels, weights, one_bits, 2)
        if MASKS > 0:
            bytes = _read(words, at, S)
            m0 = _add_mask(m0, bytes, weights, one_bits, 0)
            if MASKS > 1:
                m1 = _add_mask(m1, bytes, weights, one_bits, 1)
            if MASKS > 2:
                m2 = _add_mask(m2, bytes, weights, one_bits, 2)
            if MASKS > 3:
                m3 = _add_mask(m3, bytes, weights, one_bits, 3)
    inside = (i < SIZE) & (j < SIZE)
    # Not a run of px to the compiler, which would write masks as vectors: the way there, through shared memory, is
    # longer than what vectors save. A warp's px are neighbours all the same.
    px = tl.max_contiguous(i * SIZE + j, [1, 1])
    even: tl.constexpr = SIZE % TH == 0 and SIZE % TW == 0
    _store_image(out, px, inside, b, g, r, RGB, even)
    if MASKS > 0:
        _store(out_masks + px, m0, inside, even)
    if MASKS > 1:
        _store(out_masks + SIZE * SIZE + px, m1, inside, even)
    if MASKS > 2:
        _store(out_masks + 2 * SIZE * SIZE + px, m2, inside, even)
    if MASKS > 3:
        _store(out_masks + 3 * SIZE * SIZE + px, m3, inside, even)


@triton.jit
def geometry_kernel(
    colors,  # *int32 (N, S, S) blue, green, red in ten bits each, as the colour kernel packs them
    mask_words,  # *int32 (N, S, S) eight bits for each mask, the same way; not read where MASKS is 0
    amounts,  # *float32 (N, A), see ``amounts.py``
    feed,  # (N, FEED, FEED, 3) of any float, written; not where FEED is 0
    target,  # (N, TARGET, TARGET, 3), written; not where TARGET is 0
    masks,  # (N, MASKS, TARGET, TARGET), written
    one_bits,  # int32, ONE_BITS
    A: tl.constexpr,
    S: tl.constexpr,
    K: tl.constexpr,  # nodes per edge
    FEED: tl.constexpr,
    TARGET: tl.constexpr,
    MASKS: tl.constexpr,  # 0..4
    FEED_TAPS: tl.constexpr,  # px per edge that a px of the feed covers, at most
    TARGET_TAPS: tl.constexpr,
    RGB: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    ONE_CELL: tl.constexpr,  # whether all px of a tile of the feed lie between the same four nodes, K being 5
):
    n = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    own = amounts + n * A
    image = colors + n * (S * S)
    FEED_TILES: tl.constexpr = ((FEED + TH - 1) // TH) * ((FEED + TW - 1) // TW)
    if FEED > 0:  # noqa: SIM102 - known while compiling: what is not made is left out
        if tile < FEED_TILES:
            out = feed + n * (FEED * FEED * 3)
            _make_feed(image, own, out, tile, one_bits, S, K, FEED, FEED_TAPS, RGB, TH, TW, ONE_CELL)
    if TARGET > 0:  # noqa: SIM102
        if tile >= FEED_TILES:
            words = mask_words + n * (S * S)
            image_out = target + n * (TARGET * TARGET * 3)
            masks_out = masks + n * (MASKS * TARGET * TARGET)
            _make_target(
                image, words, own, image_out, masks_out, tile - FEED_TILES, one_bits,
                S, TARGET, MASKS, TARGET_TAPS, RGB, TH, TW,
            )  # fmt: skip
