"""Frames between what reads them and what writes them: pictures of a folder, or a video.

    source      an iterable of Frame, in order of their index
    sink        takes each swapped frame, in the same order
Whoever swaps knows nothing of files: names, time stamps and formats travel in the frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from swapfast.faces.alignment import Alignment, align
from swapfast.faces.record import StoredMask


@dataclass(eq=False)
class Frame:
    """One decoded frame.

    name        of the file; of a video's frame the video's name and the frame's number from 1, as faceswap names it
    index       from 0, in the whole folder or video
    time        seconds from the start, None for a picture
    pixels      (H, W, 3) or, with alpha, (H, W, 4), uint8 or uint16, BGR, upright
    turned      degrees, clockwise, by which the source turned what is stored to make it upright: 0, 90, 180 or 270
    is_wanted   False where an earlier run has written it: it only completes a batch, see ``Swapper``
    box         x0, y0, x1, y1: what of the pixels is there, the rest is black; None for all
    origin      what its source tells its sink: time stamp, profile, number of bits
    """

    name: str
    index: int
    time: float | None
    pixels: np.ndarray
    turned: int = 0
    is_wanted: bool = True
    origin: Any = None
    box: tuple[int, int, int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height, px."""
        return self.pixels.shape[1], self.pixels.shape[0]


class FrameSource(Protocol):
    """Frames in order. ``count`` is None where nobody knows it before the end."""

    @property
    def count(self) -> int | None:
        """Return how many frames there are."""

    def __iter__(self) -> Iterator[Frame]: ...


@dataclass(frozen=True, eq=False)
class FrameFace:
    """A face to swap in a frame.

    landmarks       (68, 2) px of the frame
    alignment       of these landmarks
    index           of the face in its frame
    stored_masks    by name
    track           the same for one person's face from frame to frame, None where nobody knows
    name            where it was found: a file's name, or empty
    """

    landmarks: np.ndarray
    alignment: Alignment
    index: int = 0
    stored_masks: dict[str, StoredMask] = field(default_factory=dict)
    track: int | None = None
    name: str = ""

    @classmethod
    def from_landmarks(cls, landmarks: np.ndarray, **details: Any) -> FrameFace:
        """Align (68, 2) landmarks. Raises ValueError where they cannot be a face."""
        return cls(np.asarray(landmarks, np.float64), align(landmarks), **details)


@dataclass(eq=False)
class SwappedFrame:
    """A frame with its faces swapped.

    frame       what was read; its ``pixels`` are untouched
    pixels      as the frame's, at the output scale
    alpha       (H, W) uint8, how much of each pixel is a swapped face's; None unless it was asked for
    faces       how many faces were swapped
    patches     what was pasted, where it was asked for
    swapped     the faces that were swapped
    """

    frame: Frame
    pixels: np.ndarray
    faces: int
    alpha: np.ndarray | None = None
    patches: list[Any] = field(default_factory=list)
    swapped: list[FrameFace] = field(default_factory=list)


class FrameSink(Protocol):
    """Takes swapped frames in order."""

    def write(self, swapped: SwappedFrame) -> None:
        """Take the next frame; it may be encoded later, by another thread."""

    def close(self) -> None:
        """Finish: everything that was taken is in its place."""
