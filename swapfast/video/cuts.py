"""Finds where a scene of a video changes, from small gray pictures of its frames."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from swapfast.video.reader import VideoFrame

SIZE = (32, 18)  # px of a small picture
LEAST = 20.0  # levels of 255 by which pictures differ at a cut, on average
TIMES = 3.0  # and how many times as much as the frames around it


def thumbnail(frame: VideoFrame) -> np.ndarray:
    """Return a frame's first plane (luma, or green of RGB), (18, 32) float32 in 0..255."""
    plane = frame.planes[0]
    small = cv2.resize(plane, SIZE, interpolation=cv2.INTER_AREA).astype(np.float32)
    return small * (255 / ((1 << frame.conversion.format.bits) - 1))


@dataclass
class CutFinder:
    """Finds cuts in frames that go through it. After the iteration ``cuts`` holds the first frame of each new scene."""

    def __post_init__(self) -> None:
        self._last: np.ndarray | None = None
        self._changes = array("d")

    def watch(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """Yield the frames as they are."""
        for frame in frames:
            small = thumbnail(frame)
            self._changes.append(0.0 if self._last is None else float(np.abs(small - self._last).mean()))
            self._last = small
            yield frame

    @property
    def cuts(self) -> list[int]:
        """Return the numbers of the frames that begin a new scene, counted from the first frame that was watched."""
        return cuts_of(np.array(self._changes))


def cuts_of(changes: np.ndarray) -> list[int]:
    """Return where a scene changes. changes: (n,), how much each frame differs from the one before, levels of 255.

    Fast motion makes all frames differ, a cut one: it is compared with the median of the two on either side.
    """
    indices = []
    for index in range(1, len(changes)):
        near = [changes[i] for i in (index - 2, index - 1, index + 1, index + 2) if 1 <= i < len(changes)]
        usual = float(np.median(near)) if near else 0.0
        if changes[index] >= LEAST and changes[index] >= TIMES * usual:
            indices.append(index)
    return indices
