"""Tracks: the same face from frame to frame, by the overlap of its boxes. A track ends where the scene changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

LEAST_OVERLAP = 0.3  # of two boxes, intersection over union
LONGEST_GAP = 4  # frames in which a face may be missing


def face_box(landmarks: np.ndarray) -> np.ndarray:
    """Return the box around (68, 2) landmarks: x0, y0, x1, y1, (4,)."""
    return np.concatenate([landmarks.min(0), landmarks.max(0)])


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return intersection over union of each two boxes, (n, m). first: (n, 4). second: (m, 4)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return shared / np.maximum(union, 1e-9)


class TrackFinder:
    """Numbers the faces of frames by their tracks. It remembers the tracks that may go on, and no others.

    cuts: frames that begin a new scene.
    """

    def __init__(self, cuts: Collection[int] = ()) -> None:
        self._scenes = np.array(sorted(cuts))
        self._boxes: dict[int, np.ndarray] = {}  # of the tracks that go on
        self._last_seen: dict[int, int] = {}
        self._count, self._former = 0, -1

    def add(self, index: int, landmarks: Sequence[np.ndarray]) -> list[int]:
        """Take the faces of a frame behind the one before, (68, 2) px each; return a number for each."""
        scene = int(np.searchsorted(self._scenes, index, side="right"))
        if scene != self._former:
            self._boxes, self._last_seen = {}, {}
        self._former = scene
        gone = [track for track, seen in self._last_seen.items() if index - seen > LONGEST_GAP + 1]
        for track in gone:
            del self._boxes[track], self._last_seen[track]
        face_boxes = [face_box(np.asarray(points)) for points in landmarks]
        numbers = []
        for number, box in zip(_matched(face_boxes, self._boxes), face_boxes, strict=True):
            if number is None:
                number, self._count = self._count, self._count + 1
            numbers.append(number)
            self._boxes[number], self._last_seen[number] = box, index
        return numbers


def find_tracks(landmarks: Mapping[int, Sequence[np.ndarray]], cuts: Collection[int] = ()) -> dict[int, list[int]]:
    """Return the track of each face.

    landmarks: by the index of their frame, (68, 2) px of each of its faces.
    cuts: frames that begin a new scene. Returns, by frame, a number per face, in the same order.
    """
    finder = TrackFinder(cuts)
    return {index: finder.add(index, landmarks[index]) for index in sorted(landmarks)}


def _matched(face_boxes: list[np.ndarray], boxes: dict[int, np.ndarray]) -> list[int | None]:
    """Return which of the tracks each box goes on with; those that overlap most come first."""
    numbers: list[int | None] = [None] * len(face_boxes)
    if not face_boxes or not boxes:
        return numbers
    track_numbers = list(boxes)
    shares = overlaps(np.array(face_boxes), np.array([boxes[number] for number in track_numbers]))
    for flat in np.argsort(-shares, axis=None, kind="stable"):
        face, track = divmod(int(flat), len(track_numbers))
        if shares[face, track] < LEAST_OVERLAP:
            break
        if numbers[face] is None and track_numbers[track] not in numbers:
            numbers[face] = track_numbers[track]
    return numbers
