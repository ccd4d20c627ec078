"""From a face's picture to the square training patch, once per face, on the host.

Heads are cut along whole pixels and resized, as faceswap does. Plain pictures are sampled once, by the matrix of
their landmarks; a prepared face is the crop already, and sampled like a plain picture where another is asked for.
Pictures are (H, W, 3) uint8 BGR; ``size`` is the processing size in px; crops are (size, size, 3).

Outside the picture faceswap leaves black, which a model then learns as part of a face. We repeat the border.
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

MAX_CELLS = 8192  # per edge of the finer grid that is averaged: 192 MiB


def crop_shares(crop: CropConfig) -> tuple[float, float]:
    """(coverage, vertical offset) as shares: CropConfig keeps percent, the mathematics shares."""
    return crop.coverage / 100, crop.vertical_offset / 100


def aligned_window(record: FaceRecord, crop: CropConfig, edge: int, centering: str) -> tuple[int, int, int]:
    """(x0, y0, t), whole px: the square to cut from an aligned picture of this face, ``edge`` px and so centred.

    The picture is the head PNG, or a stored mask at its own size and centering. The square may reach outside it.
    """
    coverage, vertical_offset = crop_shares(crop)
    core = 2 * round(edge * (1 - PADDING_SHARE[centering]) / 2)
    if crop.centering == centering and coverage == 1:
        t = edge
    else:
        scale = (1 - PADDING_SHARE[centering]) / (1 - PADDING_SHARE[crop.centering]) * coverage
        t = 2 * round(edge * scale / 2)
    x, y = record.alignment.offsets[crop.centering] - record.alignment.offsets[centering]
    border = (edge - t) / 2
    return round(x * core + border), round((y - vertical_offset) * core + border), t


def crop_window(record: FaceRecord, crop: CropConfig) -> tuple[int, int, int]:
    """(x0, y0, t), whole px: the square of a head picture that is trained on. It may reach outside the picture."""
    return aligned_window(record, crop, record.width, "head")


def crop_matrix(record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """(2, 3) float64: frame px -> crop px. For plain pictures this is exactly the resampling that is done.

    For heads it is the crop faceswap uses for landmarks. The pixels are cut along whole pixels of the head and may lie
    up to a crop pixel beside it: ``head_matrix`` says where they really go.
    """
    return record.alignment.matrix(size, crop.centering, *crop_shares(crop))


def head_matrix(record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """(2, 3) float64: px of the head picture -> crop px, as ``crop_face`` cuts and resizes it."""
    x0, y0, t = crop_window(record, crop)
    scale = size / t
    half = (scale - 1) / 2  # pixel centres are at integers: both edges, not both first centres, coincide
    return np.array([[scale, 0, half - scale * x0], [0, scale, half - scale * y0]])


def crop_landmarks(record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """(68, 2) float32: the landmarks in crop px, not rounded (see ``crop_matrix``)."""
    return transform_points(crop_matrix(record, crop, size), record.landmarks).astype(np.float32)


def crop_face(record: FaceRecord, image: np.ndarray, crop: CropConfig, size: int) -> np.ndarray:
    """(size, size, 3) uint8 BGR: the trained square of ``image``, the decoded picture of ``record``."""
    return crop_with(record, record, image, crop, size)


def crop_with(window_of: FaceRecord, record: FaceRecord, image: np.ndarray, crop: CropConfig, size: int) -> np.ndarray:
    """Like ``crop_face``, but cut where ``window_of``'s face lies in their common frame.

    Two pictures of one pose stay pixel on pixel, however differently their landmarks were found.
    """
    _check_image(record, image)
    if window_of.kind != record.kind:
        raise SwapfastError(
            f"{record.path.name} ({record.kind}) cannot be cropped with the window of {window_of.path.name} "
            f"({window_of.kind}): use two faceswap PNGs or two plain pictures"
        )
    if record.kind == "prepared" and record is window_of and record.cut == crop:
        return resize_square(image, size)
    if record.kind != "head":
        return sample_square(image, crop_matrix(window_of, crop, size), size)
    if _same_head(window_of, record):
        return resize_square(cut_square(image, *crop_window(record, crop)), size)
    return sample_square(image, _head_to_crop_of(window_of, record, crop, size), size)


def _same_head(one: FaceRecord, other: FaceRecord) -> bool:
    return one is other or (one.width == other.width and np.array_equal(one.landmarks, other.landmarks))


def _head_to_crop_of(window_of: FaceRecord, record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """(2, 3) float64: px of ``record``'s head -> frame px -> px of ``window_of``'s head -> px of its crop, as cut."""
    frame_to_head = _square(record.alignment.matrix(record.width, "head"))
    frame_to_window = _square(window_of.alignment.matrix(window_of.width, "head"))
    return head_matrix(window_of, crop, size) @ frame_to_window @ np.linalg.inv(frame_to_head)


def _square(matrix: np.ndarray) -> np.ndarray:
    """(3, 3) of a (2, 3) matrix."""
    return np.vstack([matrix, (0, 0, 1)])


def _check_image(record: FaceRecord, image: np.ndarray) -> None:
    if image.shape[:2] != (record.height, record.width):
        raise SwapfastError(
            f"{record.path}: decoded as {image.shape[1]}x{image.shape[0]}, its header says "
            f"{record.width}x{record.height}; the file is damaged or has changed"
        )


def cut_square(image: np.ndarray, x0: int, y0: int, t: int) -> np.ndarray:
    """The t x t square at (x0, y0); outside the image its border is repeated."""
    height, width = image.shape[:2]
    if x0 >= 0 and y0 >= 0 and x0 + t <= width and y0 + t <= height:
        return image[y0 : y0 + t, x0 : x0 + t]
    rows = np.clip(np.arange(y0, y0 + t), 0, height - 1)
    columns = np.clip(np.arange(x0, x0 + t), 0, width - 1)
    return image[rows][:, columns]


def resize_square(image: np.ndarray, size: int) -> np.ndarray:
    """A square image at edge ``size``, area-averaged when it shrinks, cubic when it grows. A new array."""
    t = image.shape[0]
    if t == size:
        return np.ascontiguousarray(image).copy()
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if t > size else cv2.INTER_CUBIC)


def sample_square(image: np.ndarray, matrix: np.ndarray, size: int, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """(size, size[, C]): ``image`` sampled once through ``matrix`` (2, 3), image px -> crop px.

    Growing is cubic. Shrinking averages the turned square that each crop pixel covers: the image is sampled on a
    grid k times finer, at least as fine as its own pixels, and k x k cells are averaged.
    """
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if scale >= 1:
        return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=border)
    # A face wider than MAX_CELLS px is sampled more coarsely than its own pixels: memory has a limit.
    k = min(math.ceil(1 / scale), max(1, MAX_CELLS // size))
    # Crop pixel q is the cells k*q .. k*q + k - 1, so its centre lies at k*q + (k - 1) / 2.
    fine = matrix * k
    fine[:, 2] += (k - 1) / 2
    cells = cv2.warpAffine(image, fine, (size * k, size * k), flags=cv2.INTER_LINEAR, borderMode=border)
    return cv2.resize(cells, (size, size), interpolation=cv2.INTER_AREA)


def spread_indices(faces: int, count: int) -> np.ndarray:
    """(count,) indices spread over a folder, repeated where it is smaller."""
    return np.linspace(0, faces - 1, count).round().astype(int)


def shrink(face: np.ndarray, size: int) -> np.ndarray:
    """(S, S, C) -> (size, size, C), area-averaged; unchanged where it has that size."""
    return face if len(face) == size else cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA)
