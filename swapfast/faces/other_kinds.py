"""Names what a file or folder is that holds no faces that can be read, and the way out."""

from __future__ import annotations

import os
from pathlib import Path

from swapfast.faces.companions import PICTURE_SUFFIXES
from swapfast.printing import printable

_STARTS = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"8BPS", "a Photoshop file"),
)
_BRANDS = ((b"avif", "an AVIF"), (b"avis", "an AVIF"), (b"hei", "a HEIC"), (b"hev", "a HEIC"), (b"mif1", "a HEIC"))
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")


def kind_of(data: bytes) -> str | None:
    """Return what a file is that is neither PNG nor JPEG, with the way out; None if its beginning does not tell."""
    if data.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs, not the picture: fetch it with git lfs pull"
    if data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not a picture: download it again"
    picture = next((kind for start, kind in _STARTS if data.startswith(start)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        picture = "a WebP"
    elif data[4:8] == b"ftyp":
        picture = next((kind for brand, kind in _BRANDS if data[8:].startswith(brand)), None)
    return picture and f"{picture}, which is not read: convert to PNG or JPEG"


def hint_for(folder: Path) -> str:
    """Return what to give in place of a folder without pictures, as one phrase."""
    names = sorted(os.listdir(folder))
    archives = [name for name in names if name.lower().endswith(_ARCHIVES)]
    if archives:
        return f"{printable(archives[0])} is an archive: unpack it first"
    inside = [name for name in names if not name.startswith((".", "@")) and _has_pictures(folder / name)]
    if inside:
        return f"{', '.join(printable(str(folder / name)) for name in inside[:3])} holds pictures: give that"
    return "give the folder that holds the faces"


def _has_pictures(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(PICTURE_SUFFIXES) for entry in entries)
    except OSError:
        return False


def is_archive(path: Path) -> bool:
    """Return whether a file is, by its name, an archive."""
    return path.name.lower().endswith(_ARCHIVES)
