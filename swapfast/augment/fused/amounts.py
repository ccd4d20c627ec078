"""What the fused kernels take from the host: a row of amounts for each face, and tables of levels.

Computed in float64 and rounded once, so that all that the kernels round is pixels. Nothing here needs Triton.
"""

from __future__ import annotations

import numpy as np

from swapfast.augment.draws import Draws
from swapfast.augment.lab import STEPS, levels_of_luminance, linear_light

# Columns of the amounts. From NODES on: x and y of every node of the feed, row by row.
FACTOR_L, OFFSET_L, FACTOR_A, FACTOR_B, RISE_L, RISE_A, RISE_B, GRID, LIMIT, RECOLORED, MATRIX = range(11)
TILE, PER_TILE, NODES = range(MATRIX + 6, MATRIX + 9)  # the matrix has six
BINS = 256
QUARTERS = 4  # of a level: what ten bits of a packed pixel count, 0..1020


def pack_amounts(draws: Draws) -> np.ndarray:
    """Return (N, 18 + 2 K^2) float32 with the columns above; positions are px of the face, x before y.

    The way to LAB, the jitter and the way back meet in LAB's cube roots f(Y), f(X), f(Z): f(Y) times the factor of L*
    plus a rise, and the other two as distances from f(Y), times the factor of a* or b* plus a rise.
    """
    n, size = len(draws), draws.size
    factor, offset = draws.lab_affine()
    # L = 2.55 (116 f(Y) - 16), a = 500 (f(X) - f(Y)) + 128, b = 200 (f(Y) - f(Z)) + 128
    black, grey = np.array([-2.55 * 16, 128, 128]), np.array([2.55 * 116, 500, -200])
    rise = (black * factor + offset - black) / grey
    tile = -(-size // np.maximum(draws.clahe_grid, 1))
    limit = np.clip(np.floor(np.minimum(draws.clip_limit, BINS) * tile**2 / BINS), 1, None)
    recolored = (draws.clahe_grid > 0) | (factor != 1).any(1) | (offset != 0).any(1)
    columns = [factor[:, 0], offset[:, 0], factor[:, 1], factor[:, 2], *rise.T, draws.clahe_grid, limit, recolored]
    tiles = np.stack([tile, 1 / tile], axis=1)  # px per edge, so that no kernel divides by it
    parts = [np.stack(columns, axis=1), draws.inverse().reshape(n, 6), tiles, draws.control_grid().reshape(n, -1)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def light_of_quarters() -> np.ndarray:
    """Return (1021,) float32 linear light 0..1 of each quarter level of sRGB."""
    return linear_light(np.arange(255 * QUARTERS + 1) / (255 * QUARTERS)).astype(np.float32)


def steps_of_quarters() -> np.ndarray:
    """Return (1021,) int32 light of each quarter level in 2040ths, the whole numbers OpenCV's conversion counts in."""
    return np.rint(light_of_quarters().astype(np.float64) * STEPS).astype(np.int32)


def level_bytes() -> np.ndarray:
    """Return (2041,) uint8 L of each luminance in 2040ths, to the bit as OpenCV's 8-bit conversion rounds it."""
    return levels_of_luminance().astype(np.uint8)
