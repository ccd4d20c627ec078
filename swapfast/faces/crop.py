"""Crops a face's picture to the square training patch, once per face, on the host.

Heads are cut along whole pixels and resized, as faceswap does: their pixels stay faceswap's, and the part that is cut
is up to a pixel of the head larger or smaller than the share asked for. Plain pictures are sampled once, through the
exact matrix of their landmarks. A prepared face is a finished crop; where another crop is wanted, it is sampled like a
plain picture. Masks and landmarks go where the pixels go (``crop_matrix``).

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
from swapfast.faces.alignment import CENTERINGS, PADDING_SHARE, crop_matrices
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
    offsets = record.alignment.offsets
    x0, y0, edge = _windows(np.asarray(picture_edge), offsets[centering], offsets[crop.centering], crop, centering)
    return int(x0), int(y0), int(edge)


def _windows(
    edges: np.ndarray, offsets: np.ndarray, crop_offsets: np.ndarray, crop: CropConfig, centering: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the squares of ``aligned_window`` for many pictures: x0, y0 and edge, (...,) whole px.

    edges: (...,) of the pictures, px.
    offsets, crop_offsets: (..., 2), the faces' offsets of the pictures' centering and of the crop's.
    """
    coverage, vertical_offset = crop_shares(crop)
    core = 2 * np.rint(edges * (1 - PADDING_SHARE[centering]) / 2)
    cut = edges
    if crop.centering != centering or coverage != 1:
        scale = (1 - PADDING_SHARE[centering]) / (1 - PADDING_SHARE[crop.centering]) * coverage
        cut = 2 * np.rint(edges * scale / 2)
    x, y = np.moveaxis(crop_offsets - offsets, -1, 0)
    border = (edges - cut) / 2
    return np.rint(x * core + border), np.rint((y - vertical_offset) * core + border), cut


def crop_window(record: FaceRecord, crop: CropConfig) -> tuple[int, int, int]:
    """Return the square that a crop takes from a head: x0, y0 and its edge, whole px. It may reach outside."""
    return aligned_window(record, crop, record.width, "head")


def crop_matrix(record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """Return the matrix frame px -> crop px by which ``crop_face`` moves the pixels, (2, 3) float64.

    Peer: moves the landmarks of a head by the crop's ideal matrix, and so they and the masks drawn from them lie half a
    pixel of the head and up to a crop pixel beside its pixels. Ours: the map of the pixels, for both.
    """
    if record.kind == "head":
        offsets = np.stack([record.alignment.offsets[name] for name in CENTERINGS])
        return head_crop_matrices(np.asarray(record.width), record.alignment.legacy_matrix, offsets, crop, size)
    if record.kind == "prepared" and record.crop == crop:
        return resize_matrix(record.width, size)
    return record.alignment.matrix(size, crop.centering, *crop_shares(crop))


def head_crop_matrices(
    edges: np.ndarray, legacy: np.ndarray, offsets: np.ndarray, crop: CropConfig, size: int
) -> np.ndarray:
    """Return the matrices frame px -> crop px of many heads, (..., 2, 3) float64.

    edges: (...,) of the heads, px.
    legacy: (..., 2, 3), the faces' legacy matrices.
    offsets: (..., 3, 2), their offsets of all CENTERINGS.
    """
    of_head, of_crop = (offsets[..., CENTERINGS.index(name), :] for name in ("head", crop.centering))
    matrices = crop_matrices(legacy, of_head, edges, "head", whole_padding=True)
    x0, y0, cut = _windows(edges, of_head, of_crop, crop, "head")
    scale = size / cut
    matrices *= scale[..., None, None]
    matrices[..., 2] += ((scale - 1) / 2)[..., None] - scale[..., None] * np.stack([x0, y0], axis=-1)
    return matrices


def resize_matrix(edge: int, size: int) -> np.ndarray:
    """Return the matrix by which a square of ``edge`` px becomes one of ``size`` px, (2, 3) float64.

    Pixel centres are at integers, and the outer edges of both squares coincide.
    """
    scale = size / edge
    return np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])


def head_matrix(record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """Return the matrix head px -> crop px by which ``crop_face`` cuts and resizes, (2, 3) float64."""
    x0, y0, edge = crop_window(record, crop)
    return shifted(resize_matrix(edge, size), -size / edge * x0, -size / edge * y0)


def shifted(matrix: np.ndarray, x: float, y: float) -> np.ndarray:
    """Return a (2, 3) matrix that moves points (x, y) px further."""
    return matrix + np.array([[0, 0, x], [0, 0, y]])


def crop_landmarks(record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """Return the landmarks in crop px, (68, 2) float32, moved by ``crop_matrix``."""
    return transform_points(crop_matrix(record, crop, size), record.landmarks).astype(np.float32)


def crop_face(record: FaceRecord, image: np.ndarray, crop: CropConfig, size: int, margin: int = 0) -> np.ndarray:
    """Return the training crop of ``image``, the decoded picture of ``record``: (size, size, 3) uint8 BGR.

    margin: px of the picture around the crop, at the crop's scale, to return with it on each side.
    """
    if margin == 0:
        return crop_with(record, record, image, crop, size)
    _check_image(record, image)
    # Peer: another crop, along other whole pixels: what the model makes does not fit what it is pasted into.
    # Ours: sampled through the crop's own map.
    to_crop = head_matrix(record, crop, size) if record.kind == "head" else crop_matrix(record, crop, size)
    return sample_square(image, shifted(to_crop, margin, margin), size + 2 * margin)


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

    It goes through their common frame.
    """
    frame_to_head = _square(record.alignment.matrix(record.width, "head", whole_padding=True))
    return crop_matrix(reference, crop, size) @ np.linalg.inv(frame_to_head)


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
