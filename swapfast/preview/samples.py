"""The preview sheet: what the model makes of a few faces, in faceswap's six columns."""

from __future__ import annotations

import string
from collections.abc import Sequence

import cv2
import numpy as np

from swapfast.errors import SwapfastError

_LABELS = string.ascii_uppercase + string.digits + string.ascii_lowercase
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def parse_color(text: str) -> tuple[int, int, int]:
    """Return '#rrggbb' as (blue, green, red), 0..255. Raises SwapfastError for anything else."""
    try:
        if len(text) != 7 or text[0] != "#":
            raise ValueError
        red, green, blue = bytes.fromhex(text[1:])
    except ValueError:
        raise SwapfastError(f"mask colour {text!r}: give it as #rrggbb, such as #ff0000") from None
    return blue, green, red


def _destinations(sides: int) -> list[list[int]]:
    """Return the sides that each side's faces are turned into: itself first, then the others in their order."""
    return [[side, *range(side), *range(side + 1, sides)] for side in range(sides)]


def _titles(sides: int) -> list[str]:
    """Return the titles of all columns."""
    titles = []
    for side, destinations in enumerate(_destinations(sides)):
        titles.append(_LABELS[side])
        titles += [f"{_LABELS[side]} > {_LABELS[destination]}" for destination in destinations]
    return titles


def _resized(pictures: np.ndarray, size: int) -> np.ndarray:
    """Return (n, h, h, C) at ``size`` px, itself where it has that."""
    if pictures.shape[1] == size:
        return pictures
    method = cv2.INTER_AREA if pictures.shape[1] > size else cv2.INTER_CUBIC
    return np.stack([cv2.resize(picture, (size, size), interpolation=method) for picture in pictures])


class Samples:
    """A layout of predictions beside the faces that they were made from.

    coverage_ratio: share of the face that is trained, 0..1; predictions are pasted into the middle of the whole
    face. has_mask: show the mask. mask_opacity: percent; mask_color: '#rrggbb'. mask_column: behind each prediction
    show the mask that was learned with it, white inside.
    """

    def __init__(
        self,
        coverage_ratio: float,
        has_mask: bool,
        mask_opacity: int = 30,
        mask_color: str = "#ff0000",
        mask_column: bool = False,
    ) -> None:
        self.coverage_ratio = coverage_ratio
        self.has_mask = has_mask
        self.mask_opacity = mask_opacity / 100
        self.mask_color = np.array(parse_color(mask_color), dtype=np.float32) / 255
        self.display_mask = has_mask
        self.mask_column = mask_column

    def toggle_mask_display(self) -> None:
        """Show the mask overlay if it is hidden, hide it if it is shown."""
        self.display_mask = self.has_mask and not self.display_mask

    def get_preview(
        self,
        predictions: np.ndarray | Sequence[Sequence[np.ndarray]],
        targets: np.ndarray | Sequence[np.ndarray],
    ) -> np.ndarray:
        """Return the sheet, (H, W, 3) uint8 BGR.

        predictions: (source side, destination side, n, h, w, 3 or 4) in 0..1 BGR, the 4th channel a learned mask; of
            any number of sides. Or nested sequences [source][destination] of (n, h, w, 3 or 4), where sizes differ.
        targets: (side, n, H, W, 4) in 0..1, the whole face with its mask; H = h where coverage is 1. Or a sequence of
            (n, H, W, 4), where sizes differ: the largest decides, and smaller ones are enlarged.
        Columns: A, A>A, A>B, B, B>B, B>A; of more sides each followed by itself and then by the others. Rows are split
        into two halves side by side where they are tall. Raises ValueError where a side has another number of faces.
        """
        predictions, targets = self._one_size(predictions, targets)
        rows = self._rows(predictions, targets)
        titles = _titles(len(targets))
        if self.mask_column:
            titles = self._with_mask_titles(titles, predictions)
        header = self._header(rows.shape[3], titles)
        count, columns, height, width = rows.shape[:4]
        sheet = rows.transpose(0, 2, 1, 3, 4).reshape(count * height, columns * width, 3)
        if sheet.shape[0] > sheet.shape[1] and count > 1:
            if count % 2:
                sheet = np.vstack([sheet, np.zeros_like(sheet[:height])])
            sheet = np.hstack(np.vsplit(sheet, 2))
            header = np.hstack([header, header])
        # The peer casts without limits, so a value just above 1 wraps around to black.
        pixels = (np.clip(sheet, 0, 1) * 255).astype(np.uint8)
        return np.vstack([header, pixels])

    def _one_size(
        self, predictions: np.ndarray | Sequence[Sequence[np.ndarray]], targets: np.ndarray | Sequence[np.ndarray]
    ) -> tuple[Sequence[Sequence[np.ndarray]], Sequence[np.ndarray]]:
        """Return all faces at the largest target's size, and all predictions at that of its trained part.

        What has that size, to the px that coverage rounds, stays as it is.
        """
        counts = {len(faces) for faces in targets} | {len(face) for row in predictions for face in row}
        if len(counts) != 1:
            raise ValueError(f"sides of different numbers of faces: {sorted(counts)}")
        size = max(faces.shape[1] for faces in targets)
        trained = 2 * round(size * self.coverage_ratio / 2)
        near = [face.shape[1] for row in predictions for face in row if abs(face.shape[1] - trained) <= 2]
        trained = near[0] if near else trained
        return (
            [[_resized(face, trained) for face in row] for row in predictions],
            [_resized(faces, size) for faces in targets],
        )

    def _with_mask_titles(self, titles: list[str], predictions: Sequence[Sequence[np.ndarray]]) -> list[str]:
        """Return the titles with one for each column of a learned mask."""
        result: list[str] = []
        remaining = iter(titles)
        for side, destinations in enumerate(_destinations(len(predictions))):
            result.append(next(remaining))
            for destination in destinations:
                result.append(next(remaining))
                if predictions[side][destination].shape[-1] == 4:
                    result.append("mask")
        return result

    def _rows(self, predictions: Sequence[Sequence[np.ndarray]], targets: Sequence[np.ndarray]) -> np.ndarray:
        """Return the cells of all rows, (n, columns, H, W, 3) float."""
        columns = []
        for side, destinations in enumerate(_destinations(len(targets))):
            faces, masks = targets[side][..., :3], targets[side][..., 3:4]
            overlaid = self._overlay(faces, masks)
            framed = self._frame(overlaid)
            inner = self._inner(faces.shape[1], predictions[side][side].shape[-2])
            columns.append(self._paste(framed, overlaid[:, inner, inner], inner))
            for destination in destinations:
                prediction = predictions[side][destination]
                mask, around = masks[:, inner, inner], framed
                if prediction.shape[-1] == 4:  # a learned mask knows nothing of what lies around the trained part
                    mask, around = prediction[..., 3:4], self._frame(self._overlay(faces, np.zeros_like(masks)))
                columns.append(self._paste(around, self._overlay(prediction[..., :3], mask), inner))
                if self.mask_column and prediction.shape[-1] == 4:
                    columns.append(self._paste(np.zeros_like(faces), np.repeat(mask, 3, axis=-1), inner))
        return np.stack(columns, axis=1)

    @staticmethod
    def _inner(face_size: int, trained_size: int) -> slice:
        pad = (face_size - trained_size) // 2
        return slice(pad, pad + trained_size)

    @staticmethod
    def _paste(faces: np.ndarray, patches: np.ndarray, inner: slice) -> np.ndarray:
        result = faces.copy()
        result[:, inner, inner] = patches
        return result

    def _frame(self, faces: np.ndarray) -> np.ndarray:
        """Mark the corners of the trained part, where it is smaller than the face. (n, H, H, 3) float."""
        if self.coverage_ratio >= 1:
            return faces
        size = faces.shape[1]
        pad, length = (size - 2 * round(size * self.coverage_ratio / 2)) // 2, size // 4
        near, far = pad - 1, size - pad + 1
        framed = faces.copy()
        for rows in (slice(near, near + length), slice(far - length, far)):
            for columns in (slice(near, near + length), slice(far - length, far)):
                framed[:, rows, columns] = self.mask_color
        return framed

    def _overlay(self, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Tint what lies outside the mask."""
        if not self.display_mask:
            return images
        amount = self.mask_opacity * (1 - masks)
        return images * (1 - amount) + self.mask_color * amount

    def _header(self, width: int, titles: list[str]) -> np.ndarray:
        """Return the column titles, uint8 (width / 4.5, len(titles) * width, 3)."""
        height = int(width / 4.5)
        header = np.full((height, len(titles) * width, 3), 255, dtype=np.uint8)
        scale = height / 40
        for column, title in enumerate(titles):
            (text_width, text_height), _ = cv2.getTextSize(title, _FONT, scale, 1)
            x = column * width + (width - text_width) // 2
            cv2.putText(header, title, (x, (height + text_height) // 2), _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
        return header
