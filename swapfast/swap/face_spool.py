"""What files say of the faces of many frames, held in a file of its own: in memory is only where each face lies there.

An hour of video has 90,000 faces and more; each has 68 points, and perhaps masks. The file has no name, lies in the
system's folder for such (TMPDIR) and is gone with the process; a few thousand faces need none. Nothing that a user does
to the files that the faces were read from changes what a run goes on with. A face in it:

    <I I       bytes of the description, bytes of all that follow it
    ...        the description, JSON
    ...        the landmarks, then each mask as it was stored
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

import numpy as np

from swapfast.faces.record import StoredMask
from swapfast.files import cannot_write, write_all

BY_ORDER = -1  # the index of a face whose file says none: it is the order in its frame
_HEAD = struct.Struct("<II")
MOST_IN_MEMORY = 4 << 20  # bytes: with more a file is made, and as many are written at once
_READ = 1 << 12  # bytes that are read at once: a face without masks
_MASK_FIELDS = ("stored_size", "stored_centering", "affine", "interpolator")


@dataclass(frozen=True, eq=False)
class FoundFace:
    """A face that a file speaks of, before it is known to fit its frame.

    landmarks: (68, 2) px of the frame, of whose size ``frame_size`` speaks (width, height), if that is known.
    is_stored: they are of the frame as it is stored, not as it is shown; None where nobody knows.
    """

    landmarks: np.ndarray
    index: int = 0
    name: str = ""
    frame_size: tuple[int, int] | None = None
    is_stored: bool | None = None
    track: int | None = None
    stored_masks: Mapping[str, StoredMask] = field(default_factory=dict)


class FaceSpool:
    """Faces in a file of no name. Raises SwapfastError where that cannot be written.

    All are added before the first is read; then several threads may read.
    """

    def __init__(self) -> None:
        self._buffer, self._size = bytearray(), 0
        self._file: BinaryIO | None = None

    def add(self, face: FoundFace) -> int:
        """Put a face behind the others; return where it lies."""
        place = self._size
        masks = {name: [len(mask.data), *(getattr(mask, key) for key in _MASK_FIELDS)] for name, mask in _masks(face)}
        landmarks = np.ascontiguousarray(face.landmarks)
        details = [face.index, face.name, face.frame_size, face.is_stored, face.track, landmarks.dtype.str, masks]
        head = json.dumps(details).encode()
        parts = [landmarks.tobytes(), *(mask.data for _, mask in _masks(face))]
        record = b"".join([_HEAD.pack(len(head), sum(map(len, parts))), head, *parts])
        self._buffer += record
        self._size += len(record)
        if len(self._buffer) >= MOST_IN_MEMORY:
            self._write()
        return place

    def end(self) -> None:
        """Say that all faces were added."""
        if self._file is not None:
            self._write()

    def _write(self) -> None:
        try:
            if self._file is None:
                self._file = cast(BinaryIO, tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 - ends with the spool
                weakref.finalize(self, self._file.close)
            write_all(self._file, memoryview(self._buffer))
        except OSError as error:
            folder = Path(tempfile.gettempdir())
            raise cannot_write(folder, error, "set TMPDIR to a folder with space, for the landmarks") from error
        self._buffer = bytearray()

    def _bytes(self, start: int, count: int) -> bytes:
        if self._file is None:
            return bytes(self._buffer[start : start + count])
        return os.pread(self._file.fileno(), count, start)

    def read(self, place: int) -> FoundFace:
        """Return the face that lies at ``place``."""
        data = self._bytes(place, _READ)
        described, stored = _HEAD.unpack_from(data)
        missing = _HEAD.size + described + stored - len(data)
        if missing > 0:
            data += self._bytes(place + len(data), missing)
        start = _HEAD.size + described
        index, name, size, is_stored, track, dtype, masks = json.loads(data[_HEAD.size : start])
        end = start + 68 * 2 * np.dtype(dtype).itemsize
        points = np.frombuffer(data[start:end], dtype).reshape(68, 2)
        return FoundFace(
            points, index, name, None if size is None else tuple(size), is_stored, track, _masks_in(masks, data[end:])
        )


def _masks(face: FoundFace) -> list[tuple[str, StoredMask]]:
    return sorted(face.stored_masks.items())


def _masks_in(described: dict[str, list[Any]], data: bytes) -> dict[str, StoredMask]:
    masks, start = {}, 0
    for name, (size, edge, centering, affine, interpolator) in described.items():
        rows = tuple(map(tuple, affine))
        masks[name] = StoredMask(data[start : start + size], edge, centering, rows, interpolator)
        start += size
    return masks


class SpooledFaces(Sequence[FoundFace]):
    """Some faces of a spool, each read when it is asked for."""

    __slots__ = ("_places", "_spool")

    def __init__(self, spool: FaceSpool, places: Sequence[int]) -> None:
        self._spool, self._places = spool, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, number: int) -> FoundFace: ...
    @overload
    def __getitem__(self, number: slice) -> SpooledFaces: ...
    def __getitem__(self, number: int | slice) -> FoundFace | SpooledFaces:
        if isinstance(number, slice):
            return SpooledFaces(self._spool, self._places[number])
        number = range(len(self._places))[number]
        face = self._spool.read(self._places[number])
        return replace(face, index=number) if face.index == BY_ORDER else face


class FacesByName(Mapping[str, SpooledFaces]):
    """Faces of a spool by the name of their frame."""

    def __init__(self, spool: FaceSpool) -> None:
        self._spool = spool
        self._places: dict[str, array[int]] = {}

    def add(self, name: str, face: FoundFace) -> None:
        """Add a face of a frame."""
        self._places.setdefault(name, array("q")).append(self._spool.add(face))

    def __getitem__(self, name: str) -> SpooledFaces:
        return SpooledFaces(self._spool, self._places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class FacesByIndex(Mapping[int, SpooledFaces]):
    """Faces of a spool by the number of their frame: 16 bytes a face."""

    def __init__(self, spool: FaceSpool) -> None:
        self._spool = spool
        self._frames, self._places = array("q"), array("q")
        self._is_sorted, self._count = True, 0

    def add(self, frame: int, face: FoundFace) -> None:
        """Add a face of a frame, behind those that the frame has."""
        self._is_sorted &= not self._frames or self._frames[-1] <= frame
        self._frames.append(frame)
        self._places.append(self._spool.add(face))
        self._count = -1

    def _sort(self) -> np.ndarray:
        """Return the frame of each face, rising."""
        if not self._is_sorted:
            order = np.argsort(np.frombuffer(self._frames, np.int64), kind="stable")
            for column in (self._frames, self._places):
                values = np.frombuffer(column, np.int64)
                values[:] = values[order]
            self._is_sorted = True
        return np.frombuffer(self._frames, np.int64)

    def __getitem__(self, frame: int) -> SpooledFaces:
        first, last = np.searchsorted(self._sort(), (frame, frame + 1)) if self._frames else (0, 0)
        if first == last:
            raise KeyError(frame)
        return SpooledFaces(self._spool, self._places[first:last])

    def __iter__(self) -> Iterator[int]:
        return (int(frame) for frame in np.unique(self._sort())) if self._frames else iter(())

    def __len__(self) -> int:
        if self._count < 0:
            self._count = len(np.unique(self._sort()))
        return self._count
