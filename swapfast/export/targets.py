"""The kinds of files that a model can leave as, by name. Each writer is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swapfast.export.request import Export


@dataclass(frozen=True)
class Target:
    """A kind of file.

    write: makes it at a path where nothing lies yet, in a folder that exists; returns lines to tell a person. Raises
    SwapfastError, or OSError where the disk refuses. What it leaves is renamed once it is whole, or else removed.
    purpose: what it is for. suffix: of the file's name; '' for a folder.
    has_side: it makes the face of one side; otherwise it holds both, and --side is refused.
    has_half: it can hold float16; otherwise --fp16 is refused.
    has_template: it is made from a file of the other program; otherwise --template is refused.
    recipe: the one whose models it can hold; '' for all. With it the sides' statistics have no place there: only plain
    codes are taken.
    families: the models that the other program has, as -t takes them; none for all. sizes: likewise, px; none for all.
    """

    write: Callable[[Export, Path], list[str]]
    purpose: str
    suffix: str
    has_side: bool = False
    has_half: bool = False
    has_template: bool = False
    recipe: str = ""
    families: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    def can_hold(self, name: str, size: int) -> bool:
        """Return whether the other program has a model of that name, letters or not, and that size in px."""
        family = name.partition("-")[0]
        return family in (self.families or (family,)) and size in (self.sizes or (size,))


def _safetensors(export: Export, path: Path) -> list[str]:
    from swapfast.export.weights import write_safetensors

    return write_safetensors(export, path)


def _saehd(export: Export, path: Path) -> list[str]:
    from swapfast.interop.saehd_write import write_saehd

    return write_saehd(export, path)


def _keras(export: Export, path: Path) -> list[str]:
    from swapfast.interop.keras import export_keras

    return export_keras(export.opened, export.template, path)


def _onnx(export: Export, path: Path) -> list[str]:
    from swapfast.export.onnx_files import write_onnx

    return write_onnx(export, path)


def _dfm(export: Export, path: Path) -> list[str]:
    from swapfast.export.onnx_files import write_dfm

    return write_dfm(export, path)


TARGETS = {
    "dfm": Target(_dfm, "for DeepFaceLive, facefusion and VisoMaster", ".dfm", has_side=True, has_half=True),
    "onnx": Target(_onnx, "the swap to one side, for anything that runs ONNX", ".onnx", has_side=True, has_half=True),
    "safetensors": Target(_safetensors, "all weights under our own names, for train -l", ".safetensors", has_half=True),
    "saehd": Target(
        _saehd,
        "a folder that DeepFaceLab's SAEHD goes on with, of df and liae",
        "",
        recipe="saehd",
        families=("df", "liae"),
    ),
    "keras": Target(
        _keras,
        "for faceswap, whose file was imported or is given by --template",
        ".keras",
        has_template=True,
        recipe="faceswap",
        families=("original", "lightweight"),
        sizes=(64,),
    ),
}
