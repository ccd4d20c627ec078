"""Which faces a frame has: from the headers of a folder of face PNGs, from a file of landmarks, or from NAME.json.

    -p FACES             faceswap's face PNGs: their headers name frame, index and landmarks. Only faces that are still
                         in the folder are swapped.
    --landmarks FILE     JSON lines, one a face, see landmark_file.py
    NAME.json            beside a picture NAME.png or NAME.jpg: "landmarks", or "faces": a list of such tables
Landmarks are px of the frame. Where they were measured on a frame of another size, their faces are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import NamedTuple, Protocol

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.faces.companions import find_file
from swapfast.faces.orientation import stored_landmarks
from swapfast.faces.png import FaceswapHeader, read_header
from swapfast.faces.reader import landmarks_of, parse_json, placed_landmarks, read_json
from swapfast.files import not_a_folder
from swapfast.printing import shown_name
from swapfast.swap.face_spool import FacesByName, FaceSpool, FoundFace
from swapfast.swap.frames import Frame, FrameFace
from swapfast.swap.picture_file import PictureOrigin
from swapfast.system import on_all_cores

_MOST_FACES = 1000  # of one frame


class FacesOfFrame(NamedTuple):
    """The faces of a frame, by their index, and why others were left out."""

    faces: list[FrameFace]
    skipped: list[str]


class FaceFinder(Protocol):
    """Knows the faces of frames. It may be asked by several threads."""

    def __call__(self, frame: Frame) -> FacesOfFrame:
        """Return the faces of a frame."""


@dataclass(frozen=True)
class FaceTable:
    """Faces by the name, or by the index, of their frame.

    source: what they were read from, as messages name it.
    """

    source: str
    by_name: Mapping[str, Sequence[FoundFace]]
    by_index: Mapping[int, Sequence[FoundFace]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Return the number of faces."""
        return sum(map(len, self.by_name.values())) + sum(map(len, self.by_index.values()))

    @cached_property
    def _by_stem(self) -> dict[str, str]:
        return {PurePath(name).stem: name for name in self.by_name}

    def _of_name(self, name: str) -> Sequence[FoundFace]:
        if name not in self.by_name:
            name = self._by_stem.get(PurePath(name).stem, name)
        return self.by_name.get(name, ())

    def __call__(self, frame: Frame) -> FacesOfFrame:
        """Return the faces of a frame. Its name may have another ending, for frames are converted."""
        return fitted([*self._of_name(frame.name), *self.by_index.get(frame.index, ())], frame)

    def check_frames(self, names: Sequence[str]) -> None:
        """Raise SwapfastError where these faces belong to none of the frames ``names``."""
        if self.by_index or any(map(self._of_name, names)):
            return
        theirs, ours = min(self.by_name), names[0] if names else ""
        raise SwapfastError(
            f"{self.source}: none of its faces belongs to these frames: they are of {shown_name(theirs)} and others, "
            f"the frames are {shown_name(ours)} and others; give the faces that were extracted from them"
        )


def fitted(candidates: Sequence[FoundFace], frame: Frame) -> FacesOfFrame:
    """Return the faces that fit a frame, aligned."""
    placed, skipped = [], []
    for face in sorted(candidates, key=lambda f: f.index)[:_MOST_FACES]:
        try:
            placed.append(_placed(face, frame))
        except ValueError as error:
            skipped.append(str(error))
    faces = aligned(placed)
    return FacesOfFrame(faces.faces, skipped + faces.skipped)


def aligned(candidates: Sequence[FoundFace]) -> FacesOfFrame:
    """Return faces whose landmarks are px of their frame, aligned; those that cannot be a face are skipped."""
    faces, skipped = [], []
    for face in candidates:
        masks = dict(face.stored_masks)
        try:
            faces.append(
                FrameFace.from_landmarks(
                    face.landmarks, index=face.index, stored_masks=masks, track=face.track, name=face.name
                )
            )
        except ValueError as error:
            skipped.append(str(error))
    return FacesOfFrame(faces, skipped)


def _placed(face: FoundFace, frame: Frame) -> FoundFace:
    """Return the face with landmarks in px of the frame as it is shown. Raises ValueError where they are of another."""
    shown_size = frame.size
    stored_size = shown_size[::-1] if frame.turned in (90, 270) else shown_size
    measured_size = face.frame_size
    is_stored = face.is_stored
    if is_stored is None and measured_size is not None and frame.turned in (90, 270) and shown_size[0] != shown_size[1]:
        is_stored = measured_size == stored_size
    if measured_size is not None and measured_size != (stored_size if is_stored else shown_size):
        sizes = [f"{width}x{height}" for width, height in (measured_size, shown_size)]
        raise ValueError(f"landmarks of a frame of {sizes[0]} px, but the frame has {sizes[1]}")
    if not is_stored or not frame.turned:
        return face
    # Where a picture is turned to be shown, points of the stored one go the way back of EXIF's.
    back = {90: 8, 180: 3, 270: 6}[frame.turned]
    return replace(face, landmarks=stored_landmarks(face.landmarks, back, shown_size[0], shown_size[1]))


# --- headers of face PNGs ---------------------------------------------------------------------------------


def _header_of(path: Path) -> FaceswapHeader | str:
    try:
        return read_header(path) or "no faceswap header"
    except ValueError as error:
        return str(error)


def read_faces_folder(folder: Path, flag: str = "-p") -> FaceTable:
    """Return the faces of a folder of faceswap's face PNGs.

    Raises SwapfastError where there are none.
    """
    if not folder.is_dir():
        raise not_a_folder(folder, f"{flag} {folder}", "the folder of the faces that were extracted")
    names = sorted(n for n in os.listdir(folder) if n.lower().endswith(".png") and not n.startswith("."))
    headers = on_all_cores(_header_of, [folder / name for name in names])
    spool = FaceSpool()
    by_name = FacesByName(spool)
    reasons: dict[str, str] = {}
    for name, header in zip(names, headers, strict=True):
        if isinstance(header, str):
            reasons[name] = header
        elif not header.source_filename:
            reasons[name] = "its header names no frame"
        else:
            _add(by_name, header, name)
    spool.end()
    if not by_name:
        first = f" ({shown_name(names[0])}: {reasons[names[0]]})" if names else ""
        raise SwapfastError(
            f"{flag} {folder}: holds no face PNG of faceswap's extract, whose header names its frame{first}; give the "
            "folder that extract made, or --landmarks FILE"
        )
    remarks = [
        f"{flag} {folder}: {len(reasons)} of {len(names)} files are left out, such as {shown_name(name)}: {reason}"
        for name, reason in list(reasons.items())[:1]
    ]
    return FaceTable(f"{flag} {folder}", by_name, remarks=tuple(remarks))


def _add(by_name: FacesByName, header: FaceswapHeader, name: str) -> None:
    dims = header.frame_dims
    face = FoundFace(
        header.landmarks,
        header.face_index,
        name,
        None if dims is None else (dims[1], dims[0]),
        stored_masks=header.masks,
    )
    # Windows' paths too: older headers hold the whole path.
    frame_name = header.source_filename.replace("\\", "/").rpartition("/")[2]
    by_name.add(frame_name, face)


# --- NAME.json beside frames ------------------------------------------------------------------------------


class JsonBeside:
    """Reads the NAME.json beside each picture when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._names = folder, frozenset(os.listdir(folder))

    @property
    def names(self) -> list[str]:
        """Return the names of the JSON files, which may have several faces each."""
        return sorted(name for name in self._names if name.lower().endswith(".json"))

    @property
    def count(self) -> int:
        """Return the number of JSON files."""
        return len(self.names)

    def __call__(self, frame: Frame) -> FacesOfFrame:
        """Return the faces of a frame. A file that cannot be read is a reason, like a face that does not fit."""
        name = find_file(f"{PurePath(frame.name).stem}.json", self._names)
        if name is None:
            return FacesOfFrame([], [])
        try:
            faces = self._read(self._folder / name, frame)
        except ValueError as error:
            return FacesOfFrame([], [f"{shown_name(name)}: {error}"])
        return fitted(faces, frame)

    def _read(self, path: Path, frame: Frame) -> list[FoundFace]:
        description = parse_json(read_json(path), path)
        tables = description.get("faces", [description])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise ValueError('its "faces" are not a list of tables with landmarks')
        faces = []
        for index, table in enumerate(tables[:_MOST_FACES]):
            points = landmarks_of(table)
            full_table = {**description, **table}
            if isinstance(frame.origin, PictureOrigin):
                points, _ = placed_landmarks(points, frame.origin.info, full_table)
            track = table.get("track")
            faces.append(FoundFace(points, index, path.name, track=track if type(track) is int else None))
        return faces


# --- which of them ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FaceChoice:
    """Which faces of a frame are swapped.

    which: one of ORDERS. indices: those of the faces, all where empty.
    min_size, max_size: px of the face's crop in the frame, see ``crop_edge``.
    """

    which: str = "all"
    indices: tuple[int, ...] = ()
    min_size: float = 0.0
    max_size: float = float("inf")

    def __call__(self, frame_faces: FacesOfFrame, frame: Frame, edges: Sequence[float]) -> FacesOfFrame:
        """Return the chosen ones. edges: of each face's crop, px of the frame."""
        faces, skipped = [], list(frame_faces.skipped)
        for face, edge in zip(frame_faces.faces, edges, strict=True):
            if self.indices and face.index not in self.indices:
                skipped.append("another --face-index")
            elif edge < self.min_size:
                skipped.append(f"smaller than --min-size {self.min_size:g}")
            elif edge > self.max_size:
                skipped.append(f"larger than --max-size {self.max_size:g}")
            else:
                faces.append((face, edge))
        if self.which != "all" and len(faces) > 1:
            skipped += [f"not the {self.which}"] * (len(faces) - 1)
            faces = [min(faces, key=lambda pair: self._rank(pair, frame))]
        return FacesOfFrame([face for face, _ in faces], skipped)

    def _rank(self, pair: tuple[FrameFace, float], frame: Frame) -> float:
        face, edge = pair
        x, y = face.landmarks.mean(0)
        width, height = frame.size
        return {
            "largest": -edge,
            "smallest": edge,
            "leftmost": x,
            "rightmost": -x,
            "topmost": y,
            "bottommost": -y,
            "central": float(np.hypot(x - width / 2, y - height / 2)),
        }[self.which]
