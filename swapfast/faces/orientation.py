"""Landmarks and a photograph's EXIF orientation: in which pixels the points were measured.

Most libraries turn a photograph by its EXIF orientation when they open it, so landmarks that a script found are in px
of the turned picture; swapfast's pictures are as stored. The json's "orientation" settles it: "stored" or "exif".
Without it, upright landmarks leave two ways: the tag is stale, for an editor has turned the pixels and left it, or the
landmarks are those of the turned picture. The pixels tell: eyes, brows and mouth are darker than the skin around them.
"""

from __future__ import annotations

import cv2
import numpy as np

from swapfast.faces.alignment import align
from swapfast.faces.crop import sample_square
from swapfast.points import transform_points

SIZE = 64  # px of the crops that are compared
UPRIGHT = 45.0  # degrees of roll up to which a face is upright
COVERAGE = 0.7  # of the face crop that is compared

# Where a point's mirror image stands among the 68.
MIRRORED = (
    *range(16, -1, -1),
    *range(26, 16, -1),
    *range(27, 31),
    *range(35, 30, -1),
    *(45, 44, 43, 42, 47, 46),
    *(39, 38, 37, 36, 41, 40),
    *range(54, 47, -1),
    *range(59, 54, -1),
    *range(64, 59, -1),
    *(67, 66, 65),
)


def stored_landmarks(points: np.ndarray, orientation: int, width: int, height: int) -> np.ndarray:
    """Return landmarks of the turned picture in px of the stored one, (68, 2) float32.

    points: (68, 2) px of the picture as its EXIF orientation turns it.
    orientation: EXIF's, 1 to 8.
    width, height: of the stored picture, px.
    """
    x, y = points.T
    right, bottom = width - 1, height - 1
    turned = {
        1: (x, y),
        2: (right - x, y),
        3: (right - x, bottom - y),
        4: (x, bottom - y),
        5: (y, x),
        6: (y, bottom - x),
        7: (right - y, bottom - x),
        8: (right - y, x),
    }[orientation]
    in_stored = np.stack(turned, axis=1).astype(np.float32)
    # A mirrored face has its left eye where the right one was.
    return in_stored[list(MIRRORED)] if orientation in (2, 4, 5, 7) else in_stored


def roll_of(points: np.ndarray) -> float:
    """Return by how many degrees a face is turned in its picture, -180 to 180."""
    (cosine, _, _), (sine, _, _) = align(points).legacy_matrix
    return float(np.degrees(np.arctan2(-sine, cosine)))


def turned_evidence(picture: np.ndarray, points: np.ndarray, orientation: int) -> float:
    """Return how much better a face is seen where landmarks of the turned picture lie than where ``points`` do.

    picture: (H, W, 3) uint8 BGR, as stored.
    Returns a difference of likenesses: positive where the points are those of the turned picture. Of 38 photographs of
    faces its mean is 0.5 or -0.5, with a deviation of 0.25 from face to face.
    """
    height, width = picture.shape[:2]
    turned = stored_landmarks(points, orientation, width, height)
    return _likeness(picture, turned) - _likeness(picture, points)


def _likeness(picture: np.ndarray, points: np.ndarray) -> float:
    """Return how much a face is seen where its landmarks lie, near 0.8 where there is one and 0 where there is none.

    It is the correlation of the crop's grays with darker eyes, brows, nostrils and mouth, and half that of its left
    side with its right.
    """
    matrix = align(points).matrix(SIZE, "face", COVERAGE)
    gray = cv2.cvtColor(sample_square(picture, matrix, SIZE), cv2.COLOR_BGR2GRAY).astype(np.float32)
    detail = cv2.GaussianBlur(gray, (0, 0), 1.5) - cv2.GaussianBlur(gray, (0, 0), 10)  # without the light's direction
    on_crop = np.rint(transform_points(matrix, points)).astype(np.int32)
    hull = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(on_crop), 1)
    is_face = hull > 0
    is_mirrored = is_face & is_face[:, ::-1]
    symmetry = _correlation(detail[is_mirrored], detail[:, ::-1][is_mirrored])
    return _correlation(detail[is_face], _expected_grays(on_crop)[is_face]) + 0.5 * symmetry


def _expected_grays(points: np.ndarray) -> np.ndarray:
    """Return the grays that landmarks let expect, (SIZE, SIZE) float32: 1 is skin, 0 is dark."""
    grays = np.ones((SIZE, SIZE), np.float32)
    for part, shade in ((range(36, 42), 0.0), (range(42, 48), 0.0), (range(48, 60), 0.3)):
        outline = cv2.convexHull(points[list(part)])
        cv2.fillConvexPoly(grays, outline, shade)
        cv2.polylines(grays, [outline], True, shade, 1 if shade else 3)
    for part, shade in ((range(17, 22), 0.1), (range(22, 27), 0.1), (range(31, 36), 0.2)):
        cv2.polylines(grays, [points[list(part)]], False, shade, 3)
    return cv2.GaussianBlur(grays, (0, 0), 1.5)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    if not first.size:
        return 0.0
    a, b = first - first.mean(), second - second.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-9))
