"""How a person's faces are lit, by the whites of the eyes: skin is light or dark, whites are about alike.

What is compared are levels as they are stored, by their logarithms: light that is so many times as bright moves them by
the same amount whatever the face, since pictures are stored by a power of their light.

Whites are not quite free of the skin around them: among 65 people of the Face Research Lab London Set, photographed in
one light, a face of half the skin's light has whites of 0.85. Of that ``SKIN_SHARE`` takes a part off. Two of those
people, a picture or two each, then differ by a deviation of 12 %, and by more than ``LIT_DIFFERENTLY`` in 4 of 100.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

LIT_DIFFERENTLY = 1.3  # times as high levels, in the mean of blue, green and red: light of about 1.8 times as much
LEAST_EYES = 8  # of a side, below which nothing is said
LEAST_WIDTH = 7.0  # px of an eye in its picture, before that was enlarged
SKIN_SHARE = 0.15  # by how much whites follow the skin, of logarithms
EYES = (slice(36, 42), slice(42, 48))
_LEAST_OPEN = 0.2  # height of an eye over its width
_WIDTH = 48  # px to which an eye is enlarged
_LIDS = 0.15  # of an eye's height, left out at its edge
_BRIGHTEST = (97, 100)  # percentiles of what is left: lashes and iris are darker
_DARKEST = 1 / 255


@dataclass(frozen=True)
class FaceLight:
    """Logarithms of levels in 0..1 of faces, each (3,) B, G, R: their whites, their skin. eyes: how many were seen."""

    whites: np.ndarray
    skin: np.ndarray
    eyes: int


def face_light(faces: Iterable[tuple[np.ndarray, np.ndarray, float]]) -> FaceLight | None:
    """Return how faces are lit in the median, None where fewer than LEAST_EYES eyes tell.

    faces: of each its picture (H, W, 3) uint8 BGR, its landmarks (68, 2) px, and how many times it is enlarged.
    """
    whites: list[np.ndarray] = []
    skins: list[np.ndarray] = []
    for image, landmarks, enlarged in faces:
        of_eyes = [_white(image, landmarks[eye], enlarged) for eye in EYES]
        whites += [white for white in of_eyes if white is not None]
        skins.append(_skin(image, landmarks))
    if len(whites) < LEAST_EYES:
        return None
    return FaceLight(np.median(whites, axis=0), np.median(skins, axis=0), len(whites))


def light_ratio(first: FaceLight, second: FaceLight) -> np.ndarray:
    """Return how many times as high the levels of the second faces are for their light, (3,) B, G, R."""
    whites, skin = second.whites - first.whites, second.skin - first.skin
    ratio: np.ndarray = np.exp((whites - SKIN_SHARE * skin) / (1 - SKIN_SHARE))
    return ratio


def are_lit_differently(ratio: np.ndarray) -> bool:
    """Whether a ratio of ``light_ratio`` is more than people of one light differ by."""
    return bool(abs(np.log(ratio).mean()) > np.log(LIT_DIFFERENTLY))


def _white(image: np.ndarray, eye: np.ndarray, enlarged: float) -> np.ndarray | None:
    """Return the logarithm of an eye's white, (3,); None of one that is closed, too small or not in the picture.

    eye: (6, 2) px, from corner to corner and back.
    """
    width = float(np.linalg.norm(eye[3] - eye[0]))
    height = float(np.linalg.norm(eye[1] - eye[5]) + np.linalg.norm(eye[2] - eye[4])) / 2
    if width < LEAST_WIDTH * max(1.0, enlarged) or height < _LEAST_OPEN * width:
        return None
    low, high = np.floor(eye.min(0) - 2).astype(int), np.ceil(eye.max(0) + 3).astype(int)
    if low.min() < 0 or high[0] > image.shape[1] or high[1] > image.shape[0]:
        return None
    factor = max(1.0, _WIDTH / width)
    cut = cv2.resize(image[low[1] : high[1], low[0] : high[0]], None, fx=factor, fy=factor)
    outline = (eye - low + 0.5) * factor - 0.5
    inside = np.zeros(cut.shape[:2], np.uint8)
    cv2.fillPoly(inside, [np.rint(outline * 16).astype(np.int32)], 1, shift=4)
    depth = cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    pixels = cut[depth > _LIDS * height * factor].astype(np.float64) / 255
    if not len(pixels):
        return None
    levels = pixels.mean(1)
    darkest, brightest = np.percentile(levels, _BRIGHTEST)
    white = np.median(pixels[(levels >= darkest) & (levels <= brightest)], axis=0)
    return np.log(np.maximum(white, _DARKEST))


def _skin(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the logarithm of the median colour between brows and chin, (3,)."""
    inside = np.zeros(image.shape[:2], np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(landmarks[17:].astype(np.float32)).astype(np.int32), 1)
    pixels = image[inside > 0]
    return np.log(np.maximum(np.median(pixels, axis=0) / 255 if len(pixels) else np.ones(3), _DARKEST))
