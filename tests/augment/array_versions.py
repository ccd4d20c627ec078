"""Versions of the Numba kernels by OpenCV and NumPy arrays, for the kernels to be compared with."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from swapfast.augment.host.color import equalize
from swapfast.augment.landmarks import RIDGE, Triangulation

LANDMARKS = 68

# ---- colour --------------------------------------------------------------------------------------------------


def recolor_in_8_bits(faces: np.ndarray, matrices: np.ndarray, grids: Sequence[int], clip_limit: float) -> np.ndarray:
    """``host.color.recolor`` by OpenCV, rounded to whole levels of L, a and b on the way, as the peer is."""
    result = faces.copy()
    for face, matrix, grid, out in zip(faces, matrices, grids, result):
        lab = jittered_in_8_bits(cv2.cvtColor(face, cv2.COLOR_BGR2LAB), matrix)
        if grid:
            lab[..., 0] = equalize(np.ascontiguousarray(lab[..., 0]), grid, clip_limit)
        out[..., :3] = cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)
    return result


def jittered_in_8_bits(lab: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """One 8-bit LAB image (H, W, 3), every pixel through a (3, 4) matrix and rounded to nearest.

    Peer: cuts the fraction off, so L, a and b come out half a level low and faces get darker and bluer.
    """
    return cv2.transform(lab, matrix)


# ---- the warp to landmarks -----------------------------------------------------------------------------------


def offsets_at_nodes(triangulation: Triangulation, nodes: int, settle: bool = True) -> np.ndarray:
    """(N, nodes, nodes, 2) px, what ``fill_nodes`` of ``kernels/nodes.py`` writes, to 1e-3 px, mostly 1e-4."""
    points, active, edges, positions, offsets = triangulation
    n = len(points)
    ends = [_edge_ends(*face) for face in zip(points, active, edges)]
    face = np.repeat(np.arange(n), list(map(len, ends)))
    start, end = face * points.shape[1] + np.concatenate(ends).T  # of all faces' points in a row
    flat_positions, flat_offsets = (a.reshape(-1, 2).view(np.complex128)[:, 0] for a in (positions, offsets))
    grid = _filled(flat_positions, flat_offsets, start, end, face * nodes, n * nodes, nodes)
    grid = grid.reshape(n, nodes, nodes, 2)
    return settled(grid, *(a[:, :LANDMARKS] for a in (positions, offsets, active))) if settle else grid


def settled(grid: np.ndarray, positions: np.ndarray, offsets: np.ndarray, active: np.ndarray) -> np.ndarray:
    """``grid`` (N, K, K, 2) changed so that bilinear interpolation at ``positions`` gives nearly ``offsets``.

    In the matrices of the ridge regression x and y come apart, so they are small; float32 is 1e-5 px off.

    positions: (N, P, 2) in nodes. offsets: (N, P, 2) px. active: (N, P) bool.
    """
    n, nodes = grid.shape[:2]
    counts = active & ((positions >= 0) & (positions <= nodes - 1)).all(-1)
    weights = 1 - np.abs(positions.astype(np.float32).transpose(2, 0, 1)[..., None] - np.arange(nodes, dtype="f4"))
    np.maximum(weights, 0, out=weights)
    weights[0] *= counts[..., None]
    weight_x, weight_y = weights
    rows = weight_y @ grid.reshape(n, nodes, 2 * nodes).astype(np.float32)
    miss = offsets.astype(np.float32) * counts[..., None]
    miss -= np.einsum("npk,npkc->npc", weight_x, rows.reshape(n, -1, nodes, 2))
    weights[..., [0, -1]] = 0  # the rim stays
    normal = weight_x @ weight_x.swapaxes(1, 2)
    normal *= weight_y @ weight_y.swapaxes(1, 2)
    normal[:, np.arange(normal.shape[1]), np.arange(normal.shape[1])] += np.float32(RIDGE)
    pull = np.linalg.solve(normal, miss)
    change = weight_y.swapaxes(1, 2) @ (weight_x[..., None] * pull[:, :, None]).reshape(n, -1, 2 * nodes)
    return grid + change.reshape(grid.shape)


def _edge_ends(points: np.ndarray, active: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(E, 2) indices of the edges' ends into ``points``. Of equal points the first stands for all."""
    index = np.flatnonzero(active)
    keys = points[index].view(np.int64)[:, 0]  # one number for each place, bit for bit the one put in
    order = np.argsort(keys, kind="stable")
    return index[order[np.searchsorted(keys[order], edges.view(np.int64))]]


def _filled(
    positions: np.ndarray,
    offsets: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    first_row: np.ndarray,
    rows: int,
    nodes: int,
) -> np.ndarray:
    """Offsets (x, y) at the nodes of some rows, one below the other, all in one dimension.

    positions: (P,) complex, x + iy, where points lie, in nodes. offsets: (P,) complex, px. start, end: (E,) indices of
    the edges' points. first_row: (E,) the topmost row of the face each edge is of. rows: those of all faces.

    Between two edges next to each other on a row of nodes lies one triangle, so along a row the offset is linear from
    edge to edge. All rows of all faces follow each other on one axis and are interpolated at once. A value lies between
    those beside it, however thin a triangle is.
    """
    downwards = positions.imag[start] <= positions.imag[end]
    start, end = np.where(downwards, start, end), np.where(downwards, end, start)
    top, bottom = positions.imag[start], positions.imag[end]
    first = np.ceil(np.maximum(top, 0)).astype(np.intp)
    last = np.floor(np.minimum(bottom, nodes - 1)).astype(np.intp)
    crossing = (first <= last) & (top < bottom)  # level edges: others meet their ends
    start, end, top, bottom, first, last, first_row = (
        a[crossing] for a in (start, end, top, bottom, first, last, first_row)
    )
    count = last - first + 1
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) + (first - np.cumsum(count) + count)[edge]
    depth = row - top[edge]
    x = positions.real[start]
    x = x[edge] + depth * ((positions.real[end] - x) / (bottom - top))[edge]
    value = offsets[start]
    value = value[edge] + depth * ((offsets[end] - value) / (bottom - top))[edge]
    # On a grid of 2^-20 nodes a row's place on the common axis adds no rounding: a face's bits are its own.
    pitch = 4 * nodes  # from row to row; landmarks lie within -nodes and 2 * nodes
    axis = (first_row[edge] + row) * pitch + np.rint(x * 2**20) / 2**20
    order = np.argsort(axis, kind="stable")
    grid = np.arange(rows)[:, None] * pitch + np.arange(nodes)
    return np.interp(grid.ravel(), axis[order], value[order]).view(np.float64)
