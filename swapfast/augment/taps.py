"""Which pixels or nodes a pixel is made of, and their shares, as plain arrays for every backend."""

from __future__ import annotations

import numpy as np

from swapfast.augment.draws import GRID


def hat_taps(size: int, nodes: int = GRID) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``size`` px: (size,) the lower of the two nodes it lies between and (size,) the upper's weight.

    Five nodes are the random warp's: pixel j lies at (j + 1/2) * 4 / size on their axis. It is the map that faceswap
    gets by resizing the nodes to 1.25 times the size and cutting out the middle. Any other number (33 for the
    landmark warp) spreads from the first pixel's centre to the last one's: pixel j at j * (nodes - 1) / (size - 1).
    """
    if nodes == GRID:
        at = (np.arange(size) + 0.5) * (GRID - 1) / size
    else:
        at = np.arange(size) * (nodes - 1) / (size - 1)
    low = np.minimum(at.astype(np.int64), nodes - 2)
    return low, at - low


def hat_weights(size: int, nodes: int = GRID) -> np.ndarray:
    """``hat_taps`` as a (size, nodes) matrix H: a map is H @ nodes @ H.T."""
    low, upper = hat_taps(size, nodes)
    weights = np.zeros((size, nodes))
    weights[np.arange(size), low] = 1 - upper
    weights[np.arange(size), low + 1] = upper
    return weights


def area_taps(size: int, smaller: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``smaller`` px: (smaller, taps) the source px it covers and (smaller, taps) their shares.

    Shares add up to one; a px that is covered in part has its part as share (cv2's INTER_AREA).
    """
    ratio = size / smaller
    start = np.arange(smaller) * ratio
    taps = int(np.ceil(ratio)) + 1
    index = np.floor(start).astype(np.int64)[:, None] + np.arange(taps)
    covered = np.minimum(index + 1, (start + ratio)[:, None]) - np.maximum(index, start[:, None])
    share = np.where(index < size, np.clip(covered, 0, None), 0)
    used = share.max(0) > 1e-9  # 96 -> 64 px: three px fit below one and a half, but none covers three
    index, share = index[:, used], share[:, used]
    return np.minimum(index, size - 1), share / share.sum(1, keepdims=True)


def area_weights(size: int, smaller: int) -> np.ndarray:
    """``area_taps`` as a (smaller, size) matrix."""
    index, share = area_taps(size, smaller)
    weights = np.zeros((smaller, size))
    np.add.at(weights, (np.arange(smaller)[:, None], index), share)
    return weights
