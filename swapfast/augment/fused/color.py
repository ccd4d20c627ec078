"""Colour as one Triton kernel: LAB jitter and CLAHE of the faces that a batch takes from the store.

A program makes BLOCK px of a face. Its result is packed: blue, green and red in ten bits each of a word, 0..1020, and
up to four masks in eight bits each of another, where the geometry gets at them by the fewest instructions. Ten bits
round by 0.07 of a level (root mean square), eight would by 0.29; levels 0..255 are exact in both. So the geometry reads
a px by one load, its masks by a second.
"""

from __future__ import annotations

import triton
import triton.language as tl

from swapfast.augment.fused.curves import load_quarters, log2, to_even, whole_level


@triton.jit
def _root(t):
    """Return f(t) of LAB: the cube root, a straight line near black."""
    return tl.where(t > 0.008856, tl.exp2(log2(t) * (1 / 3)), t * 7.787 + 4 / 29)


@triton.jit
def _third_of_power(root):
    """Return a third of the inverse of ``_root``: the cube, and its tangent near black.

    At c, c^2 (3 root - 2 c) is the tangent of the cube, and at root itself the cube: no branch.
    """
    c = tl.maximum(root, 6 / 29)
    return c * c * (root - c * (2 / 3))


@triton.jit
def _shown(light):
    """Return sRGB of linear light in quarter levels, clipped: the ten lowest bits, what is above them is not zero.

    Below zero the logarithm is NaN and not taken. A number of 2^23 has no fraction, so adding it rounds, and leaves
    the whole number in the lowest bits: a conversion would be the dearer instruction.
    """
    curve = tl.exp2(log2(light) * (1 / 2.4)) * (1.055 * 1020) - 0.055 * 1020
    level = tl.where(light > 0.0031308, curve, light * (12.92 * 1020))
    return (tl.minimum(tl.maximum(level, 0.0), 1020.0) + 8388608.0).to(tl.int32, bitcast=True)


@triton.jit
def _rotated(word, LEFT: tl.constexpr):
    """Return 32 bits rotated to the left."""
    bits = word.to(tl.uint32, bitcast=True)
    return ((bits << LEFT) | (bits >> (32 - LEFT))).to(tl.int32, bitcast=True)


@triton.jit
def _packed(blue, green, red):
    """Return a px as one word: blue from bit 13 on, green from bit 1, red from bit 23 and round to bit 0.

    So the geometry has blue at the top of a float's mantissa as it is, and the other two after one shift or rotation.
    The ten lowest bits of each count. Those above must leave bits 10 to 18 of blue clear.
    """
    return (blue << 13) | ((green << 1) & 0x7FE) | (_rotated(red, 23) & -0x7FFFFF)


@triton.jit
def _equalized(level, px, inside, curves, grid, per_tile, S: tl.constexpr):
    """Return whole levels through the curves of the four tiles around each px, bilinear, in OpenCV's order.

    curves: *uint8 (grid * grid, 256), those of the face
    per_tile: one over the px of a tile's edge
    """
    down = (px // S).to(tl.float32) * per_tile - 0.5
    along = (px % S).to(tl.float32) * per_tile - 0.5
    above = tl.floor(down)
    left = tl.floor(along)
    lower_weight = down - above
    right_weight = along - left
    first_row = tl.maximum(above.to(tl.int32), 0) * grid
    second_row = tl.minimum(above.to(tl.int32) + 1, grid - 1) * grid
    first = tl.maximum(left.to(tl.int32), 0)
    second = tl.minimum(left.to(tl.int32) + 1, grid - 1)
    a = tl.load(curves + (first_row + first) * 256 + level, mask=inside, other=0).to(tl.float32)
    b = tl.load(curves + (first_row + second) * 256 + level, mask=inside, other=0).to(tl.float32)
    c = tl.load(curves + (second_row + first) * 256 + level, mask=inside, other=0).to(tl.float32)
    d = tl.load(curves + (second_row + second) * 256 + level, mask=inside, other=0).to(tl.float32)
    upper = a * (1.0 - right_weight) + b * right_weight
    lower = c * (1.0 - right_weight) + d * right_weight
    return to_even(upper * (1.0 - lower_weight) + lower * lower_weight)


@triton.jit
def color_kernel(
    faces,  # (M, S, S, C) as ``load_quarters`` takes them
    extra_masks,  # *uint8 (M, K, S, S); not read where EXTRA is 0
    rows,  # *int64 (N,) which of the M
    amounts,  # *float32 (N, A), see ``amounts.py``
    steps,  # *int32 (1021,)
    levels,  # *uint8 (2041,)
    light,  # *float32 (1021,)
    curves,  # *uint8 (N, G * G, 256); not read where G is 0
    colors,  # *int32 (N, S, S), written, see ``_packed``
    masks,  # *int32 (N, S, S), written: from bit 15 on the face mask, from 23 and 7 two more, the fourth from 31 round
    # to bit 0; not written where there are none
    A: tl.constexpr,
    S: tl.constexpr,
    G: tl.constexpr,
    CHANNELS: tl.constexpr,
    EXTRA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(1).to(tl.int64)
    own = amounts + n * A
    source = tl.load(rows + n)
    px = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = px < S * S
    WORDS: tl.constexpr = 1 if faces.dtype.element_ty == tl.int32 else CHANNELS
    blue, green, red, mask = load_quarters(faces + source * (S * S * WORDS), px, inside, CHANNELS)
    if EXTRA > 0:
        extra = extra_masks + source * (EXTRA * S * S) + px
        # The fourth mask lies before the third: of four, one is torn apart by the rotation, best the rarest.
        for k in tl.static_range(EXTRA):
            mask |= tl.load(extra + k * (S * S), mask=inside, other=0).to(tl.int32) << (0, 8, 24, 16)[CHANNELS - 3 + k]
    if CHANNELS + EXTRA > 3:
        tl.store(masks + n * (S * S) + px, _rotated(mask, 15), mask=inside)
    if tl.load(own + 9) != 0:  # else a face comes back as it was, not as close as LAB and back would bring it
        r = tl.load(light + red)
        g = tl.load(light + green)
        b = tl.load(light + blue)
        # X, Y and Z over D65's white. The numbers are those of ``lab.py``: a kernel takes no tuples of a module.
        x = _root(r * (0.412453 / 0.95047) + g * (0.357580 / 0.95047) + b * (0.180423 / 0.95047))
        y = _root(r * 0.212671 + g * 0.715160 + b * 0.072169)
        z = _root(r * (0.019334 / 1.08883) + g * (0.119193 / 1.08883) + b * (0.950227 / 1.08883))
        a_star = (x - y) * tl.load(own + 2) + tl.load(own + 5)
        b_star = (z - y) * tl.load(own + 3) + tl.load(own + 6)
        y = y * tl.load(own) + tl.load(own + 4)
        if G > 0:
            grid = tl.load(own + 7).to(tl.int32)
            if grid > 0:
                level = whole_level(blue, green, red, steps, levels, tl.load(own), tl.load(own + 1))
                equalized = _equalized(level, px, inside, curves + n * (G * G * 256), grid, tl.load(own + 17), S)
                y = equalized * (1 / (2.55 * 116)) + 16 / 116
        x = _third_of_power(y + a_star)
        z = _third_of_power(tl.maximum(y + b_star, 0.0))
        y = _third_of_power(y)
        # Each column times its white, and three.
        red = _shown(
            (3 * 0.95047 * 3.2404813432005266) * x
            - (3 * 1.5371515162713185) * y
            - (3 * 1.08883 * 0.4985363261688878) * z
        )
        green = _shown(
            (3 * 1.8759900014898907) * y
            - (3 * 0.95047 * 0.9692549499965682) * x
            + (3 * 1.08883 * 0.0415559265582928) * z
        )
        blue = _shown(
            (3 * 0.95047 * 0.0556466391351772) * x
            - (3 * 0.2040413383665112) * y
            + (3 * 1.08883 * 1.0573110696453443) * z
        )
    tl.store(colors + n * (S * S) + px, _packed(blue, green, red), mask=inside)
