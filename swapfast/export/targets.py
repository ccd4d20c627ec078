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
    is_plain: it cannot hold a model whose features are normalised: only those of --code plain are taken.
    """

    write: Callable[[Export, Path], list[str]]
    purpose: str
    suffix: str
    has_side: bool = False
    has_half: bool = False
    has_template: bool = False
    is_plain: bool = False


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
    "saehd": Target(_saehd, "a folder that DeepFaceLab's SAEHD goes on with, of df and liae", "", is_plain=True),
    "keras": Target(
        _keras,
        "for faceswap, whose file was imported or is given by --template",
        ".keras",
        has_template=True,
        is_plain=True,
    ),
}
