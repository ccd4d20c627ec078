"""Masks most of which are black, such as eyes and mouth, moved where they are not; compiled by Numba."""

from __future__ import annotations

import math

import numpy as np
from numba import types

from swapfast.augment.kernels.jit import inline, kernel, read

_F, _ONE = np.float32, np.uint64(1)


@kernel()
def _bounds(mask, columns):
    """Return (top, bottom, left, right) of what is not black, the ends excluded; all 0 where everything is black.

    columns: (S,) uint8 scratch memory
    """
    size = len(mask)
    columns[:] = 0
    top, bottom = size, 0
    for row in range(size):
        level = np.uint8(0)
        for column in range(size):
            level |= mask[row, column]
        if level:
            top, bottom = min(top, row), row + 1
            for column in range(size):
                columns[column] |= mask[row, column]
    if bottom == 0:
        return 0, 0, 0, 0
    left, right = 0, size
    while not columns[left]:
        left += 1
    while not columns[right - 1]:
        right -= 1
    return top, bottom, left, right


@inline
def _span(p, x0, x1, q, y0, y1, size):
    """Return the pixels of the result that p x + q y reaches in a box, with one to spare on either side."""
    low = min(p * x0, p * x1) + min(q * y0, q * y1)
    high = max(p * x0, p * x1) + max(q * y0, q * y1)
    start = min(max(math.floor(low) - 1, 0), size)
    return start, max(min(math.ceil(high) + 2, size), start)


@kernel()
def _reached(matrix, top, bottom, left, right, size):
    """Return (first row, end, first column, end) of the result that read from that part of the mask or beside it."""
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
    """Return the level at a position, bilinear and rounded; edges are repeated. Unsigned indices need no checks."""
    last = size - 1.0
    x, y = min(max(x, 0.0), last), min(max(y, 0.0), last)
    column, row = min(np.int32(x), np.int32(size - 2)), min(np.int32(y), np.int32(size - 2))
    right, down = _F(x - column), _F(y - row)
    index, next_row = np.uint64(row * size + column), np.uint64(size)
    top_left, top_right = _F(pixels[index]), _F(pixels[index + _ONE])
    bottom_left, bottom_right = _F(pixels[index + next_row]), _F(pixels[index + next_row + _ONE])
    above, below = top_left + (top_right - top_left) * right, bottom_left + (bottom_right - bottom_left) * right
    return np.int32(above + (below - above) * down + _F(0.5))


def _move(masks, matrices, divisor, first_mask, first_face, out):
    """Resample masks by matrices, edges repeated.

    masks: (N, K, S, S) uint8
    matrices: (N, 2, 3) px of the result -> px of the mask
    divisor: what levels are divided by, 255 for floats in 0..1
    out: (M, F, S, S) uint8 or float32; written from ``first_mask`` and ``first_face`` on
    """
    size = masks.shape[2]
    columns = np.empty(size, np.uint8)
    for n in range(len(masks)):
        (a, b, c), (d, e, f) = matrices[n]
        for k in range(masks.shape[1]):
            mask, image = masks[n, k], out[first_mask + k, first_face + n]
            image[:] = 0
            top, bottom, left, right = _bounds(mask, columns)
            first_row, last_row, first_column, last_column = _reached(matrices[n], top, bottom, left, right, size)
            pixels = mask.reshape(-1)
            for row in range(first_row, last_row):
                for column in range(first_column, last_column):
                    x, y = a * column + (b * row + c), d * column + (e * row + f)
                    image[row, column] = _F(_level(pixels, size, x, y)) / divisor


_INPUTS = read(types.u1, 4), read(types.f8, 3), types.f4, types.i8, types.i8
move_masks = kernel([types.void(*_INPUTS, types.u1[:, :, :, ::1]), types.void(*_INPUTS, types.f4[:, :, :, ::1])])(_move)
