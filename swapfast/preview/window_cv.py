"""A preview window by OpenCV, for where Tk is not installed."""

from __future__ import annotations

import cv2

from swapfast.preview.buffer import PreviewBase, PreviewBuffer, TriggerName, Triggers, check_display, no_display

_WAIT_MS = 50
_KEYS: dict[str, TriggerName] = {"m": "toggle_mask", "r": "refresh", "s": "save", "\r": "quit", "\n": "quit"}
_LONGEST = 1280  # px of a new window


class PreviewCV(PreviewBase):
    """Shows each picture of the buffer in a window of OpenCV's own.

    Keys: M mask, R refresh, S save, Enter quit; Escape closes. Arguments as of ``PreviewBase``. Raises SwapfastError
    where there is no display, or an OpenCV without windows.
    """

    def __init__(self, preview_buffer: PreviewBuffer, triggers: Triggers) -> None:
        super().__init__(preview_buffer, triggers)
        check_display()
        self._names: list[str] = []

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
            if self._names:
                cv2.destroyAllWindows()

    def _show_new(self) -> bool:
        """Show what is new in the buffer; return whether nothing has been shown yet."""
        if self._buffer.is_updated:
            for name, image in self._buffer.get_images():
                if name not in self._names:
                    cv2.namedWindow(name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
                    scale = min(1.0, _LONGEST / max(image.shape[:2]))
                    cv2.resizeWindow(name, *(max(1, round(length * scale)) for length in image.shape[1::-1]))
                    self._names.append(name)
                cv2.imshow(name, image)
        return not self._names

    def _is_open(self) -> bool:
        return any(cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) >= 1 for name in self._names)

    def _answer(self, code: int) -> bool:
        """Set the trigger of a key; return False where the windows are to close."""
        if code < 0:
            return True
        key = chr(code & 0xFF).lower()
        name = _KEYS.get(key)
        if name is not None:
            self._set(name)
        return name != "quit" and key != "\x1b"
