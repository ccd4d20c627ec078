"""A face as a file: a PNG with a faceswap header (version 2.4), or, in another crop than the head, a JSON beside it.

    NAME_INDEX.png     the crop; NAME is the frame's, so that both programs find the frame again
The pixels are sampled once, straight from the frame. A header's landmarks are px of the frame, so a crop can be made
again from frame and header alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePath

import cv2
import numpy as np

from swapfast.errors import SwapfastError
from swapfast.extract.backends import FoundPoints
from swapfast.extract.networks import sample_quickly
from swapfast.faces.alignment import CENTERINGS
from swapfast.faces.crop import sample_square
from swapfast.faces.png import FaceswapHeader, write_header
from swapfast.points import transform_points
from swapfast.swap.frames import Frame
from swapfast.swap.png_writer import encode_pixels

VERSION = 2.4
SIZES = (64, 2048)  # px of a crop's edge
SHARPNESS_EDGE, _SHARPNESS_CENTERING = 128, "legacy"  # px, and the crop, in which sharpness is measured


@dataclass(frozen=True)
class FaceFormat:
    """How faces are written. size: edge in px. centering: one of CENTERINGS; head is what faceswap writes."""

    size: int = 512
    centering: str = "head"

    def __post_init__(self) -> None:
        if not SIZES[0] <= self.size <= SIZES[1]:
            raise SwapfastError(f"--size {self.size}: give {SIZES[0]} to {SIZES[1]} px")
        if self.centering not in CENTERINGS:
            raise SwapfastError(f"--centering {self.centering}: give one of {', '.join(CENTERINGS)}")


def face_matrix(points: FoundPoints, format: FaceFormat) -> np.ndarray:
    """Return the matrix frame px -> px of the written crop, (2, 3): faceswap's own of whole px of padding."""
    return points.alignment.matrix(format.size, format.centering, whole_padding=format.centering == "head")


def cut_face(frame: Frame, points: FoundPoints, format: FaceFormat) -> np.ndarray:
    """Return the crop of a face, (size, size, 3) uint8 BGR; the frame's border is repeated outside it."""
    return sample_square(frame.pixels, face_matrix(points, format), format.size)


def crop_edge(points: FoundPoints, centering: str = "face") -> float:
    """Return the edge of a face's crop in its frame, px."""
    return 1 / float(np.sqrt(abs(np.linalg.det(points.alignment.matrix(1, centering)[:, :2]))))


def face_name(frame: Frame, index: int) -> str:
    """Return the name of a face's file."""
    return f"{PurePath(frame.name).stem}_{index}.png"


def encode_face(
    frame: Frame, points: FoundPoints, index: int, crop: np.ndarray, format: FaceFormat, is_video: bool
) -> tuple[bytes, bytes | None]:
    """Return the PNG of a crop, and the JSON beside it where it is not a head."""
    png = encode_pixels(crop)
    if format.centering == "head":
        return write_header(png, _header(frame, points, index, is_video)), None
    landmarks = transform_points(face_matrix(points, format), points.landmarks)
    description = {
        "image": face_name(frame, index),
        "size": format.size,
        "centering": format.centering,
        "frame": frame.name,
        "face": index,
        "landmarks": [[round(float(x), 3), round(float(y), 3)] for x, y in landmarks],
    }
    return png, (json.dumps(description) + "\n").encode()


def _header(frame: Frame, points: FoundPoints, index: int, is_video: bool) -> FaceswapHeader:
    x0, y0, x1, y1 = (round(float(edge)) for edge in points.box)
    width, height = frame.size
    return FaceswapHeader(
        landmarks=points.landmarks.astype(np.float32),
        masks={},
        identity={},
        box=(x0, y0, x1 - x0, y1 - y0),
        version=VERSION,
        original_filename=face_name(frame, index),
        face_index=index,
        source_filename=frame.name,
        source_is_video=is_video,
        frame_dims=(height, width),
    )


def sharpness(frame: Frame, points: FoundPoints) -> float:
    """Return how sharp a face is: the deviation of the Laplacian of its gray crop, in levels of 255.

    It is measured at the crop's own size in the frame, and at most at 128 px, so that large and small faces compare.
    """
    edge = crop_edge(points, _SHARPNESS_CENTERING)
    size = int(min(SHARPNESS_EDGE, max(16, edge)))
    matrix = points.alignment.matrix(size, _SHARPNESS_CENTERING)
    gray = cv2.cvtColor(sample_square(frame.pixels, matrix, size), cv2.COLOR_BGR2GRAY)
    return float(cv2.Laplacian(gray, cv2.CV_32F).std())


def thumbnail(frame: Frame, points: FoundPoints, size: int, centering: str = "face") -> np.ndarray:
    """Return a small crop of a face, (size, size, 3) uint8 BGR."""
    return sample_quickly(frame.pixels, points.alignment.matrix(size, centering), size)
