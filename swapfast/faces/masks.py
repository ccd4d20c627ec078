"""Makes the masks of a training face from its landmarks, its PNG header or the mask picture beside it.

Masks are (size, size) uint8, 0 outside and 255 inside, with soft edges. Dilation and threshold are in percent.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import chain

import cv2
import numpy as np

from swapfast.batch import MASK_NAMES
from swapfast.config import CropConfig, MaskConfig, TrainConfig
from swapfast.errors import SwapfastError, unknown_name
from swapfast.faces.crop import aligned_window, crop_landmarks, crop_matrix, resize_matrix, sample_square, shifted
from swapfast.faces.dfl_metadata import OWNER, read_metadata
from swapfast.faces.image import decode_gray, read_bytes, read_gray, read_unconverted
from swapfast.faces.jpeg import read_jpeg
from swapfast.faces.mask_check import mask_fault
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

FEATURE_DILATION = 2.5  # percent: the eye and mouth masks reach a little beyond the outline

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
FRAME_TYPES = (*DRAWN_TYPES, "file")  # made in frame px: from landmarks, or from a plain picture's mask file
MASK_TYPES = (*FRAME_TYPES, "none", *STORED_TYPES)


def mask_names(mask: MaskConfig, face: bool, eye: bool, mouth: bool) -> list[str]:
    """Return the names of the masks a run needs, in the order of MASK_NAMES. Mask type none has no face mask."""
    needed = {"face": face and mask.mask_type != "none", "eye": eye, "mouth": mouth}
    return [name for name in MASK_NAMES if needed[name]]


def training_masks(
    record: FaceRecord, crop: CropConfig, mask: MaskConfig, size: int, names: Iterable[str], margin: int = 0
) -> np.ndarray:
    """Return the masks of one face on its crop, (size, size, M) uint8.

    names: from ``mask_names``, M of them.
    margin: px around the crop to return with it on each side, as of ``crop_face``.
    Raises SwapfastError if this face lacks a mask of the configured type.
    """
    names, edge = list(names), size + 2 * margin
    if not names:
        return np.empty((edge, edge, 0), np.uint8)
    points = crop_landmarks(record, crop, size) + np.float32(margin)
    masks = []
    for name in names:
        if name != "face":
            masks.append(feature_mask(points, edge, name))
        elif mask.mask_type in DRAWN_TYPES:
            masks.append(_drawn_face(points, mask, edge))
        else:
            masks.append(face_mask(record, crop, mask, size, margin))
    return cv2.merge(masks).reshape(edge, edge, len(names))


def face_mask(record: FaceRecord, crop: CropConfig, mask: MaskConfig, size: int, margin: int = 0) -> np.ndarray:
    """Return the face mask of the configured type, (size, size). Raises SwapfastError if this face lacks it.

    margin: px around the crop, see ``training_masks``.
    """
    kind = mask.mask_type
    if kind in FRAME_TYPES:
        return face_mask_in(record, record, crop, mask, size, margin)
    check_mask_type(record, kind)
    stored_mask = record.stored_masks[kind]
    try:
        pixels = stored_mask.pixels()
    except ValueError as error:
        raise SwapfastError(f"{record.path}: mask {kind!r}: {error}") from error
    matrix = record.alignment.matrix(stored_mask.stored_size, stored_mask.stored_centering)
    if fault := mask_fault(pixels, transform_points(matrix, record.landmarks)):
        raise SwapfastError(f"{record.path}: its mask {kind!r} does not show the face: {fault}")
    cleaned = clean_stored(pixels, mask.dilation, mask.threshold, mask.blur_kernel)
    return crop_stored(cleaned, stored_mask, record, crop, size, margin)


def face_mask_in(
    reference: FaceRecord, record: FaceRecord, crop: CropConfig, mask: MaskConfig, size: int, margin: int = 0
) -> np.ndarray:
    """Return the face mask of ``record`` on the crop of ``reference``, (size, size); see ``crop_with``.

    Only for the FRAME_TYPES, which are made in the frame px that both pictures share.
    Raises SwapfastError if this face lacks a mask of the type.
    """
    matrix, edge = shifted(crop_matrix(reference, crop, size), margin, margin), size + 2 * margin
    check_mask_type(record, mask.mask_type)
    if mask.mask_type != "file":
        return _drawn_face(transform_points(matrix, record.landmarks).astype(np.float32), mask, edge)
    # Sampled exactly as its picture, but with zeros outside: there is no face there.
    pixels = sample_square(read_face_mask(record), matrix, edge, border=cv2.BORDER_CONSTANT)
    return dilate(pixels, mask.dilation)


def _drawn_face(points: np.ndarray, mask: MaskConfig, size: int) -> np.ndarray:
    """Return the face mask drawn from (68, 2) float32 crop px, (size, size), for the DRAWN_TYPES."""
    return dilate(draw_face(points, size, extended=mask.mask_type == "extended"), mask.dilation)


def check_mask_type(record: FaceRecord, kind: str) -> None:
    """Raise SwapfastError naming the file and its masks unless ``record`` has a mask of type ``kind``."""
    if kind in DRAWN_TYPES or kind in record.stored_masks or (kind == "file" and record.mask_file):
        return
    available = sorted(record.stored_masks) + (["file"] if record.mask_file else [])
    if kind not in MASK_TYPES:
        raise unknown_name("mask type", kind, {*MASK_TYPES, *available})
    if kind == "file" and record.unusable_mask:
        raise SwapfastError(f"{record.path}: {record.unusable_mask[1]}; mend it, or use another --mask-type")
    if kind == "none":
        raise SwapfastError(f"{record.path}: mask type none has no face mask")
    offers = f"it has {', '.join(available)}" if available else "it has none"
    if kind == "file":
        advice = (
            f"put {record.path.stem}_mask.png beside it"
            if record.kind == "plain"
            else "only plain pictures have a mask file"
        )
    elif record.kind == "plain":
        advice = "stored masks live in faceswap PNGs; this is a plain picture"
    else:
        advice = "add it with faceswap's mask tool"
    raise SwapfastError(
        f"{record.path}: no mask {kind!r} ({offers}; {advice}); "
        "or use --mask-type extended, which is drawn from the landmarks"
    )


# --- drawn from landmarks ---------------------------------------------------------------------------------


def draw_parts(points: np.ndarray, size: int, parts: Iterable[list[int]]) -> np.ndarray:
    """Return the union of convex hulls of landmarks, (size, size).

    points: (68, 2) float crop px, rounded to whole px first.
    parts: indices of the landmarks of each hull.
    """
    rounded = np.rint(points).astype(np.int32)
    canvas = np.zeros((size, size), np.uint8)
    for part in parts:
        cv2.fillConvexPoly(canvas, cv2.convexHull(rounded[part]), 255, lineType=cv2.LINE_AA)
    return canvas


def draw_face(points: np.ndarray, size: int, extended: bool = True) -> np.ndarray:
    """Return the face from jaw to brows, (size, size); ``extended`` adds half the brows' height above the eyes."""
    return draw_parts(lift_brows(points) if extended else points, size, FACE_PARTS)


def lift_brows(points: np.ndarray) -> np.ndarray:
    """Return (68, 2) points with the brows moved away from the eyes by half their distance (floor division)."""
    lifted, below = points.copy(), points[[35, 36, 37, 38, 39, 42, 43, 44, 45, 46]]
    # Below the outermost brow points there is no eye point: a quarter of the way from the eye to the jaw stands in.
    below[0] = (points[36] + (points[36] + points[0]) // 2) // 2
    below[9] = (points[45] + (points[16] + points[45]) // 2) // 2
    lifted[17:27] += (points[17:27] - below) // 2
    return lifted


def feature_mask(points: np.ndarray, size: int, name: str) -> np.ndarray:
    """Return the mask "eye" (both eyes) or "mouth" that weighs the loss, (size, size): drawn, dilated, blurred."""
    parts = {"eye": EYE_PARTS, "mouth": MOUTH_PARTS}
    if name not in parts:
        raise unknown_name("mask", name, ("face", *parts))
    canvas = draw_parts(points, size, parts[name])
    growth, softness = round(size * FEATURE_DILATION / 100), size // 16
    window = _changed_window(points, parts[name], growth // 2 + softness // 2)
    if canvas[window].size:
        canvas[window] = blur(_grow(canvas[window], growth), softness)
    return canvas


def _changed_window(points: np.ndarray, parts: Iterable[list[int]], reach: int) -> tuple[slice, slice]:
    """Return the rows and columns that drawn ``parts`` can change if a filter spreads them by ``reach`` px.

    The filter gives the same on this window as on the whole canvas. The window ends at the canvas's edge, or in a
    margin of zeros wider than the filter, where mirroring the border changes nothing.
    """
    x, y, width, height = cv2.boundingRect(np.rint(points[[*chain(*parts)]]).astype(np.int32))
    margin = reach + 4  # 3 of them for smooth edges, which reach less far beyond the hull
    rows = slice(max(y - margin, 0), max(y + height + margin, 0))
    return rows, slice(max(x - margin, 0), max(x + width + margin, 0))


# --- stored in the header ---------------------------------------------------------------------------------


def clean_stored(pixels: np.ndarray, dilation: float, threshold: float, blur_kernel: int) -> np.ndarray:
    """Return a stored mask dilated, thresholded and blurred at its stored size."""
    return blur(push_to_extremes(dilate(pixels, dilation), threshold), blur_kernel)


def crop_stored(
    pixels: np.ndarray, stored_mask: StoredMask, record: FaceRecord, crop: CropConfig, size: int, margin: int = 0
) -> np.ndarray:
    """Return the training crop of a stored mask, (size, size), 0 outside what was stored.

    It is cut along whole pixels of the mask, as the head is along its own: it lies within half a pixel of the mask.
    margin: px around the crop, see ``training_masks``.

    Peer: skips the crop if the centerings agree at full coverage, so the vertical offset misplaces the mask.
    Ours: always crops.
    """
    x0, y0, edge = aligned_window(record, crop, stored_mask.stored_size, stored_mask.stored_centering)
    if margin:
        to_crop = shifted(resize_matrix(edge, size), margin - size / edge * x0, margin - size / edge * y0)
        return sample_square(pixels, to_crop, size + 2 * margin, border=cv2.BORDER_CONSTANT)
    square = _cut_or_zero(pixels, x0, y0, edge)
    # As in faceswap, the stored edge decides, not the edge of the window cut from it.
    interpolation = cv2.INTER_CUBIC if stored_mask.stored_size < size else cv2.INTER_AREA
    return square if edge == size else cv2.resize(square, (size, size), interpolation=interpolation)


def _cut_or_zero(pixels: np.ndarray, x0: int, y0: int, edge: int) -> np.ndarray:
    height, width = pixels.shape
    square = np.zeros((edge, edge), np.uint8)
    row0, column0, row1, column1 = max(y0, 0), max(x0, 0), min(y0 + edge, height), min(x0 + edge, width)
    if row0 < row1 and column0 < column1:
        square[row0 - y0 : row1 - y0, column0 - x0 : column1 - x0] = pixels[row0:row1, column0:column1]
    return square


# --- a picture beside the picture -------------------------------------------------------------------------


def read_mask_file(record: FaceRecord) -> np.ndarray:
    """Return the picture's mask file, (height, width) uint8. Raises SwapfastError if damaged or of another size.

    The mask file of a face of DeepFaceLab's is its picture, whose metadata hold a mask of any size.
    """
    path = record.mask_file
    assert path is not None, "asked for only where there is a mask file"
    try:
        pixels = _mask_in_metadata(record) if path == record.path else read_gray(path)
    except ValueError as error:
        raise SwapfastError(f"{path}: {error}") from error
    if pixels.shape != (record.height, record.width):
        raise SwapfastError(
            f"{path}: the mask is {pixels.shape[1]}x{pixels.shape[0]}, its picture {record.width}x{record.height}"
        )
    return pixels


def _mask_in_metadata(record: FaceRecord) -> np.ndarray:
    """Return the mask in DeepFaceLab's metadata, resized to its picture. Raises ValueError with a short reason."""
    metadata = read_jpeg(read_bytes(record.path)).app15
    mask = None if metadata is None else read_metadata(metadata).mask
    if mask is None:
        raise ValueError("it has changed since the folder was read; start again")
    return cv2.resize(decode_gray(mask), (record.width, record.height), interpolation=cv2.INTER_LINEAR)


def read_face_mask(record: FaceRecord) -> np.ndarray:
    """Return the picture's mask file like ``read_mask_file``. Raises SwapfastError if it does not show the face."""
    pixels = read_mask_file(record)
    if mask_fault(pixels, record.landmarks):
        assert record.mask_file is not None
        in_metadata = record.mask_file == record.path
        fault = mask_fault(pixels, record.landmarks, None if in_metadata else read_unconverted(record.mask_file))
        name = f"in {OWNER}" if in_metadata else record.mask_file.name
        raise SwapfastError(f"{record.path}: its mask {name} does not show the face: {fault}")
    return pixels


# --- operations -------------------------------------------------------------------------------------------


def dilate(mask: np.ndarray, percent: float) -> np.ndarray:
    """Return the mask grown by an ellipse of ``percent`` of the edge; negative values shrink it."""
    return _grow(mask, round(mask.shape[0] * percent / 100))


def _grow(mask: np.ndarray, px: int) -> np.ndarray:
    if px == 0:
        return mask
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (abs(px), abs(px)))
    return (cv2.dilate if px > 0 else cv2.erode)(mask, ellipse)


def push_to_extremes(mask: np.ndarray, percent: float) -> np.ndarray:
    """Return the mask with values within ``percent`` of 0 or 255 set to 0 or 255."""
    reach = percent * 2.55
    levels = np.arange(256)
    table = np.where(levels < reach, 0, np.where(levels > 255 - reach, 255, levels)).astype(np.uint8)
    return cv2.LUT(mask, table)


def blur(mask: np.ndarray, kernel: int, passes: int = 1, box: bool = False) -> np.ndarray:
    """Return the mask blurred with a Gaussian or box filter.

    kernel: px, rounded up to an odd number. Each further pass takes 0.8 times the size before (box: 0.5).
    """
    for index in range(passes):
        edge = round(kernel * (0.5 if box else 0.8) ** index)
        if edge == 0:
            break
        edge += 1 - edge % 2
        mask = cv2.blur(mask, (edge, edge)) if box else _gaussian(mask, edge)
    return mask


def _gaussian(mask: np.ndarray, edge: int) -> np.ndarray:
    """Return ``cv2.GaussianBlur(mask, (edge, edge), 0)`` of uint8, bit for bit, two to five times as fast from 5 px on.

    OpenCV weighs with whole 256ths in both directions and rounds once, half up. Every intermediate sum is a whole
    number below 2**24. float32 represents it exactly, so OpenCV's faster float filter gives the same.
    """
    if edge < 5:
        return cv2.GaussianBlur(mask, (edge, edge), 0)
    kernel = _gaussian_256ths(edge)
    sums = cv2.sepFilter2D(mask, cv2.CV_32F, kernel, kernel, delta=1 << 15)
    return (sums * np.float32(2**-16)).astype(np.uint8)


@cache
def _gaussian_256ths(edge: int) -> np.ndarray:
    """Return OpenCV's weights, (edge,) float32, read off a blurred row with one white pixel."""
    row = np.zeros((1, 2 * edge + 1), np.uint8)
    row[0, edge] = 255
    # 255 * weight / 256 rounds to the weight itself: from edge 3 on no weight exceeds 128.
    blurred = cv2.GaussianBlur(row, (edge, 1), 0)[0]
    return blurred[edge - edge // 2 : edge + edge // 2 + 1].astype(np.float32)


def needed_masks(config: TrainConfig) -> tuple[str, ...]:
    """Return the names of the masks that the loss uses. Raises SwapfastError for --learn-mask without a mask."""
    loss = config.loss
    has_mask = config.mask.mask_type != "none"
    if loss.learn_mask and not has_mask:
        raise SwapfastError(
            "--learn-mask: there is nothing to learn with --mask-type none; leave one of them out, or where a recipe "
            "learns it give --set loss.learn_mask=false"
        )
    weighted = has_mask and loss.penalized_mask_loss
    return tuple(
        mask_names(
            config.mask,
            face=has_mask and (loss.penalized_mask_loss or loss.learn_mask or loss.blur_out_mask),
            eye=(weighted and loss.eye_multiplier > 1) or (has_mask and loss.eye_mouth_priority > 0),
            mouth=(weighted and loss.mouth_multiplier > 1) or (has_mask and loss.eye_mouth_priority > 0),
        )
    )
