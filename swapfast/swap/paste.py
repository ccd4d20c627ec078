"""Puts a face into a frame: warped once, into the box that its mask touches, blended once.

A pixel whose alpha is 0 keeps its value to the bit, for what is added to it is 0.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from swapfast.faces.crop import resize_matrix, shifted

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in px of the frame, the last two outside


def paste_matrix(to_crop: np.ndarray, size: int, scale: float = 1.0) -> np.ndarray:
    """Return the matrix crop px -> frame px, (2, 3) float64.

    to_crop: (2, 3), frame px -> crop px. size: of the crop, px.
    scale: of the face about the crop's centre, which lies between pixels where the size is even.
    """
    centre = (size - 1) / 2
    scaled = np.array([[scale, 0, centre * (1 - scale)], [0, scale, centre * (1 - scale)], [0, 0, 1]])
    return cv2.invertAffineTransform(to_crop) @ scaled


def touched_box(alpha: np.ndarray, matrix: np.ndarray, width: int, height: int) -> Box | None:
    """Return the box of a frame that a mask touches, None where it lies outside.

    alpha: (K, K) float32. matrix: (2, 3), mask px -> frame px. width, height: of the frame.
    """
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if not len(rows):
        return None
    # A mask's pixel reaches one px beyond its centre, for it is sampled bilinearly; where the mask shrinks, one of the
    # averaged ones, which are as large as the frame's.
    reach = max(1.0, 1.5 / math.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    x0, x1, y0, y1 = columns[0] - reach, columns[-1] + reach, rows[0] - reach, rows[-1] + reach
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) @ matrix[:, :2].T + matrix[:, 2]
    low = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, (width, height))
    if (high <= low).any():
        return None
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def warp_into(picture: np.ndarray, matrix: np.ndarray, box: Box, border: int, interpolation: int) -> np.ndarray:
    """Return a square picture as it lies in the box of a frame, (y1 - y0, x1 - x0[, C]).

    Where it shrinks it is averaged first, to about the size that it will have.
    picture: (S, S) or (S, S, C). matrix: (2, 3), its px -> frame px.
    """
    size = len(picture)
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if scale < 1:
        smaller = max(1, math.ceil(size * scale))
        picture = cv2.resize(picture, (smaller, smaller), interpolation=cv2.INTER_AREA)
        matrix = matrix @ np.vstack([resize_matrix(smaller, size), (0, 0, 1)])
    x0, y0, x1, y1 = box
    into = shifted(matrix, -x0, -y0)
    return cv2.warpAffine(picture, into, (x1 - x0, y1 - y0), flags=interpolation, borderMode=border)


def blend(frame: np.ndarray, face: np.ndarray, alpha: np.ndarray, box: Box) -> None:
    """Blend a face into the box of a frame, in place, rounding once.

    frame: (H, W, 3) uint8 or uint16. face: the box's, (h, w, 3) float32 in 0..1. alpha: (h, w) float32 in 0..1.
    """
    from swapfast.swap.kernels import blend_box

    x0, y0, x1, y1 = box
    blend_box(frame[y0:y1, x0:x1], face, alpha, np.iinfo(frame.dtype).max)
