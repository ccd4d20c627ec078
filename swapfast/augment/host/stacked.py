"""Small images moved and warped several at a time: one below the other they are one image to OpenCV.

At 64 px a call of OpenCV takes 15 us, and two threads that make one after another mostly wait for the interpreter's
lock between them: 64 faces took as long on two threads as on one. Here one call does what a thread has to do.

Where each pixel reads comes as two maps (N, S, S) float32 of px: x, and y counted from the top of the stack. Rows that
lie outside an image are moved to its edge beforehand, so no image shows its neighbour. y is rounded to 1 / 1024 px: so
it is exact wherever in the stack an image lies, and its pixels do not depend on the batch.
"""

from __future__ import annotations

import cv2
import numpy as np

from swapfast.augment.host.recycle import Scratch
from swapfast.augment.kernels.jit import load_kernels
from swapfast.augment.taps import hat_taps

STACKED_UP_TO = 80  # px: at 96 little is gained
STACK_PIXELS = 2**17

Maps = tuple[np.ndarray, np.ndarray]


def tall(images: np.ndarray) -> np.ndarray:
    """Return (N, H, W, ...) images one below the other: an (N * H, W, ...) view, one image to OpenCV."""
    return images.reshape(-1, *images.shape[2:])


def affine_maps(matrices: np.ndarray, size: int, scratch: Scratch) -> Maps:
    """Return the maps of matrices, in scratch memory.

    matrices: (N, 2, 3) px of the result -> px of the image
    """
    maps = _empty_maps(len(matrices), size, scratch)
    load_kernels("maps").affine_maps(np.ascontiguousarray(matrices, np.float64), *maps)
    return maps


def node_maps(nodes: np.ndarray, size: int, scratch: Scratch) -> Maps:
    """Return the maps of nodes, in scratch memory.

    nodes: (N, K, K, 2) px (x, y) that each node reads
    """
    maps = _empty_maps(len(nodes), size, scratch)
    load_kernels("maps").node_maps(np.ascontiguousarray(nodes, np.float64), *hat_taps(size, nodes.shape[1]), *maps)
    return maps


def read_stacked(images: np.ndarray, maps: Maps, out: np.ndarray) -> np.ndarray:
    """Read images where the maps say, bilinearly, into ``out``, which is returned; edges are repeated.

    images, out: (N, S, S, C), contiguous
    """
    stack, target, x, y = (array.reshape(-1, *array.shape[2:]) for array in (images, out, *maps))
    return cv2.remap(stack, x, y, cv2.INTER_LINEAR, dst=target, borderMode=cv2.BORDER_REPLICATE).reshape(out.shape)


def _empty_maps(count: int, size: int, scratch: Scratch) -> Maps:
    x, y = (scratch(f"map of {axis}", count, size, size, kind=np.float32) for axis in "xy")
    return x, y
