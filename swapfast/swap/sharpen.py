"""Sharpens a made face, in its crop, before it is pasted."""

from __future__ import annotations

import cv2
import numpy as np

from swapfast.swap.settings import FaceSettings


def sharpened(face: np.ndarray, settings: FaceSettings) -> np.ndarray:
    """Return a face with more detail, (S, S, 3) float32 BGR; itself where nothing is asked for."""
    if settings.sharpen == "none" or not settings.sharpen_amount:
        return face
    radius = max(settings.sharpen_radius / 100 * len(face), 0.3)
    if settings.sharpen == "box":
        edge = 2 * max(1, round(radius)) + 1
        smooth = cv2.blur(face, (edge, edge), borderType=cv2.BORDER_REPLICATE)
    else:
        smooth = cv2.GaussianBlur(face, (0, 0), radius, borderType=cv2.BORDER_REPLICATE)
    detail = face - smooth
    if settings.sharpen == "unsharp":
        detail[np.abs(detail) < settings.sharpen_threshold / 255] = 0
    return face + detail * np.float32(settings.sharpen_amount / 100)
