"""CLAHE (contrast limited adaptive histogram equalisation) of the lightness, on torch tensors of any device.

kornia: ``equalize_clahe`` blends the tiles' curves half a pixel beside OpenCV's places and rounds nothing: off by up
to 1.6 levels with tiles of 32 px, 5 with 16 px and 11 with 8 px (docs/kornia.md). Ours: OpenCV's CLAHE, on whole levels
bit for bit on the CPU. A GPU that joins a product and a sum into one rounding may end a tie one level off.

The grids are drawn on the host, so faces are grouped by them there: nobody asks the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from swapfast.augment.device.transfer import table
from swapfast.augment.draws import Draws

BINS = 256


class Group(NamedTuple):
    """Faces that share a grid: those from ``first`` to before ``last`` of the faces sorted by their grids."""

    grid: int  # tiles per edge
    limit: int  # the highest a bin may be, px
    first: int
    last: int


def tile_size(size: int, grid: int) -> int:
    """Return the px along the edge of a tile; together the tiles may be larger than the image."""
    return -(-size // grid)


def bin_limit(grid: int, size: int, clip_limit: float) -> int:
    """Return the highest a bin may be, px, with ``grid`` x ``grid`` tiles on an image of ``size`` px."""
    return max(int(clip_limit * tile_size(size, grid) ** 2 / BINS), 1)


def sorted_by_grid(draws: Draws) -> np.ndarray:
    """Return (N,) the faces' indices in the order of ``groups``: small grids first, those without CLAHE before all."""
    return np.argsort(draws.clahe_grid, kind="stable")


def groups(draws: Draws) -> list[Group]:
    """Return the groups of faces that share a grid; faces without CLAHE are in none."""
    grids, counts = np.unique(draws.clahe_grid, return_counts=True)
    ends = np.cumsum(counts)
    rows: Iterable[tuple[int, int, int]] = zip(grids.tolist(), (ends - counts).tolist(), ends.tolist())
    return [Group(g, bin_limit(g, draws.size, draws.clip_limit), first, last) for g, first, last in rows if g]


def equalize(lightness: Tensor, grid: int, limit: int) -> Tensor:
    """Return lightness equalised with ``grid`` x ``grid`` tiles.

    lightness: (N, S, S) float levels 0..255, rounded to integers first, as a histogram has 256 bins; so is the result
    limit: the highest a bin may be, px
    """
    size = lightness.shape[-1]
    levels = lightness.round().clamp(0, BINS - 1)
    curves = _curves(levels, grid, limit).flatten(1)
    # Where each pixel lies among the tiles' centres, along either axis; in OpenCV's precision and order.
    step = float(np.float32(1) / np.float32(tile_size(size, grid)))
    position = torch.arange(size, device=levels.device, dtype=torch.float32) * step - 0.5
    lower = position.floor()
    after = position - lower  # the weight of the later tile; beyond the outermost centres both are the same one
    before = 1 - after
    near = torch.stack([lower, lower + 1]).clamp(0, grid - 1).long()
    above, below = (near * grid)[:, :, None]
    left, right = near[:, None]
    levels = levels.long()

    def mapped(row: Tensor, column: Tensor) -> Tensor:
        """Return the levels as the curves of tiles [row, column] map them."""
        index = levels + (row + column) * BINS
        return curves.gather(1, index.flatten(1)).view(levels.shape)

    # OpenCV's order: first along the row, then between the two rows.
    upper = mapped(above, left) * before + mapped(above, right) * after
    lower = mapped(below, left) * before + mapped(below, right) * after
    return (upper * before[:, None] + lower * after[:, None]).round()


def _curves(levels: Tensor, grid: int, limit: int) -> Tensor:
    """Return (N, grid * grid, 256) float32: the level that each level becomes in each tile.

    levels: (N, S, S) whole levels

    Counts above ``limit`` are cut off and added to all bins alike, the remainder to bins evenly apart.
    """
    n, size, _ = levels.shape
    tile = tile_size(size, grid)
    border = tile * grid - size
    bordered = F.pad(levels, (0, border, 0, border), mode="reflect").long()
    tiles = bordered.view(n, grid, tile, grid, tile).transpose(2, 3).reshape(n, grid**2, tile**2)
    histograms = torch.zeros(n, grid**2, BINS, dtype=torch.int64, device=levels.device)
    histograms.scatter_add_(2, tiles, torch.ones_like(tiles))  # integers: in any order the same sums
    clipped = histograms.clamp(max=limit)
    excess = tile**2 - clipped.sum(-1, keepdim=True)
    remainder = _spread_of_remainder(levels.device).index_select(0, (excess % BINS).flatten())
    counts = clipped + excess // BINS + remainder.view(histograms.shape)
    return (counts.cumsum(-1) * float(np.float32(BINS - 1) / np.float32(tile**2))).round()


@table
def _spread_of_remainder() -> np.ndarray:
    """Return (256, 256) int64: row r says which bins get one of r remaining counts, every 256 // r-th, r of them."""
    remainder = np.arange(BINS)[:, None]
    step = np.maximum(BINS // np.maximum(remainder, 1), 1)
    bins = np.arange(BINS)
    return ((bins % step == 0) & (bins // step < remainder)).astype(np.int64)
