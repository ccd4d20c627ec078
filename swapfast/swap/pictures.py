"""A folder of pictures as frames, and swapped frames as a folder of pictures.

Each picture is written under a temporary name and renamed, so that whatever a killed run leaves is whole, and the same
command goes on with what is missing.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np

from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.faces.companions import PICTURE_SUFFIXES, is_mask_file
from swapfast.faces.crop import resize_matrix
from swapfast.faces.jpeg import SIGNATURE as JPEG_SIGNATURE
from swapfast.faces.other_kinds import hint_for, kind_of
from swapfast.faces.png import SIGNATURE as PNG_SIGNATURE
from swapfast.files import not_a_folder, open_plain, write_file
from swapfast.printing import shown_name
from swapfast.swap.frames import Frame, SwappedFrame
from swapfast.swap.picture_file import (
    PictureDecoder,
    PictureOrigin,
    decode_picture,
    encode_picture,
    encode_png,
    read_origin,
)
from swapfast.swap.stages import Result, Stopwatch, ordered
from swapfast.threads import ThreadPool

MASKS, PATCHES = "masks", "patches"  # folders within OUT
BATCH = 16  # pictures that a decoder of several gets at a time
_BATCHES_AHEAD = 2  # one that is being decoded, and one whose frames are asked for
_LAST_NUMBER = re.compile(r"(\d+)\D*$")


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of a folder, by name. numbers: of each, see ``frame_numbers``."""

    folder: Path
    names: list[str]

    @property
    def numbers(self) -> list[int]:
        """Return the number by which --frame-ranges speaks of each picture."""
        return frame_numbers(self.names)


def list_pictures(path: Path, flag: str = "-i") -> PictureFolder:
    """Return the frames of a folder, or the one picture that ``path`` is. Masks of theirs are none.

    Raises SwapfastError where there is none.
    """
    if path.is_file():
        _check_picture(path, flag)
        return PictureFolder(path.parent, [path.name])
    if not path.is_dir():
        raise not_a_folder(path, f"{flag} {path}", "a folder of frames, or a video")
    try:
        files = frozenset(
            entry.name for entry in os.scandir(path) if not entry.name.startswith(".") and entry.is_file()
        )
    except OSError as error:
        raise SwapfastError(f"{flag} {path}: cannot be read ({error.strerror or error})") from error
    names = sorted(n for n in files if n.lower().endswith(PICTURE_SUFFIXES) and not is_mask_file(n, files))
    if not names:
        hint = hint_for(path).replace("that holds the faces", "of frames")
        raise SwapfastError(f"{flag} {path}: no PNG or JPEG in this folder; {hint}")
    return PictureFolder(path, names)


def _check_picture(path: Path, flag: str) -> None:
    """Raise SwapfastError where a file does not begin as a PNG or JPEG does."""
    try:
        with open_plain(path) as file:
            data = file.read(512)
    except OSError as error:
        raise SwapfastError(f"{flag} {path}: cannot be read ({error.strerror or error})") from error
    if not data.startswith((PNG_SIGNATURE, JPEG_SIGNATURE)):
        reason = kind_of(data) or "neither a PNG nor a JPEG"
        raise SwapfastError(f"{flag} {path}: is {reason}; give a folder of frames, or one picture")


def frame_numbers(names: Sequence[str]) -> list[int]:
    """Return the last number in each name, or, where one has none or two share one, the place from 1."""
    matches = [_LAST_NUMBER.search(PurePath(name).stem) for name in names]
    numbers = [int(match[1]) for match in matches if match is not None and len(match[1]) < 19]
    return numbers if len(set(numbers)) == len(names) else list(range(1, len(names) + 1))


class PictureSource:
    """Reads pictures in order, several at a time.

    indices: of the pictures to read. is_wanted: whether a picture is to be written, by its index.
    pool: the threads that decode. ahead: pictures that are read before they are asked for.
    decoder: of what it takes; the pool decodes the rest, and all of it without one.
    """

    def __init__(
        self,
        pictures: PictureFolder,
        indices: Sequence[int],
        is_wanted: Callable[[int], bool],
        pool: ThreadPool,
        ahead: int,
        clock: Stopwatch | None = None,
        decoder: PictureDecoder | None = None,
    ) -> None:
        self._pictures, self._indices, self._is_wanted = pictures, indices, is_wanted
        self._pool, self._ahead, self._clock = pool, ahead, clock or Stopwatch()
        self._decoder = decoder

    @property
    def count(self) -> int:
        """Return how many pictures there are."""
        return len(self._indices)

    def __iter__(self) -> Iterator[Frame]:
        if self._decoder is None:
            yield from ordered(self._pool, self._read, self._indices, self._ahead)
            return
        batches = [self._indices[start : start + BATCH] for start in range(0, len(self._indices), BATCH)]
        with ThreadPool(1, "decode") as thread:
            for read in ordered(thread, partial(self._read_batch, self._decoder), batches, _BATCHES_AHEAD):
                for picture in read:
                    if isinstance(picture, SwapfastError):  # behind the frames that are whole
                        raise picture
                    yield picture

    def _read(self, index: int) -> Frame:
        with self._clock("read"):
            origin = self._origin(index)
            return self._frame(index, origin, self._decode(origin))

    def _read_batch(self, decoder: PictureDecoder, indices: Sequence[int]) -> list[Frame | SwapfastError]:
        origins = list(self._pool.map(_or_error(self._origin), indices))
        batch = [origin for origin in origins if isinstance(origin, PictureOrigin) and decoder.takes(origin)]
        with self._clock("read"):
            decoded = dict(zip(map(id, batch), decoder(batch), strict=True))

        def finish(index: int, origin: PictureOrigin | SwapfastError) -> Frame | SwapfastError:
            if isinstance(origin, SwapfastError):
                return origin
            pixels = decoded.get(id(origin))
            return self._frame(index, origin, self._decode(origin) if pixels is None else pixels)

        return list(self._pool.map(_or_error(finish), indices, origins))

    def _origin(self, index: int) -> PictureOrigin:
        path = self._pictures.folder / self._pictures.names[index]
        try:
            return read_origin(path)
        except ValueError as error:
            raise _damaged(path, error) from error

    def _decode(self, origin: PictureOrigin) -> np.ndarray:
        try:
            return decode_picture(origin)
        except ValueError as error:
            raise _damaged(origin.path, error) from error

    def _frame(self, index: int, origin: PictureOrigin, pixels: np.ndarray) -> Frame:
        return Frame(self._pictures.names[index], index, None, pixels, is_wanted=self._is_wanted(index), origin=origin)


def _damaged(path: Path, error: ValueError) -> SwapfastError:
    return SwapfastError(f"{shown_name(path)}: {error}; mend it, or remove it", EXIT_FAILED)


def _or_error(task: Callable[..., Result]) -> Callable[..., Result | SwapfastError]:
    """Return a function that returns the SwapfastError that ``task`` raises."""

    def careful(*arguments: Any) -> Result | SwapfastError:
        try:
            return task(*arguments)
        except SwapfastError as error:
            return error

    return careful


@dataclass(frozen=True)
class PictureOutput:
    """What is written for each frame.

    suffix: of the new name, such as '.png'; empty for the picture's own.
    writer: 'picture', or 'patch' for faces, matrices and masks to be composited elsewhere.
    """

    folder: Path
    suffix: str = ""
    writer: str = "picture"
    writes_mask: bool = False
    is_transparent: bool = False
    scale: float = 1.0

    def name_of(self, name: str) -> str:
        """Return the name of a frame's picture."""
        stem = PurePath(name).stem
        if self.writer == "patch":
            return f"{stem}.json"
        return f"{stem}{self.suffix}" if self.suffix else f"{stem}.png" if self.is_transparent else name

    def path_of(self, name: str) -> Path:
        """Return where a frame's last file lies: if it is there, all of its files are."""
        return (self.folder / PATCHES if self.writer == "patch" else self.folder) / self.name_of(name)


class PictureSink:
    """Writes swapped frames, several at a time.

    written: called with (path, content) of each frame that is in its place.
    """

    def __init__(
        self,
        output: PictureOutput,
        pool: ThreadPool,
        ahead: int,
        written: Callable[[Path, bytes], None] | None = None,
        clock: Stopwatch | None = None,
    ) -> None:
        self._output, self._pool, self._ahead, self._written = output, pool, ahead, written
        self._clock = clock or Stopwatch()
        self._pending: deque[Future] = deque()

    def write(self, swapped: SwappedFrame) -> None:
        """Take a frame; wait where too many are not written yet."""
        self._pending.append(self._pool.submit(self._write, swapped))
        while len(self._pending) > self._ahead:
            self._finish_one()

    def close(self) -> None:
        """Wait until everything is written."""
        while self._pending:
            self._finish_one()

    def _finish_one(self) -> None:
        path, content = self._pending.popleft().result()
        if self._written is not None:
            self._written(path, content)

    def _write(self, swapped: SwappedFrame) -> tuple[Path, bytes]:
        output, name = self._output, swapped.frame.name
        if output.writes_mask and swapped.alpha is not None:
            mask = output.folder / MASKS / f"{PurePath(name).stem}.png"
            write_file(mask, encode_png(swapped.alpha, is_synthetic=False))
        path = output.path_of(name)
        with self._clock("encode"):
            content = self._patches(swapped) if output.writer == "patch" else self._picture(swapped)
        with self._clock("write"):
            write_file(path, content)
        return path, content

    def _picture(self, swapped: SwappedFrame) -> bytes:
        output, origin = self._output, swapped.frame.origin
        if not isinstance(origin, PictureOrigin):  # a video's frame
            return encode_png(swapped.pixels, is_synthetic=swapped.faces > 0)
        if output.is_transparent:
            return encode_png(swapped.pixels, kept=origin.kept if origin.is_png else b"")
        as_png = {"": None, ".png": True, ".jpg": False}[output.suffix]
        is_own = as_png is None or as_png == origin.is_png
        if swapped.faces == 0 and output.scale == 1 and is_own:
            return origin.data  # a frame without a face is no synthetic picture
        return encode_picture(swapped.pixels, origin, as_png, is_synthetic=swapped.faces > 0)

    def _patches(self, swapped: SwappedFrame) -> bytes:
        """Write each face as a 16-bit PNG whose alpha is the mask; return the JSON that says where they belong."""
        stem, entries = PurePath(swapped.frame.name).stem, []
        for number, patch in enumerate(swapped.patches):
            edge = max(len(patch.face), len(patch.alpha))
            to_face = patch.matrix @ np.vstack([resize_matrix(edge, len(patch.face)), (0, 0, 1)])
            face = cv2.resize(patch.face, (edge, edge), interpolation=cv2.INTER_CUBIC)
            alpha = cv2.resize(patch.alpha, (edge, edge), interpolation=cv2.INTER_LINEAR)
            levels = np.rint(np.clip(np.dstack([face, alpha]), 0, 1) * 65535).astype(np.uint16)
            name = f"{stem}_{number}.png"
            write_file(self._output.folder / PATCHES / name, encode_png(levels))
            entries.append({"file": name, "size": edge, "to_frame": to_face.tolist()})
        width, height = swapped.frame.size
        description = {"frame": swapped.frame.name, "size": [width, height], "synthetic_media": True, "faces": entries}
        return (json.dumps(description, indent=1) + "\n").encode()


@dataclass(frozen=True)
class MaskFolder:
    """Masks of frames: NAME.png or NAME_mask.png, gray, of the frame's size; black where something is in front."""

    folder: Path
    by_stem: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, flag: str = "--mask-dir") -> MaskFolder:
        """Return the masks of a folder. Raises SwapfastError where there is none."""
        if not folder.is_dir():
            raise not_a_folder(folder, f"{flag} {folder}", "a folder of masks, one a frame")
        names = sorted(n for n in os.listdir(folder) if n.lower().endswith(PICTURE_SUFFIXES) and not n.startswith("."))
        if not names:
            raise SwapfastError(f"{flag} {folder}: no PNG or JPEG in this folder; give one with a mask for each frame")
        stems = {PurePath(name).stem: name for name in names}
        return cls(folder, {**{s.removesuffix("_mask"): n for s, n in stems.items()}, **stems})

    def path_of(self, frame_name: str) -> Path | None:
        """Return the mask of a frame, None without one."""
        name = self.by_stem.get(PurePath(frame_name).stem)
        return None if name is None else self.folder / name
