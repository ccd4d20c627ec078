"""The kinds of foreign models that `swapfast import` reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from swapfast.errors import SwapfastError
from swapfast.interop.imported import Imported
from swapfast.interop.keras import read_keras
from swapfast.interop.keras_archive import looks_like_keras
from swapfast.interop.saehd_read import looks_like_saehd, read_saehd


class SourceKind(NamedTuple):
    """A kind of foreign model.

    looks_like: whether a path is meant as one, whole or not. read: reads it. example: how it is given.
    """

    looks_like: Callable[[Path], bool]
    read: Callable[[Path], Imported]
    example: str


SOURCES = {
    "keras": SourceKind(looks_like_keras, read_keras, "a .keras file of faceswap's original or lightweight"),
    "saehd": SourceKind(
        looks_like_saehd, read_saehd, "a folder of DeepFaceLab's SAEHD models, with /NAME where several"
    ),
}


def read_foreign(path: Path) -> Imported:
    """Read another program's model. Raises SwapfastError where it is none that is known, and where it is damaged."""
    for kind in SOURCES.values():
        if kind.looks_like(path):
            return kind.read(path)
    problem = "is no model that can be read" if path.exists() else "no such file or folder"
    raise SwapfastError(f"{path}: {problem}; give {', or '.join(kind.example for kind in SOURCES.values())}")
