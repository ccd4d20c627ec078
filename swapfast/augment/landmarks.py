"""The warp to landmarks: a face bent until its landmarks lie where those of a similar face of the other side lie.

The warp is linear inside each triangle of a Delaunay triangulation. At the matched face's landmarks it reads the face's
own. At eight anchors on the edge of the image it reads what is there, so the rim stays. It is worked out at the nodes
of a coarse grid only, which the augmenters fill in as they do the random warp's.

Positions are px of the target, x before y, pixel centres at integers. Node [row, column] of K lies at column and row
times (size - 1) / (K - 1): the corner nodes on the corner pixels' centres.

Between nodes the warp is bilinear, and where noise pulls neighbours apart that share a cell, nodes that are right by
themselves miss the landmarks by 1 px of 256 in the mean. So the nodes around landmarks are moved a little further: by
least squares, the smaller the better (``_settle`` of ``kernels/nodes.py``). Against the peer's full map (griddata at
every pixel, 105 ms per 32 faces of 256 px) the image is then off by 0.18 px in the mean (before 0.16) and the landmarks
by 0.38 (before 1.07).

That costs 6 ms per 32 faces up to 288 px on one core, of which OpenCV's triangulation is 1.8. More threads gain little:
the triangulation is many small calls, after which Python's lock changes hands each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import cv2
import numpy as np

from swapfast.augment.kernels.jit import load_kernels

NODES = 33  # per edge up to 256 px; twice the cells from each of these sizes on, as landmarks must land in px
_FINER_ABOVE = (288, 576)
_JAW = 17  # points 0..16; the rest is the core of the face
_POINTS = 68
_FLATTEST = 1 / 500  # of the size: the core of a face is no thinner than this, as standard deviation across
_FIELD = 1000  # image widths
_SAME_PLACE = 1e-3  # px: closer than that two points are one, moved and rounded
# Upper and lower lid of both eyes, the mouth's corners outside and inside, upper and lower lip inside.
_MAY_TOUCH = ((37, 41), (38, 40), (43, 47), (44, 46), (48, 60), (54, 64), (61, 67), (62, 66), (63, 65))
_MUST_DIFFER = np.triu(np.ones((_POINTS, _POINTS), bool), 1)
_MUST_DIFFER[tuple(zip(*_MAY_TOUCH))] = False
# The ridge regression's penalty. At 0 all landmarks land, and 5 px in a thousand fold over where two nearly meet, six
# times as many as in the peer's map; at 0.1 a fifth as many as there, at 0.5 the landmarks miss by 0.72 px.
RIDGE = 0.1
Each = Callable[..., Iterable]  # as the builtin ``map``

_BLOCK = 16  # faces at a time: arrays that stay in cache, a tenth less time than 128 at once


def nodes_for(size: int) -> int:
    """Return the nodes per edge: 33, 65 above 288 px, 129 above 576 px.

    With them landmarks miss their places by about half a pixel in the mean, of photographs 0.46 px at 256 px. A quarter
    of them miss by more, and where two nearly meet, as of closing lids, by up to 10 px.
    """
    return (NODES - 1) * 2 ** sum(size > edge for edge in _FINER_ABOVE) + 1


def edge_anchors(size: int) -> np.ndarray:
    """Return (8, 2) float32 (x, y): corners and middles of the edges, which the warp leaves where they are."""
    last, half = size - 1, size // 2 - 1
    corners = [(0, 0), (0, last), (last, last), (last, 0)]
    return np.array([*corners, (half, 0), (half, last), (last, half), (0, half)], np.float32)


def landmark_nodes(
    source: np.ndarray,
    match: np.ndarray,
    noise: np.ndarray,
    size: int,
    nodes: int | None = None,
    each: Each = map,
    settle: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Return where each node of the grid reads, and which faces are warped: (N, K, K, 2) float64 (x, y), (N,) bool.

    source: (N, 68, 2) landmarks of the faces as they lie in the targets, px
    match: (N, 68, 2) those of the faces they are warped to
    noise: (N, 68, 2) px added to match
    size: px of the target
    nodes: K, by default ``nodes_for(size)``
    each: ``map``, or that of a pool whose threads share the faces
    settle: whether the nodes are moved so that landmarks land, or left as the triangles have them

    Each result depends on its own face only. A face stays as it is when a landmark of it or of its match is no finite
    number or more than the size outside the image, when two lie in one place that no face has in one (``_is_apart``),
    or when the core of the face is a line or a point. Less far outside is ordinary: at a coverage of 75 every
    photograph has such points, and where crop and movement are at their settings' ends, they lie up to 0.94 of the size
    outside. Raises ValueError for points of another shape, SwapfastError where Numba cannot run.
    """
    source, match, noise = (np.asarray(points) for points in (source, match, noise))
    n, nodes = len(source), nodes or nodes_for(size)
    for name, points in (("source", source), ("match", match), ("noise", noise)):
        if points.shape != (n, _POINTS, 2):
            raise ValueError(f"{name}: expected ({n}, {_POINTS}, 2), got {points.shape}")
    axis = np.linspace(0, size - 1, nodes)
    result = np.empty((n, nodes, nodes, 2))
    result[..., 0], result[..., 1] = axis, axis[:, None]

    with np.errstate(invalid="ignore"):
        target = match + noise.astype(np.float64)
    warped = _within_reach(source, size) & _within_reach(match, size) & _within_reach(target, size)
    for points in (source, match):
        warped[warped] = _has_area(points[warped], size) & _is_apart(points[warped])
    faces = np.flatnonzero(warped)
    blocks = [faces[start : start + _BLOCK] for start in range(0, len(faces), _BLOCK)]

    def block_offsets(block: np.ndarray) -> np.ndarray:
        return _offsets(source[block], target[block], size, nodes, settle)

    for block, offsets in zip(blocks, each(block_offsets, blocks)):
        result[block] += offsets
    return result, warped


def _within_reach(points: np.ndarray, size: int) -> np.ndarray:
    """Return (N,) bool: all points are numbers, and none lies farther outside than the image is wide."""
    return np.all((points >= -size) & (points <= 2 * size), axis=(1, 2))  # NaN is neither


def _has_area(points: np.ndarray, size: int) -> np.ndarray:
    """Return (N,) bool: the core of the face is neither a line nor a point.

    The smaller eigenvalue of the points' covariance is the square of their deviation across the line that fits best.
    """
    core = points[:, _JAW:].astype(np.float64)
    core -= core.mean(axis=1, keepdims=True)
    (xx, xy), (_, yy) = np.moveaxis(core.swapaxes(1, 2) @ core / core.shape[1], 0, -1)
    return (xx + yy - np.hypot(xx - yy, 2 * xy)) / 2 > (size * _FLATTEST) ** 2


def _is_apart(points: np.ndarray) -> np.ndarray:
    """Return (N,) bool: no two points lie in one place, but for those of lips and lids that are closed.

    Of 148 photographs 63 have a closed mouth's points twice, and none any others, nor would they in whole px of a crop
    of 96.
    """
    x, y = np.moveaxis(points.astype(np.float32), -1, 0)
    apart = np.all(np.diff(np.sort(x, axis=1), axis=1) >= _SAME_PLACE, axis=1)  # most faces, and soon known
    x, y = x[~apart], y[~apart]
    near = np.abs(x[:, :, None] - x[:, None]) < _SAME_PLACE
    near &= np.abs(y[:, :, None] - y[:, None]) < _SAME_PLACE
    apart[~apart] = ~(near & _MUST_DIFFER).any((1, 2))
    return apart


def _active_points(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return (N, 68) bool: all points but those of a jaw that lies on the face itself, in either of the two.

    The face is the convex hull of both cores, each point cut to whole px. Such a jaw, of a turned head, would tear
    the eye or the mouth that it crosses.

    Peer: tests points 0..17 for that, and so nearly always drops 17, the tip of a brow and a corner of the hull.
    Ours: the jaw is 0..16.
    """
    cores = np.concatenate([source[:, _JAW:], target[:, _JAW:]], axis=1).astype(np.int32)
    hulls = [cv2.convexHull(core)[:, 0] for core in cores]
    # One array for all: a hull starts at its last corner, goes round, and stays there, edges of no length that
    # exclude nothing.
    corner = np.stack([hull[np.minimum(np.arange(max(map(len, hulls)) + 1), len(hull)) - 1] for hull in hulls])
    start, edge = corner[:, None, :-1], np.diff(corner, axis=1)[:, None]
    jaws = np.concatenate([source[:, :_JAW], target[:, :_JAW]], axis=1)[:, :, None].astype(np.float64)
    side = edge[..., 0] * (jaws[..., 1] - start[..., 1]) - edge[..., 1] * (jaws[..., 0] - start[..., 0])
    inside = (side >= 0).all(-1) | (side <= 0).all(-1)
    active = np.ones(source.shape[:2], bool)
    active[:, :_JAW] = ~(inside[:, :_JAW] | inside[:, _JAW:])
    return active


class Triangulation(NamedTuple):
    """The triangulated points of N faces, P = 68 landmarks and 8 anchors each, as ``kernels/nodes.py`` takes them."""

    points: np.ndarray  # (N, P, 2) float32 px
    active: np.ndarray  # (N, P) bool: the points that are triangulated
    edges: list[np.ndarray]  # N of (E, 4) float32, ``_delaunay_edges``
    positions: np.ndarray  # (N, P, 2) the points in nodes, the last anchors exactly on the last node
    offsets: np.ndarray  # (N, P, 2) px from each point to where it reads


def triangulate(source: np.ndarray, target: np.ndarray, size: int, nodes: int) -> Triangulation:
    """Return the triangulation of the targets (N, 68, 2), which read the sources (N, 68, 2).

    Peer: swaps x and y of the map, so that a landmark acts at the place mirrored about the diagonal.
    Ours: at its place.
    """
    n = len(source)
    anchors = np.broadcast_to(edge_anchors(size), (n, 8, 2))
    active = np.concatenate([_active_points(source, target), np.ones((n, 8), bool)], axis=1)
    # The triangulation's float32, for both: without noise, a face that is its own match does not move by one bit.
    read = np.concatenate([source.astype(np.float32), anchors], axis=1)
    points = np.concatenate([target.astype(np.float32), anchors], axis=1) + np.float32(0)  # no negative zeros
    positions = points.astype(np.float64) * (nodes - 1) / (size - 1)
    edges = [_delaunay_edges(face[mask], size) for face, mask in zip(points, active)]
    return Triangulation(points, active, edges, positions, read - points.astype(np.float64))


def _offsets(source: np.ndarray, target: np.ndarray, size: int, nodes: int, settle: bool) -> np.ndarray:
    """Return (N, K, K, 2) px to add to each node's own position."""
    points, active, edges, positions, offsets = triangulate(source, target, size, nodes)
    grid = np.empty((len(source), nodes, nodes, 2))
    first_edge = np.cumsum([0, *map(len, edges)])
    landmark_count = _POINTS if settle else 0
    load_kernels("nodes").fill_nodes(
        points, active, np.concatenate(edges), first_edge, positions, offsets, landmark_count, RIDGE, grid
    )
    return grid


def _delaunay_edges(points: np.ndarray, size: int) -> np.ndarray:
    """Return (E, 4) float32, from x y to x y: the edges of the Delaunay triangulation of float32 points (P, 2)."""
    # OpenCV starts from a triangle three times as wide as this field. Were it near, it would take the edge between two
    # anchors away where a landmark is close to it, and the rim would move; wide costs nothing.
    subdivision = cv2.Subdiv2D((-_FIELD * size, -_FIELD * size, 2 * _FIELD * size, 2 * _FIELD * size))
    subdivision.insert(points)  # type: ignore[call-overload]  # the stubs lack the array
    edges = np.asarray(subdivision.getEdgeList())  # which is all it tells about the points
    return edges[(np.abs(edges[:, ::2]) <= 2 * size).all(1)]  # the rest lead to the first triangle, by x alone
