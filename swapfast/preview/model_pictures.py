"""The pictures of a model folder as a window shows them, while it is trained and after."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.preview.history import KeptPreview, kept_previews, read_sheet

PREVIEW = "preview.png"


class ModelPictures:
    """What there is to see in ``folder``: the previews that are kept, and preview.png where it is newer.

    kept: oldest first, as of the last ``poll``. ``sheet`` is cheap where it was asked for last.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: list[KeptPreview] = []
        self._tags: tuple[object, object] | None = None  # of preview.png and of the kept ones
        self._preview_is_newer = False
        self._last: tuple[object, np.ndarray] | None = None

    def poll(self) -> bool:
        """Look into the folder; return whether what there is has changed. Never raises for what the disk does."""
        self.kept = kept_previews(self.folder)
        shown, kept = _tag(self.folder / PREVIEW), _tag(self.kept[-1].path) if self.kept else None
        tags = shown, (len(self.kept), kept)
        if tags == self._tags:
            return False
        if self._tags is None or tags[1] != self._tags[1]:
            self._preview_is_newer = shown is not None and (kept is None or shown > kept)
        else:  # it alone was written, whatever a clock that was set back says
            self._preview_is_newer = shown is not None
        self._tags = tags
        return True

    def newest(self, tinted: bool) -> np.ndarray | None:
        """Return the newest sheet, None where there is none. tinted: with the mask, where both are kept."""
        if self.kept and not (self._preview_is_newer and tinted):  # preview.png is only tinted
            return self.sheet(self.kept[-1], tinted)
        return self._read(self.folder / PREVIEW)

    def sheet(self, preview: KeptPreview, tinted: bool) -> np.ndarray | None:
        """Return the sheet of an iteration, (H, W, 3) uint8 BGR; None where it is gone or damaged."""
        return self._read(preview.path if tinted or preview.plain is None else preview.plain)

    @property
    def has_plain(self) -> bool:
        """Whether the newest kept preview is there without the mask too."""
        return bool(self.kept) and self.kept[-1].plain is not None

    def _read(self, path: Path) -> np.ndarray | None:
        key = path, _tag(path)
        if self._last is None or self._last[0] != key:
            try:
                self._last = key, read_sheet(path)
            except SwapfastError:
                return None
        return self._last[1]


def _tag(path: Path) -> tuple[int, int] | None:
    """Return what changes with a file, the time first; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
