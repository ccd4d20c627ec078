"""What a DFM needs of the crop: masks where the model learns none, and whether others cut faces so."""

from __future__ import annotations

import cv2
import numpy as np

from swapfast.batch import SIDES
from swapfast.config import FACE_TYPES, CropConfig
from swapfast.export.request import Export
from swapfast.faces.alignment import Alignment, align
from swapfast.faces.crop import crop_shares
from swapfast.faces.masks import draw_face
from swapfast.points import transform_points
from swapfast.synthetic.template import AVERAGE

BLUR = 1 / 32  # deviation, in edges of the picture
# How programs that read a DFM cut faces: DeepFaceLive as DeepFaceLab's whole_face, facefusion by a template of its own.
DFM_CROPS = (FACE_TYPES["wf"], CropConfig(centering="face", coverage=97.5, vertical_offset=-10))
FITS = 0.05  # mean distance of the corners, in edges, up to which a crop is taken for another


def constant_masks(export: Export) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return a mask for each side of a model that learns none, (H, W, 1) float32 in 0..1, and lines for a person.

    They are the mean training masks, blurred, or the outline of an average face where the model keeps none.
    """
    mean_masks = export.opened.metadata.mean_masks
    if mean_masks:
        return {side: blurred(mask) for side, mask in mean_masks.items()}, []
    outline = blurred(average_outline(export.opened.config.crop, export.opened.model.output_sizes[-1]))
    note = (
        "the model keeps no mean mask (one that is trained on with masks will): its mask is an average face's outline"
    )
    return dict.fromkeys(SIDES, outline), [note]


def blurred(mask: np.ndarray) -> np.ndarray:
    """Return a mask (S, S, 1) blurred, as if there were no face outside it: it fades towards the crop's edge too."""
    size = len(mask)
    soft = cv2.GaussianBlur(mask, (0, 0), max(1.0, size * BLUR), borderType=cv2.BORDER_CONSTANT)
    return np.clip(soft, 0, 1).astype(np.float32).reshape(size, size, 1)


def average_outline(crop: CropConfig, size: int) -> np.ndarray:
    """Return the mask that an average face has in a crop, (size, size, 1) float32 in 0..1."""
    points, alignment = _average_face()
    matrix = alignment.matrix(size, crop.centering, *crop_shares(crop))
    mask = draw_face(transform_points(matrix, points).astype(np.float32), size)
    return mask[..., None].astype(np.float32) / 255


def crop_distance(crop: CropConfig, other: CropConfig) -> float:
    """Return how far apart the corners of two crops of an average face are, in the other's edges, on average."""
    corners, other_corners = _corners(crop), _corners(other)
    edge = np.linalg.norm(other_corners[1] - other_corners[0])
    return float(np.linalg.norm(corners - other_corners, axis=1).mean() / edge)


def crop_note(crop: CropConfig) -> list[str]:
    """Return a line where programs that read a DFM cut faces otherwise than the model was trained."""
    distance = min(crop_distance(crop, other) for other in DFM_CROPS)
    if distance <= FITS:
        return []
    return [
        "the crop does not fit: programs that read a DFM cut whole faces (--face-type wf), and this one "
        f"({crop.centering} {crop.coverage:g} {crop.vertical_offset:g}) lies {100 * distance:.0f} % of its edge off, "
        "so the face will come out displaced; train a model with --face-type wf, or use --to onnx where faces are cut "
        "as its metadata says"
    ]


def _average_face() -> tuple[np.ndarray, Alignment]:
    points = (AVERAGE * 100).astype(np.float32)
    return points, align(points)


def _corners(crop: CropConfig) -> np.ndarray:
    """Return the corners of a crop of an average face, (4, 2) in px of its picture."""
    matrix = _average_face()[1].matrix(1, crop.centering, *crop_shares(crop))
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    return transform_points(cv2.invertAffineTransform(matrix), square)
