"""The maps of ``host/stacked.py``, compiled by Numba: a sixth of the time of NumPy's passes over them."""

from __future__ import annotations

import numpy as np
from numba import types

from swapfast.augment.kernels.jit import inline, kernel, read

FINENESS = 1024  # steps of y in a px; of a stack of 4096 rows float32 holds each
_MAPS = types.f4[:, :, ::1], types.f4[:, :, ::1]


@inline
def _in_stack(y, image, size):
    """Return row ``y`` of one image, clamped to it, from the top of the stack."""
    steps = min(max(np.rint(y * FINENESS), 0.0), (size - 1.0) * FINENESS)
    return np.float32((steps + image * size * FINENESS) / FINENESS)


@kernel(types.void(read(types.f8, 3), *_MAPS))
def affine_maps(matrices, x, y):
    """Write the maps of matrices.

    matrices: (N, 2, 3) px of the result -> px of the image
    x, y: (N, S, S)
    """
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
def node_maps(nodes, cell, weight, x, y):
    """Write the maps of nodes, bilinear between them.

    nodes: (N, K, K, 2) px (x, y) that each node reads
    cell, weight: (S,) ``taps.hat_taps``
    x, y: (N, S, S)
    """
    size, count = x.shape[1], nodes.shape[1]
    lines = np.empty((2, count, size))
    for n in range(len(nodes)):
        for k in range(count):
            for column in range(size):
                left, right, share = nodes[n, k, cell[column]], nodes[n, k, cell[column] + 1], weight[column]
                lines[0, k, column] = left[0] + (right[0] - left[0]) * share
                lines[1, k, column] = left[1] + (right[1] - left[1]) * share
        for row in range(size):  # vectorised: what a row of pixels needs lies side by side
            k, share = cell[row], weight[row]
            for column in range(size):
                above, below = lines[0, k, column], lines[0, k + 1, column]
                x[n, row, column] = above + (below - above) * share
            for column in range(size):
                above, below = lines[1, k, column], lines[1, k + 1, column]
                y[n, row, column] = _in_stack(above + (below - above) * share, n, size)
