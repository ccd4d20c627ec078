"""Encoded packets in files of a few seconds each, so that a killed run loses no more than the one in progress.

A segment begins with a key frame and refers to nothing before it. Its file:

    8 bytes    b"SWAPSEG1"
    each packet, in the order in which it is decoded:
        <q q I B   time stamp and duration in units of the video's time base, bytes, 1 for a key frame
        ...        that many bytes
    <q q I B   number of packets, 0, 0, 2: the end

NUT, MPEG-TS or Matroska would move or round the time stamps. A finished segment has its final name,
NUMBER-OF-ITS-FIRST-FRAME.segment; what a killed run left under a temporary name is removed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swapfast.errors import EXIT_REQUEST, SwapfastError
from swapfast.files import cannot_write, open_new, open_plain, put_in_place, temporary_name, write_all
from swapfast.video.encoding import Encoding
from swapfast.work_folder import WorkFolder

_MAGIC = b"SWAPSEG1"
_RECORD = struct.Struct("<qqIB")
_PLAIN, _KEY, _END = range(3)


# An encoded frame: time stamp and duration in units of the video's time base; where its bytes lie in the segment.
PACKET = np.dtype([("pts", "<i8"), ("duration", "<i8"), ("offset", "<i8"), ("size", "<u4"), ("is_key", "?")])
_NONE = np.empty(0, PACKET)


class SegmentError(Exception):
    """A segment's file is not what was written: cut off, or another program's."""


def read_packets(path: Path) -> np.ndarray:
    """Return the packets of a segment, without their bytes, (n,) PACKET. Raises SegmentError where it is not whole."""
    packets: list[tuple[int, int, int, int, bool]] = []
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(_MAGIC)) != _MAGIC:
            raise SegmentError(f"{path}: is no segment")
        offset = len(_MAGIC)
        while True:
            file.seek(offset)
            record = file.read(_RECORD.size)
            if len(record) != _RECORD.size:
                raise SegmentError(f"{path}: is cut off")
            pts, duration, length, kind = _RECORD.unpack(record)
            offset += _RECORD.size
            if kind == _END:
                if pts != len(packets) or offset != size:
                    raise SegmentError(f"{path}: is damaged")
                return np.array(packets, PACKET)
            packets.append((pts, duration, offset, length, kind == _KEY))
            offset += length
            if offset > size:
                raise SegmentError(f"{path}: is cut off")


class Segment:
    """Encodes frames into one segment's file. ``path`` appears with ``finish``."""

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self._path, self._temporary = path, temporary_name(path)
        self._context = encoding.open()
        self._durations: dict[int, int] = {}
        self.frames = self._packets = 0
        self._file: BinaryIO = open_new(self._temporary)
        write_all(self._file, _MAGIC)

    def add(self, frame: Any, pts: int, duration: int) -> None:
        """Encode a frame of PyAV's. pts, duration: in units of the encoding's time base."""
        frame.pts, frame.time_base = pts, self._context.time_base
        self._durations[pts] = duration
        self.frames += 1
        self._write(self._context.encode(frame))

    def _write(self, packets: list[Any]) -> None:
        for packet in packets:
            kind = _KEY if packet.is_keyframe else _PLAIN
            write_all(self._file, _RECORD.pack(packet.pts, self._durations.pop(packet.pts, 0), packet.size, kind))
            write_all(self._file, bytes(packet))
            self._packets += 1

    def finish(self) -> None:
        """Encode what the encoder still holds and give the file its name."""
        self._write(self._context.encode(None))
        if self._packets != self.frames:
            raise RuntimeError(f"the encoder made {self._packets} packets of {self.frames} frames")
        write_all(self._file, _RECORD.pack(self._packets, 0, 0, _END))
        self._file.close()
        put_in_place(self._temporary, self._path)

    def drop(self) -> None:
        """Remove the unfinished file."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class SegmentFolder:
    """The segments of one unfinished video, in a hidden folder beside it.

    out: the video. request: what decides over its frames: a finished segment of another request is not used.
    Raises SwapfastError where another process writes the same video.
    """

    def __init__(self, out: Path, request: dict[str, Any]) -> None:
        self._folder = WorkFolder(out, "segments", request)
        self.path = self._folder.path
        try:
            if not self._folder.goes_on:
                self._folder.begin_anew()
            self.segments = self._finished()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _finished(self) -> list[tuple[Path, np.ndarray]]:
        """Return the whole segments from the first frame on; what follows a gap or a damaged one is removed."""
        segments: list[tuple[Path, np.ndarray]] = []
        count = 0
        for path in sorted(self.path.glob("*.segment")):
            try:
                packets = read_packets(path) if path.name == segment_name(count) else _NONE
            except SegmentError:
                packets = _NONE
            if not len(packets):
                path.unlink(missing_ok=True)
                continue
            segments.append((path, packets))
            count += len(packets)
        return segments

    @property
    def frames(self) -> int:
        """Return how many frames the finished segments hold."""
        return sum(len(packets) for _, packets in self.segments)

    def drop_behind(self, frames: int) -> None:
        """Drop finished segments until no more than ``frames`` frames are done."""
        while self.frames > frames:
            self.segments.pop()[0].unlink(missing_ok=True)

    def new(self, encoding: Encoding) -> Segment:
        """Begin the segment behind the finished ones."""
        return Segment(self.path / segment_name(self.frames), encoding)

    def note_finished(self) -> None:
        """Take up the segment that has been finished."""
        path = self.path / segment_name(self.frames)
        self.segments.append((path, read_packets(path)))

    def packets(self) -> np.ndarray:
        """Return all packets in the order in which they are decoded, (n,) PACKET."""
        return np.concatenate([_NONE, *(packets for _, packets in self.segments)])

    def contents(self) -> Iterator[bytes]:
        """Yield the bytes of all packets, in the order in which they are decoded."""
        for path, packets in self.segments:
            with open_plain(path) as file:
                for offset, size in packets[["offset", "size"]].tolist():
                    file.seek(offset)
                    data = file.read(size)
                    if len(data) != size:
                        raise SwapfastError(f"{path}: is cut off; remove its folder and begin again", EXIT_REQUEST)
                    yield data

    def close(self) -> None:
        """Let others have the folder; the segments stay for the next start. Without any it goes."""
        if self.segments:
            self._folder.close()
        else:
            self._folder.remove()

    def remove(self) -> None:
        """Remove the folder: the video is finished."""
        self._folder.remove()


def segment_name(frame: int) -> str:
    """Return the name of the segment that begins with a frame's number."""
    return f"{frame:09d}.segment"
