"""Which part of a video's frame a swap reads and writes: only that is turned into colours and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from swapfast.swap.frames import FrameFace
from swapfast.swap.masks import frame_matrix
from swapfast.swap.paste import Box, paste_matrix
from swapfast.swap.stability import measured_box
from swapfast.swap.swapper import FrameSwapper

NOTHING: Box = (0, 0, 0, 0)
_REACH = 4  # px of the frame that filters look at beyond what they are asked for


def swapped_box(faces: Sequence[FrameFace], swapper: FrameSwapper, index: int, size: tuple[int, int]) -> Box:
    """Return the box of a frame that holds all that a swap of ``faces`` reads and writes.

    index: of the frame, whose settings it follows. size: the frame's width and height, px.
    """
    larger = max(0.0, swapper.settings_of(index).face.scale) / 100
    edge = swapper.output_size
    corners = np.array([[-1.5, -1.5], [edge + 0.5, -1.5], [edge + 0.5, edge + 0.5], [-1.5, edge + 0.5]])
    boxes = []
    for face in faces:
        matrix = paste_matrix(frame_matrix(face, swapper.crop, edge), edge, 1 + larger)
        points = corners @ matrix[:, :2].T + matrix[:, 2]
        low, high = points.min(0) - _REACH, points.max(0) + _REACH
        boxes.append((*np.floor(low).astype(int).tolist(), *np.ceil(high).astype(int).tolist()))
    return union(boxes, size)


def measured_boxes(faces: Sequence[FrameFace], size: tuple[int, int]) -> Box:
    """Return the box of a frame that ``Stability`` looks at, for faces of this frame and of the one before."""
    return union([measured_box(face, size) for face in faces], size)


def union(boxes: Sequence[Box], size: tuple[int, int]) -> Box:
    """Return the smallest box around those that are not empty, within a frame of ``size``."""
    boxes = [box for box in boxes if box[0] < box[2] and box[1] < box[3]]
    if not boxes:
        return NOTHING
    x0, y0, x1, y1 = np.array(boxes).T
    low = max(0, int(x0.min())), max(0, int(y0.min()))
    high = min(size[0], int(x1.max())), min(size[1], int(y1.max()))
    return (*low, *high) if low[0] < high[0] and low[1] < high[1] else NOTHING
