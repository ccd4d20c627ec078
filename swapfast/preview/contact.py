"""A contact sheet of what training will see of a folder: a row per face, a column per step of the augmentation."""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from swapfast.augment.draws import Draws
from swapfast.augment.host.augmenter import OpenCVAugmenter
from swapfast.augment.host.color import jitter_matrices, recolor
from swapfast.augment.host.recycle import Scratch

COLUMNS = ("original", "colour", "target", "masks", "feed", "feed, landmarks")
TINTS = {"face": (80, 200, 80), "eye": (255, 160, 60), "mouth": (80, 80, 255)}  # BGR
GAP = 2
_INK, _PAPER = (230, 230, 230), 32


def contact_sheet(
    faces: np.ndarray,
    extra_masks: np.ndarray,
    masks: tuple[str, ...],
    draws: Draws,
    landmarks: Draws,
    gains: np.ndarray | None = None,
) -> np.ndarray:
    """Return the sheet, (H, W, 3) uint8 BGR: a face per row, COLUMNS from left to right.

    faces: (N, S, S, 3) or (N, S, S, 4) with the face mask. extra_masks: (N, K, S, S). Both uint8. masks: the names of
    all masks. draws: what happens to each; landmarks: the same with the warp to landmarks. gains: (N, 3) by what levels
    of target and feed are multiplied, B, G, R.
    """
    size = faces.shape[1]
    with OpenCVAugmenter(size, size, (size,)) as augment:
        plain, bent = augment(faces, extra_masks, draws), augment(faces, extra_masks, landmarks)
    grids, matrices = draws.clahe_grid.tolist(), jitter_matrices(draws)
    coloured = recolor(faces, matrices, grids, Scratch(), draws.clip_limit)[..., :3]
    target, feed, bent_feed = (_lit(_pixels(images), gains) for images in (plain.targets[0], plain.feed, bent.feed))
    drawn = np.zeros((len(faces), 0, size, size), np.uint8) if plain.masks is None else plain.masks[0].numpy()
    columns = [faces[..., :3], coloured, target, _tinted(target, drawn, masks), feed, bent_feed]
    return _sheet(columns, size)


def _pixels(images: Tensor) -> np.ndarray:
    """Return the augmenter's (N, 3, H, W) bytes as (N, H, W, 3)."""
    return images.permute(0, 2, 3, 1).numpy()


def _lit(images: np.ndarray, gains: np.ndarray | None) -> np.ndarray:
    """Return (N, H, W, 3) uint8 with each picture's levels multiplied as training does."""
    if gains is None:
        return images
    return np.rint((images * gains[:, None, None]).clip(0, 255)).astype(np.uint8)


def _tinted(images: np.ndarray, masks: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Return images (N, S, S, 3) with each of their (N, M, S, S) masks as a veil of its own colour."""
    result = images.astype(np.float32)
    for name, mask in zip(names, masks.transpose(1, 0, 2, 3)):
        veil = mask[..., None].astype(np.float32) * (0.45 / 255)
        result += (np.array(TINTS[name], np.float32) - result) * veil
    return np.rint(result).astype(np.uint8)


def _sheet(columns: list[np.ndarray], size: int) -> np.ndarray:
    scale = max(0.35, size / 256 * 0.6)
    head = int(40 * scale) + 6
    cell = size + GAP
    sheet = np.full((head + len(columns[0]) * cell, len(columns) * cell - GAP, 3), _PAPER, np.uint8)
    for column, (name, images) in enumerate(zip(COLUMNS, columns)):
        x = column * cell
        cv2.putText(sheet, name, (x + 3, head - 8), cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, 1, cv2.LINE_AA)
        for row, image in enumerate(images):
            y = head + row * cell
            sheet[y : y + size, x : x + size] = image
    return sheet
