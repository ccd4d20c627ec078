"""Crops a face's picture to the square training patch, once per face, on the host.

Heads are cut along whole pixels and resized, as faceswap does. Plain pictures are sampled once, through the matrix of
their landmarks. A prepared face is a finished crop; where another crop is wanted, it is sampled like a plain picture.

    picture   (H, W, 3) uint8 BGR
    size      the processing size, px
    crop      (size, size, 3) uint8 BGR

Peer: black outside the picture, which a model then learns as part of a face. Ours: the border is repeated.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from swapfast.config import CropConfig
from swapfast.errors import SwapfastError
from swapfast.faces.alignment import PADDING_SHARE
from swapfast.faces.record import FaceRecord
from swapfast.points import transform_points

MAX_CELLS = 8192  # edge of the finer grid that is averaged: 192 MiB


def crop_shares(crop: CropConfig) -> tuple[float, float]:
    """Return coverage and vertical offset as shares; ``CropConfig`` has percent."""
    return crop.coverage / 100, crop.vertical_offset / 100


def aligned_window(record: FaceRecord, crop: CropConfig, picture_edge: int, centering: str) -> tuple[int, int, int]:
    """Return the square that a crop takes from an aligned picture: x0, y0 and its edge, whole px.

    The picture is a head or a stored mask. The square may reach outside it.
    picture_edge: edge of the picture, px.
    centering: of the picture.
    """
    coverage, vertical_offset = crop_shares(crop)
    core = 2 * round(picture_edge * (1 - PADDING_SHARE[centering]) / 2)
    if crop.centering == centering and coverage == 1:
        edge = picture_edge
    else:
        scale = (1 - PADDING_SHARE[centering]) / (1 - PADDING_SHARE[crop.centering]) * coverage
        edge = 2 * round(picture_edge * scale / 2)
    x, y = record.alignment.offsets[crop.centering] - record.alignment.offsets[centering]
    border = (picture_edge - edge) / 2
    return round(x * core + border), round((y - vertical_offset) * core + border), edge


def crop_window(record: FaceRecord, crop: CropConfig) -> tuple[int, int, int]:
    """Return the square that a crop takes from a head: x0, y0 and its edge, whole px. It may reach outside."""
    return aligned_window(record, crop, record.width, "head")


def crop_matrix(record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """Return the matrix frame px -> crop px, (2, 3) float64.

    Plain pictures are resampled through exactly this matrix. For heads, faceswap uses it for the landmarks only: the
    pixels are cut along whole pixels of the head, up to one crop pixel beside it (``head_matrix``).
    """
    return record.alignment.matrix(size, crop.centering, *crop_shares(crop))


def head_matrix(record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """Return the matrix head px -> crop px by which ``crop_face`` cuts and resizes, (2, 3) float64."""
    x0, y0, edge = crop_window(record, crop)
    scale = size / edge
    half = (scale - 1) / 2  # pixel centres are at integers, and the outer edges of both squares coincide
    return np.array([[scale, 0, half - scale * x0], [0, scale, half - scale * y0]])


def crop_landmarks(record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """Return the landmarks in crop px, (68, 2) float32, moved by ``crop_matrix``."""
    return transform_points(crop_matrix(record, crop, size), record.landmarks).astype(np.float32)


def crop_face(record: FaceRecord, image: np.ndarray, crop: CropConfig, size: int) -> np.ndarray:
    """Return the training crop of ``image``, the decoded picture of ``record``: (size, size, 3) uint8 BGR."""
    return crop_with(record, record, image, crop, size)


def crop_with(reference: FaceRecord, record: FaceRecord, image: np.ndarray, crop: CropConfig, size: int) -> np.ndarray:
    """Return the crop of ``image`` where the face of ``reference`` lies in their common frame.

    Two pictures of one pose stay aligned to the pixel, even if their landmarks differ. See ``crop_face``.
    """
    _check_image(record, image)
    if reference.kind != record.kind:
        raise SwapfastError(
            f"{record.path.name} ({record.kind}) cannot be cropped with the window of {reference.path.name} "
            f"({reference.kind}): use two faceswap PNGs or two plain pictures"
        )
    if record.kind == "prepared" and record is reference and record.crop == crop:
        return resize_square(image, size)
    if record.kind != "head":
        return sample_square(image, crop_matrix(reference, crop, size), size)
    if _same_head(reference, record):
        return resize_square(cut_square(image, *crop_window(record, crop)), size)
    return sample_square(image, _head_to_crop_of(reference, record, crop, size), size)


def _same_head(first: FaceRecord, second: FaceRecord) -> bool:
    return first is second or (first.width == second.width and np.array_equal(first.landmarks, second.landmarks))


def _head_to_crop_of(reference: FaceRecord, record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """Return the matrix px of ``record``'s head -> px of the reference's crop, (2, 3) float64.

    It goes through the common frame and the reference's head.
    """
    frame_to_head = _square(record.alignment.matrix(record.width, "head"))
    frame_to_reference = _square(reference.alignment.matrix(reference.width, "head"))
    return head_matrix(reference, crop, size) @ frame_to_reference @ np.linalg.inv(frame_to_head)


def _square(matrix: np.ndarray) -> np.ndarray:
    """Return a (2, 3) matrix as (3, 3)."""
    return np.vstack([matrix, (0, 0, 1)])


def _check_image(record: FaceRecord, image: np.ndarray) -> None:
    if image.shape[:2] != (record.height, record.width):
        raise SwapfastError(
            f"{record.path}: decoded as {image.shape[1]}x{image.shape[0]}, its header says "
            f"{record.width}x{record.height}; the file is damaged or has changed"
        )


def cut_square(image: np.ndarray, x0: int, y0: int, edge: int) -> np.ndarray:
    """Return the square of ``edge`` px at (x0, y0), with the image's border repeated outside it."""
    height, width = image.shape[:2]
    if x0 >= 0 and y0 >= 0 and x0 + edge <= width and y0 + edge <= height:
        return image[y0 : y0 + edge, x0 : x0 + edge]
    rows = np.clip(np.arange(y0, y0 + edge), 0, height - 1)
    columns = np.clip(np.arange(x0, x0 + edge), 0, width - 1)
    return image[rows][:, columns]


def resize_square(image: np.ndarray, size: int) -> np.ndarray:
    """Return a square image resized to ``size`` px: area-averaged when it shrinks, cubic when it grows.

    The result is always a new array.
    """
    edge = image.shape[0]
    if edge == size:
        return np.ascontiguousarray(image).copy()
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if edge > size else cv2.INTER_CUBIC)


def sample_square(image: np.ndarray, matrix: np.ndarray, size: int, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """Return ``image`` sampled once through ``matrix``.

    Growing is cubic. Shrinking averages the rotated square that each crop pixel covers: the image is sampled on a grid
    k times finer, at least as fine as the image's pixels, and k x k cells are averaged.

    image: (H, W) or (H, W, C) uint8.
    matrix: (2, 3), image px -> crop px.
    Returns (size, size) or (size, size, C) uint8.
    """
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if scale >= 1:
        return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=border)
    # A face wider than MAX_CELLS px is sampled more coarsely than its pixels, to bound memory.
    k = min(math.ceil(1 / scale), max(1, MAX_CELLS // size))
    # Crop pixel q covers the cells k*q .. k*q + k - 1, so its centre lies at k*q + (k - 1) / 2.
    fine = matrix * k
    fine[:, 2] += (k - 1) / 2
    cells = cv2.warpAffine(image, fine, (size * k, size * k), flags=cv2.INTER_LINEAR, borderMode=border)
    return cv2.resize(cells, (size, size), interpolation=cv2.INTER_AREA)


def spread_indices(faces: int, count: int) -> np.ndarray:
    """Return ``count`` indices spread evenly over ``faces`` faces, (count,) int; some repeat if there are fewer."""
    return np.linspace(0, faces - 1, count).round().astype(int)


def shrink(face: np.ndarray, size: int) -> np.ndarray:
    """Return a (S, S, C) crop area-averaged to (size, size, C), itself if it has that size."""
    return face if len(face) == size else cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA)
