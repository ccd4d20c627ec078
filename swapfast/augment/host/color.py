"""Colour on the CPU: LAB jitter and CLAHE of batches of bytes.

``kernels/color.py`` converts to LAB and back in float32. CLAHE is OpenCV's, on whole levels of L.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from swapfast.augment.constants import CLIP_LIMIT
from swapfast.augment.draws import Draws
from swapfast.augment.host.recycle import Scratch
from swapfast.augment.kernels.jit import load_kernels


def jitter_matrices(draws: Draws) -> np.ndarray:
    """Return (N, 3, 4) float32 matrices of LAB: factors on the diagonal, offsets in 8-bit units in the last column."""
    factor, offset = draws.lab_affine()
    matrices = np.zeros((len(draws), 3, 4), np.float32)
    matrices[:, [0, 1, 2], [0, 1, 2]] = factor
    matrices[:, :, 3] = offset
    return matrices


def equalize(
    lightness: np.ndarray, grid: int, clip_limit: float = CLIP_LIMIT, out: np.ndarray | None = None
) -> np.ndarray:
    """Return CLAHE of one 8-bit channel (H, W) with ``grid`` x ``grid`` tiles."""
    return cv2.createCLAHE(clip_limit, (grid, grid)).apply(lightness, dst=out)


def recolor(
    faces: np.ndarray, matrices: np.ndarray, grids: Sequence[int], scratch: Scratch, clip_limit: float = CLIP_LIMIT
) -> np.ndarray:
    """Return faces after jitter and CLAHE, in scratch memory; the faces themselves where nothing changes.

    faces: (N, S, S, 3 or 4) uint8 BGR; a fourth channel is kept
    matrices: (N, 3, 4) float32, ``jitter_matrices``
    grids: N tiles per edge, 0 for no CLAHE
    """
    unchanged = np.logical_not(grids) & (matrices == np.eye(3, 4, dtype=np.float32)).all((1, 2))
    if unchanged.all():
        return faces
    recolored = scratch("recolored", *faces.shape)
    recolor_through_lab(faces, matrices, grids, scratch, clip_limit, recolored)
    # Peer: takes every image to 8-bit LAB and back, which alone moves a quarter of all colours by 2 levels or more.
    # Ours: a face for which nothing is drawn stays as it is.
    if unchanged.any():
        recolored[unchanged] = faces[unchanged]
    return recolored


def recolor_through_lab(
    faces: np.ndarray, matrices: np.ndarray, grids: Sequence[int], scratch: Scratch, clip_limit: float, out: np.ndarray
) -> None:
    """``recolor`` every face into ``out``, in float32 but for the L of CLAHE."""
    kernels = load_kernels("color")
    n, size, _, channels = faces.shape
    count = size * size
    pixels, results = faces.reshape(n, -1), out.reshape(n, -1)
    amounts = np.concatenate([matrices[:, [0, 1, 2], [0, 1, 2]], matrices[:, :, 3]], axis=1)
    kernels.jitter_faces(pixels, count, channels, amounts, np.flatnonzero(np.logical_not(grids)), results)
    if not any(grids):
        return
    room = -(-count // kernels.BLOCK) * kernels.BLOCK
    a, b = scratch("a", room, kind=np.float32), scratch("b", room, kind=np.float32)
    blocks = scratch("lightness", room)
    lightness, equalized = blocks[:count].reshape(size, size), scratch("equalized", size, size)
    for face, amount, grid, result in zip(pixels, amounts, grids, results):
        if grid:
            kernels.bgr_to_lab(face, count, channels, amount, *kernels.lightness_tables(), blocks, a, b)
            equalize(lightness, grid, clip_limit, out=equalized)
            kernels.lab_to_bgr(equalized.ravel(), a, b, face, count, channels, result)
