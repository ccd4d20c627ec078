"""The masks of a training face: drawn from its landmarks, stored in its PNG header, or a picture beside it.

Masks are (size, size) uint8, 0 outside and 255 inside, edges soft. Amounts (dilation, threshold) are percent.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from swapfast.config import CropConfig, MaskConfig, TrainConfig
from swapfast.errors import SwapfastError, unknown_name
from swapfast.faces.crop import aligned_window, crop_landmarks, crop_matrix, sample_square
from swapfast.faces.image import read_gray
from swapfast.faces.record import FaceRecord, StoredMask
from swapfast.points import transform_points


def _span(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


# The hulls whose union is a mask, as indices into the 68 points.
FACE_PARTS = (
    [*_span(0, 8), 17],  # right jaw
    [*_span(8, 16), 26],  # left jaw
    [*_span(17, 19), 8],  # right cheek
    [*_span(24, 26), 8],  # left cheek
    [*_span(19, 24), 8],  # ridge of the nose
    [*_span(17, 21), 27, *_span(31, 35), 8],  # right eye
    [*_span(22, 26), 27, *_span(31, 35), 8],  # left eye
    [*_span(27, 30), *_span(31, 35)],  # nose
)
EYE_PARTS = (_span(36, 41), _span(42, 47))
MOUTH_PARTS = (_span(48, 59),)

FEATURE_DILATION = 2.5  # percent: eyes and mouth reach a little beyond their outline

DRAWN_TYPES = ("extended", "components")
STORED_TYPES = (
    "bisenet-fp_face",
    "bisenet-fp_head",
    "custom_face",
    "custom_head",
    "unet-dfl",
    "vgg-clear",
    "vgg-obstructed",
)
FRAME_TYPES = (*DRAWN_TYPES, "file")  # made from frame px: the landmarks', or those of a plain picture
MASK_TYPES = (*FRAME_TYPES, "none", *STORED_TYPES)


def mask_names(mask: MaskConfig, face: bool, eye: bool, mouth: bool) -> list[str]:
    """Which masks a run needs, in their order: a subset of face, eye, mouth. Mask type none has no face mask."""
    wanted = {"face": face and mask.mask_type != "none", "eye": eye, "mouth": mouth}
    return [name for name, needed in wanted.items() if needed]


def training_masks(
    record: FaceRecord, crop: CropConfig, mask: MaskConfig, size: int, names: Iterable[str]
) -> np.ndarray:
    """(size, size, M) uint8: the masks ``names`` (see ``mask_names``) of one face, on its crop."""
    names = list(names)
    if not names:
        return np.empty((size, size, 0), np.uint8)
    drawn = [name for name in names if name != "face" or mask.mask_type in DRAWN_TYPES]
    points = crop_landmarks(record, crop, size) if drawn else None
    made = []
    for name in names:
        if name not in drawn:
            made.append(face_mask(record, crop, mask, size))
        elif name == "face":
            made.append(_drawn_face(points, mask, size))
        else:
            made.append(feature_mask(points, size, name))
    return cv2.merge(made).reshape(size, size, len(names))


def face_mask(record: FaceRecord, crop: CropConfig, mask: MaskConfig, size: int) -> np.ndarray:
    """(size, size): the face mask of the configured type. Raises SwapfastError if this face has none of it."""
    kind = mask.mask_type
    if kind in FRAME_TYPES:
        return face_mask_in(record, record, crop, mask, size)
    check_mask_type(record, kind)
    stored = record.stored_masks[kind]
    try:
        pixels = stored.pixels()
    except ValueError as error:
        raise SwapfastError(f"{record.path}: mask {kind!r}: {error}") from error
    cleaned = clean_stored(pixels, mask.dilation, mask.threshold, mask.blur_kernel)
    return crop_stored(cleaned, stored, record, crop, size)


def face_mask_in(
    window_of: FaceRecord, record: FaceRecord, crop: CropConfig, mask: MaskConfig, size: int
) -> np.ndarray:
    """(size, size): the face mask of ``record`` where ``window_of``'s face is cut; see ``crop_with``.

    Only for the FRAME_TYPES: they are made from frame px, in which the two pictures agree. Raises as ``face_mask``.
    """
    matrix = crop_matrix(window_of, crop, size)
    check_mask_type(record, mask.mask_type)
    if mask.mask_type != "file":
        return _drawn_face(transform_points(matrix, record.landmarks).astype(np.float32), mask, size)
    # Sampled exactly as its picture, but outside the picture there is no face.
    made = sample_square(read_mask_file(record), matrix, size, border=cv2.BORDER_CONSTANT)
    return dilate(made, mask.dilation)


def _drawn_face(points: np.ndarray, mask: MaskConfig, size: int) -> np.ndarray:
    """(size, size): the face mask of (68, 2) float32 crop px, for the DRAWN_TYPES."""
    return dilate(draw_face(points, size, extended=mask.mask_type == "extended"), mask.dilation)


def check_mask_type(record: FaceRecord, kind: str) -> None:
    """Raises SwapfastError, naming the file and what it has, if ``record`` offers no mask of type ``kind``."""
    if kind in DRAWN_TYPES or kind in record.stored_masks or (kind == "file" and record.mask_file):
        return
    has = sorted(record.stored_masks) + (["file"] if record.mask_file else [])
    if kind not in MASK_TYPES:
        raise unknown_name("mask type", kind, {*MASK_TYPES, *has})
    if kind == "none":
        raise SwapfastError(f"{record.path}: mask type none has no face mask")
    offers = f"it has {', '.join(has)}" if has else "it has none"
    if kind == "file":
        where = (
            f"put {record.path.stem}_mask.png beside it"
            if record.kind == "plain"
            else "only plain pictures have a mask file"
        )
    elif record.kind == "plain":
        where = "stored masks live in faceswap PNGs; this is a plain picture"
    else:
        where = "add it with faceswap's mask tool"
    raise SwapfastError(
        f"{record.path}: no mask {kind!r} ({offers}; {where}); "
        "or use --mask-type extended, which is drawn from the landmarks"
    )


# --- drawn from landmarks ---------------------------------------------------------------------------------


def draw_parts(points: np.ndarray, size: int, parts: Iterable[list[int]]) -> np.ndarray:
    """(size, size): the union of the convex hulls of ``parts`` of (68, 2) float crop px, rounded first."""
    whole = np.rint(points).astype(np.int32)
    canvas = np.zeros((size, size), np.uint8)
    for part in parts:
        cv2.fillConvexPoly(canvas, cv2.convexHull(whole[part]), 255, lineType=cv2.LINE_AA)
    return canvas


def draw_face(points: np.ndarray, size: int, extended: bool = True) -> np.ndarray:
    """(size, size): jaw to brows; ``extended`` reaches half a brow's height further up."""
    return draw_parts(lift_brows(points) if extended else points, size, FACE_PARTS)


def lift_brows(points: np.ndarray) -> np.ndarray:
    """(68, 2): each brow point moved away from the eyes by half its distance to them (floor division)."""
    lifted, below = points.copy(), points[[35, 36, 37, 38, 39, 42, 43, 44, 45, 46]]
    # The outermost brow points have no eye point below them, but a quarter of the way from the eye to the jaw.
    below[0] = (points[36] + (points[36] + points[0]) // 2) // 2
    below[9] = (points[45] + (points[16] + points[45]) // 2) // 2
    lifted[17:27] += (points[17:27] - below) // 2
    return lifted


def feature_mask(points: np.ndarray, size: int, name: str) -> np.ndarray:
    """(size, size): the ``eye`` (both) or ``mouth`` mask as it weighs the loss: drawn, dilated, blurred."""
    parts = {"eye": EYE_PARTS, "mouth": MOUTH_PARTS}
    if name not in parts:
        raise unknown_name("mask", name, ("face", *parts))
    canvas = draw_parts(points, size, parts[name])
    growth, softness = round(size * FEATURE_DILATION / 100), size // 16
    near = _near(points, parts[name], growth // 2 + softness // 2)
    if canvas[near].size:
        canvas[near] = blur(_grow(canvas[near], growth), softness)
    return canvas


def _near(points: np.ndarray, parts: Iterable[list[int]], reach: int) -> tuple[slice, slice]:
    """The rows and columns of a canvas that drawn ``parts`` can change if their pixels spread by ``reach``.

    A filter that spreads no further gives the same there as on the whole canvas: it ends where the canvas ends, and
    elsewhere with more zeros than the filter sees past, so that mirroring them is as good as going on.
    """
    x, y, width, height = cv2.boundingRect(np.rint(points[[*chain(*parts)]]).astype(np.int32))
    beyond = reach + 4  # of which 3 for smooth edges, which leave the hull by less
    return tuple(slice(max(at - beyond, 0), max(at + edge + beyond, 0)) for at, edge in ((y, height), (x, width)))


# --- stored in the header ---------------------------------------------------------------------------------


def clean_stored(pixels: np.ndarray, dilation: float, threshold: float, blur_kernel: int) -> np.ndarray:
    """A stored mask, still at its stored size: dilated, pushed to its ends, blurred."""
    return blur(push_to_ends(dilate(pixels, dilation), threshold), blur_kernel)


def crop_stored(pixels: np.ndarray, stored: StoredMask, record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """(size, size): the trained square of a stored mask; outside what was stored there is no face.

    faceswap skips the crop when the centerings agree at full coverage, and so loses the vertical offset: its mask
    then lies beside the face. We always crop.
    """
    x0, y0, t = aligned_window(record, crop, stored.stored_size, stored.stored_centering)
    square = _cut_or_zero(pixels, x0, y0, t)
    # As faceswap: the choice goes by the stored edge, not by that of the window cut from it.
    how = cv2.INTER_CUBIC if stored.stored_size < size else cv2.INTER_AREA
    return square if t == size else cv2.resize(square, (size, size), interpolation=how)


def _cut_or_zero(pixels: np.ndarray, x0: int, y0: int, t: int) -> np.ndarray:
    height, width = pixels.shape
    square = np.zeros((t, t), np.uint8)
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y0 + t, height), min(x0 + t, width)
    if top < bottom and left < right:
        square[top - y0 : bottom - y0, left - x0 : right - x0] = pixels[top:bottom, left:right]
    return square


# --- a picture beside the picture -------------------------------------------------------------------------


def read_mask_file(record: FaceRecord) -> np.ndarray:
    """(height, width) uint8 of the picture's mask file. Raises SwapfastError if damaged or of another size."""
    path: Path = record.mask_file
    try:
        pixels = read_gray(path)
    except ValueError as error:
        raise SwapfastError(f"{path}: {error}") from error
    if pixels.shape != (record.height, record.width):
        raise SwapfastError(
            f"{path}: the mask is {pixels.shape[1]}x{pixels.shape[0]}, its picture {record.width}x{record.height}"
        )
    return pixels


# --- operations -------------------------------------------------------------------------------------------


def dilate(mask: np.ndarray, percent: float) -> np.ndarray:
    """Grown, or shrunk where negative, by an ellipse of ``percent`` of the edge; unchanged below half a px."""
    return _grow(mask, round(mask.shape[0] * percent / 100))


def _grow(mask: np.ndarray, px: int) -> np.ndarray:
    if px == 0:
        return mask
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (abs(px), abs(px)))
    return (cv2.dilate if px > 0 else cv2.erode)(mask, ellipse)


def push_to_ends(mask: np.ndarray, percent: float) -> np.ndarray:
    """Values within ``percent`` of black or white become black or white."""
    reach = percent * 2.55
    levels = np.arange(256)
    table = np.where(levels < reach, 0, np.where(levels > 255 - reach, 255, levels)).astype(np.uint8)
    return cv2.LUT(mask, table)


def blur(mask: np.ndarray, kernel: int, passes: int = 1, box: bool = False) -> np.ndarray:
    """Blurred with a Gaussian (or box) of ``kernel`` px, made odd; each further pass 0.8 (box 0.5) times it."""
    for index in range(passes):
        edge = round(kernel * (0.5 if box else 0.8) ** index)
        if edge == 0:
            break
        edge += 1 - edge % 2
        mask = cv2.blur(mask, (edge, edge)) if box else _gaussian(mask, edge)
    return mask


def _gaussian(mask: np.ndarray, edge: int) -> np.ndarray:
    """``cv2.GaussianBlur(mask, (edge, edge), 0)`` of uint8, bit for bit, in half to a fifth of its time from 5 px on.

    OpenCV weighs with whole 256ths in both directions and rounds once, half up. Every sum on the way is a whole number
    below 2**24, so float32 keeps it exactly and its filter, which needs no care at the borders, may do the work.
    """
    if edge < 5:
        return cv2.GaussianBlur(mask, (edge, edge), 0)
    kernel = _gaussian_256ths(edge)
    sums = cv2.sepFilter2D(mask, cv2.CV_32F, kernel, kernel, delta=1 << 15)
    return (sums * np.float32(2**-16)).astype(np.uint8)


@cache
def _gaussian_256ths(edge: int) -> np.ndarray:
    """(edge,) float32: OpenCV's own weights, read off a row in which it blurs one white pixel."""
    row = np.zeros((1, 2 * edge + 1), np.uint8)
    row[0, edge] = 255
    # What is left of 255 is the weight itself, rounded: from edge 3 on none is above 128.
    blurred = cv2.GaussianBlur(row, (edge, 1), 0)[0]
    return blurred[edge - edge // 2 : edge + edge // 2 + 1].astype(np.float32)


def needed_masks(config: TrainConfig) -> tuple[str, ...]:
    """Which masks the loss will ask for; SwapfastError where one must be learned and there is none."""
    loss = config.loss
    there = config.mask.mask_type != "none"
    if loss.learn_mask and not there:
        raise SwapfastError("--learn-mask: there is nothing to learn with --mask-type none")
    weighted = there and loss.penalized_mask_loss
    return tuple(
        mask_names(
            config.mask,
            face=there and (loss.penalized_mask_loss or loss.learn_mask),
            eye=weighted and loss.eye_multiplier > 1,
            mouth=weighted and loss.mouth_multiplier > 1,
        )
    )
