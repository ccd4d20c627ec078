"""Reads landmarks of many frames from one file of JSON lines.

    {"format": "swapfast landmarks", "version": 1, "source": "clip.mp4", "frames": 1500, "size": [1920, 1080],
     "orientation": "shown"}
    {"frame": 0, "face": 0, "landmarks": [[x, y], ... 68 of them], "track": 3}
    {"name": "shot_0001.png", "landmarks": [...]}

The first line is the header. All of it but "format" and "version" may be missing:
    source       name of the video or folder that the faces were found in
    frames       how many frames it has
    size         [width, height] of its frames, px
    orientation  "shown": landmarks are of frames as a player shows them; "stored": as they are stored, which differs
                 for clips of a phone that was held upright. Where it is missing, "size" tells, and "shown" is the rest.
A face's line says which frame by "frame", counted from 0, or by "name". "face" is its index in the frame (the order of
lines where it is missing), "track" one person's face from frame to frame, "size" overrides the header's.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from swapfast.errors import SwapfastError, shortened
from swapfast.faces.reader import landmarks_of
from swapfast.files import open_plain
from swapfast.swap.face_spool import BY_ORDER, FacesByIndex, FacesByName, FaceSpool, FoundFace
from swapfast.swap.found_faces import FaceTable

FORMAT, VERSION = "swapfast landmarks", 1
DECIMALS = 3  # of a pixel, that are written
_LONGEST_LINE = 1 << 16  # 68 points take 3 KB
_MOST_FRAMES = 1 << 60
_ORIENTATIONS = {"shown": False, "stored": True}


@dataclass(frozen=True)
class LandmarkFile:
    """What a file of landmarks says of its source, and its faces."""

    source: str
    frames: int | None
    size: tuple[int, int] | None
    faces: FaceTable


def read_landmark_file(path: Path, flag: str = "--landmarks") -> LandmarkFile:
    """Return the faces of a file. Raises SwapfastError naming the line that is wrong."""
    where = f"{flag} {path}"
    spool = FaceSpool()
    by_name, by_index = FacesByName(spool), FacesByIndex(spool)
    try:
        with open_plain(path) as raw:
            header = _header(raw.readline(_LONGEST_LINE), where)
            size, is_stored = _size(header, where), _is_stored(header, where)
            # A line is read no further than it may be long: without an end it would fill the memory.
            lines = iter(partial(io.BufferedReader(raw).readline, _LONGEST_LINE), b"")  # type: ignore[type-var]
            for number, line in enumerate(lines, 2):
                if line.strip():
                    _add_line(line, f"{where}: line {number}", path.name, size, is_stored, by_name, by_index)
    except OSError as error:
        raise SwapfastError(f"{where}: cannot be read ({error.strerror or error}); give another file") from error
    spool.end()
    if not by_name and not by_index:
        raise SwapfastError(f"{where}: holds no face; give another file")
    frames = header.get("frames")
    source = header.get("source")
    return LandmarkFile(
        source if isinstance(source, str) else "",
        frames if type(frames) is int else None,
        size,
        FaceTable(where, by_name, by_index),
    )


def _header(line: bytes, where: str) -> dict[str, Any]:
    header = _parsed(line, f"{where}: line 1")
    if header.get("format") != FORMAT:
        raise SwapfastError(
            f'{where}: does not begin with {{"format": "{FORMAT}", "version": {VERSION}}}; docs/swap.md has the format'
        )
    if header.get("version") != VERSION:
        raise SwapfastError(
            f"{where}: version {shortened(header.get('version'))} is not read; this program reads {VERSION}"
        )
    return header


def _size(table: dict[str, Any], where: str) -> tuple[int, int] | None:
    size = table.get("size")
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(type(edge) is int and edge > 0 for edge in size):
        raise SwapfastError(f'{where}: "size" {shortened(size)} is not [width, height]')
    return size[0], size[1]


def _is_stored(header: dict[str, Any], where: str) -> bool | None:
    orientation = header.get("orientation")
    if orientation is None:
        return None
    if orientation not in _ORIENTATIONS:
        raise SwapfastError(f'{where}: "orientation" {shortened(orientation)} is neither "shown" nor "stored"')
    return _ORIENTATIONS[orientation]


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    if len(line) >= _LONGEST_LINE:
        raise SwapfastError(f"{where}: is longer than {_LONGEST_LINE} bytes")
    try:
        table = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SwapfastError(f"{where}: is not valid JSON; each line is one table") from error
    if not isinstance(table, dict):
        raise SwapfastError(f"{where}: is not a table")
    return table


def _add_line(
    line: bytes,
    where: str,
    file_name: str,
    size: tuple[int, int] | None,
    is_stored: bool | None,
    by_name: FacesByName,
    by_index: FacesByIndex,
) -> None:
    table = _parsed(line, where)
    frame, name = table.get("frame"), table.get("name")
    by_number = type(frame) is int and 0 <= frame < _MOST_FRAMES
    if not (isinstance(name, str) and name) and not by_number:
        raise SwapfastError(f'{where}: says neither "frame", counted from 0, nor "name"')
    index, track = table.get("face", BY_ORDER), table.get("track")
    if "face" in table and (type(index) is not int or index < 0):
        raise SwapfastError(f'{where}: "face" {shortened(index)} is no index')
    if track is not None and type(track) is not int:
        raise SwapfastError(f'{where}: "track" {shortened(track)} is no whole number')
    try:
        points = landmarks_of(table, "it")
    except ValueError as error:
        raise SwapfastError(f"{where}: {error}") from error
    face = FoundFace(points, index, file_name, _size(table, where) or size, is_stored, track)
    if isinstance(name, str) and name:
        by_name.add(name, face)
    elif isinstance(frame, int):
        by_index.add(frame, face)


def landmark_line(
    landmarks: Any,
    frame: int | None = None,
    name: str | None = None,
    face: int = 0,
    track: int | None = None,
    size: tuple[int, int] | None = None,
    **details: Any,
) -> str:
    """Return the line of a face, without its end. landmarks: (68, 2) px. details: further keys, which nobody reads."""
    table: dict[str, Any] = {"frame": frame} if name is None else {"name": name}
    table["face"] = face
    if track is not None:
        table["track"] = track
    if size is not None:
        table["size"] = list(size)
    table |= details
    table["landmarks"] = [[round(float(x), DECIMALS), round(float(y), DECIMALS)] for x, y in landmarks]
    return json.dumps(table)


def header_line(
    source: str = "", frames: int | None = None, size: tuple[int, int] | None = None, orientation: str = "shown"
) -> str:
    """Return the first line of a file, without its end."""
    table: dict[str, Any] = {"format": FORMAT, "version": VERSION, "source": source, "orientation": orientation}
    if frames is not None:
        table["frames"] = frames
    if size is not None:
        table["size"] = list(size)
    return json.dumps(table)
