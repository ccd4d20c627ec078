"""The mask of a pasted face: where it comes from, its edge, and its softness.

Masks are squares of the crop's field of view at MASK_SCALE times its size, so that an edge that was cut from a small
crop does not show its pixels in the frame.
"""

from __future__ import annotations

import cv2
import numpy as np

from swapfast.config import CropConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_shares, sample_square
from swapfast.faces.masks import DRAWN_TYPES, blur, draw_face, push_to_extremes
from swapfast.points import transform_points
from swapfast.swap.frames import FrameFace
from swapfast.swap.settings import LEARNED_TYPES, NO_MASK, RECT, MaskSettings

MASK_SCALE = 4
MOST_MASK_PX = 4096
_STROKE = 3  # px: radius of one pass of erosion; many small ones make a large one, in less time
_BLUR_EDGE = 128  # px of the mask that the blur's kernel is given for


def mask_size(crop_size: int) -> int:
    """Return the edge of the mask of a crop, px."""
    return min(MASK_SCALE * crop_size, max(MOST_MASK_PX, crop_size))


def frame_matrix(face: FrameFace, crop: CropConfig, size: int) -> np.ndarray:
    """Return the matrix frame px -> px of a crop of ``size``, as training cuts a plain picture, (2, 3) float64."""
    return face.alignment.matrix(size, crop.centering, *crop_shares(crop))


def base_mask(
    face: FrameFace, crop: CropConfig, settings: MaskSettings, size: int, learned: dict[str, np.ndarray]
) -> np.ndarray:
    """Return the mask as it is drawn, stored or learned, (size, size) uint8.

    learned: by type, (S, S) float32 in 0..1.
    Raises SwapfastError where the face or the model lacks it.
    """
    kind = settings.type
    if kind in (RECT, NO_MASK):
        return np.full((size, size), 255, np.uint8)
    if kind in DRAWN_TYPES:
        points = transform_points(frame_matrix(face, crop, size), face.landmarks).astype(np.float32)
        return draw_face(points, size, extended=kind == "extended")
    if kind in LEARNED_TYPES:
        if kind not in learned:
            raise SwapfastError(
                f"-M/--mask-type {kind}: this model was trained without --learn-mask; give extended, for one"
            )
        grown = cv2.resize(learned[kind], (size, size), interpolation=cv2.INTER_LINEAR)
        return push_to_extremes(np.rint(np.clip(grown, 0, 1) * 255).astype(np.uint8), settings.threshold)
    if kind not in face.stored_masks:
        offers = ", ".join(sorted(face.stored_masks)) or "none"
        raise SwapfastError(
            f"-M/--mask-type {kind}: {face.name or 'a face'} has no such mask (it has {offers}); give extended, which "
            "is drawn from the landmarks"
        )
    stored_mask = face.stored_masks[kind]
    to_stored = np.vstack([face.alignment.matrix(stored_mask.stored_size, stored_mask.stored_centering), (0, 0, 1)])
    matrix = frame_matrix(face, crop, size) @ np.linalg.inv(to_stored)
    pixels = push_to_extremes(stored_mask.pixels(), settings.threshold)
    return sample_square(pixels, matrix, size, border=cv2.BORDER_CONSTANT)


def finished_mask(base: np.ndarray, settings: MaskSettings, occlusion: np.ndarray | None = None) -> np.ndarray:
    """Return the alpha of a face, (size, size) float32 in 0..1: the mask eroded, moved, blurred, its crop's edge soft.

    base: (size, size) uint8, see ``base_mask``.
    occlusion: (size, size) uint8, 0 where something lies in front of the face.
    """
    size = len(base)
    mask = _moved(_eroded(base, settings), settings)
    if occlusion is not None:
        mask = np.minimum(mask, occlusion)
    if settings.blur != "none" and settings.type != NO_MASK:
        kernel = max(1, round(settings.blur_kernel * size / _BLUR_EDGE))
        mask = blur(mask, kernel, settings.blur_passes, box=settings.blur == "normalized")
    alpha = mask.astype(np.float32) * np.float32(1 / 255)
    if settings.feather and settings.type != NO_MASK:
        ramp = feather_ramp(size, settings.feather / 100)
        np.minimum(alpha, ramp, out=alpha)
        np.minimum(alpha, ramp[:, None], out=alpha)
    return alpha


def feather_ramp(size: int, share: float) -> np.ndarray:
    """Return how opaque a crop is from its one edge to the other, (size,) float32: 0 to 1 within ``share`` of it."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1])
    steps = np.clip(distance / max(share * size, 1e-6), 0, 1)
    return (steps * steps * (3 - 2 * steps)).astype(np.float32)


def _eroded(mask: np.ndarray, settings: MaskSettings) -> np.ndarray:
    """Return the mask with less, or more, at its edge. Percents are of half the square root of its area."""
    amounts = (settings.erosion_top, settings.erosion_bottom, settings.erosion_left, settings.erosion_right)
    if not settings.erosion and not any(amounts):
        return mask
    half = float(np.sqrt(np.count_nonzero(mask))) / 2
    mask = erode(mask, round(settings.erosion / 100 * half))
    for side, amount in zip(("top", "bottom", "left", "right"), amounts):
        mask = erode_side(mask, round(amount / 100 * half), side)
    return mask


def erode(mask: np.ndarray, px: int) -> np.ndarray:
    """Return a mask less a rim of ``px``, or with one more where negative. The crop's edge is no edge of the mask."""
    filtered = cv2.erode if px > 0 else cv2.dilate
    remaining_px = abs(px)
    while remaining_px:
        radius = min(remaining_px, _STROKE)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        passes = remaining_px // radius
        mask = filtered(mask, disc, iterations=passes)
        remaining_px -= passes * radius
    return mask


def erode_side(mask: np.ndarray, px: int, side: str) -> np.ndarray:
    """Return a mask less ``px`` at its 'top', 'bottom', 'left' or 'right', or with as many more where negative."""
    if px == 0:
        return mask
    length = abs(px) + 1
    # A pixel looks towards the side that is eroded; one that grows looks the other way.
    looks_back = (side in ("top", "left")) == (px > 0)
    anchor = length - 1 if looks_back else 0
    is_vertical = side in ("top", "bottom")
    kernel = np.ones((length, 1) if is_vertical else (1, length), np.uint8)
    return (cv2.erode if px > 0 else cv2.dilate)(mask, kernel, anchor=(0, anchor) if is_vertical else (anchor, 0))


def _moved(mask: np.ndarray, settings: MaskSettings) -> np.ndarray:
    x, y = (round(share / 100 * len(mask)) for share in (settings.move_x, settings.move_y))
    if not x and not y:
        return mask
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float64)
    return cv2.warpAffine(mask, matrix, mask.shape[::-1], flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
