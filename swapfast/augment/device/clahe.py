"""CLAHE (contrast limited adaptive histogram equalisation) of the lightness, on torch tensors of any device.

Ours, because each face has a grid of its own and kornia's takes one per call. On whole levels it is OpenCV's bit for
bit on the CPU; a GPU that joins a product and a sum into one rounding may end a tie one level off.

All that depends on the grid and on one row or column only (which tile, which weight) is computed on the host, in
OpenCV's precision and order, and stays on the device as tables with one row per grid. A batch looks its grids up, so
no shape depends on them, the host never asks for them, and a face's result does not depend on the rest of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from swapfast.augment.constants import ConstantsColor
from swapfast.augment.device.transfer import table

BINS = 256


def largest_grid(color: ConstantsColor) -> int:
    """Return the most tiles per edge that can be drawn; 0 where CLAHE is off."""
    if color.clahe_chance == 0:
        return 0
    return color.clahe_base_contrast + color.clahe_max_size * (color.clahe_base_contrast // 2)


def bin_limits(grids: np.ndarray, size: int, clip_limit: float) -> np.ndarray:
    """Return (N,) the highest a bin may be, px, with each of the grids (0 as 1) on an image of ``size`` px."""
    tile = -(-size // np.maximum(grids, 1))
    return np.maximum((clip_limit * tile**2 / BINS).astype(np.int64), 1)


class Tables(NamedTuple):
    """Tables for images of S px and grids 0 .. G, one row each; P = S plus the widest border that one of them needs.

    Offsets are into a volume (G, G, 256) of histograms or curves laid out flat. Grid 0 has the row of grid 1.
    """

    area: np.ndarray  # (G + 1, 1) int32 px of a tile
    tile_row: np.ndarray  # (G + 1, P) int32 offset of the tiles that a row of the bordered image lies in
    tile_column: np.ndarray  # (G + 1, P) int32 the same of a column
    inside: np.ndarray  # (G + 1, P) int32 0 or 1: beyond the border that this grid needs, a px does not count
    near_row: np.ndarray  # (G + 1, 2 * S) int32 offset of the tiles whose centres lie above and below a row
    near_column: np.ndarray  # (G + 1, 2 * S) int32 the same, left and right of a column
    scale: np.ndarray  # (G + 1, 1) float32 from a cumulative count to a level
    weight: np.ndarray  # (G + 1, 2 * S) float32 of the near tiles, the same for rows and columns

    @classmethod
    def build(cls, size: int, largest_grid: int) -> Tables:
        grid = np.maximum(np.arange(largest_grid + 1), 1)[:, None]
        border = -size % grid
        tile = (size + border) // grid
        pixels = np.arange(size + border.max())
        row, column = largest_grid * BINS, BINS
        # A row of the border belongs to the tile it lies in, which may be another one than the row it repeats.
        within = np.minimum(pixels // tile, grid - 1)
        position = np.arange(size, dtype=np.float32) * (np.float32(1) / tile.astype(np.float32)) - np.float32(0.5)
        lower = np.floor(position)
        upper = position - lower  # before the clamping: beyond the outermost centres both tiles are the same one
        near = [np.clip(lower + side, 0, grid - 1) for side in (0, 1)]
        near = np.concatenate(near, axis=1).astype(np.int64)
        ints = (
            tile**2,
            within * row,
            within * column,
            pixels < size + border,
            near * row,
            near * column,
        )
        scale = np.float32(BINS - 1) / (tile**2).astype(np.float32)
        weight = np.concatenate([np.float32(1) - upper, upper], axis=1)
        return cls(*(part.astype(np.int32) for part in ints), scale, weight)


@table
def _int_tables(size: int, largest_grid: int) -> np.ndarray:
    """Return (G + 1, ...), the integers of ``Tables`` side by side: one look-up for all."""
    return np.concatenate(Tables.build(size, largest_grid)[:6], axis=1)


@table
def _float_tables(size: int, largest_grid: int) -> np.ndarray:
    return np.concatenate(Tables.build(size, largest_grid)[6:], axis=1)


@table
def _spread_of_remainder() -> np.ndarray:
    """Return (256, 256) int32: row r says which bins get one of r remaining counts, every 256 // r-th, r of them."""
    remainder = np.arange(BINS)[:, None]
    step = np.maximum(BINS // np.maximum(remainder, 1), 1)
    bins = np.arange(BINS)
    return ((bins % step == 0) & (bins // step < remainder)).astype(np.int32)


def equalize(lightness: Tensor, grids: Tensor, limits: Tensor, largest_grid: int) -> Tensor:
    """Return lightness equalised with ``grids[i]`` x ``grids[i]`` tiles; 0 leaves a face as it is.

    lightness: (N, S, S) float levels 0..255, rounded to integers first, as a histogram has 256 bins; so is the result
    grids: (N,) int32 up to ``largest_grid``, on the device
    limits: (N,) int32 ``bin_limits``, on the device
    """
    n, size, _ = lightness.shape
    if largest_grid == 0 or n == 0:
        return lightness
    ints = _int_tables(size, largest_grid, lightness.device).index_select(0, grids)
    padded = (ints.shape[1] - 1 - 4 * size) // 3
    area, tile_row, tile_column, inside, near_row, near_column = ints.split(
        [1, padded, padded, padded, 2 * size, 2 * size], dim=1
    )
    floats = _float_tables(size, largest_grid, lightness.device).index_select(0, grids)
    scale, weight = floats.split([1, 2 * size], dim=1)
    volume = largest_grid**2 * BINS  # of one face's histograms
    face = torch.arange(n, device=lightness.device, dtype=torch.int32)[:, None] * volume

    levels = lightness.round().clamp_(0, BINS - 1)
    # The border mirrors the image without its edge, whatever the grid: one image with the widest serves them all.
    bordered = F.pad(levels, (0, padded - size, 0, padded - size), mode="reflect").to(torch.int32)
    bins = bordered + (tile_row + face)[:, :, None] + tile_column[:, None]
    counted = inside[:, :, None] * inside[:, None]
    histograms = torch.zeros(n * volume, device=lightness.device, dtype=torch.int32)
    histograms.index_add_(0, bins.flatten(), counted.flatten())  # integers: in any order the same sums
    histograms = histograms.view(n, largest_grid**2, BINS)
    curves = _curves(histograms, limits[:, None, None], area[:, None], scale[:, None])

    near_row, near_column = near_row.view(n, 2, 1, size, 1), near_column.view(n, 1, 2, 1, size)
    bins = bordered[:, None, None, :size, :size] + (near_row + face[:, :, None, None, None]) + near_column
    four = curves.flatten().index_select(0, bins.flatten()).view(n, 2, 2, size, size)
    # OpenCV's order: first along the row, then between the two rows.
    two = four.mul_(weight.view(n, 1, 2, 1, size)).sum(2)
    blended = two.mul_(weight.view(n, 2, size, 1)).sum(1).round_()
    return torch.where((grids > 0)[:, None, None], blended, lightness)


def _curves(histograms: Tensor, limit: Tensor, area: Tensor, scale: Tensor) -> Tensor:
    """Return (N, T, 256) float32: the level that each level becomes in each of T tiles.

    histograms: (N, T, 256) int32 counts

    Counts above ``limit`` are cut off and added to all bins alike, the remainder to bins evenly apart.
    """
    clipped = torch.minimum(histograms, limit)
    excess = area - clipped.sum(-1, keepdim=True, dtype=torch.int32)
    remainder = _spread_of_remainder(histograms.device).index_select(0, (excess & (BINS - 1)).flatten())
    counts = clipped + (excess >> 8) + remainder.view(histograms.shape)
    return (counts.cumsum(-1, dtype=torch.int32) * scale).round_()
