"""What faces are extracted from: pictures and videos, as frames in order.

A footage is one thing given to -i: a video, or a folder of pictures (or one picture). Frames are 8 bits deep, BGR, and
upright as a player shows them; pictures are as stored, as everywhere in swapfast.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.files import real_path
from swapfast.printing import shown_name
from swapfast.swap.chosen import FrameRanges
from swapfast.swap.frames import Frame
from swapfast.swap.picture_file import read_picture
from swapfast.swap.pictures import PictureFolder, list_pictures
from swapfast.swap.stages import Stopwatch, ordered
from swapfast.swap.videos import turned_clockwise
from swapfast.threads import ThreadPool
from swapfast.video.probe import is_video
from swapfast.video.reader import VideoFrame, VideoReader

FLAG = "-i/--input"


@dataclass(frozen=True)
class FrameChoice:
    """Which frames are looked at. every: each n-th of those in the ranges, which speak of frames as `swap` does."""

    every: int = 1
    ranges: FrameRanges | None = None

    def __call__(self, index: int, number: int) -> bool:
        """Return whether a frame is wanted. index: from 0. number: that of a range."""
        return index % self.every == 0 and (self.ranges is None or number in self.ranges)


def opaque_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Return pixels of a frame as (H, W, 3) uint8."""
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., :3])


@dataclass(eq=False)
class VideoFootage:
    """The frames of a video. After the iteration ``frames_read`` says how many there are."""

    reader: VideoReader
    choice: FrameChoice
    frames_read: int = 0
    is_sequence: bool = field(default=True, init=False)
    is_video: bool = field(default=True, init=False)

    @property
    def path(self) -> Path:
        """Return the video's path."""
        return self.reader.path

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height of its frames, px."""
        return self.reader.info.size

    @property
    def expected(self) -> int:
        """Return about how many frames will be read."""
        info = self.reader.info
        return max(1, math.ceil((info.duration_s or 0) * info.rate))

    @property
    def stems(self) -> list[str]:
        """Return what the names of its faces begin with."""
        return [self.path.stem]

    def frames(self, pool: ThreadPool, ahead: int, clock: Stopwatch) -> Iterator[Frame]:
        """Yield the wanted frames."""
        turn = turned_clockwise(self.reader.info)

        def to_frame(decoded: VideoFrame) -> Frame:
            with clock("colour"):
                pixels = opaque_8_bits(decoded.pixels())
            name = f"{self.path.stem}_{decoded.index + 1:06d}{self.path.suffix}"
            return Frame(name, decoded.index, decoded.time_s, pixels, turned=turn)

        yield from ordered(pool, to_frame, self._wanted(clock), ahead)

    def _wanted(self, clock: Stopwatch) -> Iterator[VideoFrame]:
        frames = iter(self.reader)
        while True:
            with clock("decode"):
                decoded = next(frames, None)
            if decoded is None:
                return
            self.frames_read = decoded.index + 1
            if self.choice(decoded.index, decoded.index + 1):
                yield decoded

    def number_of(self, index: int) -> int:
        """Return the number by which --frame-ranges speaks of a frame."""
        return index + 1

    def notes(self) -> list[str]:
        """Return, after the iteration, what is odd about the video."""
        return self.reader.notes()


@dataclass(eq=False)
class PictureFootage:
    """The pictures of a folder. is_sequence: they are the frames of one film, in order of their names.

    unreadable: after the iteration, the pictures that could not be read, and why.
    """

    pictures: PictureFolder
    choice: FrameChoice
    is_sequence: bool = False
    unreadable: list[str] = field(default_factory=list)
    is_video: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._numbers = self.pictures.numbers
        self._indices = [index for index, number in enumerate(self._numbers) if self.choice(index, number)]

    @property
    def path(self) -> Path:
        """Return the folder."""
        return self.pictures.folder

    @property
    def expected(self) -> int:
        """Return how many pictures are wanted."""
        return len(self._indices)

    @property
    def stems(self) -> list[str]:
        """Return what the names of its faces begin with."""
        return [PurePath(self.pictures.names[index]).stem for index in self._indices]

    def frames(self, pool: ThreadPool, ahead: int, clock: Stopwatch) -> Iterator[Frame]:
        """Yield the pictures that can be read."""
        for frame in self.map(lambda frame: frame, pool, ahead, clock):
            if frame is not None:
                yield frame

    def map(self, task: Callable[[Frame], object], pool: ThreadPool, ahead: int, clock: Stopwatch) -> Iterator:
        """Yield what a task, which threads carry out, makes of each picture; None for one that cannot be read."""

        def read_and_do(index: int) -> object:
            name = self.pictures.names[index]
            try:
                with clock("decode"):
                    pixels, origin = read_picture(self.pictures.folder / name)
            except ValueError as error:
                self.unreadable.append(f"{shown_name(self.pictures.folder / name)}: {error}")
                return None
            return task(Frame(name, index, None, opaque_8_bits(pixels), origin=origin))

        yield from ordered(pool, read_and_do, self._indices, ahead)

    def number_of(self, index: int) -> int:
        """Return the number by which --frame-ranges speaks of a picture."""
        return self._numbers[index]

    def notes(self) -> list[str]:
        """Return, after the iteration, a line about pictures that could not be read."""
        if not self.unreadable:
            return []
        first = sorted(self.unreadable)[0]
        return [f"{len(self.unreadable)} of {self.expected} pictures cannot be read, such as {first}"]


Footage = VideoFootage | PictureFootage


def open_footage(paths: Sequence[Path], choice: FrameChoice, is_sequence: bool = False) -> list[Footage]:
    """Return what ``paths`` hold. Raises SwapfastError for what is neither pictures nor a video."""
    footage: list[Footage] = []
    for path in paths:
        if is_video(path):
            footage.append(VideoFootage(VideoReader(path, FLAG), choice))
        else:
            footage.append(PictureFootage(list_pictures(path, FLAG), choice, is_sequence))
    _check_names(footage)
    if not any(part.expected for part in footage):
        numbers = [number for part in footage if isinstance(part, PictureFootage) for number in part.pictures.numbers]
        raise SwapfastError(
            f"-R/--frame-ranges: none of the pictures lies in it; they are numbered {min(numbers)} to {max(numbers)}"
        )
    return footage


def footage_digest(footage: Footage) -> str:
    """Return what tells a footage from another."""
    if isinstance(footage, PictureFootage):
        return files_digest(footage.path, footage.pictures.names, FLAG)
    return files_digest(footage.path.parent, [footage.path.name], FLAG)


def files_digest(folder: Path, names: Sequence[str], flag: str) -> str:
    """Return a digest of the path, size and time of files. Raises SwapfastError where one is gone."""
    digest = hashlib.sha256(f"{real_path(folder)}\n".encode(errors="surrogateescape"))
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError as error:
            raise SwapfastError(f"{flag} {folder / name}: cannot be read ({error.strerror or error})") from error
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _check_names(footage: Sequence[Footage]) -> None:
    """Raise SwapfastError where faces of two pictures or videos would have one name."""
    owners: dict[str, Path] = {}
    for part in footage:
        for stem in part.stems:
            if stem in owners:
                raise SwapfastError(
                    f"{FLAG} {part.path}: {shown_name(stem)} is there twice (the other: {owners[stem]}), and their "
                    "faces would have one name; rename one, or extract them into folders of their own"
                )
            owners[stem] = part.path
