"""Where every pixel reads from, and shrinking: with OpenCV, on arrays of bytes.

Positions are px with pixel centres at integers, x before y. All sampling is bilinear, and outside the image the
nearest edge pixel is repeated. Images are (N, S, S, C) uint8.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from swapfast.augment.host.recycle import Scratch
from swapfast.augment.host.stacked import STACKED_UP_TO, affine_maps, node_maps, read_stacked
from swapfast.augment.kernels.jit import load_kernels
from swapfast.augment.taps import hat_weights

PRODUCT_LIMIT = 2**18  # multiplications at once; OpenBLAS starts threads above


def move(image: np.ndarray, matrix: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return one image resampled by a matrix.

    image: (S, S, C) or (S, S)
    matrix: (2, 3) px of the result -> px of the image
    """
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (image.shape[1], image.shape[0])
    return cv2.warpAffine(image, matrix, size, dst=out, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def move_all(images: np.ndarray, matrices: np.ndarray, out: np.ndarray, scratch: Scratch) -> None:
    """Resample images, each by its matrix, into ``out``.

    images, out: (N, S, S, C)
    matrices: (N, 2, 3) px of the result -> px of the image
    """
    if images.shape[1] <= STACKED_UP_TO:
        read_stacked(images, affine_maps(matrices, images.shape[1], scratch), out)
        return
    for image, matrix, moved_image in zip(images, matrices, out):
        move(image, matrix, out=moved_image)


def move_masks(masks: np.ndarray, matrices: np.ndarray, out: np.ndarray, first_mask: int, first_face: int) -> None:
    """Resample masks most of which are black, such as eyes and mouth, where they are not.

    masks: (N, K, S, S) uint8
    matrices: (N, 2, 3) px of the result -> px of the mask
    out: (M, F, S, S) uint8, or float32 in 0..1; written from ``first_mask`` and ``first_face`` on
    """
    divisor = np.float32(1 if out.dtype == np.uint8 else 255)
    load_kernels("masks").move_masks(masks, matrices, divisor, first_mask, first_face, out)


def node_rows(nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return nodes filled in along each row of nodes: (N, K, 2 S) float32 px, x y x y ...

    nodes: (N, K, K, 2) px (x, y) that each node reads
    weights: (S, K) float32, ``node_weights``
    """
    rows = weights @ nodes.astype(np.float32)
    return rows.reshape(len(nodes), nodes.shape[1], 2 * len(weights))


def fill_rows(rows: np.ndarray, weights: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return (H, S, 2) px (x, y) that each pixel of some rows reads.

    rows: (K, 2 S) of one face's ``node_rows``
    weights: (H, K) float32, the rows of ``node_weights`` for those pixels
    """
    positions = np.matmul(weights, rows, out=out)
    return positions.reshape(*positions.shape[:1], -1, 2)


def read_warped(image: np.ndarray, rows: np.ndarray, weights: np.ndarray, out: np.ndarray, scratch: Scratch) -> None:
    """Read one image (S, S, C) where its ``node_rows`` say, into ``out``; edges are repeated.

    Peer: black outside. Ours: the edge, as everywhere else; a black rim is nothing a face ever has.
    """
    size = len(weights)
    # Some rows at a time: the map stays in cache, and NumPy's BLAS would start threads of its own for a larger
    # product, which at 512 px beside ours cost ten times the product itself.
    for pixel_rows, node_range in bands(size, len(rows)):
        buffer = scratch("map", pixel_rows.stop - pixel_rows.start, 2 * size, kind=np.float32)
        positions = fill_rows(rows[node_range], weights[pixel_rows, node_range], buffer)
        target = out[pixel_rows]
        mode = cv2.BORDER_REPLICATE
        cv2.remap(image, positions, None, cv2.INTER_LINEAR, target, mode)  # type: ignore[call-overload]  # no map2


def warp_all(images: np.ndarray, nodes: np.ndarray, out: np.ndarray, scratch: Scratch) -> None:
    """Read images where their nodes say, into ``out``.

    images, out: (N, S, S, C)
    nodes: (N, K, K, 2) px (x, y) that each node reads
    """
    size = images.shape[1]
    if size <= STACKED_UP_TO:
        read_stacked(images, node_maps(nodes, size, scratch), out)
        return
    weights = node_weights(size, nodes.shape[1])
    for image, rows, warped in zip(images, node_rows(nodes, weights), out):
        read_warped(image, rows, weights, warped, scratch)


@lru_cache(maxsize=64)
def bands(size: int, nodes: int) -> tuple[tuple[slice, slice], ...]:
    """Return the rows of pixels in bands, each with the nodes that it lies between.

    The product of the two stays within PRODUCT_LIMIT. A band of h rows touches at most h (nodes - 1) / size + 3 of the
    nodes; all others have no weight there.
    """
    per_row = (nodes - 1) / size
    limit = PRODUCT_LIMIT / (2 * size)  # rows times nodes
    height = max(1, int((math.sqrt(9 + 4 * per_row * limit) - 3) / (2 * per_row)))
    edges = [(top, min(top + height, size)) for top in range(0, size, height)]
    return tuple((slice(a, b), slice(a * (nodes - 1) // size, -(-b * (nodes - 1) // size) + 1)) for a, b in edges)


@lru_cache(maxsize=64)
def node_weights(size: int, nodes: int) -> np.ndarray:
    """Return ``hat_weights`` as float32, shared and so read-only."""
    weights = hat_weights(size, nodes).astype(np.float32)
    weights.flags.writeable = False
    return weights


def shrink(images: np.ndarray, size: int, scratch: Scratch) -> np.ndarray:
    """Return square images (N, S, S, ...) at ``size`` px: the mean of the area that each pixel covers.

    The result is scratch memory, or the images themselves if they have that size.
    """
    if images.shape[1] == size:
        return images
    small = scratch("small", len(images), size, size, *images.shape[3:])
    for image, out in zip(images, small):
        cv2.resize(image, (size, size), dst=out, interpolation=cv2.INTER_AREA)
    return small
