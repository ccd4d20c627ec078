"""A preview window by OpenCV, for where Tk is not installed."""

from __future__ import annotations

import os
from collections.abc import Sequence

import cv2
import numpy as np

from swapfast.preview.buffer import PreviewBase, PreviewBuffer, TriggerName, Triggers, check_display, no_display

_WAIT_MS = 50
_KEYS: dict[str, TriggerName] = {"m": "toggle_mask", "r": "refresh", "s": "save", "\r": "quit", "\n": "quit"}
_LONGEST = 1280  # px of a new window
_FONT, _FONT_SCALE, _LINE, _EDGE = cv2.FONT_HERSHEY_SIMPLEX, 0.45, 18, 6  # of a line on the screen and beside it, px
_MOST_LINES = 6  # below a picture
_LONGEST_LINE = 1000  # letters
_NARROWEST = 480  # px of a picture with lines below it
_INK, _PAPER = (230, 230, 230), 48


class PreviewCV(PreviewBase):
    """Shows each picture of the buffer in a window of OpenCV's own.

    Keys: M mask, R refresh, S save, Enter quit; Escape closes. Arguments as of ``PreviewBase``. Raises SwapfastError
    where there is no display, or an OpenCV without windows.
    """

    def __init__(self, preview_buffer: PreviewBuffer, triggers: Triggers) -> None:
        super().__init__(preview_buffer, triggers)
        check_display()
        os.environ.setdefault("QT_LOGGING_RULES", "*.warning=false")  # of fonts that OpenCV's wheel does not bring
        self._sizes: dict[str, tuple[int, ...]] = {}  # of the pictures by their windows' names

    def run(self) -> None:
        """Show the windows until all are closed, in the main thread."""
        try:
            while not self._should_close and (self._show_new() or self._is_open()):
                if not self._answer(cv2.waitKey(_WAIT_MS)):
                    break
        except cv2.error as error:
            reason = "this OpenCV is made without windows" if "implement" in str(error) else str(error).strip()
            raise no_display(" ".join(reason.split())[:300]) from error
        finally:
            if self._sizes:
                cv2.destroyAllWindows()

    def _show_new(self) -> bool:
        """Show what is new in the buffer; return whether nothing has been shown yet."""
        if self._buffer.is_updated:
            for name, image in self._buffer.get_images():
                if name not in self._sizes:
                    cv2.namedWindow(name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
                if self._sizes.get(name) != image.shape:  # not all of OpenCV's windows keep the picture's ratio
                    scale = min(1.0, _LONGEST / max(image.shape[:2]))
                    cv2.resizeWindow(name, *(max(1, round(length * scale)) for length in image.shape[1::-1]))
                    self._sizes[name] = image.shape
                cv2.imshow(name, image)
        return not self._sizes

    def _is_open(self) -> bool:
        try:
            return any(cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) >= 1 for name in self._sizes)
        except cv2.error:  # Qt's, once the last window is closed
            return False

    def _answer(self, code: int) -> bool:
        """Set the trigger of a key; return False where the windows are to close."""
        if code < 0:
            return True
        key = chr(code & 0xFF).lower()
        name = _KEYS.get(key)
        if name is not None:
            self._set(name)
        return name != "quit" and key != "\x1b"


def with_lines(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Return a picture, (H, W, 3) uint8 BGR, with lines of text on a strip below it, wrapped where they are too long.

    A picture that a new window shrinks has letters that can be read all the same, a narrow one gets a margin.
    """
    width = max(picture.shape[1], _NARROWEST)
    scale = max(1.0, width / _LONGEST)
    height, edge = round(_LINE * scale), round(_EDGE * scale)
    rows = [part for line in lines for part in _wrap(line, scale, width - 2 * edge)][:_MOST_LINES]
    strip = np.full((len(rows) * height + edge, width, 3), _PAPER, np.uint8)
    for number, line in enumerate(rows, 1):
        place = edge, round(number * height - 2 * scale)
        cv2.putText(strip, line, place, _FONT, _FONT_SCALE * scale, _INK, max(1, round(scale)), cv2.LINE_AA)
    margin = np.full((len(picture), width - picture.shape[1], 3), _PAPER, np.uint8)
    return np.vstack([np.hstack([picture, margin]), strip])


def _wrap(line: str, scale: float, width: int) -> list[str]:
    """Return a line in parts that are no wider than ``width`` px; a word that is wider is cut."""
    plain = line[:_LONGEST_LINE].encode("ascii", "replace").decode()  # OpenCV's font has no other letters
    parts = [""]
    for word in plain.split(" "):
        longer = f"{parts[-1]} {word}" if parts[-1] else word
        if cv2.getTextSize(longer, _FONT, _FONT_SCALE * scale, max(1, round(scale)))[0][0] <= width:
            parts[-1] = longer
        else:
            parts.append(word)
    return [part for part in parts if part]
