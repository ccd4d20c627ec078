"""Says what a video holds, and opens it for decoding; whatever is wrong with it is one line.

A video is opened as a local file of a known container: no playlist, no address, nothing that leads to other files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from swapfast.errors import SwapfastError
from swapfast.files import NotAFile, open_plain
from swapfast.requirements import check_import

SUFFIXES = (".mp4", ".mov", ".mkv", ".m4v", ".webm", ".avi", ".mts", ".m2ts", ".ts", ".mpg", ".mpeg", ".wmv", ".flv")
MOST_PIXELS = 1 << 27  # of one frame; 8K has 2 ** 25
# Demuxers that read the file they are given and no other.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,nut,ogg,mxf,gif,apng,ivf,h264,hevc"
)
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
_UNSPECIFIED = 2


@dataclass(frozen=True)
class ColourTags:
    """A stream's colour tags by the numbers of ITU-T H.273; 2 is unspecified.

    range: 0 unspecified, 1 limited, 2 full.
    """

    matrix: int = _UNSPECIFIED
    range: int = 0
    primaries: int = _UNSPECIFIED
    transfer: int = _UNSPECIFIED


@dataclass(frozen=True)
class HdrMetadata:
    """HDR10's numbers for a display that has to map them to its own.

    display  red, green, blue, white: x and y each in 1/50000; largest and least luminance in 1/10000 cd/m2; or None
    light    largest and mean light of the brightest frame, cd/m2; or None
    """

    display: tuple[int, ...] | None = None
    light: tuple[int, int] | None = None


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds.

    path        the file
    container   FFmpeg's name of it, such as 'mov,mp4,m4a,3gp,3g2,mj2'
    codec       of the pictures, such as 'h264'
    pix_fmt     FFmpeg's name of how pixels are stored, such as 'yuv420p10le'
    width, height   px as stored, before any turn
    display_matrix  nine numbers of the container, or None; how a player turns the picture
    rotation    degrees anticlockwise by which a player turns it: 0, 90, 180 or 270
    time_base   seconds of one unit of a time stamp
    rate        frames a second, a guess: 25 where the file does not say
    duration_s  seconds, None where the file does not say
    end         when the last frame ends, in units of ``time_base``, None where the file does not say
    aspect      width over height of a pixel, None where the file does not say
    tags        colour tags
    copied      streams that are copied: (index, kind, codec)
    ignored     kinds of streams that are not
    hdr         HDR10's metadata of the first frame
    """

    path: Path
    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    display_matrix: tuple[int, ...] | None
    rotation: int
    time_base: Fraction
    rate: Fraction
    duration_s: float | None
    end: int | None
    aspect: Fraction | None
    tags: ColourTags
    copied: tuple[tuple[int, str, str], ...]
    ignored: tuple[str, ...]
    hdr: HdrMetadata = HdrMetadata()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as a player shows them, px."""
        return (self.height, self.width) if self.rotation % 180 else (self.width, self.height)

    def with_pixels(self, pix_fmt: str, scale: float = 1.0) -> VideoInfo:
        """Return the same video with pixels of another kind, and another size."""
        size = max(1, round(self.width * scale)), max(1, round(self.height * scale))
        matrix, span = (2, 2) if pix_fmt.startswith("gray") else (self.tags.matrix or 1, self.tags.range)
        tags = replace(self.tags, matrix=matrix, range=span)
        return replace(self, pix_fmt=pix_fmt, width=size[0], height=size[1], tags=tags)


def is_video(path: Path) -> bool:
    """Return whether a path has the name of a video: a file with one of ``SUFFIXES``."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def _check_file(path: Path, flag: str) -> None:
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
    except NotAFile as error:
        raise SwapfastError(f"{flag} {path}: is no file but a pipe or a device; give a video file") from error
    except OSError as error:
        raise SwapfastError(f"{flag} {path}: cannot be read ({error.strerror or error}); give a video file") from error
    if size == 0:
        raise SwapfastError(f"{flag} {path}: is empty; copy or download it again")


@contextlib.contextmanager
def open_video(path: Path, flag: str = "-i") -> Iterator[Any]:
    """Open a video to read from it. Yields PyAV's container; raises SwapfastError naming ``flag``."""
    check_import("av", f"{flag} {path}", "give pictures in place of a video")
    import av
    from av.error import FFmpegError

    _check_file(path, flag)
    try:
        container = av.open(f"file:{path.absolute()}", options=dict(_OPTIONS), metadata_errors="replace")
    except FFmpegError as error:
        raise SwapfastError(_why_not_opened(path, flag, error)) from error
    with container:
        yield container


def _why_not_opened(path: Path, flag: str, error: Exception) -> str:
    with open_plain(path) as file:
        head = file.read(12)
    if head[4:8] in (b"ftyp", b"mdat", b"free", b"wide"):
        return (
            f"{flag} {path}: has no index (moov), as when a recording or download broke off; copy it again or repair it"
        )
    reason = getattr(error, "strerror", None) or str(error)
    return f"{flag} {path}: is no video that can be read ({reason}); give an mp4, mov, mkv or another common container"


def picture_stream(container: Any, path: Path, flag: str = "-i") -> Any:
    """Return the video stream of an opened container: the first that is no cover. Raises SwapfastError without one."""
    for stream in container.streams.video:
        if not stream.disposition & 0x400:  # AV_DISPOSITION_ATTACHED_PIC
            if stream.codec_context is None:
                raise SwapfastError(f"{flag} {path}: there is no decoder for its pictures; convert it to H.264 first")
            return stream
    kinds = ", ".join(sorted({stream.type for stream in container.streams}))
    holds = f"no pictures, only {kinds}" if kinds else "nothing"
    raise SwapfastError(f"{flag} {path}: holds {holds}; give a video")


def first_frame(container: Any, stream: Any, path: Path, flag: str = "-i") -> Any:
    """Return the first frame that can be decoded, PyAV's. Raises SwapfastError where there is none."""
    from av.error import FFmpegError

    with contextlib.suppress(FFmpegError):  # the end of what can be read
        for packet in container.demux(stream):
            with contextlib.suppress(FFmpegError):
                for frame in packet.decode():
                    return frame
    raise SwapfastError(f"{flag} {path}: no frame can be decoded; is it cut off or damaged?")


def probe(path: Path, flag: str = "-i") -> VideoInfo:
    """Return what a video holds. Raises SwapfastError naming ``flag`` for what is none, and where no frame decodes."""
    with open_video(path, flag) as container:
        stream = picture_stream(container, path, flag)
        context = stream.codec_context
        if not 0 < context.width * context.height <= MOST_PIXELS:
            raise SwapfastError(
                f"{flag} {path}: frames of {context.width} x {context.height} px; up to {MOST_PIXELS} px are read"
            )
        frame = first_frame(container, stream, path, flag)
        other_streams = [s for s in container.streams if s.index != stream.index]
        copied = [s for s in other_streams if s.type in ("audio", "subtitle") and s.codec_context is not None]
        return VideoInfo(
            path=path,
            container=container.format.name,
            codec=context.name,
            pix_fmt=frame.format.name,
            width=frame.width,
            height=frame.height,
            display_matrix=_display_matrix(frame),
            rotation=round(frame.rotation / 90) * 90 % 360,
            time_base=stream.time_base,
            rate=stream.guessed_rate or stream.average_rate or Fraction(25),
            duration_s=_duration(container, stream),
            end=(stream.start_time or 0) + stream.duration if stream.duration else None,
            aspect=stream.sample_aspect_ratio or None,
            tags=_tags(frame, context),
            copied=tuple((s.index, s.type, s.codec_context.name) for s in copied),
            ignored=tuple(sorted({s.type for s in other_streams if s not in copied})),
            hdr=_hdr(frame),
        )


def _display_matrix(frame: Any) -> tuple[int, ...] | None:
    import numpy as np

    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else tuple(np.frombuffer(bytes(data), np.int32)[:9].tolist())


def _hdr(frame: Any) -> HdrMetadata:
    """Return what a frame says of HDR10, as FFmpeg's structures have it; nothing where a number cannot be."""
    import numpy as np

    display: tuple[int, ...] | None = None
    light: tuple[int, int] | None = None
    if (data := frame.side_data.get("MASTERING_DISPLAY_METADATA")) is not None and len(bytes(data)) >= 88:
        numbers = np.frombuffer(bytes(data)[:88], np.int32).tolist()
        pairs, (has_primaries, has_luminance) = list(zip(numbers[:20:2], numbers[1:20:2])), numbers[20:]
        if has_primaries and has_luminance and all(below > 0 and above >= 0 for above, below in pairs):
            *points, least, most = (Fraction(*pair) for pair in pairs)
            display = (*(round(50000 * point) for point in points), round(10000 * most), round(10000 * least))
            if max(display[:8]) > 50000 or max(display[8:]) >= 1 << 31:
                display = None
    if (data := frame.side_data.get("CONTENT_LIGHT_LEVEL")) is not None and len(bytes(data)) >= 8:
        largest, mean = np.frombuffer(bytes(data)[:8], np.uint32).tolist()
        light = (largest, mean) if max(largest, mean) < 1 << 16 else None
    return HdrMetadata(display, light)


def _tags(frame: Any, context: Any) -> ColourTags:
    """Return the colour tags of the first frame; where it has none, those of the stream."""
    value = {
        name: own if (own := int(getattr(frame, name))) not in (_UNSPECIFIED, 0) else int(getattr(context, name))
        for name in ("colorspace", "color_primaries", "color_trc")
    }
    full = 2 if frame.format.name.startswith("yuvj") else 0
    picked = full or int(frame.color_range) or int(context.color_range)
    return ColourTags(value["colorspace"], picked, value["color_primaries"], value["color_trc"])


def _duration(container: Any, stream: Any) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None
