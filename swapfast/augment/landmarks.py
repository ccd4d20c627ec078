"""The warp to landmarks: a face bent until its landmarks lie where those of a similar face of the other side lie.

The warp is linear inside each triangle of a Delaunay triangulation: at the matched face's landmarks it reads the
face's own, at eight anchors on the edge of the image it reads what is there, so the rim stays. It is worked out at
the nodes of a coarse grid only, which the augmenters fill in as they do the random warp's.

Positions are px of the target, x before y, pixel centres at integers. Node [row, column] of K lies at column and row
times (size - 1) / (K - 1): the corner nodes on the corner pixels' centres.

Between nodes the warp is bilinear, and where noise pulls neighbours apart that share a cell, nodes that are right by
themselves miss the landmarks by 1 px of 256 in the mean. So the nodes around landmarks are moved a little further: by
least squares, the smaller the better (``_settled``). Against the peer's full map (griddata at every pixel, 105 ms per
32 faces of 256 px) the image is then off by .18 px in the mean (before .16) and the landmarks by .38 (before 1.07).

That costs 6 ms per 32 faces up to 288 px on one core, of which OpenCV's triangulation is 1.8; without Numba 13. More
threads gain little: the triangulation is many small calls, after which Python's lock changes hands each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import cv2
import numpy as np

from swapfast.augment.kernels.jit import load_kernels

NODES = 33  # per edge up to 256 px; twice the cells from each of these sizes on, as landmarks must land in px
_FINER_ABOVE = (288, 576)
_JAW = 17  # points 0..16; the rest is the core of the face
_POINTS = 68
_FLATTEST = 1 / 500  # of the size: the core of a face is no thinner than this, as standard deviation across
_FIELD = 1000  # image widths
_ONE_PLACE = 1e-3  # px: closer than that two points are one, moved and rounded
# Upper and lower lid of both eyes, the mouth's corners outside and inside, upper and lower lip inside.
_MAY_TOUCH = ((37, 41), (38, 40), (43, 47), (44, 46), (48, 60), (54, 64), (61, 67), (62, 66), (63, 65))
_NOT_ONE = np.triu(np.ones((_POINTS, _POINTS), bool), 1)
_NOT_ONE[tuple(zip(*_MAY_TOUCH))] = False
# Of a landmark's own pull on the nodes that a miss is worth: at 0 all landmarks land, and 5 px in a thousand fold over
# where two nearly meet, six times as many as in the peer's map; at .1 a fifth as many as there, at .5 .72 px are left.
RIDGE = 0.1
Each = Callable[..., Iterable]  # as the builtin ``map``

_BLOCK = 16  # faces at a time: arrays that stay in cache, a tenth less time than 128 at once


def nodes_for(size: int) -> int:
    """Nodes per edge with which landmarks land within half a pixel: 33, 65 above 288 px, 129 above 576 px."""
    return (NODES - 1) * 2 ** sum(size > edge for edge in _FINER_ABOVE) + 1


def edge_anchors(size: int) -> np.ndarray:
    """(8, 2) float32 (x, y): corners and middles of the edges, which the warp leaves where they are."""
    last, half = size - 1, size // 2 - 1
    corners = [(0, 0), (0, last), (last, last), (last, 0)]
    return np.array([*corners, (half, 0), (half, last), (last, half), (0, half)], np.float32)


def landmark_nodes(
    own: np.ndarray,
    match: np.ndarray,
    noise: np.ndarray,
    size: int,
    nodes: int | None = None,
    each: Each = map,
    settle: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Where each node of the grid reads: (N, nodes, nodes, 2) float64 (x, y), and (N,) bool, which faces are warped.

    own: (N, 68, 2) landmarks of the faces as they lie in the targets. match: (N, 68, 2) those of the faces they are
    warped to. noise: (N, 68, 2) px added to match. nodes: per edge, by default ``nodes_for(size)``. Each result depends
    on its own face only. each: ``map``, or that of a pool whose threads share the faces. settle: whether the nodes are
    moved so that landmarks land, or left as the triangles have them.

    A face stays as it is when a landmark is no finite number or more than the size outside the image, when two lie in
    one place that no face has in one (``_is_apart``), or when the core of the face is a line or a point; its own or its
    match's. Less far outside is ordinary: at a coverage of 75 every photograph has such points, and where crop and
    movement are at their settings' ends, they lie up to .94 of the size outside.
    """
    own, match, noise = (np.asarray(a) for a in (own, match, noise))
    n, nodes = len(own), nodes or nodes_for(size)
    for name, points in (("own", own), ("match", match), ("noise", noise)):
        if points.shape != (n, _POINTS, 2):
            raise ValueError(f"{name}: expected ({n}, {_POINTS}, 2), got {points.shape}")
    at = np.linspace(0, size - 1, nodes)
    result = np.empty((n, nodes, nodes, 2))
    result[..., 0], result[..., 1] = at, at[:, None]

    with np.errstate(invalid="ignore"):
        moved = match + noise.astype(np.float64)
    warped = _within_reach(own, size) & _within_reach(match, size) & _within_reach(moved, size)
    for points in (own, match):
        warped[warped] = _has_area(points[warped], size) & _is_apart(points[warped])
    faces = np.flatnonzero(warped)
    blocks = [faces[first : first + _BLOCK] for first in range(0, len(faces), _BLOCK)]
    for some, offsets in zip(blocks, each(lambda some: _offsets(own[some], moved[some], size, nodes, settle), blocks)):
        result[some] += offsets
    return result, warped


def _within_reach(points: np.ndarray, size: int) -> np.ndarray:
    """(N,) bool: all points are numbers, and none lies farther outside than the image is wide."""
    return ((points >= -size) & (points <= 2 * size)).all((1, 2))  # NaN is neither


def _has_area(points: np.ndarray, size: int) -> np.ndarray:
    """(N,) bool: the core of the face is neither a line nor a point.

    The smaller eigenvalue of the points' covariance is the square of their deviation across the line that fits best.
    """
    core = points[:, _JAW:].astype(np.float64)
    core -= core.mean(axis=1, keepdims=True)
    (xx, xy), (_, yy) = np.moveaxis(core.swapaxes(1, 2) @ core / core.shape[1], 0, -1)
    return (xx + yy - np.hypot(xx - yy, 2 * xy)) / 2 > (size * _FLATTEST) ** 2


def _is_apart(points: np.ndarray) -> np.ndarray:
    """(N,) bool: no two points lie in one place, but for those of lips and lids that are closed.

    Of 148 photographs 63 have a closed mouth's points twice, and none any others, nor would they in whole px of a crop
    of 96.
    """
    x, y = np.moveaxis(points.astype(np.float32), -1, 0)
    apart = (np.diff(np.sort(x, axis=1), axis=1) >= _ONE_PLACE).all(1)  # most faces, and soon known
    x, y = x[~apart], y[~apart]
    near = np.abs(x[:, :, None] - x[:, None]) < _ONE_PLACE
    near &= np.abs(y[:, :, None] - y[:, None]) < _ONE_PLACE
    apart[~apart] = ~(near & _NOT_ONE).any((1, 2))
    return apart


def _kept(own: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """(N, 68) bool: all points but those of a jaw that lies on the face itself, in either of the two.

    The face is the convex hull of both cores, each point cut to whole px. Such a jaw, of a turned head, would tear
    the eye or the mouth that it crosses.

    Peer: tests points 0..17 for that, and so nearly always drops 17, the tip of a brow and a corner of the hull.
    Ours: the jaw is 0..16.
    """
    cores = np.concatenate([own[:, _JAW:], moved[:, _JAW:]], axis=1).astype(np.int32)
    hulls = [cv2.convexHull(core)[:, 0] for core in cores]
    # One array for all: a hull starts at its last corner, goes round, and stays there, edges of no length that
    # exclude nothing.
    corner = np.stack([hull[np.minimum(np.arange(max(map(len, hulls)) + 1), len(hull)) - 1] for hull in hulls])
    start, edge = corner[:, None, :-1], np.diff(corner, axis=1)[:, None]
    jaws = np.concatenate([own[:, :_JAW], moved[:, :_JAW]], axis=1)[:, :, None].astype(np.float64)
    side = edge[..., 0] * (jaws[..., 1] - start[..., 1]) - edge[..., 1] * (jaws[..., 0] - start[..., 0])
    inside = (side >= 0).all(-1) | (side <= 0).all(-1)
    kept = np.ones(own.shape[:2], bool)
    kept[:, :_JAW] = ~(inside[:, :_JAW] | inside[:, _JAW:])
    return kept


def _offsets(own: np.ndarray, moved: np.ndarray, size: int, nodes: int, settle: bool) -> np.ndarray:
    """(N, nodes, nodes, 2) px to add to each node's own place.

    Peer: swaps x and y of the map, so that a landmark acts at the place mirrored about the diagonal.
    Ours: at its place.
    """
    n = len(own)
    if not n:
        return np.zeros((0, nodes, nodes, 2))
    anchors = np.broadcast_to(edge_anchors(size), (n, 8, 2))
    kept = np.concatenate([_kept(own, moved), np.ones((n, 8), bool)], axis=1)
    # The triangulation's float32, for both: without noise, a face that is its own match does not move by one bit.
    source = np.concatenate([own.astype(np.float32), anchors], axis=1)
    target = np.concatenate([moved.astype(np.float32), anchors], axis=1) + np.float32(0)  # no negative zeros
    places = target.astype(np.float64) * (nodes - 1) / (size - 1)  # in nodes, the last anchors exactly on the last
    offsets = source - target.astype(np.float64)
    edges = [_edges(points[keep], size) for points, keep in zip(target, kept)]
    return _at_nodes(target, kept, edges, places, offsets, nodes, settle)


def _at_nodes(
    points: np.ndarray,
    kept: np.ndarray,
    edges: list[np.ndarray],
    places: np.ndarray,
    offsets: np.ndarray,
    nodes: int,
    settle: bool,
) -> np.ndarray:
    """(N, nodes, nodes, 2) px: the offsets at the nodes.

    points: (N, P, 2) float32 px. kept: (N, P) bool. edges: of each face, ``_edges``. places: (N, P, 2) of the points,
    in nodes. offsets: (N, P, 2) px. By loops that Numba compiles; without it by arrays, which takes six times as long
    and is the same to 1e-3 px, mostly 1e-4.
    """
    compiled, n = load_kernels("nodes"), len(points)
    if compiled is not None:
        grid = np.empty((n, nodes, nodes, 2))
        first = np.cumsum([0, *map(len, edges)])
        landmarks = _POINTS if settle else 0
        compiled.fill_nodes(points, kept, np.concatenate(edges), first, places, offsets, landmarks, RIDGE, grid)
        return grid
    ends = [_ends(*of_face) for of_face in zip(points, kept, edges)]
    face = np.repeat(np.arange(n), list(map(len, ends)))
    start, end = face * points.shape[1] + np.concatenate(ends).T  # of all faces' points in a row
    places, offsets = (a.reshape(-1, 2).view(np.complex128)[:, 0] for a in (places, offsets))
    grid = _filled(places, offsets, start, end, face * nodes, n * nodes, nodes).reshape(n, nodes, nodes, 2)
    if not settle:
        return grid
    places, offsets = (a.view(np.float64).reshape(n, -1, 2)[:, :_POINTS] for a in (places, offsets))
    return _settled(grid, places, offsets, kept[:, :_POINTS])


def _settled(grid: np.ndarray, places: np.ndarray, offsets: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """``grid`` (N, K, K, 2) changed so that bilinear interpolation at ``places`` gives nearly ``offsets``.

    Ridge regression: of all changes of the inner nodes the one with the least sum of its squares and of the squares of
    what the landmarks are still off over RIDGE. In the matrices that it takes x and y come apart, so they are small;
    float32 is 1e-5 px off.

    places: (N, P, 2) in nodes. offsets: (N, P, 2) px. kept: (N, P) bool.
    """
    n, nodes = grid.shape[:2]
    counts = kept & ((places >= 0) & (places <= nodes - 1)).all(-1)
    places = places.astype(np.float32)
    at = np.arange(nodes, dtype=np.float32)
    shares = 1 - np.abs(places.transpose(2, 0, 1)[..., None] - at)
    np.maximum(shares, 0, out=shares)
    shares[0] *= counts[..., None]
    share_x, share_y = shares
    rows = share_y @ grid.reshape(n, nodes, 2 * nodes).astype(np.float32)
    missed = offsets.astype(np.float32) * counts[..., None]
    missed -= np.einsum("npk,npkc->npc", share_x, rows.reshape(n, -1, nodes, 2))
    shares[..., [0, -1]] = 0  # the rim stays
    alike = share_x @ share_x.swapaxes(1, 2)
    alike *= share_y @ share_y.swapaxes(1, 2)
    alike[:, np.arange(alike.shape[1]), np.arange(alike.shape[1])] += np.float32(RIDGE)
    pull = np.linalg.solve(alike, missed)
    change = share_y.swapaxes(1, 2) @ (share_x[..., None] * pull[:, :, None]).reshape(n, -1, 2 * nodes)
    return grid + change.reshape(grid.shape)


def _edges(points: np.ndarray, size: int) -> np.ndarray:
    """(E, 4) float32, from x y to x y: the edges of the Delaunay triangulation of float32 ``points`` (P, 2)."""
    # OpenCV starts from a triangle three times as wide as this field. Were it near, it would take the edge between two
    # anchors away where a landmark is close to it, and the rim would move; wide costs nothing.
    subdivision = cv2.Subdiv2D((-_FIELD * size, -_FIELD * size, 2 * _FIELD * size, 2 * _FIELD * size))
    subdivision.insert(points)
    edges = subdivision.getEdgeList()  # which is all it tells about the points
    return edges[(np.abs(edges[:, ::2]) <= 2 * size).all(1)]  # the others lead to the first triangle, by x alone


def _ends(points: np.ndarray, kept: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(E, 2) indices of the edges' ends into ``points``. Of equal points the first stands for all."""
    index = np.flatnonzero(kept)
    keys = points[index].view(np.int64)[:, 0]  # one number for each place, bit for bit the one put in
    order = np.argsort(keys, kind="stable")
    return index[order[np.searchsorted(keys[order], edges.view(np.int64))]]


def _filled(
    places: np.ndarray,
    offsets: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    first_row: np.ndarray,
    rows: int,
    nodes: int,
) -> np.ndarray:
    """Offsets (x, y) at the nodes of some rows, one below the other, all in one dimension.

    places: (P,) complex, x + iy, where points lie, in nodes. offsets: (P,) complex, px. start, end: (E,) indices of
    the edges' points. first_row: (E,) the topmost row of the face each edge is of. rows: those of all faces.

    Between two edges next to each other on a row of nodes lies one triangle, so along a row the offset is linear from
    edge to edge. All rows of all faces follow each other on one axis and are interpolated at once. A value lies between
    those beside it, however thin a triangle is.
    """
    down = places.imag[start] <= places.imag[end]
    start, end = np.where(down, start, end), np.where(down, end, start)
    top, bottom = places.imag[start], places.imag[end]
    first = np.ceil(np.maximum(top, 0)).astype(np.intp)
    last = np.floor(np.minimum(bottom, nodes - 1)).astype(np.intp)
    crossing = (first <= last) & (top < bottom)  # level edges: others meet their ends
    start, end, top, bottom, first, last, first_row = (
        a[crossing] for a in (start, end, top, bottom, first, last, first_row)
    )
    count = last - first + 1
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) + (first - np.cumsum(count) + count)[edge]
    down = row - top[edge]
    x = places.real[start]
    x = x[edge] + down * ((places.real[end] - x) / (bottom - top))[edge]
    value = offsets[start]
    value = value[edge] + down * ((offsets[end] - value) / (bottom - top))[edge]
    # On a grid of 2^-20 nodes a row's place on the common axis adds no rounding: a face's bits are its own.
    apart = 4 * nodes  # from row to row; landmarks lie within -nodes and 2 * nodes
    axis = (first_row[edge] + row) * apart + np.rint(x * 2**20) / 2**20
    order = np.argsort(axis, kind="stable")
    at = np.arange(rows)[:, None] * apart + np.arange(nodes)
    return np.interp(at.ravel(), axis[order], value[order]).view(np.float64)
