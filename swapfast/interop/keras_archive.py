"""The file that Keras 3 saves a model in: a zip of config.json, metadata.json and model.weights.h5.

In the HDF5 file each layer with weights is a group ``layers/CLASS_N/layers/CLASS_N/vars`` of datasets 0 and 1. Its
attribute ``name`` is the layer's own name; where it lies follows from its class and says nothing of what it does.

Files come from anywhere: nothing is read before its size is known to be sane, and links out of the file are refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from swapfast.errors import SwapfastError, shortened
from swapfast.files import open_plain
from swapfast.requirements import import_problem

if TYPE_CHECKING:
    import h5py

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
MOST_JSON = 4 << 20  # bytes; faceswap's are of 50 KiB
COPIES = 4  # of its weights that an HDF5 file may hold: an optimizer keeps up to three averages of each
BESIDE_WEIGHTS = 16 << 20  # bytes that it may have beside these
MOST_GROUPS = 1000  # in a group; faceswap's have 40
MOST_NAME = 4096  # bytes
BACKUP = ".bk"  # ends the names of faceswap's backups
HDF5 = b"\x89HDF\r\n\x1a\n"
# What h5py raises for a file that is not what it should be.
H5_ERRORS = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError, OverflowError)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError)

_VARS = re.compile(r"(layers/\w{1,200}/){0,2}vars")

Layout = dict[str, str]  # path of a group 'vars' -> name of the layer


@dataclass(frozen=True)
class KerasArchive:
    """An archive without its weights, which are read by ``open_weights``.

    config, metadata: the two files as they are. model: what config.json says.
    """

    path: Path
    config: bytes
    metadata: bytes
    model: dict[str, Any]


def looks_like_keras(path: Path) -> bool:
    """Return whether a path is meant as a model of Keras', whole or not: also as faceswap's backup of one."""
    return path.name.lower().endswith((".keras", f".keras{BACKUP}", ".h5", ".hdf5")) and not path.is_dir()


def check_h5py(user: str) -> None:
    """Raise SwapfastError where h5py is missing. user: what needs it."""
    problem = import_problem("h5py")
    if problem is not None:
        raise SwapfastError(f"{user}: needs h5py, which cannot run here ({problem}); `pip install 'swapfast[keras]'`")


def read_archive(path: Path) -> KerasArchive:
    """Read all of an archive but the weights. Raises SwapfastError where it is none, or damaged."""
    with _opened(path) as archive:
        config = _member(path, archive, CONFIG, MOST_JSON)
        metadata = _member(path, archive, METADATA, MOST_JSON)
    return parse_archive(path, config, metadata)


def parse_archive(path: Path, config: bytes, metadata: bytes) -> KerasArchive:
    """Return an archive of its two JSON files. path: to name in errors. Raises SwapfastError where one is damaged."""
    model, about = _json(path, CONFIG, config), _json(path, METADATA, metadata)
    version = str(about.get("keras_version", "3"))
    if version.startswith(("0.", "1.", "2.")):
        raise SwapfastError(f"{path}: was saved by Keras {shortened(version)}; open and save it in a current faceswap")
    return KerasArchive(path, config, metadata, model)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with open_plain(path) as file:
            start = file.read(len(HDF5))
            if start == HDF5:
                raise SwapfastError(
                    f"{path}: is a model of Keras 2 (.h5); open it once in a current faceswap, which saves it as "
                    ".keras, and import that"
                )
            if not start.startswith(b"PK"):
                raise SwapfastError(f"{path}: is no .keras file (no zip archive); give the one that faceswap saved")
            with zipfile.ZipFile(file) as archive:
                yield archive
    except OSError as error:
        raise SwapfastError(f"{path}: cannot be read ({error.strerror or error}); give a .keras file") from error
    except _ZIP_ERRORS as error:
        raise SwapfastError(f"{path}: is damaged ({_words(error)}); give a copy that is whole") from error


def _member(path: Path, archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Return a file of the archive. Raises SwapfastError where it is missing or has more than ``most`` bytes."""
    members = [info for info in archive.infolist() if info.filename == name]
    if len(members) != 1:
        problem = "is in it twice" if members else "is missing"
        raise SwapfastError(f"{path}: {name} {problem}; give a .keras file as Keras 3 saves it")
    if members[0].file_size > most:
        raise SwapfastError(
            f"{path}: {name} has {members[0].file_size:,} bytes, where at most {most:,} belong; give a .keras file as "
            "Keras 3 saves it"
        )
    with archive.open(members[0]) as member:
        # With a number: without one all that the entry holds is unpacked before what is too much of it is dropped.
        return member.read(members[0].file_size)


def _json(path: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else _words(error)
        raise SwapfastError(f"{path}: {name} is damaged ({reason}); give a copy that is whole") from error
    if not isinstance(value, dict):
        raise SwapfastError(f"{path}: {name} is no table; give a .keras file as Keras 3 saves it")
    return value


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def open_weights(path: Path, bytes_of_weights: int) -> Iterator[h5py.File]:
    """Open the weights of an archive.

    bytes_of_weights: what its architecture needs; a file that is much larger is refused unread. Raises SwapfastError,
    also for what is damaged in it while it is open.
    """
    check_h5py(str(path))
    import h5py

    with _opened(path) as archive:
        content = _member(path, archive, WEIGHTS, COPIES * bytes_of_weights + BESIDE_WEIGHTS)
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            yield file
    except H5_ERRORS as error:
        raise SwapfastError(f"{path}: {WEIGHTS} is damaged ({_words(error)}); give a copy that is whole") from error


def layout_of(file: h5py.File) -> Layout:
    """Return the named groups of a weights file. Raises ValueError where it is not as Keras writes it."""
    layout: Layout = {}
    for path in ("", *_children(file, "layers")):
        group = f"{path}/" if path else ""
        layout[f"{group}vars"] = _name_of(file, f"{group}vars")
        if path:
            for inner in _children(file, f"{group}layers"):
                layout[f"{inner}/vars"] = _name_of(file, f"{inner}/vars")
    check_layout(layout)
    return layout


def check_layout(layout: object) -> None:
    """Raise ValueError where a layout is not as Keras makes one."""
    if not isinstance(layout, dict) or not all(isinstance(name, str) for name in layout.values()):
        raise ValueError("the names of its layers are no table of texts")
    for path in layout:
        if not _VARS.fullmatch(path):
            raise ValueError(f"{shortened(path)} is no place of a layer's weights")


def _child(file: h5py.File, path: str) -> Any:
    """Return what lies at ``path``, which no link out of the file may lead to."""
    import h5py

    item: Any = file
    for name in path.split("/"):
        link = item.get(name, getlink=True) if isinstance(item, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{path} is missing" if link is None else f"{path} is a link")
        item = item[name]
    return item


def _children(file: h5py.File, path: str) -> list[str]:
    """Return the paths of the groups in the group at ``path``, none where that is missing."""
    import h5py

    above, _, last = path.rpartition("/")
    parent = _child(file, above) if above else file
    if parent.get(last, getlink=True) is None:
        return []
    group = _child(file, path)
    if not isinstance(group, h5py.Group) or len(group) > MOST_GROUPS:
        raise ValueError(f"{path} is no group of at most {MOST_GROUPS} layers")
    return [f"{path}/{name}" for name in group]


def _name_of(file: h5py.File, path: str) -> str:
    """Return the attribute ``name`` of a group 'vars'."""
    attributes = _child(file, path).attrs
    if "name" not in attributes:
        raise ValueError(f"{path} has no name, as an early Keras 3 wrote it")
    name_id = attributes.get_id("name")
    if name_id.shape != () or name_id.get_storage_size() > MOST_NAME:
        raise ValueError(f"the name of {path} is too long")
    name = attributes["name"]
    if not isinstance(name, str) or len(name) > MOST_NAME:
        raise ValueError(f"the name of {path} is no text")
    return name


def read_dataset(file: h5py.File, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the numbers at ``path`` as float32. Raises ValueError where they have another shape or lie elsewhere."""
    import h5py

    dataset = _child(file, path)
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ValueError(f"{path} holds no numbers")
    if dataset.shape != shape or dataset.dtype.kind != "f":
        raise ValueError(f"{path} has shape {dataset.shape} and not {shape}")
    if dataset.chunks is not None and math.prod(dataset.chunks) > dataset.size:  # memory is taken by the chunk
        raise ValueError(f"{path} is stored in pieces of {dataset.chunks}, larger than itself")
    return np.asarray(dataset[()], np.float32)
