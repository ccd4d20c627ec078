"""Which faces of the other side look alike: the partners of the warp to landmarks.

Two sides, A and B. Landmarks are (n, 68, 2) float32 in crop px of the processing size. Two faces are as far apart as
the sum of the squared differences of all their 136 numbers, px^2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from swapfast.config import CropConfig
from swapfast.errors import SwapfastError
from swapfast.faces.alignment import CENTERINGS, crop_matrices
from swapfast.faces.crop import crop_landmarks, crop_shares
from swapfast.faces.record import FaceRecord
from swapfast.faces.table import FaceTable
from swapfast.philox import STREAM_AUGMENT, random_words
from swapfast.points import transform_points

MATCH_BLOCK = 50  # of a face's counter: the first behind the noise of the warp to landmarks, see draws.py

_SIDES = "AB"
_VALUES = 2 * 68
_PRESELECTED = 32
_BLOCK_BYTES = 32 << 20  # of float32 bounds at a time
_PAIRS = 4096  # whose 136 differences are in memory at a time, 4 MB in float64

# The share of |a|^2 + |b|^2 by which float32 can at most get |b|^2 - 2ab wrong, in any order of adding up, fused or
# not: 136 u for the product of 136 terms, with u = 2^-24, and 7 u for rounding the operands, |b|^2 and the sum.
_FLOAT32_ERROR = (_VALUES + 16) * 2.0**-24
_UNDERFLOW = 1e-30  # px^2, where the error is no longer relative


Progress = Callable[[int, int], None]
Sides = tuple[np.ndarray, np.ndarray]
Find = Callable[[Sides, int, Progress | None], Sides]


def find_closest(landmarks: Sides, num_choices: int, progress: Progress | None = None) -> Sides:
    """``LandmarkMatcher.closest``; ``progress`` is told (faces done, faces of both sides)."""
    a, b = landmarks
    total = len(a) + len(b)
    # Peer: a side smaller than num_choices leaves one of its faces out, one of just num_choices is a crash.
    # Ours: as many choices as the other side has faces, from one face on.
    return (
        nearest(a, b, num_choices, progress=_after(0, total, progress)),
        nearest(b, a, num_choices, progress=_after(len(a), total, progress)),
    )


class LandmarkMatcher:
    """The landmarks of two sides and, for each face, the nearest faces of the other side.

    landmarks: per side (n, 68, 2) float32 crop px. closest: per side (n, k) int32 indices into the OTHER side, nearest
    first, of two equally near the lower index first; k is ``num_choices`` or all faces the other side has. find: does
    what ``find_closest`` does, perhaps by remembering.
    Raises SwapfastError for a side without faces, ValueError for arrays that are not landmarks.
    """

    def __init__(
        self,
        landmarks_a: np.ndarray,
        landmarks_b: np.ndarray,
        num_choices: int = 10,
        progress: Progress | None = None,
        find: Find = find_closest,
    ) -> None:
        """Finds the neighbours; ``progress`` is told (faces done, faces of both sides)."""
        if num_choices < 1:
            raise ValueError(f"num_choices must be at least 1, got {num_choices}")
        self.landmarks = _checked(landmarks_a, "A"), _checked(landmarks_b, "B")
        self.closest = find(self.landmarks, num_choices, progress)

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
        find: Find = find_closest,
    ) -> LandmarkMatcher:
        """From the faces of side A and of side B; each record is looked at once and not kept.

        size: processing size, px. coverage and y_offset are SHARES, where CropConfig has percent.
        """
        if len(sides) != 2:
            raise SwapfastError(f"warp to landmarks matches two sides, A and B; there are {len(sides)}")
        crop = CropConfig(centering=centering, coverage=100 * coverage, vertical_offset=100 * y_offset)
        return cls(*(_aligned(records, crop, size) for records in sides), num_choices, progress, find)

    def choices(self, seed: int, ordinals) -> np.ndarray:
        """(2, B) int64: for each face drawn the column of its ``closest`` that it is warped to.

        seed: the run's, 64 bit. ordinals: the how-manieth face of its side each one is, (2, B), or (B,) for both sides.
        A choice depends on the seed and on its own ordinal and side only, and all columns are equally likely.
        """
        ordinals = np.asarray(ordinals)
        ordinals = np.broadcast_to(ordinals, (2, *ordinals.shape[-1:]))
        block = range(MATCH_BLOCK, MATCH_BLOCK + 1)
        words = [random_words(seed, ordinals[side], side, block, STREAM_AUGMENT)[:, 0] for side in (0, 1)]
        return np.stack([_below(word, closest.shape[1]) for word, closest in zip(words, self.closest)])

    def get_close_landmarks(self, indices: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """(2 * B, 2, 68, 2) float32: each face's own landmarks and those of its chosen match, A's faces first.

        indices: (2, B), faces of A and of B. choices: (2, B) columns of ``closest``, see the method ``choices``.
        Raises IndexError for a face or a column that is not there.
        """
        indices, choices = np.asarray(indices), np.asarray(choices)
        if indices.ndim != 2 or len(indices) != 2 or choices.shape != indices.shape:
            raise ValueError(f"need (2, B) indices and choices, got {indices.shape} and {choices.shape}")
        pairs = []
        for side, (faces, columns) in enumerate(zip(indices, choices)):
            _check_range(f"face of {_SIDES[side]}", faces, len(self.landmarks[side]))
            _check_range(f"choice of {_SIDES[side]}", columns, self.closest[side].shape[1])
            matches = self.closest[side][faces, columns]
            pairs.append(np.stack([self.landmarks[side][faces], self.landmarks[1 - side][matches]], axis=1))
        return np.concatenate(pairs)


def nearest(
    own: np.ndarray,
    others: np.ndarray,
    count: int,
    block_bytes: int = _BLOCK_BYTES,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """(n, min(count, m)) int32: for each of n faces its nearest among m others, by (float64 distance, index).

    own, others: (n or m, 68, 2) float32. A float32 product of the centred landmarks gives every pair a lower bound;
    only pairs whose bound is low get their distance. That leaves out no neighbour, so the result does not depend on
    ``block_bytes``, the matrix library or its threads. ``progress`` is told the faces done.
    """
    own, others = own.reshape(-1, _VALUES), others.reshape(-1, _VALUES)
    count = min(count, len(others))
    kept = _without_spare_copies(others, count)
    others = others[kept]
    preselected = min(max(_PRESELECTED, 2 * count), len(others))
    # Peer: float32 |a|^2 + |b|^2 - 2ab of crop px as they are, which at times takes a farther face for a nearer one.
    # Ours: exact. Distances do not change with the origin, but float32's error is a share of the distance from it.
    centre = (own.sum(0, dtype=np.float64) + others.sum(0, dtype=np.float64)) / (len(own) + len(others))
    a, a_share = _centred(own, centre)
    b, b_share = _centred(others, centre)
    b *= -2
    b_share = b_share.astype(np.float32)
    result = np.empty((len(own), count), np.int32)
    # Whole rows fit a block up to some millions of others; few faces at a time also for few others.
    step = min(max(1, block_bytes // (4 * len(others))), 4096)
    for start in range(0, len(own), step):
        part = slice(start, start + step)
        bound = a[part] @ b.T
        bound += b_share  # now at most distance - a_share
        limit = _preselect(bound, preselected)
        result[part], farthest = _best(own[part], others, bound <= limit[:, None], count)
        # Whoever belongs among the nearest has a bound up to ``proven``. Beyond ``limit`` nobody has been looked at.
        proven = np.nextafter((farthest - a_share[part] + _UNDERFLOW).astype(np.float32), np.float32(np.inf))
        unsure = np.flatnonzero(proven > limit)
        if len(unsure):
            within = bound[unsure] <= proven[unsure, None]
            result[start + unsure], _ = _best(own[start + unsure], others, within, count)
        if progress:
            progress(start + len(bound))
    return kept[result]


def _without_spare_copies(faces: np.ndarray, count: int) -> np.ndarray:
    """(m,) int32 ascending: the faces that can be among the ``count`` nearest of any.

    Of equal faces that is the first ``count``. A folder of many copies, as from a video that stands still, would
    otherwise need the distance of nearly every pair.
    """
    copies: Counter[bytes] = Counter()
    kept = []
    for index, face in enumerate(faces):
        key = face.tobytes()
        copies[key] += 1
        if copies[key] <= count:
            kept.append(index)
    return np.array(kept, np.int32)


def _centred(points: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 136) float32 points about the centre, and (n,) float64: what each adds to the lower bound of a distance."""
    moved = np.empty(points.shape, np.float32)
    for start in range(0, len(points), _PAIRS):
        moved[start : start + _PAIRS] = points[start : start + _PAIRS] - centre
    return moved, (1 - _FLOAT32_ERROR) * np.einsum("ij,ij->i", moved, moved, dtype=np.float64)


def _preselect(bound: np.ndarray, count: int) -> np.ndarray:
    """(rows,): a limit that at least ``count`` of each row's values, and rarely many more, do not exceed.

    The row is dealt out to heaps, and the limit is the ``count``-th smallest of their minima. Some values may share a
    heap, which raises it a little; it takes a tenth of the time of finding the ``count``-th smallest of the row.
    """
    width = bound.shape[1]
    heaps = width // max(1, min(64, width // (8 * count)))
    minima = bound[:, : width // heaps * heaps].reshape(len(bound), -1, heaps).min(axis=1)
    return np.partition(minima, count - 1, axis=1)[:, count - 1]


def _best(own: np.ndarray, others: np.ndarray, mask: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, count) indices of the nearest others among those marked in (n, m), and (n,) the farthest's distance."""
    rows, columns = np.divmod(np.flatnonzero(mask), len(others))
    distances = np.empty(len(rows))
    for start in range(0, len(rows), _PAIRS):
        part = slice(start, start + _PAIRS)
        difference = own[rows[part]].astype(np.float64)
        difference -= others[columns[part]]
        distances[part] = np.square(difference, out=difference).sum(axis=1)
    order = np.lexsort((distances, rows))  # stable: equally near faces stay in the order of their indices
    first = np.searchsorted(rows, np.arange(len(own)))
    kept = order[first[:, None] + np.arange(count)]
    return columns[kept], distances[kept[:, -1]]


def _aligned(records: Sequence[FaceRecord], crop: CropConfig, size: int) -> np.ndarray:
    """(n, 68, 2) float32 crop px; of a table a tenth of the time that one record after another takes."""
    points = np.empty((len(records), 68, 2), np.float32)
    if not isinstance(records, FaceTable):
        for index, record in enumerate(records):
            points[index] = crop_landmarks(record, crop, size)
        return points
    for start in range(0, len(records), _PAIRS):
        part = records[start : start + _PAIRS]
        offsets = part.column("offsets")[:, CENTERINGS.index(crop.centering)]
        matrices = crop_matrices(part.column("legacy_matrix"), offsets, size, crop.centering, *crop_shares(crop))
        points[start : start + _PAIRS] = transform_points(matrices, part.column("landmarks"))
    return points


def _below(words: np.ndarray, k: int) -> np.ndarray:
    """(N,) int64 in 0..k-1 from (N,) uint32 random words; the odds differ by a share of less than k / 2^32."""
    return ((words.astype(np.uint64) * np.uint64(k)) >> np.uint64(32)).astype(np.int64)


def _after(before: int, total: int, progress: Callable[[int, int], None] | None) -> Callable[[int], None] | None:
    """``progress`` for a part of the work that follows ``before`` of ``total`` faces."""
    return progress and (lambda done: progress(before + done, total))


def _checked(landmarks: np.ndarray, side: str) -> np.ndarray:
    landmarks = np.ascontiguousarray(landmarks, np.float32)
    if landmarks.shape[1:] != (68, 2):
        raise ValueError(f"landmarks of side {side}: expected (n, 68, 2), got {landmarks.shape}")
    if not len(landmarks):
        raise SwapfastError(f"side {side} has no faces: warp to landmarks needs at least one on either side")
    if not np.isfinite(landmarks).all():
        raise ValueError(f"landmarks of side {side} that are not finite numbers")
    return landmarks


def _check_range(what: str, values: np.ndarray, count: int) -> None:
    wrong = values[(values < 0) | (values >= count)]
    if len(wrong):
        raise IndexError(f"{what} {wrong[0]}: there are {count}, counted from 0")
