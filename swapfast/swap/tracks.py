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


def find_tracks(landmarks: Mapping[int, Sequence[np.ndarray]], cuts: Collection[int] = ()) -> dict[int, list[int]]:
    """Return the track of each face.

    landmarks: by the index of their frame, (68, 2) px of each of its faces.
    cuts: frames that begin a new scene. Returns, by frame, a number per face, in the same order.
    """
    tracks: dict[int, list[int]] = {}
    boxes: dict[int, np.ndarray] = {}  # of the tracks that go on
    last_seen: dict[int, int] = {}
    scenes = np.array(sorted(cuts))
    count, former = 0, None
    for index in sorted(landmarks):
        scene = int(np.searchsorted(scenes, index, side="right"))
        if scene != former:
            boxes.clear()
        former = scene
        boxes = {track: box for track, box in boxes.items() if index - last_seen[track] <= LONGEST_GAP + 1}
        found = [face_box(np.asarray(points)) for points in landmarks[index]]
        numbers = _matched(found, boxes)
        for face, number in enumerate(numbers):
            if number is None:
                numbers[face], count = count, count + 1
        tracks[index] = [int(number) for number in numbers if number is not None]
        for number, box in zip(tracks[index], found, strict=True):
            boxes[number], last_seen[number] = box, index
    return tracks


def _matched(found: list[np.ndarray], boxes: dict[int, np.ndarray]) -> list[int | None]:
    """Return which of the tracks each box goes on with; those that overlap most come first."""
    numbers: list[int | None] = [None] * len(found)
    if not found or not boxes:
        return numbers
    known = list(boxes)
    shares = overlaps(np.array(found), np.array([boxes[number] for number in known]))
    for flat in np.argsort(-shares, axis=None, kind="stable"):
        face, track = divmod(int(flat), len(known))
        if shares[face, track] < LEAST_OVERLAP:
            break
        if numbers[face] is None and known[track] not in numbers:
            numbers[face] = known[track]
    return numbers
