"""Compares a stored mask with the landmarks of its face: a mask that shows something else would train silently.

The mask is sampled at GRID x GRID points around the face, so that a check takes less than a tenth of the decoding of a
small mask. A mask passes if it covers a good part of the hull of the landmarks, however soft its edge is and
whatever else it covers, such as hair. It also passes if it covers less of the hull but little beside it: a hand or a
microphone may be in front of the face.
"""

from __future__ import annotations

import cv2
import numpy as np

GRID = 64  # points on each edge of the square that is sampled
REACH = 2.0  # edge of that square, in edges of the face's box
MIN_COVERED = 0.35  # of the hull; a mask that covers less must lie inside it
MIN_VISIBLE = 0.12  # of the hull that such a mask covers at least
WELL_COVERED = 0.6  # of the hull, where a mask is right wherever else it is white
MIN_PRECISION = 0.5  # share of a mask that covers less than MIN_COVERED that lies in the hull
MOVED_BY = 0.3  # edges of the face's box by which a mask of a face's shape may lie beside the face
MOVED_FIT = 0.8  # of mask and hull that cover each other, once the hull is moved to the mask
MAX_LABEL = 40  # a mask that is nowhere brighter holds numbers of classes, not shares of 255
CROWDED = 0.6  # share of the picture that a face's hull may take before an all-white mask may be right


def mask_fault(pixels: np.ndarray, points: np.ndarray, source: np.ndarray | None = None) -> str | None:
    """Return why a mask cannot be that of a face, in one phrase with the likely cause; None if it can.

    pixels: (H, W) uint8.
    points: (68, 2) landmarks in px of the mask.
    source: the mask as it was stored, with any type and channels, if that is known; it tells the cause.
    """
    brightest = int(pixels.max())
    if brightest <= MAX_LABEL:
        return _dark_fault(pixels, points, source)
    sampled, hull, visible = _sample(pixels, points)
    inside = hull & visible
    if not inside.any():
        return None  # the face lies outside the picture: not the mask's fault
    shares = sampled * np.float32(1 / 255)
    covered = float(shares[inside].mean())
    if covered >= WELL_COVERED:
        return _bright_fault(pixels, points, shares, inside, visible & ~hull, source)
    hull_area = float(hull.sum()) * (REACH * _edge(points) / GRID) ** 2
    area = float(pixels.mean()) / 255 * pixels.size
    if covered >= MIN_COVERED and not _has_moved(pixels, points, hull_area, area):
        return _bright_fault(pixels, points, shares, inside, visible & ~hull, source)
    if covered < MIN_COVERED and covered >= MIN_VISIBLE and covered * hull_area >= MIN_PRECISION * area:
        return None
    if (reason := _alpha_fault(points, covered, source)) is not None:
        return reason
    outside = visible & ~hull
    around = float(shares[outside].mean()) if outside.any() else 0.0
    if 1 - covered >= 0.5 and around >= 0.7:
        return f"it is inverted: {covered:.0%} of the face is white and {around:.0%} of what lies around it"
    return f"it shows another place than the landmarks: it covers {covered:.0%} of the face"


def _edge(points: np.ndarray) -> float:
    return float(max(np.ptp(points, axis=0).max(), 1.0))


def _has_moved(pixels: np.ndarray, points: np.ndarray, hull_area: float, area: float) -> bool:
    """Return whether a mask has the shape of the face's hull, but lies beside it.

    A hand over half a face leaves another shape, with hair or without.
    """
    moments = cv2.moments(pixels)
    way = np.array([moments["m10"], moments["m01"]]) / moments["m00"] - (points.min(0) + points.max(0)) / 2
    if np.linalg.norm(way) < MOVED_BY * _edge(points):
        return False
    sampled, hull, visible = _sample(pixels, points + way)
    covered = float((sampled * visible)[hull].mean()) / 255
    return covered >= MOVED_FIT and covered * hull_area >= MOVED_FIT * area


def _sample(pixels: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mask around a face, which of its points lie in the hull, and which in the picture: (GRID, GRID)."""
    scale = GRID / (REACH * _edge(points))
    centre = (points.min(0) + points.max(0)) / 2
    matrix = np.array([[scale, 0, 0], [0, scale, 0]])
    matrix[:, 2] = GRID / 2 - 0.5 - scale * centre
    flags = cv2.INTER_NEAREST
    sampled = cv2.warpAffine(pixels, matrix, (GRID, GRID), flags=flags, borderMode=cv2.BORDER_CONSTANT)
    on_grid = np.rint(points * scale + matrix[:, 2]).astype(np.int32)
    hull = np.zeros((GRID, GRID), np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(on_grid), 1)
    at = (np.arange(GRID)[:, None] - matrix[:, 2]) / scale
    in_picture = (at >= 0) & (at <= np.array(pixels.shape[::-1]) - 1)
    return sampled, hull.astype(bool), in_picture[:, 1, None] & in_picture[None, :, 0]


def _dark_fault(pixels: np.ndarray, points: np.ndarray, source: np.ndarray | None) -> str:
    """Return the cause of a mask without a bright pixel."""
    if (reason := _alpha_fault(points, 0.0, source)) is not None:
        return reason
    brightest = int(pixels.max())
    if source is not None and source.dtype == np.uint16 and source.max() > 0:
        return f"it has 16 bits and holds at most {int(source.max())} of 65535: multiply by {65535 // source.max()}"
    if brightest == 0:
        return "it is all black"
    values = np.flatnonzero(np.bincount(pixels.ravel()))
    if len(values) == 2 and values[0] == 0:
        return f"it holds 0 and {brightest} only: multiply by {255 // brightest}"
    return f"it holds at most {brightest} of 255: numbers of classes, perhaps; store 255 where the face is"


def _bright_fault(
    pixels: np.ndarray,
    points: np.ndarray,
    shares: np.ndarray,
    inside: np.ndarray,
    outside: np.ndarray,
    source: np.ndarray | None,
) -> str | None:
    """Return why a mask that covers the face cannot be one: all of it is white, or it is a picture."""
    if not outside.any():
        return None
    contrast = float(shares[inside].mean() - shares[outside].mean())
    if contrast > 0.1:
        return _photograph_fault(points, shares[inside], contrast, source)
    if int(np.ptp(pixels)) <= 8:  # one value, but for what a JPEG adds
        hull_area = cv2.contourArea(cv2.convexHull(np.clip(points, 0, np.array(pixels.shape[::-1])).astype(np.float32)))
        if hull_area >= CROWDED * pixels.size:
            return None
        value = int(pixels.max())
        return _alpha_fault(points, contrast, source) or (
            "it is all white, around the face too" if value > 246 else f"it is {value} everywhere"
        )
    return _photograph_fault(points, shares[inside], contrast, source)


def _photograph_fault(points: np.ndarray, face: np.ndarray, contrast: float, source: np.ndarray | None) -> str | None:
    """Return that a mask is a photograph, with its mask in the alpha channel or without: grays all over the face."""
    gray = float(((face > 0.08) & (face < 0.92)).mean())
    if gray < 0.8 or contrast > 0.4 or float(face.std()) < 0.06:
        return None
    return _alpha_fault(points, contrast, source) or "it is a picture with grays all over the face, not a mask"


def _alpha_fault(points: np.ndarray, contrast: float, source: np.ndarray | None) -> str | None:
    """Return that the mask lies in the alpha channel, if that shows the face better than the colours do."""
    if source is None or source.ndim != 3 or source.shape[2] not in (2, 4):
        return None
    alpha = np.ascontiguousarray(source[..., -1])
    if alpha.dtype == np.uint16:
        alpha = (alpha >> 8).astype(np.uint8)
    sampled, hull, visible = _sample(alpha, points)
    inside, outside = sampled[hull & visible], sampled[visible & ~hull]
    if not len(inside) or not len(outside):
        return None
    if abs(float(inside.mean()) - float(outside.mean())) / 255 > contrast + 0.2:
        return "its mask is in the alpha channel, which is not read: store it as gray"
    return None
