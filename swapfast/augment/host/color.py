"""Colour on the CPU: LAB jitter and CLAHE of batches of bytes.

Kernels that Numba compiles do it where that is installed (``kernels/color.py``). Elsewhere OpenCV does, in 8 bits
throughout: half to a third as fast, and .9 of a level off on average for its rounding on the way, as the peer is. CLAHE
is OpenCV's in both.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from swapfast.augment.constants import CLIP_LIMIT
from swapfast.augment.draws import Draws
from swapfast.augment.host.recycle import Scratch
from swapfast.augment.host.stacked import tall
from swapfast.augment.kernels.jit import load_kernels


def jitter_matrices(draws: Draws) -> np.ndarray:
    """(N, 3, 4) float32: factors of L, a, b on the diagonal, offsets in 8-bit units last; as ``recolor`` takes them."""
    factor, offset = draws.lab_affine()
    matrices = np.zeros((len(draws), 3, 4), np.float32)
    matrices[:, [0, 1, 2], [0, 1, 2]] = factor
    matrices[:, :, 3] = offset
    return matrices


def equalize(
    lightness: np.ndarray, grid: int, clip_limit: float = CLIP_LIMIT, out: np.ndarray | None = None
) -> np.ndarray:
    """CLAHE of one 8-bit plane (H, W) with ``grid`` x ``grid`` tiles."""
    return cv2.createCLAHE(clip_limit, (grid, grid)).apply(lightness, dst=out)


def recolor(
    faces: np.ndarray, matrices: np.ndarray, grids: Sequence[int], scratch: Scratch, clip_limit: float = CLIP_LIMIT
) -> np.ndarray:
    """Jitter and CLAHE of (N, S, S, 3 or 4) BGR faces; a fourth channel is kept.

    matrices: (N, 3, 4) of ``jitter_matrices``. grids: N tiles per edge, 0 for no CLAHE. Returns scratch memory, or
    the faces themselves when there is nothing to do.
    """
    same = np.logical_not(grids) & (matrices == np.eye(3, 4, dtype=np.float32)).all((1, 2))
    if same.all():
        return faces
    colored = scratch("colored", *faces.shape)
    convert = recolor_in_8_bits if load_kernels("color") is None else recolor_compiled
    convert(faces, matrices, grids, scratch, clip_limit, colored)
    # Peer: takes every image to 8-bit LAB and back, which alone moves a quarter of all colours by 2 levels or more.
    # Ours: a face for which nothing is drawn stays as it is.
    if same.any():
        colored[same] = faces[same]
    return colored


def recolor_compiled(
    faces: np.ndarray, matrices: np.ndarray, grids: Sequence[int], scratch: Scratch, clip_limit: float, out: np.ndarray
) -> None:
    """``recolor`` all faces to ``out``, in float32 but for the L of CLAHE. Needs Numba."""
    compiled = load_kernels("color")
    n, size, _, channels = faces.shape
    count = size * size
    pixels, results = faces.reshape(n, -1), out.reshape(n, -1)
    amounts = np.concatenate([matrices[:, [0, 1, 2], [0, 1, 2]], matrices[:, :, 3]], axis=1)
    compiled.jitter_faces(pixels, count, channels, amounts, np.flatnonzero(np.logical_not(grids)), results)
    if not any(grids):
        return
    room = -(-count // compiled.BLOCK) * compiled.BLOCK
    a, b = scratch("a", room, kind=np.float32), scratch("b", room, kind=np.float32)
    flat = scratch("lightness", room)
    lightness, equalized = flat[:count].reshape(size, size), scratch("equalized", size, size)
    for face, amount, grid, result in zip(pixels, amounts, grids, results):
        if grid:
            compiled.take_to_lab(face, count, channels, amount, *compiled.lightness_tables(), flat, a, b)
            equalize(lightness, grid, clip_limit, out=equalized)
            compiled.put_from_lab(equalized.ravel(), a, b, face, count, channels, result)


def recolor_in_8_bits(
    faces: np.ndarray, matrices: np.ndarray, grids: Sequence[int], scratch: Scratch, clip_limit: float, out: np.ndarray
) -> None:
    """``recolor`` all faces to ``out`` by OpenCV, rounded to whole levels of L, a and b on the way."""
    n, size, _, channels = faces.shape
    plain, lab = scratch("lab", n, size, size, 3), scratch("jittered", n, size, size, 3)
    cv2.cvtColor(tall(faces), cv2.COLOR_BGR2LAB, dst=tall(plain))
    for i, grid in enumerate(grids):
        jitter(plain[i], matrices[i], out=lab[i])
        if grid:
            lightness = cv2.extractChannel(lab[i], 0, dst=scratch("plane", size, size))
            equalized = equalize(lightness, grid, clip_limit, out=scratch("equalized", size, size))
            cv2.insertChannel(equalized, lab[i], 0)
    cv2.cvtColor(tall(lab), cv2.COLOR_LAB2BGR, dst=tall(out), dstCn=channels)
    if channels == 4:
        cv2.mixChannels([tall(faces)], [tall(out)], [3, 3])


def jitter(lab: np.ndarray, matrix: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """One 8-bit LAB image (H, W, 3), every pixel through a (3, 4) matrix and rounded to nearest.

    Peer: cuts the fraction off, so L, a and b come out half a level low and faces get darker and bluer.
    Ours: rounds.
    """
    return cv2.transform(lab, matrix, dst=out)
