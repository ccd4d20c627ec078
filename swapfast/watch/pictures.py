"""The pictures in a model folder: the preview of now, and those that were kept."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

PREVIEW = "preview.png"
HISTORY = ("preview_history", "timelapse")  # the first of these that holds pictures
MOST_KEPT = 5000  # steps that a slider is given
LARGEST = 64 << 20  # bytes
_KEPT = re.compile(r"([0-9]{8,12})(-plain)?\.(?:jpg|png)")
_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True)
class Picture:
    """An encoded picture. tag: changes whenever it does."""

    data: bytes
    kind: str
    tag: str


def picture_tag(path: Path) -> str | None:
    """Return what changes whenever the picture does, None where there is no picture."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    return _tag(status) if stat.S_ISREG(status.st_mode) else None


def _tag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def read_picture(path: Path) -> Picture | None:
    """Return a PNG or JPEG, None for anything else: a link, a pipe, another file, one of more than LARGEST bytes.

    Links are not followed, so nobody who hands over a model folder can have other files shown.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
                return None
            data = file.read(LARGEST)
    except (OSError, ValueError):
        return None
    kind = next((kind for magic, kind in _KINDS.items() if data.startswith(magic)), None)
    return None if kind is None else Picture(data, kind, _tag(status))


@dataclass(frozen=True)
class KeptPicture:
    """The files of one step, relative to the model folder. plain: without the mask, None where there is only one."""

    name: str
    plain: str | None


def kept_pictures(folder: Path) -> dict[int, KeptPicture]:
    """Return the pictures that were kept, by their steps in order. Of very many an even choice."""
    for name in HISTORY:
        files_of_step: dict[int, dict[bool, str]] = {}
        try:
            for entry in os.listdir(folder / name):
                if match := _KEPT.fullmatch(entry):
                    files_of_step.setdefault(int(match[1]), {})[match[2] is not None] = f"{name}/{entry}"
        except OSError:
            continue
        steps = sorted(step for step, kinds in files_of_step.items() if False in kinds)
        if steps:
            stride = -(-len(steps) // MOST_KEPT)
            chosen_steps = steps[::-1][::stride][::-1]  # the newest is among them
            return {
                step: KeptPicture(files_of_step[step][False], files_of_step[step].get(True)) for step in chosen_steps
            }
    return {}
