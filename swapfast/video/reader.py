"""Reads a video's frames in the order they are shown: index, time stamp, upright pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.video.pixels import Box, Conversion, PlaneFormat, part_of, planes_of, working_format
from swapfast.video.probe import VideoInfo, open_video, picture_stream, probe


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame of a video.

    index      0 for the first
    pts        time stamp in units of ``time_base``
    duration   in the same units, 0 where it is not known
    planes     as stored, see pixels.py; not to be written to
    """

    index: int
    pts: int
    duration: int
    time_base: Fraction
    planes: list[np.ndarray]
    conversion: Conversion
    rotation: int

    @property
    def time_s(self) -> float:
        """Return the time stamp in seconds."""
        return float(self.pts * self.time_base)

    def pixels(self, box: Box | None = None) -> np.ndarray:
        """Return new pixels as a player shows them, turned upright: (H, W, 3) BGR or (H, W, 4) BGRA.

        uint8, or uint16 over the whole 0..65535 where the video has more than 8 bits. box: what of the upright picture
        is converted, the rest is black; None for all.
        """
        stored_box = None if box is None else self._stored_box(box)
        return turned(self.conversion.to_pixels(self.planes, stored_box), self.rotation, box)

    def changed(self, pixels: np.ndarray, old: np.ndarray | None = None, box: Box | None = None) -> list[np.ndarray]:
        """Return the planes as stored, changed where ``pixels`` differs from ``pixels(box)``; the rest is as it was.

        old: what ``pixels(box)`` gave, if it is still there; otherwise it is made again.
        """
        place = None if box is None else self._stored_box(box)
        stored_pixels = (
            self.conversion.to_pixels(self.planes, place) if old is None else turned(old, -self.rotation, place)
        )
        new = np.ascontiguousarray(turned(pixels, -self.rotation, place))
        if new.shape != stored_pixels.shape or new.dtype != stored_pixels.dtype:
            raise ValueError(
                f"pixels {new.shape} {new.dtype}, the frame has {stored_pixels.shape} {stored_pixels.dtype}"
            )
        return self.conversion.changed(self.planes, stored_pixels, new, place)

    def _stored_box(self, box: Box) -> Box:
        """Return the box of the stored picture that a box of the upright one shows."""
        x0, y0, x1, y1 = box
        height, width = self.planes[0].shape
        return {
            0: box,
            90: (width - y1, x0, width - y0, x1),
            180: (width - x1, height - y1, width - x0, height - y0),
            270: (y0, height - x1, y1, height - x0),
        }[self.rotation % 360]


def turned(pixels: np.ndarray, rotation: int, box: Box | None = None) -> np.ndarray:
    """Return a picture turned by ``rotation`` degrees anticlockwise, a multiple of 90.

    box: what of the new picture is wanted, the rest is black; None for all.
    """
    if not rotation % 360:
        return pixels
    view = np.rot90(pixels, rotation // 90)
    if box is None:
        return np.ascontiguousarray(view)
    result = np.zeros(view.shape, view.dtype)
    result[part_of(box)] = view[part_of(box)]
    return result


def upright_points(points: np.ndarray, info: VideoInfo) -> np.ndarray:
    """Return points (x, y) of the stored picture in px of the upright one, (..., 2) float64."""
    x, y = np.moveaxis(np.asarray(points, np.float64), -1, 0)
    right, bottom = info.width - 1, info.height - 1
    moved = {0: (x, y), 90: (y, right - x), 180: (right - x, bottom - y), 270: (bottom - y, x)}[info.rotation]
    return np.stack(moved, axis=-1)


@dataclass
class VideoReader:
    """Reads a video. Iterating decodes it from the start.

    After an iteration to the end: ``damaged`` packets that could not be decoded, ``moved`` time stamps that were not
    later than the one before and are now by one unit, and ``last_pts``, the time stamp of the last frame.
    """

    path: Path
    flag: str = "-i"
    damaged: int = 0
    moved: int = 0
    last_pts: int | None = None
    info: VideoInfo = field(init=False)
    format: PlaneFormat = field(init=False)

    def __post_init__(self) -> None:
        self.info = probe(self.path, self.flag)
        try:
            self.format = working_format(self.info.pix_fmt)
        except SwapfastError as error:
            raise SwapfastError(f"{self.flag} {self.path}: {error}") from None
        self.conversion = Conversion(self.format, self.info.tags, self.info.height)

    def __iter__(self) -> Iterator[VideoFrame]:
        return self.frames()

    def frames(self, start: int = 0) -> Iterator[VideoFrame]:
        """Yield the frames from number ``start`` on. Those before are decoded too: no index is exact for every file."""
        self.damaged = self.moved = 0
        info, pts = self.info, None
        for index, frame in enumerate(self._decoded()):
            pts = self._time_stamp(frame, pts)
            if index < start:
                continue
            if (frame.width, frame.height) != (info.width, info.height):
                sizes = f"{info.width} x {info.height} to {frame.width} x {frame.height} px"
                at = f"{float(pts * info.time_base):.2f} s"
                raise SwapfastError(
                    f"{self.flag} {self.path}: the picture changes from {sizes} at {at}; cut the video there"
                )
            planes = planes_of(frame, self.format)
            duration = frame.duration or 0
            yield VideoFrame(index, pts, duration, info.time_base, planes, self.conversion, info.rotation)
        self.last_pts = pts

    def _time_stamp(self, frame: Any, last: int | None) -> int:
        pts = frame.pts
        if pts is None:  # a bare stream: one frame after the other
            pts = 0 if last is None else last + max(1, round(1 / (self.info.rate * self.info.time_base)))
        elif last is not None and pts <= last:
            pts = last + 1
            self.moved += 1
        return int(pts)

    def _decoded(self) -> Iterator[Any]:
        from av.error import FFmpegError

        with open_video(self.path, self.flag) as container:
            stream = picture_stream(container, self.path, self.flag)
            stream.thread_type = "AUTO"
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                except FFmpegError:  # nothing can be read behind this
                    self.damaged += 1
                    return
                if packet is None:
                    return
                try:
                    frames = packet.decode()
                except FFmpegError:
                    self.damaged += 1
                    continue
                yield from frames

    def notes(self) -> list[str]:
        """Return, after the iteration, a line for each thing that a user should know of the source."""
        notes = []
        if self.damaged:
            notes.append(f"{self.path}: {self.damaged} damaged packets; their frames are missing")
        if self.moved:
            notes.append(f"{self.path}: {self.moved} time stamps were not later than the one before; moved by one unit")
        length, end_s = self.info.duration_s, float((self.last_pts or 0) * self.info.time_base)
        if length and end_s < 0.9 * length - 1:
            notes.append(f"{self.path}: says {length:.1f} s, but ends at {end_s:.1f} s: is it cut off?")
        return notes
