"""Finds the most similar faces of the other side, for the warp to landmarks.

There are two sides, A and B. Landmarks are (n, 68, 2) float32 in crop px of the processing size. The distance of two
faces is the sum of the squared differences of all their 136 coordinates, px^2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from swapfast.batch import SIDES
from swapfast.config import CropConfig
from swapfast.errors import SwapfastError
from swapfast.faces.alignment import CENTERINGS, crop_matrices
from swapfast.faces.crop import crop_landmarks, crop_shares, head_crop_matrices, resize_matrix
from swapfast.faces.folder import scan_folder
from swapfast.faces.prepared import is_prepared, open_prepared
from swapfast.faces.record import FaceRecord
from swapfast.faces.table import KINDS, FaceTable
from swapfast.philox import STREAM_AUGMENT, random_words
from swapfast.points import transform_points

MATCH_BLOCK = 50  # the random counter's first block behind the noise of the warp to landmarks (draws.py)

_VALUES = 2 * 68
_PRESELECTED = 32
_BLOCK_BYTES = 32 << 20  # of float32 lower bounds in memory at a time
_PAIRS = 4096  # pairs of faces whose differences are in memory at a time, 4 MB in float64

# The largest error of |b|^2 - 2ab in float32, as a share of |a|^2 + |b|^2, for any order of summation, fused or not:
# 136 u for the product of 136 terms, with u = 2^-24, and 7 u for rounding the operands, |b|^2 and the sum.
_FLOAT32_ERROR = (_VALUES + 16) * 2.0**-24
_UNDERFLOW = 1e-30  # px^2, below which the error is no longer relative


Progress = Callable[[int, int], None]
SidePair = tuple[np.ndarray, np.ndarray]  # an array of side A and one of side B
FindClosest = Callable[[SidePair, int, Progress | None], SidePair]


def find_closest(landmarks: SidePair, num_choices: int, progress: Progress | None = None) -> SidePair:
    """Return ``LandmarkMatcher.closest``. progress: called with (faces done, faces of both sides)."""
    a, b = landmarks
    total = len(a) + len(b)
    # Peer: one face of a side with fewer than num_choices is never chosen, and a side of exactly num_choices crashes.
    # Ours: up to num_choices faces of the other side, whatever its size.
    return (
        nearest(a, b, num_choices, progress=_offset_progress(0, total, progress)),
        nearest(b, a, num_choices, progress=_offset_progress(len(a), total, progress)),
    )


class LandmarkMatcher:
    """The landmarks of two sides and, for each face, the nearest faces of the other side.

    landmarks: per side (n, 68, 2) float32 crop px.
    closest: per side (n, k) int32 indices into the OTHER side, nearest first, ties by index. k is ``num_choices``, or
        the number of faces of the other side if that is smaller.
    """

    def __init__(
        self,
        landmarks_a: np.ndarray,
        landmarks_b: np.ndarray,
        num_choices: int = 10,
        progress: Progress | None = None,
        find: FindClosest = find_closest,
    ) -> None:
        """Find the nearest faces.

        landmarks_a, landmarks_b: (n, 68, 2) crop px.
        progress: called with (faces done, faces of both sides).
        find: ``find_closest`` or a cached version of it.
        Raises SwapfastError for a side without faces, and ValueError for arrays that are not landmarks.
        """
        if num_choices < 1:
            raise ValueError(f"num_choices must be at least 1, got {num_choices}")
        self.landmarks = _checked(landmarks_a, "A"), _checked(landmarks_b, "B")
        self.closest = find(self.landmarks, num_choices, progress)

    @classmethod
    def from_folders(
        cls,
        folders: Sequence[str | Path],
        size: int,
        centering: str,
        coverage: float,
        y_offset: float,
        num_choices: int = 10,
    ) -> LandmarkMatcher:
        """Make a matcher from the folders of faces, or prepared sets, of side A and side B.

        See ``from_records``. Raises SwapfastError for folders without faces, and listing every bad file.
        """
        sides = []
        for path in map(Path, folders):
            folder = open_prepared(path).folder if is_prepared(path) else scan_folder(path)
            folder.require_all_good()
            sides.append(folder.records)
        return cls.from_records(sides, size, centering, coverage, y_offset, num_choices)

    @classmethod
    def from_records(
        cls,
        sides: Sequence[Sequence[FaceRecord]],
        size: int,
        centering: str,
        coverage: float,
        y_offset: float,
        num_choices: int = 10,
        progress: Progress | None = None,
        find: FindClosest = find_closest,
    ) -> LandmarkMatcher:
        """Make a matcher from the faces of side A and side B. Each record is read once.

        size: processing size, px.
        coverage, y_offset: SHARES; CropConfig has percent.
        """
        if len(sides) != 2:
            raise SwapfastError(f"warp to landmarks matches two sides, A and B; there are {len(sides)}")
        crop = CropConfig(centering=centering, coverage=100 * coverage, vertical_offset=100 * y_offset)
        landmarks_a, landmarks_b = (aligned_landmarks(records, crop, size) for records in sides)
        return cls(landmarks_a, landmarks_b, num_choices, progress, find)

    def choices(self, seed: int, ordinals: ArrayLike) -> np.ndarray:
        """Return the column of ``closest`` that each face is warped to, (2, B) int64.

        A choice depends on the seed, the face's ordinal and its side. All columns are equally likely.
        seed: of the run, 64 bits.
        ordinals: (2, B), or (B,) for both sides: each face's position in its side's endless order.
        """
        ordinals = np.asarray(ordinals)
        ordinals = np.broadcast_to(ordinals, (2, *ordinals.shape[-1:]))
        block = range(MATCH_BLOCK, MATCH_BLOCK + 1)
        words = [random_words(seed, ordinals[side], side, block, STREAM_AUGMENT)[:, 0] for side in (0, 1)]
        return np.stack([_below(word, closest.shape[1]) for word, closest in zip(words, self.closest)])

    def get_close_landmarks(self, indices: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """Return each face's landmarks and those of its chosen match, A's faces first.

        indices: (2, B), faces of A and of B.
        choices: (2, B), columns of ``closest`` (method ``choices``).
        Returns (2 * B, 2, 68, 2) float32. Raises IndexError for a face or column that does not exist.
        """
        indices, choices = np.asarray(indices), np.asarray(choices)
        if indices.ndim != 2 or len(indices) != 2 or choices.shape != indices.shape:
            raise ValueError(f"need (2, B) indices and choices, got {indices.shape} and {choices.shape}")
        pairs = []
        for side, (faces, columns) in enumerate(zip(indices, choices)):
            _check_range(f"face of {SIDES[side].upper()}", faces, len(self.landmarks[side]))
            _check_range(f"choice of {SIDES[side].upper()}", columns, self.closest[side].shape[1])
            matches = self.closest[side][faces, columns]
            pairs.append(np.stack([self.landmarks[side][faces], self.landmarks[1 - side][matches]], axis=1))
        return np.concatenate(pairs)


def nearest(
    faces: np.ndarray,
    candidates: np.ndarray,
    count: int,
    block_bytes: int = _BLOCK_BYTES,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return the nearest candidates of each face, by float64 distance, then index.

    A float32 product of the centred landmarks gives a lower bound for every pair. Exact distances are computed only for
    pairs with a low bound. No neighbour is missed, so the result does not depend on ``block_bytes``, the matrix library
    or its threads.
    faces: (n, 68, 2) float32.
    candidates: (m, 68, 2) float32.
    progress: called with the number of faces done.
    Returns (n, min(count, m)) int32 indices of candidates.
    """
    faces, candidates = faces.reshape(-1, _VALUES), candidates.reshape(-1, _VALUES)
    count = min(count, len(candidates))
    rows = _without_surplus_copies(candidates, count)
    candidates = candidates[rows]
    preselected = min(max(_PRESELECTED, 2 * count), len(candidates))
    # Peer: float32 |a|^2 + |b|^2 - 2ab of the crop px, which sometimes mistakes a farther face for a nearer one.
    # Ours: exact. Centring leaves distances unchanged and reduces float32's error, a share of the distance from 0.
    centre = (faces.sum(0, dtype=np.float64) + candidates.sum(0, dtype=np.float64)) / (len(faces) + len(candidates))
    a, a_share = _centred(faces, centre)
    b, b_share = _centred(candidates, centre)
    b *= -2
    b_share = b_share.astype(np.float32)
    result = np.empty((len(faces), count), np.int32)
    # A block holds whole rows, even of some millions of candidates, and few rows even of few candidates.
    step = min(max(1, block_bytes // (4 * len(candidates))), 4096)
    for start in range(0, len(faces), step):
        part = slice(start, start + step)
        bound = a[part] @ b.T
        bound += b_share  # at most distance - a_share
        limit = _preselect(bound, preselected)
        result[part], farthest = _best(faces[part], candidates, bound <= limit[:, None], count)
        # Every true neighbour has a bound up to ``proven``. Candidates beyond ``limit`` have not been examined.
        proven = np.nextafter((farthest - a_share[part] + _UNDERFLOW).astype(np.float32), np.float32(np.inf))
        unsure = np.flatnonzero(proven > limit)
        if len(unsure):
            within = bound[unsure] <= proven[unsure, None]
            result[start + unsure], _ = _best(faces[start + unsure], candidates, within, count)
        if progress:
            progress(start + len(bound))
    return rows[result]


def _without_surplus_copies(faces: np.ndarray, count: int) -> np.ndarray:
    """Return the faces that can be among the ``count`` nearest: of equal faces the first ``count``.

    Without this, a folder of many copies, such as a still video, would need the distance of nearly every pair.
    Returns (m,) int32 indices, ascending.
    """
    copies: Counter[bytes] = Counter()
    indices = []
    for index, face in enumerate(faces):
        key = face.tobytes()
        copies[key] += 1
        if copies[key] <= count:
            indices.append(index)
    return np.array(indices, np.int32)


def _centred(points: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points relative to a centre, and what each face adds to the lower bound of a distance.

    points: (n, 136). Returns (n, 136) float32 and (n,) float64.
    """
    centred = np.empty(points.shape, np.float32)
    for start in range(0, len(points), _PAIRS):
        centred[start : start + _PAIRS] = points[start : start + _PAIRS] - centre
    return centred, (1 - _FLOAT32_ERROR) * np.einsum("ij,ij->i", centred, centred, dtype=np.float64)


def _preselect(bound: np.ndarray, count: int) -> np.ndarray:
    """Return a limit for each row, (rows,): at least ``count`` of its values, and rarely many more, are within it.

    The row is divided into groups, and the limit is the ``count``-th smallest of their minima. Small values that share
    a group raise the limit a little. It takes a tenth of the time of finding the row's ``count``-th smallest value.
    """
    width = bound.shape[1]
    groups = width // max(1, min(64, width // (8 * count)))
    minima = bound[:, : width // groups * groups].reshape(len(bound), -1, groups).min(axis=1)
    return np.partition(minima, count - 1, axis=1)[:, count - 1]


def _best(faces: np.ndarray, candidates: np.ndarray, mask: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest of the candidates marked in ``mask``, and the distance of the farthest of them.

    faces: (n, 136). candidates: (m, 136). mask: (n, m). Returns (n, count) indices and (n,) px^2.
    """
    rows, columns = np.divmod(np.flatnonzero(mask), len(candidates))
    distances = np.empty(len(rows))
    for start in range(0, len(rows), _PAIRS):
        part = slice(start, start + _PAIRS)
        difference = faces[rows[part]].astype(np.float64)
        difference -= candidates[columns[part]]
        distances[part] = np.square(difference, out=difference).sum(axis=1)
    order = np.lexsort((distances, rows))  # stable: equally near faces stay in the order of their indices
    first = np.searchsorted(rows, np.arange(len(faces)))
    nearest_first = order[first[:, None] + np.arange(count)]
    return columns[nearest_first], distances[nearest_first[:, -1]]


def aligned_landmarks(records: Sequence[FaceRecord], crop: CropConfig, size: int) -> np.ndarray:
    """Return the landmarks of faces in px of their crops of edge ``size``, (n, 68, 2) float32.

    Ten times as fast from a table as from records.
    """
    points = np.empty((len(records), 68, 2), np.float32)
    if not isinstance(records, FaceTable):
        for index, record in enumerate(records):
            points[index] = crop_landmarks(record, crop, size)
        return points
    for start in range(0, len(records), _PAIRS):
        part = records[start : start + _PAIRS]
        points[start : start + _PAIRS] = transform_points(_matrices(part, crop, size), part.column("landmarks"))
    return points


def _matrices(table: FaceTable, crop: CropConfig, size: int) -> np.ndarray:
    """Return the matrix of ``crop_matrix`` for every face of a table, (n, 2, 3)."""
    widths, legacy, offsets = (table.column(name) for name in ("width", "legacy_matrix", "offsets"))
    if table.crop == crop:
        return np.array([resize_matrix(int(width), size) for width in widths]).reshape(-1, 2, 3)
    centre = offsets[:, CENTERINGS.index(crop.centering)]
    matrices = crop_matrices(legacy, centre, size, crop.centering, *crop_shares(crop))
    heads = table.column("kind") == KINDS.index("head")
    matrices[heads] = head_crop_matrices(widths[heads], legacy[heads], offsets[heads], crop, size)
    return matrices


def _below(words: np.ndarray, limit: int) -> np.ndarray:
    """Return (N,) int64 in 0..limit-1 from (N,) uint32 random words, uniform to a share of limit / 2^32."""
    return ((words.astype(np.uint64) * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)


def _offset_progress(offset: int, total: int, progress: Progress | None) -> Callable[[int], None] | None:
    """Return ``progress`` for the part of the work that begins after ``offset`` of ``total`` faces."""
    return progress and (lambda count: progress(offset + count, total))


def _checked(landmarks: np.ndarray, side: str) -> np.ndarray:
    landmarks = np.ascontiguousarray(landmarks, np.float32)
    if landmarks.shape[1:] != (68, 2):
        raise ValueError(f"landmarks of side {side}: expected (n, 68, 2), got {landmarks.shape}")
    if not len(landmarks):
        raise SwapfastError(f"side {side} has no faces: warp to landmarks needs at least one on either side")
    if not np.isfinite(landmarks).all():
        raise ValueError(f"landmarks of side {side} that are not finite numbers")
    return landmarks


def _check_range(name: str, values: np.ndarray, count: int) -> None:
    wrong = values[(values < 0) | (values >= count)]
    if len(wrong):
        raise IndexError(f"{name} {wrong[0]}: there are {count}, counted from 0")
