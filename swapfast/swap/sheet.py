"""One frame with every mask and every colour adjustment, each with the flags to copy."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import cv2
import numpy as np

from swapfast.swap.chosen import merged
from swapfast.swap.frames import Frame, FrameFace
from swapfast.swap.masks import frame_matrix
from swapfast.swap.pipeline import crop_edge
from swapfast.swap.settings import COLORS, LEARNED_TYPES, SwapSettings
from swapfast.swap.swapper import FrameInWork, FrameSwapper

CELL = 192  # px of a cell's edge
_GAP, _LINE, _MARGIN = 4, 18, 1.15  # px; px of a line of text; edge of what is shown over that of the crop
_INK, _DIM, _PAPER = (235, 235, 235), (160, 160, 160), 28
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42


def sheet_masks(swapper: FrameSwapper, face: FrameFace) -> list[str]:
    """Return the mask types that this model and this face have."""
    learned = list(LEARNED_TYPES) if swapper.model.learns_mask else []
    return ["none", "rect", "extended", "components", *learned, *sorted(face.stored_masks)]


def draw_sheet(swapper: FrameSwapper, frame: Frame, face: FrameFace, settings: SwapSettings, title: str) -> np.ndarray:
    """Return the sheet, (H, W, 3) uint8 BGR: a row per mask, a column per colour adjustment.

    settings: all others. The first column shows the frame as it is and the mask; the title says where it is from.
    """
    masks, colors = sheet_masks(swapper, face), [color for color in COLORS if color != "manual"]
    region = _region(swapper, frame, face)
    work = swapper.prepare(frame, [face])
    _predict_all(swapper, work, masks)
    rows = []
    for mask in masks:
        row = [_shown(frame.pixels, region)]
        for color in colors:
            values = merged(settings.to_dict(), {"mask": {"type": mask}, "color": {"type": color}})
            row.append(_shown(_composed(swapper, work, SwapSettings.from_dict(values)), region))
        row[0] = _with_mask(row[0], swapper, work, mask, settings, region)
        rows.append(row)
    return _arranged(rows, masks, colors, title)


def _predict_all(swapper: FrameSwapper, work: FrameInWork, masks: Sequence[str]) -> None:
    """Let the model make the face once, with every learned mask."""
    kind = next((mask for mask in masks if mask in LEARNED_TYPES[1:]), None)
    usual = work.faces[0].settings
    if kind is not None:
        work.faces[0].settings = SwapSettings.from_dict(merged(usual.to_dict(), {"mask": {"type": kind}}))
    swapper.predict([work])
    work.faces[0].settings = usual


def _composed(swapper: FrameSwapper, work: FrameInWork, settings: SwapSettings) -> np.ndarray:
    face = copy(work.faces[0])
    face.settings = settings
    return swapper.compose(swapper.measure(FrameInWork(work.frame, [face], work.occlusion))).pixels


def _region(swapper: FrameSwapper, frame: Frame, face: FrameFace) -> tuple[float, float, float]:
    """Return what is shown of the frame: x and y of its corner, and its edge, px."""
    size = swapper.output_size
    matrix = cv2.invertAffineTransform(frame_matrix(face, swapper.crop, size))
    x, y = matrix @ ((size - 1) / 2, (size - 1) / 2, 1)
    edge = crop_edge(face, swapper) * _MARGIN
    return float(x - edge / 2), float(y - edge / 2), edge


def _shown(pixels: np.ndarray, region: tuple[float, float, float]) -> np.ndarray:
    """Return a part of a frame as a cell, (CELL, CELL, 3) uint8."""
    x, y, edge = region
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    left, top, right, bottom = (round(v) for v in (x, y, x + edge, y + edge))
    height, width = pixels.shape[:2]
    canvas = np.full((max(1, bottom - top), max(1, right - left), 3), _PAPER, np.uint8)
    x0, y0, x1, y1 = max(0, left), max(0, top), min(width, right), min(height, bottom)
    if x0 < x1 and y0 < y1:
        canvas[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0:y1, x0:x1, :3]
    shrinks = len(canvas) > CELL
    return cv2.resize(canvas, (CELL, CELL), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _with_mask(
    cell: np.ndarray, swapper: FrameSwapper, work: FrameInWork, mask: str, settings: SwapSettings, region: tuple
) -> np.ndarray:
    """Return the frame's cell with a mask as a green veil."""
    values = merged(settings.to_dict(), {"mask": {"type": mask}, "color": {"type": "none"}})
    masked_swapper = copy(swapper)
    masked_swapper.wants_alpha = True
    face = copy(work.faces[0])
    face.settings = SwapSettings.from_dict(values)
    alpha = masked_swapper.compose(masked_swapper.measure(FrameInWork(work.frame, [face], work.occlusion))).alpha
    assert alpha is not None
    veil = _shown(cv2.merge([alpha] * 3), region).astype(np.float32) * (0.5 / 255)
    green = np.array((80, 200, 80), np.float32)
    return np.rint(cell + (green - cell) * veil).astype(np.uint8)


def _arranged(rows: list[list[np.ndarray]], masks: list[str], colors: list[str], title: str) -> np.ndarray:
    step = CELL + _LINE + _GAP
    head = 3 * _LINE
    width = (len(colors) + 1) * (CELL + _GAP) + _GAP
    sheet = np.full((head + len(rows) * step + _GAP, width, 3), _PAPER, np.uint8)
    _write(sheet, title, 6, 16, _INK)
    _write(sheet, "copy the flags below a picture; left: what is replaced, in green", 6, 16 + _LINE, _DIM)
    for r, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        for c, cell in enumerate(row):
            x, y = _GAP + c * (CELL + _GAP), head + r * step
            sheet[y : y + CELL, x : x + CELL] = cell
            text = f"-M {mask}" if c == 0 else f"-M {mask} -c {colors[c - 1]}"
            _write(sheet, text, x + 2, y + CELL + 13, _INK, CELL - 4)
    return sheet


def _write(sheet: np.ndarray, text: str, x: int, y: int, ink: tuple[int, int, int], room: int | None = None) -> None:
    """Write a line, smaller where it would need more px than there is room."""
    scale = _SCALE
    if room is not None:
        wide = cv2.getTextSize(text, _FONT, scale, 1)[0][0]
        scale *= min(1.0, room / wide)
    cv2.putText(sheet, text, (x, y), _FONT, scale, ink, 1, cv2.LINE_AA)
