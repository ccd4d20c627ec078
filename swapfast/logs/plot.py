"""Lines and words on a picture with OpenCV, so that no plotting library is needed."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

INK, GRID = (40, 40, 40), (225, 225, 225)  # BGR
_SUBPIXEL = 4  # bits


def text(image: np.ndarray, words: str, x: float, y: float, color=INK, right: bool = False) -> None:
    """Write ``words`` with the middle, or with ``right`` the end, of their foot at (x, y), px."""
    (width, _), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    at = (int(x) - (width if right else width // 2), int(y))
    cv2.putText(image, words, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, 1, cv2.LINE_AA)


def fixed_point(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """(x, y) in px as OpenCV takes them with a shift of ``_SUBPIXEL``."""
    return np.round(np.array(points) * (1 << _SUBPIXEL)).astype(np.int32)


def line(image: np.ndarray, points: Sequence[tuple[float, float]], color, thickness: int = 1) -> None:
    """Join (x, y) points, px."""
    cv2.polylines(image, [fixed_point(points)], False, color, thickness, cv2.LINE_AA, _SUBPIXEL)


def area(image: np.ndarray, points: Sequence[tuple[float, float]], color) -> None:
    """Fill what (x, y) points enclose, px."""
    cv2.fillPoly(image, [fixed_point(points)], color, cv2.LINE_AA, _SUBPIXEL)


def dot(image: np.ndarray, x: float, y: float, color, radius: int = 3) -> None:
    """A filled circle with a white rim, px."""
    (at,) = fixed_point([(x, y)])
    for reach, fill in ((radius + 1, (255, 255, 255)), (radius, color)):
        cv2.circle(image, at.tolist(), reach << _SUBPIXEL, fill, -1, cv2.LINE_AA, _SUBPIXEL)
