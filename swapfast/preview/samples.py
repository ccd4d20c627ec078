"""The preview sheet: what the model makes of a few faces, in faceswap's six columns."""

from __future__ import annotations

import string

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


class Samples:
    """A layout of predictions beside the faces that they were made from.

    coverage_ratio: share of the face that is trained, 0..1; predictions are pasted into the middle of the whole
    face. has_mask: show the mask. mask_opacity: percent; mask_color: '#rrggbb'.
    """

    def __init__(
        self, coverage_ratio: float, has_mask: bool, mask_opacity: int = 30, mask_color: str = "#ff0000"
    ) -> None:
        self.coverage_ratio = coverage_ratio
        self.has_mask = has_mask
        self.mask_opacity = mask_opacity / 100
        self.mask_color = np.array(parse_color(mask_color), dtype=np.float32) / 255
        self.display_mask = has_mask

    def toggle_mask_display(self) -> None:
        """Show the mask overlay if it is hidden, hide it if it is shown."""
        self.display_mask = self.has_mask and not self.display_mask

    def get_preview(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the sheet, (H, W, 3) uint8 BGR.

        predictions: (source side, destination side, n, h, w, 3 or 4) in 0..1 BGR, the 4th channel a learned mask; of
            any number of sides.
        targets: (side, n, H, W, 4) in 0..1, the whole face with its mask; H = h where coverage is 1.
        Columns: A, A>A, A>B, B, B>B, B>A; of more sides each followed by itself and then by the others. Rows are split
        into two halves side by side where they are tall.
        """
        rows = self._rows(predictions, targets)
        header = self._header(rows.shape[3], _titles(len(targets)))
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

    def _rows(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the cells of all rows, (n, columns, H, W, 3) float."""
        columns = []
        for side, destinations in enumerate(_destinations(len(targets))):
            faces, masks = targets[side, ..., :3], targets[side, ..., 3:4]
            overlaid = self._overlay(faces, masks)
            framed = self._frame(overlaid)
            inner = self._inner(faces.shape[1], predictions.shape[-2])
            columns.append(self._paste(framed, overlaid[:, inner, inner], inner))
            for destination in destinations:
                prediction = predictions[side, destination]
                mask, around = masks[:, inner, inner], framed
                if prediction.shape[-1] == 4:  # a learned mask knows nothing of what lies around the trained part
                    mask, around = prediction[..., 3:4], self._frame(self._overlay(faces, np.zeros_like(masks)))
                columns.append(self._paste(around, self._overlay(prediction[..., :3], mask), inner))
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
