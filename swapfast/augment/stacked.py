"""Small images moved and warped several at a time: one below the other they are one image to OpenCV.

At 64 px a call of OpenCV takes 15 us, and two threads that make one after another mostly wait for the interpreter's
lock between them: 64 faces took as long on two threads as on one. Here a call does what a thread has to do.

Where each pixel reads comes as two maps (N, S, S) float32 of px: x, and y counted from the top of the stack. Rows that
lie outside an image are moved to its edge beforehand, so no image shows its neighbour. y is rounded to 1 / 1024 px: so
it is exact wherever in the stack an image lies, and its pixels do not depend on the batch.
"""

from __future__ import annotations

import cv2
import numpy as np

from swapfast.augment.recycle import Scratch

STACKED_UP_TO = 80  # px: at 96 little is gained, and BLAS would spread the product with 33 nodes over its own threads
STACK_PIXELS = 2**17
_FINENESS = 1024  # steps of y in a px; of a stack of 4096 rows float32 holds each

Maps = tuple[np.ndarray, np.ndarray]


def tall(images: np.ndarray) -> np.ndarray:
    """(N, H, W, ...) images one below the other: an (N * H, W, ...) view, one image to OpenCV."""
    return images.reshape(-1, *images.shape[2:])


def affine_maps(matrices: np.ndarray, size: int, scratch: Scratch) -> Maps:
    """The maps of (N, 2, 3) matrices, px of the result -> px of the image. In scratch memory."""
    at = np.arange(size)
    columns, rows = matrices[:, :, 0, None] * at + matrices[:, :, 2, None], matrices[:, :, 1, None] * at
    x, y = _maps(len(matrices), size, scratch)
    for axis, (out, fineness) in enumerate(((x, 1), (y, _FINENESS))):
        by_column, by_row = ((part[:, axis] * fineness).astype(np.float32) for part in (columns, rows))
        np.add(by_column[:, None], by_row[:, :, None], out=out)
    return x, _stacked(y)


def node_maps(nodes: np.ndarray, weights: np.ndarray, scratch: Scratch) -> Maps:
    """The maps of (N, K, K, 2) nodes, px (x, y) where each reads; weights: (S, K) float32. In scratch memory."""
    x, y = _maps(len(nodes), len(weights), scratch)
    for axis, (out, fineness) in enumerate(((x, 1), (y, _FINENESS))):
        at_nodes = np.ascontiguousarray(nodes[..., axis] * fineness, np.float32)
        np.matmul(weights, at_nodes @ weights.T, out=out)
    return x, _stacked(y)


def read_stacked(images: np.ndarray, maps: Maps, out: np.ndarray) -> np.ndarray:
    """Read (N, S, S, C) images, contiguous, where the maps say, bilinearly; edges are repeated. Returns ``out``."""
    stack, target, x, y = (array.reshape(-1, *array.shape[2:]) for array in (images, out, *maps))
    return cv2.remap(stack, x, y, cv2.INTER_LINEAR, dst=target, borderMode=cv2.BORDER_REPLICATE).reshape(out.shape)


def _maps(count: int, size: int, scratch: Scratch) -> Maps:
    return tuple(scratch(f"map of {axis}", count, size, size, kind=np.float32) for axis in "xy")


def _stacked(y: np.ndarray) -> np.ndarray:
    """From y of each image, in steps, to px from the top of the stack, in place."""
    count, size = y.shape[:2]
    np.rint(y, out=y)
    np.clip(y, 0, (size - 1) * _FINENESS, out=y)
    y += (np.arange(count, dtype=np.float32) * (size * _FINENESS))[:, None, None]
    y *= np.float32(1 / _FINENESS)
    return y
