"""The previews that a model folder keeps: a bounded number, spread evenly over the training.

MODEL/preview_history/00000250.jpg        the sheet of iteration 250; what lies outside the mask is tinted
MODEL/preview_history/00000250-plain.jpg  the same without the tint, where there is a mask

The newest one is always there, so a reader needs no other file. Files of any other name are left alone.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from swapfast.errors import SwapfastError
from swapfast.files import TEMPORARY, NotAFile, cannot_write, open_new, open_plain, temporary_name, write_all

FOLDER = "preview_history"
LONGEST = 3072  # px of a picture that is kept
MOST_BYTES = 256 << 20  # of all pictures together
LARGEST_FILE = 64 << 20  # bytes of a picture that is read
MOST_PIXELS = 1 << 26  # of a picture that is read
_QUALITY = 92  # of the JPEG
_NAME = re.compile(r"([0-9]{8,12})(-plain)?\.jpg")


@dataclass(frozen=True)
class KeptPreview:
    """The pictures of one iteration. plain: without the mask's tint, None where there is only one picture."""

    step: int
    path: Path
    plain: Path | None = None

    @property
    def files(self) -> list[Path]:
        """Return the files of both pictures."""
        return [self.path] if self.plain is None else [self.path, self.plain]


def kept_previews(model_dir: Path) -> list[KeptPreview]:
    """Return the previews that a model folder keeps, oldest first; none where there are none."""
    folder = model_dir / FOLDER
    files_of_step: dict[int, dict[bool, Path]] = {}
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for name in names:
        if match := _NAME.fullmatch(name):
            files_of_step.setdefault(int(match[1]), {})[match[2] is not None] = folder / name
    return [
        KeptPreview(step, kinds[False], kinds.get(True))
        for step, kinds in sorted(files_of_step.items())
        if False in kinds
    ]


def surplus(steps: Sequence[int], limit: int) -> list[int]:
    """Return which of the steps, in order, to drop so that ``limit`` are left, the first and the last among them.

    Each time the one goes whose neighbours lie closest together: what is left is spread evenly, whatever the intervals.
    """
    left, dropped = list(steps), []
    while len(left) > max(limit, 1):
        gaps = [after - before for before, after in zip(left, left[2:])]
        index = 1 + int(np.argmin(gaps)) if gaps and limit > 1 else 0
        dropped.append(left.pop(index))
    return dropped


class PreviewHistory:
    """Keeps previews in ``model_dir``/preview_history: at most ``limit`` iterations and MOST_BYTES.

    warn: is told once where they cannot be written; nothing is raised.
    """

    def __init__(self, model_dir: Path, limit: int, warn: Callable[[str], None] = warnings.warn) -> None:
        self._model_dir, self._limit, self._warn = model_dir, limit, warn
        self._warned = False

    def add(self, step: int, sheet: np.ndarray, plain: np.ndarray | None = None) -> None:
        """Keep the sheets of ``step``, (H, W, 3) uint8 BGR, and drop what is too many.

        plain: without the mask's tint. Later iterations are dropped too: the run went back behind them.
        """
        if not self._limit:
            return
        folder = self._model_dir / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _clear_temporary(folder)
            if plain is not None:  # first, so that who sees the other one finds both
                _write(folder / f"{step:08}-plain.jpg", plain)
            _write(folder / f"{step:08}.jpg", sheet)
            self._prune(step)
        except OSError as error:
            if not self._warned:
                self._warn(f"warning: {cannot_write(folder, error)}; training goes on without it")
            self._warned = True

    def _prune(self, newest: int) -> None:
        previews = kept_previews(self._model_dir)
        given_up = [preview for preview in previews if preview.step > newest]
        previews = previews[: len(previews) - len(given_up)]
        sizes = {preview.step: sum(path.stat().st_size for path in preview.files) for preview in previews}
        limit = min(self._limit, max(1, int(MOST_BYTES / max(1.0, sum(sizes.values()) / len(sizes)))))
        dropped = set(surplus(list(sizes), limit))
        for preview in (*given_up, *(preview for preview in previews if preview.step in dropped)):
            for path in preview.files:
                path.unlink(missing_ok=True)


def _clear_temporary(folder: Path) -> None:
    """Remove what a killed run left; only the one that holds the model folder's lock writes here."""
    for leftover in folder.glob(f"{TEMPORARY}*.jpg"):
        leftover.unlink(missing_ok=True)


def _write(path: Path, sheet: np.ndarray) -> None:
    """Write a JPEG at once, without waiting for the disk: a torn picture after a power cut is only left out."""
    scale = LONGEST / max(sheet.shape[:2])
    if scale < 1:
        width, height = (max(1, round(length * scale)) for length in sheet.shape[1::-1])
        sheet = cv2.resize(sheet, (width, height), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    temporary = temporary_name(path)
    try:
        with open_new(temporary) as file:
            write_all(file, jpeg.tobytes())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_sheet(path: Path) -> np.ndarray:
    """Return a picture, (H, W, 3) uint8 BGR. Raises SwapfastError for what is none, or too large to be one of ours."""
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_FILE:
                raise SwapfastError(f"{path}: has {size >> 20} MiB, more than any preview; give another file")
            data = file.read(LARGEST_FILE)
    except NotAFile as error:
        raise SwapfastError(f"{path}: {error.strerror}; give a PNG or JPEG") from error
    except OSError as error:
        raise SwapfastError(f"{path}: {error.strerror or error}; give a PNG or JPEG") from error
    pixels = _pixel_count(data)
    if pixels is not None and pixels > MOST_PIXELS:
        raise SwapfastError(f"{path}: has {pixels / 1e6:.0f} million px, more than any preview; give a smaller picture")
    sheet = None if pixels is None else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if sheet is None:
        raise SwapfastError(f"{path}: is no picture that can be read; give a PNG or JPEG")
    return sheet


def _pixel_count(data: bytes) -> int | None:
    """Return how many pixels the header of a PNG or JPEG speaks of, None where it is neither."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
    if not data.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big") * int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
