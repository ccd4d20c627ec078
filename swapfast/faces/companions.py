"""Pairs pictures with the files beside them by their names, whatever the case of their endings."""

from __future__ import annotations

import os
from functools import lru_cache

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif")
_MASK = "_mask"


def find_file(name: str, file_names: frozenset[str]) -> str | None:
    """Return the file of this name, or one whose ending (.JSON, _MASK.PNG) has another case; None without one.

    file_names: of all files in the folder.
    """
    if name in file_names:
        return name
    others = _by_plain_name(file_names)
    return others.get(_plain_name(name)) if others else None


def is_mask_file(name: str, file_names: frozenset[str]) -> bool:
    """Return whether a file is, by its name, the mask of another file of the folder.

    A file with a faceswap header is a face nonetheless, which the name does not tell.
    """
    stem = os.path.splitext(name)[0]
    if not stem.lower().endswith(_MASK) or find_file(f"{stem}.json", file_names):
        return False
    face = stem[: -len(_MASK)]
    return any(find_file(face + suffix, file_names) for suffix in (".json", *PICTURE_SUFFIXES))


@lru_cache(maxsize=4)
def _by_plain_name(file_names: frozenset[str]) -> dict[str, str]:
    """Return plain name -> name of the files whose endings are not in lower case, of which most folders have none."""
    return {_plain_name(name): name for name in sorted(file_names) if _plain_name(name) != name}


def _plain_name(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    if stem[-len(_MASK) :].lower() == _MASK:
        stem = stem[: -len(_MASK)] + _MASK
    return stem + suffix.lower()
