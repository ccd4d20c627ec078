"""Reads DeepFaceLab's packs: the JPEGs of a folder of aligned faces in one file.

    8 bytes     version, 1
    8 bytes     length of the pickle
    pickle      of a list of dictionaries, one a face: filename, person_name and others (protocol 4)
    8 (N + 1)   where each face begins, from the end of this table; the last counts from the file's beginning
    bytes       the JPEGs, with their metadata in them (dfl_metadata.py)
Numbers are little-endian. A face of a pack has the path PACK/NAME, as though the pack were a folder.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from swapfast.errors import SwapfastError
from swapfast.faces.companions import PICTURE_SUFFIXES
from swapfast.files import open_plain
from swapfast.interop.pickles import read_pickle
from swapfast.printing import shown_name

PACK_NAME = "faceset.pak"
_SUFFIX = ".pak"
_VERSION = 1
_HEADER = struct.Struct("<QQ")
_MOST_PICKLED = 1 << 31  # bytes
_MOST_FACE_BYTES = 1 << 29


@dataclass(frozen=True)
class FacesetPack:
    """A pack.

    members: name -> where the face begins in the file, and its length.
    time_ns: when the file was last changed.
    """

    path: Path
    members: Mapping[str, tuple[int, int]]
    time_ns: int


def find_pack(folder: Path) -> Path | None:
    """Return the pack that ``folder`` is or that lies in it, None without one.

    Raises SwapfastError where pictures lie beside the pack: DeepFaceLab would ignore them.
    """
    if folder.name.endswith(_SUFFIX) and folder.is_file():
        return folder
    pack = folder / PACK_NAME
    if not pack.is_file():
        return None
    try:
        pictures = [name for name in os.listdir(folder) if name.lower().endswith(PICTURE_SUFFIXES)]
    except OSError:
        pictures = []
    if pictures:
        raise SwapfastError(
            f"{shown_name(folder)}: holds {PACK_NAME} and {len(pictures)} pictures beside it; give "
            f"{shown_name(pack)} for the pack, or move it away for the pictures"
        )
    return pack


def is_pack(folder: Path) -> bool:
    """Return whether the faces of ``folder`` lie in a pack. The file is not looked at."""
    return folder.name.endswith(_SUFFIX)


def open_pack(path: Path) -> FacesetPack:
    """Return the pack of a file. Raises SwapfastError for a damaged one, and one that names what is refused."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise SwapfastError(f"{shown_name(path)}: cannot be read ({error.strerror})") from error
    return _open_pack(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _open_pack(path: Path, size: int, time_ns: int) -> FacesetPack:
    try:
        with open_plain(path) as file:
            head = file.read(_HEADER.size)
            version, length = _HEADER.unpack(head) if len(head) == _HEADER.size else (0, 0)
            if version != _VERSION:
                raise _damaged(path, f"its version is {version}, expected {_VERSION}")
            if length > min(size, _MOST_PICKLED):
                raise _damaged(path, f"its list has {length} bytes, the file {size}")
            names = _member_names(path, _read_exactly(file, length))
            table = _read_exactly(file, 8 * (len(names) + 1))
            starts = file.tell()
    except OSError as error:
        raise SwapfastError(f"{shown_name(path)}: cannot be read ({error.strerror or error})") from error
    # Peer: takes the last number, which counts from the file's beginning, for one from the table's end, and reads
    # beyond the file. Ours: the last face ends where the file does.
    if len(table) < 8 * (len(names) + 1):
        raise _damaged(path, "it ends within its table")
    edges = [*(starts + offset for (offset,) in struct.iter_unpack("<Q", table[:-8])), size]
    if any(low >= high for low, high in pairwise(edges)):
        raise _damaged(path, "its faces do not lie one behind the other within the file")
    members = {name: (low, high - low) for name, (low, high) in zip(names, pairwise(edges), strict=True)}
    return FacesetPack(path, members, time_ns)


def _read_exactly(file: BinaryIO, count: int) -> bytes:
    """Return so many bytes; fewer at the file's end."""
    parts = []
    while count and (part := file.read(min(count, 1 << 24))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _damaged(path: Path, reason: str) -> SwapfastError:
    return SwapfastError(f"{shown_name(path)}: is no pack of DeepFaceLab's, or damaged ({reason}); give another copy")


def _member_names(path: Path, pickled: bytes) -> list[str]:
    """Return the names of a pack's faces, those of several people with the person's name before them."""
    faces = read_pickle(pickled, shown_name(path))
    if not isinstance(faces, list) or not all(isinstance(face, dict) for face in faces):
        raise _damaged(path, "it lists no faces")
    names: list[str] = []
    for face in faces:
        parts = [part for part in (face.get("person_name"), face.get("filename")) if part is not None]
        if not parts or not all(isinstance(part, str) for part in parts):
            raise _damaged(path, "a face has no name")
        name = "_".join(parts)
        if "/" in name or "\0" in name or name.startswith("."):
            raise _damaged(path, f"{shown_name(name)[:100]!r} is no name of a file")
        names.append(name)
    if not names:
        raise SwapfastError(f"{shown_name(path)}: a pack without faces")
    if len(set(names)) < len(names):
        raise _damaged(path, "two of its faces have one name")
    return names


def read_member(path: Path) -> bytes | None:
    """Return the content of PACK/NAME, None where ``path`` is no such path. Raises ValueError with a short reason."""
    if not is_pack(path.parent):
        return None
    try:
        place = open_pack(path.parent).members.get(path.name)
        if place is None:
            raise ValueError("it is not in the pack any more")
        start, length = place
        if length > _MOST_FACE_BYTES:
            raise ValueError(f"larger than {_MOST_FACE_BYTES >> 20} MiB")
        with open_plain(path.parent) as file:
            file.seek(start)
            return _read_exactly(file, length)
    except SwapfastError as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from error


def holds_member(path: Path) -> bool:
    """Return whether ``path`` is PACK/NAME of a face in a pack."""
    try:
        return is_pack(path.parent) and path.parent.is_file() and path.name in open_pack(path.parent).members
    except SwapfastError:
        return False
