"""Smooths what is measured frame by frame along a face's track: landmarks, so that it does not jitter, and colours, so
that it does not flicker.

    landmarks   a parabola is fitted to each coordinate over the frames around, nearer ones counting more: noise goes,
                while motion that speeds up or slows down stays where it is
    colours     the mean of the statistics over the frames around, nearer ones counting more; means of statistics are
                statistics again
Both are pure functions of the frames around, so a run that goes on where another was killed smooths alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from swapfast.swap.swapper import FaceInWork, FrameInWork

MOST_FRAMES = 120  # on either side
SHORTEST_TRACK = 3  # frames: a shorter one is left as it is
MOST_ROWS = 256  # that are kept: where a face is missing here and there each frame may have its own
_SHARE = 0.5  # of the frames on one side: the Gaussian's deviation


def weights_of(distances: np.ndarray, frames: int) -> np.ndarray:
    """Return how much frames count at these distances. frames: how many on either side count at all."""
    weights = np.exp(-0.5 * (distances / max(_SHARE * frames, 1e-9)) ** 2)
    return np.where(np.abs(distances) <= frames, weights, 0.0)


class PointSmoother:
    """Smooths the points of a track at one frame by a parabola through those of the frames around.

    frames: how many on either side count.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self._rows: dict[bytes, np.ndarray] = {}  # by the distances around: but for gaps they are the same everywhere

    def __call__(self, points: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Return the smoothed points, (68, 2) float64.

        points: (n, 68, 2) px, of the track's frames around. distances: (n,) from the frame that is asked for.
        """
        key = distances.tobytes()
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MOST_ROWS:
                self._rows = {}  # replaced, not emptied: other threads may be looking
            row = self._rows[key] = _parabola_row(distances.astype(np.float64), self.frames)
        smoothed: np.ndarray = np.tensordot(row, points, axes=1)
        return smoothed


def smooth_track(points: np.ndarray, indices: np.ndarray, frames: int) -> np.ndarray:
    """Return the points of one track, smoothed by local parabolas, (n, 68, 2) float64.

    points: (n, 68, 2) px. indices: (n,) of their frames, rising. frames: how many on either side count.
    """
    points = np.asarray(points, np.float64)
    if frames < 1 or len(points) < SHORTEST_TRACK:
        return points
    smoother = PointSmoother(frames)
    smoothed = np.empty_like(points)
    for number, index in enumerate(indices):
        near = slice(*np.searchsorted(indices, (index - frames, index + frames + 1)))
        smoothed[number] = smoother(points[near], indices[near] - index)
    return smoothed


def _parabola_row(distances: np.ndarray, frames: int) -> np.ndarray:
    """Return by what to multiply points at these distances for the value at 0 of the parabola fitted to them, (n,)."""
    degree = min(2, len(distances) - 1)
    powers = distances[:, None] ** np.arange(degree + 1)
    root = np.sqrt(weights_of(distances, frames))[:, None]
    # The value at distance 0 is the first coefficient: one row of the pseudo-inverse.
    row: np.ndarray = np.linalg.pinv(powers * root)[0] * root[:, 0]
    return row


class ColourSmoother:
    """Smooths the colour statistics of faces along their tracks. Faces without a track keep their own.

    frames: how many on either side count. It holds as many frames back.
    """

    def __init__(self, frames: int) -> None:
        self._frames = frames

    def __call__(self, works: Iterable[FrameInWork]) -> Iterator[FrameInWork]:
        """Yield the frames, which come in order of their index, with smoothed statistics."""
        if self._frames < 1:
            yield from works
            return
        waiting: deque[FrameInWork] = deque()
        measured: dict[int, deque[tuple[int, FaceInWork, np.ndarray]]] = {}
        for work in works:
            waiting.append(work)
            for face in work.faces:
                if face.face.track is not None and face.statistics is not None:
                    measured.setdefault(face.face.track, deque()).append((work.frame.index, face, face.statistics))
            while waiting and waiting[0].frame.index + self._frames <= work.frame.index:
                yield self._smoothed(waiting.popleft(), measured)
        while waiting:
            yield self._smoothed(waiting.popleft(), measured)

    def _smoothed(self, work: FrameInWork, measured: dict[int, deque]) -> FrameInWork:
        index = work.frame.index
        for track, entries in list(measured.items()):
            while entries and entries[0][0] < index - self._frames:
                entries.popleft()
            if not entries:
                del measured[track]
        for face in work.faces:
            if face.face.track in measured and face.statistics is not None:
                face.statistics = self._mean(face, index, measured[face.face.track])
        return work

    def _mean(self, face: FaceInWork, index: int, entries: deque) -> np.ndarray:
        """Return the weighted mean of what was measured alike: by the same adjustment, within reach."""
        alike = [(i, values) for i, other, values in entries if other.settings.color == face.settings.color]
        weights = weights_of(np.array([i - index for i, _ in alike], np.float64), self._frames)
        return np.tensordot(weights / weights.sum(), np.stack([values for _, values in alike]), axes=1)
