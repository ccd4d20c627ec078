"""Videos as sources and sinks of frames.

Frame N, counted from 1, of clip.mp4 is called clip_00000N.png, as faceswap's extract calls it in the headers of faces.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from swapfast.bars import Progress
from swapfast.errors import SwapfastError
from swapfast.swap.frames import Frame, FrameSink, SwappedFrame
from swapfast.swap.paste import Box
from swapfast.swap.regions import NOTHING
from swapfast.swap.stability import Stability
from swapfast.swap.stages import Stopwatch, ordered
from swapfast.threads import ThreadPool
from swapfast.video.cuts import CutFinder
from swapfast.video.probe import VideoInfo
from swapfast.video.reader import VideoFrame, VideoReader
from swapfast.video.writer import Prepared, VideoWriter


@dataclass(frozen=True)
class ScannedVideo:
    """What one pass over a video tells.

    frames: their number. cuts: frames that begin a new scene. end_s: when the last frame is shown, seconds.
    notes: a line for each thing that is odd about it.
    """

    reader: VideoReader
    frames: int
    cuts: tuple[int, ...]
    end_s: float
    notes: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Return the video's path."""
        return self.reader.path

    def name_of(self, index: int) -> str:
        """Return the name of a frame, counted from 0."""
        return f"{self.path.stem}_{index + 1:06d}.png"


def scan_video(reader: VideoReader, progress: Progress | None = None) -> ScannedVideo:
    """Go through a video once, without its colours: no header says reliably how many frames there are."""
    finder, count, end_s = CutFinder(), 0, 0.0
    total = max(1, round(reader.info.duration_s or 0))
    for frame in finder.watch(reader):
        count, end_s = count + 1, frame.time_s
        if progress is not None:
            progress(min(total - 1, int(max(0.0, end_s))), total)
    if not count:  # though the first one could be decoded by itself
        raise SwapfastError(f"{reader.flag} {reader.path}: no frame can be decoded; is it cut off or damaged?")
    if progress is not None:
        progress(total, total)
    return ScannedVideo(reader, count, tuple(finder.cuts), end_s, tuple(reader.notes()))


def turned_clockwise(info: VideoInfo) -> int:
    """Return the degrees, clockwise, by which frames are turned to be shown."""
    return -info.rotation % 360


class VideoSource:
    """Reads frames of a video. Their ``origin`` is the ``VideoFrame``.

    indices: those that are wanted, a range or a set.
    first, last: the numbers of the first and last frame that are read.
    relevant: whether a frame in between is read, or decoded alone.
    box_of: what of a frame, by its number, is turned into colours; None for all of it.
    """

    def __init__(
        self,
        video: ScannedVideo,
        indices: Collection[int],
        first: int,
        last: int,
        pool: ThreadPool,
        ahead: int,
        clock: Stopwatch | None = None,
        relevant: Callable[[int], bool] | None = None,
        box_of: Callable[[int], Box] | None = None,
    ) -> None:
        self._video, self._indices, self._first, self._last = video, indices, first, last
        self._pool, self._ahead, self._clock = pool, ahead, clock or Stopwatch()
        self._relevant = relevant or (lambda index: True)
        self._box_of = box_of

    @property
    def count(self) -> int:
        """Return how many frames are wanted."""
        return len(self._indices)

    def __iter__(self) -> Iterator[Frame]:
        return ordered(self._pool, self._frame, self._decoded(), self._ahead)

    def _decoded(self) -> Iterator[VideoFrame]:
        frames = self._video.reader.frames(self._first)
        while True:
            with self._clock("read"):
                frame = next(frames, None)
            if frame is None or frame.index > self._last:
                return
            if self._relevant(frame.index):
                yield frame

    def _frame(self, frame: VideoFrame) -> Frame:
        with self._clock("colours in"):
            box = None if self._box_of is None else self._box_of(frame.index)
            pixels = frame.pixels(box)
        return Frame(
            self._video.name_of(frame.index),
            frame.index,
            frame.time_s,
            pixels,
            turned_clockwise(self._video.reader.info),
            frame.index in self._indices,
            frame,
            box,
        )


class MaskVideo:
    """Masks of a video's frames as a video: frame by frame, black where something is in front of a face.

    It may be asked by several threads, for frames about in order.
    """

    _KEPT = 64  # frames that are asked for a little later than others

    def __init__(self, path: Path, flag: str = "--mask-dir") -> None:
        self._reader = VideoReader(path, flag)
        self._lock = threading.Lock()
        self._frames = iter(self._reader)
        self._waiting: dict[int, VideoFrame] = {}

    def check(self, video: ScannedVideo) -> None:
        """Raise SwapfastError where its frames have another size than those of ``video``."""
        sizes = [reader.info.size for reader in (self._reader, video.reader)]
        if sizes[0] != sizes[1]:
            mask, frame = (f"{width}x{height}" for width, height in sizes)
            raise SwapfastError(
                f"{self._reader.flag} {self._reader.path}: its frames have {mask} px, those of {video.path} {frame}; "
                "give masks of the same size"
            )

    def of(self, index: int) -> np.ndarray | None:
        """Return the mask of a frame, (H, W) uint8, upright; None behind the last one."""
        with self._lock:
            while index not in self._waiting:
                frame = next(self._frames, None)
                if frame is None:
                    return None
                self._waiting[frame.index] = frame
                self._waiting.pop(frame.index - self._KEPT, None)
            frame = self._waiting.pop(index)
        pixels = frame.pixels()[..., :3]
        gray = np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_BGR2GRAY))
        return gray if gray.dtype == np.uint8 else (gray // 256).astype(np.uint8)


@dataclass
class VideoSink:
    """Writes swapped frames to a video, and their masks to another one where that is wanted.

    moved: called with the time of each frame that was encoded, seconds. stability: is told of each frame.
    """

    writer: VideoWriter
    pool: ThreadPool
    ahead: int
    masks: VideoWriter | None = None
    stability: Stability | None = None
    moved: Callable[[float], None] | None = None
    clock: Stopwatch = field(default_factory=Stopwatch)
    _pending: deque[tuple[float, list[Future]]] = field(default_factory=deque)

    def write(self, swapped: SwappedFrame) -> None:
        """Take the next frame; wait where too many are not encoded yet."""
        frame = swapped.frame
        if self.stability is not None:
            with self.clock("report"):
                self.stability.add(frame.index, frame.pixels, swapped.pixels, swapped.swapped)
        pixels = swapped.pixels if frame.box != NOTHING else None
        futures = [self.pool.submit(self._prepare, self.writer, frame, pixels, frame.pixels)]
        if self.masks is not None:
            assert swapped.alpha is not None, "asked for"
            futures.append(self.pool.submit(self._prepare, self.masks, frame, swapped.alpha, None))
        self._pending.append((frame.time or 0.0, futures))
        while len(self._pending) > self.ahead:
            self._put_one()

    def close(self) -> None:
        """Encode everything that was taken."""
        while self._pending:
            self._put_one()

    def _prepare(
        self, writer: VideoWriter, frame: Frame, pixels: np.ndarray | None, old: np.ndarray | None
    ) -> Prepared:
        with self.clock("colours out"):
            return writer.prepare(frame.origin, pixels, old, frame.box)

    def _put_one(self) -> None:
        time_s, futures = self._pending.popleft()
        writers = [self.writer] + ([self.masks] if self.masks is not None else [])
        for writer, future in zip(writers, futures, strict=True):
            prepared = future.result()
            with self.clock("encode"):
                writer.put(prepared)
        if self.moved is not None:
            self.moved(time_s)


@dataclass
class TimedSink:
    """A sink that tells the time of each frame that another one has taken. moved: called with seconds."""

    sink: FrameSink
    moved: Callable[[float], None]

    def write(self, swapped: SwappedFrame) -> None:
        """Take the next frame."""
        self.sink.write(swapped)
        self.moved(swapped.frame.time or 0.0)

    def close(self) -> None:
        """Finish."""
        self.sink.close()
