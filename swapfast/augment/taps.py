"""Which pixels or nodes a pixel is made of, and with which weights, as plain arrays for every backend."""

from __future__ import annotations

import numpy as np

from swapfast.augment.draws import GRID


def hat_taps(size: int, nodes: int = GRID) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of ``size`` px the lower of the two nodes it lies between, and the upper one's weight.

    Both are (size,). Five nodes are the random warp's: pixel j lies at (j + 1/2) * 4 / size on their axis. It is the
    map that faceswap gets by resizing the nodes to 1.25 times the size and cutting out the middle. Any other number (33
    for the landmark warp) spreads from the first pixel's centre to the last one's: pixel j at
    j * (nodes - 1) / (size - 1).
    """
    if nodes == GRID:
        positions = (np.arange(size) + 0.5) * (GRID - 1) / size
    else:
        positions = np.arange(size) * (nodes - 1) / (size - 1)
    lower = np.minimum(positions.astype(np.int64), nodes - 2)
    return lower, positions - lower


def hat_weights(size: int, nodes: int = GRID) -> np.ndarray:
    """Return ``hat_taps`` as a (size, nodes) matrix H: a map is H @ nodes @ H.T."""
    lower, upper_weight = hat_taps(size, nodes)
    weights = np.zeros((size, nodes))
    weights[np.arange(size), lower] = 1 - upper_weight
    weights[np.arange(size), lower + 1] = upper_weight
    return weights


def area_taps(size: int, smaller: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of ``smaller`` px the source px that it covers, and their weights; both (smaller, taps).

    Weights add up to one; a px that is covered in part has its part as weight (OpenCV's INTER_AREA).
    """
    ratio = size / smaller
    start = np.arange(smaller) * ratio
    taps = int(np.ceil(ratio)) + 1
    tap_index = np.floor(start).astype(np.int64)[:, None] + np.arange(taps)
    covered = np.minimum(tap_index + 1, (start + ratio)[:, None]) - np.maximum(tap_index, start[:, None])
    tap_weight = np.where(tap_index < size, np.clip(covered, 0, None), 0)
    covers = tap_weight.max(0) > 1e-9  # 96 -> 64 px: three px fit below one and a half, but none covers three
    tap_index, tap_weight = tap_index[:, covers], tap_weight[:, covers]
    return np.minimum(tap_index, size - 1), tap_weight / tap_weight.sum(1, keepdims=True)


def area_weights(size: int, smaller: int) -> np.ndarray:
    """Return ``area_taps`` as a (smaller, size) matrix."""
    tap_index, tap_weight = area_taps(size, smaller)
    weights = np.zeros((smaller, size))
    np.add.at(weights, (np.arange(smaller)[:, None], tap_index), tap_weight)
    return weights
