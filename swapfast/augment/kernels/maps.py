"""The maps of ``stacked``, compiled by Numba: a sixth of the time of NumPy's passes over them."""

from __future__ import annotations

import numpy as np
from numba import types

from swapfast.augment.kernels.jit import inline, kernel, read

FINENESS = 1024  # steps of y in a px; of a stack of 4096 rows float32 holds each
_MAPS = types.f4[:, :, ::1], types.f4[:, :, ::1]


@inline
def _in_stack(y, image, size):
    """Row ``y`` of one image, kept inside, from the top of the stack."""
    steps = min(max(np.rint(y * FINENESS), 0.0), (size - 1.0) * FINENESS)
    return np.float32((steps + image * size * FINENESS) / FINENESS)


@kernel(types.void(read(types.f8, 3), *_MAPS))
def affine_maps(matrices, x, y):
    """(N, 2, 3) matrices, px of the result -> px of the image, to maps (N, S, S)."""
    size = x.shape[1]
    for n in range(len(matrices)):
        (a, b, c), (d, e, f) = matrices[n]
        for row in range(size):
            first_x, first_y = b * row + c, e * row + f
            for column in range(size):
                x[n, row, column] = a * column + first_x
            for column in range(size):
                y[n, row, column] = _in_stack(d * column + first_y, n, size)


@kernel(types.void(read(types.f8, 4), read(types.i8), read(types.f8), *_MAPS))
def node_maps(nodes, cell, share, x, y):
    """(N, K, K, 2) nodes, px (x, y) where each reads, to maps (N, S, S): bilinear between them.

    cell, share: (S,) ``taps.hat_taps``.
    """
    size, count = x.shape[1], nodes.shape[1]
    lines = np.empty((2, count, size))
    for n in range(len(nodes)):
        for k in range(count):
            for column in range(size):
                left, right, part = nodes[n, k, cell[column]], nodes[n, k, cell[column] + 1], share[column]
                lines[0, k, column] = left[0] + (right[0] - left[0]) * part
                lines[1, k, column] = left[1] + (right[1] - left[1]) * part
        for row in range(size):  # several px at once: what a row needs lies side by side
            k, part = cell[row], share[row]
            for column in range(size):
                above, below = lines[0, k, column], lines[0, k + 1, column]
                x[n, row, column] = above + (below - above) * part
            for column in range(size):
                above, below = lines[1, k, column], lines[1, k + 1, column]
                y[n, row, column] = _in_stack(above + (below - above) * part, n, size)
