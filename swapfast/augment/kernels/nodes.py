"""The warp to landmarks at its nodes, compiled by Numba: what ``landmarks`` does with arrays, face by face in loops.

A sixth of the time, and without the interpreter's lock, so that threads share it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from swapfast.augment.kernels.jit import inline, kernel, read


@inline
def _index_of(x, y, points, kept):
    """The first of the points kept that lies there."""
    for p in range(len(points)):
        if kept[p] and points[p, 0] == x and points[p, 1] == y:
            return p
    return -1


@kernel()
def _downwards(edges, points, kept, places, start, end):
    """Indices of each edge's upper and lower point; returns how many edges there are, level and far ones left out."""
    count = 0
    for e in range(len(edges)):
        one = _index_of(edges[e, 0], edges[e, 1], points, kept)
        other = _index_of(edges[e, 2], edges[e, 3], points, kept)
        if one < 0 or other < 0 or places[one, 1] == places[other, 1]:
            continue  # to the first triangle, which encloses all; or level, and others meet its ends
        upwards = places[one, 1] > places[other, 1]
        start[count], end[count] = (other, one) if upwards else (one, other)
        count += 1
    return count


@kernel()
def _cross(row, start, end, places, offsets, crossings):
    """Where edges cross a row of nodes, from left to right: x and the offset there. Returns how many."""
    count = 0
    for e in range(len(start)):
        a, b = start[e], end[e]
        top, bottom = places[a, 1], places[b, 1]
        if row < top or row > bottom:
            continue
        share = (row - top) / (bottom - top)
        x = places[a, 0] + share * (places[b, 0] - places[a, 0])
        at = count
        while at > 0 and crossings[at - 1, 0] > x:
            crossings[at] = crossings[at - 1]
            at -= 1
        crossings[at, 0] = x
        for axis in range(2):
            crossings[at, 1 + axis] = offsets[a, axis] + share * (offsets[b, axis] - offsets[a, axis])
        count += 1
    return count


@kernel()
def _fill(start, end, places, offsets, grid):
    """The offset at every node: linear from edge to edge along each row."""
    nodes = len(grid)
    crossings = np.empty((len(start), 3))
    for row in range(nodes):
        count, left = _cross(row, start, end, places, offsets, crossings), -1
        for column in range(nodes):
            while left + 1 < count and crossings[left + 1, 0] <= column:
                left += 1
            a, b = max(left, 0), min(left + 1, count - 1)
            share = 0.0 if a == b else (column - crossings[a, 0]) / (crossings[b, 0] - crossings[a, 0])
            for axis in range(1, 3):
                grid[row, column, axis - 1] = crossings[a, axis] + share * (crossings[b, axis] - crossings[a, axis])


@inline
def _cell(place, nodes):
    """The node before a place and the share of the one after it."""
    before = min(math.floor(place), nodes - 2)
    return before, place - before


@inline
def _alike(at, other, share, others):
    """The product of two points' weights along one axis; 0 on the rim's nodes, which ``share`` says by 0 too."""
    if at == other:
        return share[0] * others[0] + share[1] * others[1]
    if at == other + 1:
        return share[0] * others[1]
    return share[1] * others[0] if at == other - 1 else 0.0


@kernel()
def _settle(places, offsets, counted, ridge, grid):
    """``landmarks._settled`` of one face, in place."""
    nodes, n = len(grid), len(counted)
    cell, weight = np.empty((n, 2), np.int64), np.empty((n, 2, 2))
    missed, normal = np.empty((n, 2)), np.zeros((n, n))
    for i in range(n):
        (column, x), (row, y) = _cell(places[counted[i], 0], nodes), _cell(places[counted[i], 1], nodes)
        for axis in range(2):
            above = grid[row, column, axis] * (1 - x) + grid[row, column + 1, axis] * x
            below = grid[row + 1, column, axis] * (1 - x) + grid[row + 1, column + 1, axis] * x
            missed[i, axis] = offsets[counted[i], axis] - (above * (1 - y) + below * y)
        cell[i, 0], cell[i, 1] = column, row
        # The rim stays.
        weight[i, 0, 0], weight[i, 0, 1] = (0.0 if column == 0 else 1 - x), (0.0 if column == nodes - 2 else x)
        weight[i, 1, 0], weight[i, 1, 1] = (0.0 if row == 0 else 1 - y), (0.0 if row == nodes - 2 else y)
        for j in range(i + 1):
            along = _alike(cell[i, 0], cell[j, 0], weight[i, 0], weight[j, 0])
            normal[j, i] = along * _alike(cell[i, 1], cell[j, 1], weight[i, 1], weight[j, 1]) if along else 0.0
        normal[i, i] += ridge
    _solve(normal, missed)
    for i in range(n):
        for k in range(4):
            share = weight[i, 0, k % 2] * weight[i, 1, k // 2]
            for axis in range(2):
                grid[cell[i, 1] + k // 2, cell[i, 0] + k % 2, axis] += share * missed[i, axis]


@kernel()
def _solve(normal, right):
    """Positive definite equations, mostly zeros, by elimination in the upper triangle; ``right`` becomes x."""
    n = len(normal)
    for k in range(n):
        for i in range(k + 1, n):
            if normal[k, i] == 0.0:
                continue
            factor = normal[k, i] / normal[k, k]
            for j in range(i, n):
                normal[i, j] -= factor * normal[k, j]
            right[i, 0] -= factor * right[k, 0]
            right[i, 1] -= factor * right[k, 1]
    for k in range(n - 1, -1, -1):
        for axis in range(2):
            total = right[k, axis]
            for j in range(k + 1, n):
                total -= normal[k, j] * right[j, axis]
            right[k, axis] = total / normal[k, k]


_FACES = read(types.f4, 3), read(types.b1, 2), read(types.f4, 2), read(types.i8), read(types.f8, 3), read(types.f8, 3)


@kernel(types.void(*_FACES, types.i8, types.f8, types.f8[:, :, :, ::1]))
def fill_nodes(points, kept, edges, first, places, offsets, landmarks, ridge, grid):
    """Offsets at the nodes of N faces, to ``grid`` (N, K, K, 2) px.

    points: (N, P, 2) float32 px, of which those kept (N, P) are triangulated. edges: (E, 4), x y to x y of points,
    those of face n from ``first[n]`` to ``first[n + 1]``. places: (N, P, 2) of the points, in nodes. offsets:
    (N, P, 2) px. landmarks: how many of the P the nodes are settled for. ridge: ``landmarks.RIDGE``.
    """
    last = grid.shape[1] - 1
    for n in range(len(points)):
        count = first[n + 1] - first[n]
        start, end = np.empty(count, np.int64), np.empty(count, np.int64)
        count = _downwards(edges[first[n] : first[n + 1]], points[n], kept[n], places[n], start, end)
        _fill(start[:count], end[:count], places[n], offsets[n], grid[n])
        counted, within = np.empty(landmarks, np.int64), 0
        for p in range(landmarks):
            x, y = places[n, p, 0], places[n, p, 1]
            if kept[n, p] and 0 <= x <= last and 0 <= y <= last:
                counted[within] = p
                within += 1
        _settle(places[n], offsets[n], counted[:within], ridge, grid[n])
