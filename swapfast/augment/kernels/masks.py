"""Masks most of which are black, such as eyes and mouth, moved where they are not; compiled by Numba."""

from __future__ import annotations

import math

import numpy as np
from numba import types

from swapfast.augment.kernels.jit import inline, kernel, read

_F, _ONE = np.float32, np.uint64(1)


@kernel()
def _bounds(plane, seen):
    """(top, bottom, left, right) of what is not black, the ends left out; all 0 where everything is black."""
    size = len(plane)
    seen[:] = 0
    top, bottom = size, 0
    for row in range(size):
        found = np.uint8(0)
        for column in range(size):
            found |= plane[row, column]
        if found:
            top, bottom = min(top, row), row + 1
            for column in range(size):
                seen[column] |= plane[row, column]
    if bottom == 0:
        return 0, 0, 0, 0
    left, right = 0, size
    while not seen[left]:
        left += 1
    while not seen[right - 1]:
        right -= 1
    return top, bottom, left, right


@inline
def _span(p, x0, x1, q, y0, y1, size):
    """The pixels of the result that p x + q y reaches in a box, with one to spare on either side."""
    low = min(p * x0, p * x1) + min(q * y0, q * y1)
    high = max(p * x0, p * x1) + max(q * y0, q * y1)
    first = min(max(math.floor(low) - 1, 0), size)
    return first, max(min(math.ceil(high) + 2, size), first)


@kernel()
def _reached(matrix, top, bottom, left, right, size):
    """(first row, end, first column, end) of the result that read from that part of the plane or its neighbours."""
    if bottom == 0:
        return 0, 0, 0, 0
    if top == 0 or left == 0 or bottom == size or right == size:
        return 0, size, 0, size  # the edge is repeated without end
    (a, b, c), (d, e, f) = matrix
    scale = 1 / (a * e - b * d)
    x0, x1, y0, y1 = left - 1 - c, right - c, top - 1 - f, bottom - f
    first_column, last_column = _span(e * scale, x0, x1, -b * scale, y0, y1, size)
    first_row, last_row = _span(-d * scale, x0, x1, a * scale, y0, y1, size)
    return first_row, last_row, first_column, last_column


@inline
def _level(pixels, size, x, y):
    """The level at a place, bilinearly and rounded; edges are repeated. Indices without a sign need no checks."""
    last = size - 1.0
    x, y = min(max(x, 0.0), last), min(max(y, 0.0), last)
    column, row = min(np.int32(x), np.int32(size - 2)), min(np.int32(y), np.int32(size - 2))
    right, down = _F(x - column), _F(y - row)
    at, next_row = np.uint64(row * size + column), np.uint64(size)
    one, two = _F(pixels[at]), _F(pixels[at + _ONE])
    three, four = _F(pixels[at + next_row]), _F(pixels[at + next_row + _ONE])
    above, below = one + (two - one) * right, three + (four - three) * right
    return np.int32(above + (below - above) * down + _F(0.5))


def _move(masks, matrices, divisor, first_mask, first_face, out):
    """Masks by matrices, px of the result -> px of the plane; edges are repeated.

    masks: (N, K, S, S) uint8. matrices: (N, 2, 3). out: (M, N', S, S) uint8 or float32; they go to M from
    ``first_mask`` on, faces to N' from ``first_face`` on. divisor: what levels are divided by, 255 for floats in 0..1.
    """
    size = masks.shape[2]
    seen = np.empty(size, np.uint8)
    for n in range(len(masks)):
        (a, b, c), (d, e, f) = matrices[n]
        for k in range(masks.shape[1]):
            plane, image = masks[n, k], out[first_mask + k, first_face + n]
            image[:] = 0
            top, bottom, left, right = _bounds(plane, seen)
            first_row, last_row, first, end = _reached(matrices[n], top, bottom, left, right, size)
            pixels = plane.reshape(-1)
            for row in range(first_row, last_row):
                for column in range(first, end):
                    x, y = a * column + (b * row + c), d * column + (e * row + f)
                    image[row, column] = _F(_level(pixels, size, x, y)) / divisor


_GIVEN = read(types.u1, 4), read(types.f8, 3), types.f4, types.i8, types.i8
move_masks = kernel([types.void(*_GIVEN, types.u1[:, :, :, ::1]), types.void(*_GIVEN, types.f4[:, :, :, ::1])])(_move)
