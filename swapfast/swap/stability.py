"""How steady a swapped face is in a video: flicker of its colours and jitter of its position, beside the source's own.

Both are second differences over three frames in a row, divided by the root of six: noise of deviation s in each frame,
independent of the others, gives the figure s; motion and light that change evenly give none.

    flicker  levels of 255: mean colours of 4 x 4 cells of the aligned face, of the swapped frame and of the source
    jitter   px: how the pasted face moves from frame to frame against what the source shows in the same place, both
             by optical flow of the same points
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from swapfast.faces.crop import sample_square
from swapfast.swap.frames import FrameFace

CELLS = 4
_CELL_PX = 8
_GRID = 9  # points on either axis whose flow is measured
_FLOW_PX = 256  # edge to which a larger face is reduced for it
_ROOT_SIX = math.sqrt(6)
_INNER = slice(17, 68)  # landmarks within the face
_FINE = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.003)  # px at which the search for a point ends


@dataclass
class _Track:
    """What is known of a track's last frames. positions: (2,) px, of the pasted face against the source."""

    index: int
    landmarks: np.ndarray
    grays: tuple[np.ndarray, np.ndarray]  # of source and swapped frame, around the face
    origin: np.ndarray  # (2,) px of the frame: where these begin
    colours: list[np.ndarray] = field(default_factory=list)  # (2, 16, 3) each
    moves: list[np.ndarray] = field(default_factory=list)  # (2, 2) each: of source, of swapped


@dataclass
class Stability:
    """Adds up the figures over frames, which come in order."""

    _tracks: dict[int, _Track] = field(default_factory=dict)  # of the last frame
    _flicker: np.ndarray = field(default_factory=lambda: np.zeros(3))  # sums of source, swapped, difference
    _jitter: np.ndarray = field(default_factory=lambda: np.zeros(2))  # sums of source, difference
    _width: float = 0.0  # sum
    _triples: int = 0
    _moves: int = 0

    def add(self, index: int, source: np.ndarray, swapped: np.ndarray, faces: Sequence[FrameFace]) -> None:
        """Take a frame. source, swapped: (H, W, 3 or 4) of one type and size. Faces without a track are left out."""
        for face in faces:
            if face.track is not None:
                self._add_face(index, source, swapped, face, face.track)
        for track in [number for number, state in self._tracks.items() if state.index != index]:
            del self._tracks[track]  # each holds pictures

    def _add_face(self, index: int, source: np.ndarray, swapped: np.ndarray, face: FrameFace, track: int) -> None:
        former = self._tracks.get(track)
        goes_on = former is not None and former.index == index - 1
        colours = np.stack([cell_colours(pixels, face) for pixels in (source, swapped)])
        origin, box = _surroundings(face.landmarks, source.shape)
        grays = (_gray(source, box), _gray(swapped, box))
        state = _Track(index, face.landmarks, grays, origin)
        if goes_on and former is not None:
            state.colours = [*former.colours[-2:], colours]
            moves = _moves(former, source, swapped)
            state.moves = [*former.moves[-1:], moves] if moves is not None else []
            self._note(state)
        else:
            state.colours = [colours]
        self._tracks[track] = state

    def _note(self, state: _Track) -> None:
        if len(state.colours) == 3:
            bends = (state.colours[0] - 2 * state.colours[1] + state.colours[2]) / _ROOT_SIX
            difference = bends[1] - bends[0]
            self._flicker += [np.square(part).mean() for part in (*bends, difference)]
            self._triples += 1
        if len(state.moves) == 2:
            bends = (state.moves[1] - state.moves[0]) / _ROOT_SIX
            self._jitter += [np.square(part).mean() for part in (bends[0], bends[1] - bends[0])]
            self._width += float(np.ptp(state.landmarks[_INNER][:, 0]))
            self._moves += 1

    def figures(self) -> dict[str, dict[str, float] | int]:
        """Return the figures, JSON-ready; empty where no track is three frames long.

        triples: of frames in a row that were measured.
        flicker: levels of 255 of source and swapped face, and what the swap added to or took from the source's.
        jitter: px of the source's motion, of the pasted face against it, and the latter in percent of the face's width.
        """
        if not self._triples:
            return {}
        source, swapped, added = (round(float(v), 4) for v in np.sqrt(self._flicker / self._triples))
        figures: dict[str, dict[str, float] | int] = {
            "triples": self._triples,
            "flicker": {"source": source, "swapped": swapped, "difference": added},
        }
        if self._moves:
            source, against = (float(v) for v in np.sqrt(self._jitter / self._moves))
            percent = 100 * against / (self._width / self._moves)
            figures["jitter"] = {"source": round(source, 4), "face": round(against, 4), "percent": round(percent, 4)}
        return figures


def cell_colours(pixels: np.ndarray, face: FrameFace) -> np.ndarray:
    """Return mean colours of the aligned face, (16, 3) float64 BGR in levels of 255: forehead and cheeks to chin."""
    edge = CELLS * _CELL_PX
    colours = pixels if pixels.shape[2] == 3 else np.ascontiguousarray(pixels[..., :3])
    crop = sample_square(colours, _cells_matrix(face), edge).astype(np.float64) * (255 / np.iinfo(pixels.dtype).max)
    return crop.reshape(CELLS, _CELL_PX, CELLS, _CELL_PX, 3).mean((1, 3)).reshape(-1, 3)


def measured_box(face: FrameFace, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return what of a frame is looked at for a face: x0, y0, x1, y1, px. size: the frame's width and height."""
    _, (rows, columns) = _surroundings(face.landmarks, size[::-1])
    edge = CELLS * _CELL_PX
    matrix = cv2.invertAffineTransform(_cells_matrix(face))
    corners = np.array([[-1, -1], [edge, -1], [edge, edge], [-1, edge]]) @ matrix[:, :2].T + matrix[:, 2]
    low, high = np.floor(corners.min(0)).astype(int) - 2, np.ceil(corners.max(0)).astype(int) + 3
    x0, y0, x1, y1 = columns.start, rows.start, columns.stop, rows.stop
    return min(x0, int(low[0])), min(y0, int(low[1])), max(x1, int(high[0])), max(y1, int(high[1]))


def _cells_matrix(face: FrameFace) -> np.ndarray:
    """Return the matrix frame px -> px of the square whose cells' colours are compared, (2, 3)."""
    return face.alignment.matrix(CELLS * _CELL_PX, "legacy", coverage=0.7)


def _surroundings(landmarks: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Return where the surroundings of a face begin, (2,), and their rows and columns: half a face around it."""
    low, high = landmarks.min(0), landmarks.max(0)
    reach = (high - low).max() / 2
    x0, y0 = np.clip(np.floor(low - reach), 0, (shape[1] - 1, shape[0] - 1)).astype(int)
    x1, y1 = np.clip(np.ceil(high + reach), (x0 + 1, y0 + 1), (shape[1], shape[0])).astype(int)
    return np.array([x0, y0]), (slice(y0, y1), slice(x0, x1))


def _gray(pixels: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    region = np.ascontiguousarray(pixels[box][..., :3])
    gray: np.ndarray = np.asarray(cv2.cvtColor(region, cv2.COLOR_BGR2GRAY))
    return gray if gray.dtype == np.uint8 else (gray // 256).astype(np.uint8)


def _moves(former: _Track, source: np.ndarray, swapped: np.ndarray) -> np.ndarray | None:
    """Return how the face moved since the frame before, px: in the source and in the swapped frame, (2, 2).

    The medians over a grid of points that could be followed in both; None with too few of them.
    """
    height, width = former.grays[0].shape
    x0, y0 = former.origin
    box = (slice(y0, y0 + height), slice(x0, x0 + width))
    scale = min(1.0, _FLOW_PX / max(height, width))
    inner = (former.landmarks[_INNER] - former.origin) * scale
    low, high = inner.min(0), inner.max(0)
    axes = [np.linspace(low[axis], high[axis], _GRID) for axis in (0, 1)]
    points = np.stack(np.meshgrid(*axes), -1).reshape(-1, 1, 2).astype(np.float32)
    flows, is_known = [], np.ones(len(points), bool)
    for before, pixels in zip(former.grays, (source, swapped)):
        pair = [_reduced(gray, scale) for gray in (before, _gray(pixels, box))]
        if min(pair[0].shape) < _GRID:
            return None
        there, is_followed = _followed(pair[0], pair[1], points)
        back, returned = _followed(pair[1], pair[0], there)
        is_known &= is_followed & returned & (np.linalg.norm((back - points)[:, 0], axis=1) < 0.5)
        flows.append((there - points)[:, 0] / scale)
    if is_known.sum() < _GRID:
        return None
    return np.stack([np.median(flow[is_known], axis=0) for flow in flows]).astype(np.float64)


def _followed(first: np.ndarray, second: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where (n, 1, 2) points of one gray picture lie in another, and which of them were found, (n,) bool."""
    there, status, _ = cv2.calcOpticalFlowPyrLK(first, second, points, points.copy(), criteria=_FINE)
    return np.asarray(there), np.asarray(status)[:, 0] == 1


def _reduced(gray: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return gray
    size = max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale))
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
