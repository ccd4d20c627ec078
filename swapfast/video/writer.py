"""Writes a video that has another's time stamps, sound, subtitles, chapters, tags and turn, and new frames.

Frames go into segments (segments.py); ``finish`` joins them, with everything else copied packet by packet, into a file
that appears when it is whole. Decoding times are made anew from the time stamps of the whole video, so that neither
where segments begin nor where a run was killed leaves a trace.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.files import cannot_write, put_in_place, temporary_name
from swapfast.video.encoding import EncodeSettings, Encoding, check_container, choose_encoding
from swapfast.video.pixels import Box, Conversion, working_format
from swapfast.video.probe import VideoInfo, open_video
from swapfast.video.reader import VideoFrame, VideoReader, turned
from swapfast.video.segments import Segment, SegmentFolder

SEGMENT_FRAMES = 240
SYNTHETIC = (
    "Synthetic media: a face was replaced by swapfast. IPTC DigitalSourceType: "
    "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
)
_MUXER_OPTIONS = {"movflags": "use_metadata_tags", "fflags": "+bitexact"}  # no random identity of the file


@dataclass(frozen=True, eq=False)
class Prepared:
    """A frame of PyAV's with its time stamp and duration, in units of the video's time base."""

    frame: Any
    pts: int
    duration: int


class VideoWriter:
    """Writes frames of ``reader``'s video, in order, to ``out``.

    reader   the source
    out      the new video: .mp4, .mov, .m4v or .mkv
    settings of the encoder
    request  what else decides over the frames: the model, its settings, landmarks. A run that was killed goes on only
             with the same request.
    target   size and pixel format of the new video where they are not the source's, see ``VideoInfo.with_pixels``
    is_cut   whether frames are left out: then sound outside of the first and last one is left out too, and all begins
             at zero
    segment_frames  frames of a segment

    ``frames_done`` frames are there from an earlier run: the first one to ``write`` is the next. Raises SwapfastError,
    before anything is written, for what the container cannot hold.
    """

    def __init__(
        self,
        reader: VideoReader,
        out: Path,
        settings: EncodeSettings | None = None,
        request: dict[str, Any] | None = None,
        target: VideoInfo | None = None,
        is_cut: bool = False,
        segment_frames: int = SEGMENT_FRAMES,
    ) -> None:
        settings = settings or EncodeSettings()
        self._reader, self._out, self._segment_frames = reader, out, segment_frames
        if out.exists() and out.samefile(reader.path):
            raise SwapfastError(f"-o {out}: is the video that is read; give another name")
        self._container = check_container(out)
        self._target, self._is_cut = target or reader.info, is_cut
        self._format = working_format(self._target.pix_fmt)
        self._conversion = Conversion(self._format, self._target.tags, self._target.height)
        self.encoding = choose_encoding(self._target, out, settings)
        self.encoding.open()
        self.left_out = _check_streams(self._target, out)
        self._folder = SegmentFolder(out, _full_request(self.encoding, request or {}, segment_frames))
        self._segment: Segment | None = None

    @property
    def frames_done(self) -> int:
        """Return how many frames the finished segments hold."""
        return self._folder.frames

    def drop_behind(self, frames: int) -> None:
        """Drop finished segments until no more than ``frames`` frames are done."""
        self._folder.drop_behind(frames)

    def write(self, frame: VideoFrame, pixels: np.ndarray | None = None, old: np.ndarray | None = None) -> None:
        """Encode a frame. Arguments as of ``prepare``."""
        self.put(self.prepare(frame, pixels, old))

    def prepare(
        self,
        frame: VideoFrame,
        pixels: np.ndarray | None = None,
        old: np.ndarray | None = None,
        box: Box | None = None,
    ) -> Prepared:
        """Return a frame as ``put`` takes it. Several threads may prepare frames at once.

        pixels: the new ones, upright: as ``frame.pixels(box)`` has them, or those of ``target``; None for the frame as
        it is. old: what ``frame.pixels(box)`` gave, which saves making it again.
        """
        if self._target is not self._reader.info:
            assert pixels is not None, "another size or format has pixels of its own"
            planes = self._conversion.to_planes(turned(pixels, -frame.rotation))
        else:
            planes = frame.planes if pixels is None else frame.changed(pixels, old, box)
        return Prepared(self.encoding.frame(planes, self._format), frame.pts, frame.duration)

    def put(self, prepared: Prepared) -> None:
        """Encode the next frame. Raises SwapfastError where the disk is full."""
        try:
            if self._segment is None:
                self._segment = self._folder.new(self.encoding)
            self._segment.add(prepared.frame, prepared.pts, prepared.duration)
            if self._segment.frames == self._segment_frames:
                self._end_segment()
        except OSError as error:
            raise cannot_write(
                self._folder.path, error, "give another -o; with space the same command goes on from here"
            ) from error

    def _end_segment(self) -> None:
        if self._segment is not None:
            self._segment.finish()
            self._segment = None
            self._folder.note_finished()

    def close(self) -> None:
        """Keep what is finished for the next start; drop the segment in progress."""
        if self._segment is not None:
            self._segment.drop()
            self._segment = None
        self._folder.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def finish(self, comment: str = SYNTHETIC) -> None:
        """Join all segments to the video and remove them. comment: what the video says of itself.

        Raises SwapfastError where there is no frame, and where the disk is full.
        """
        from av.error import FFmpegError

        try:
            self._end_segment()
            if not self._folder.frames:
                raise SwapfastError(f"-o {self._out}: no frame is left to write; see --frames", EXIT_FAILED)
            temporary = temporary_name(self._out)
            try:
                self._join(temporary, comment)
                put_in_place(temporary, self._out)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(
                self._out, error, "give another -o; with space the same command goes on from here"
            ) from error
        except FFmpegError as error:
            raise SwapfastError(f"-o {self._out}: cannot be joined ({error})", EXIT_FAILED) from error
        self._folder.remove()

    def _join(self, path: Path, comment: str) -> None:
        info = self._reader.info
        with open_video(info.path) as source, _output(path, self._out) as target:
            stream = _add_pictures(target, self.encoding)
            copied_streams = _add_copies(source, target, self._target, self.left_out)
            _copy_metadata(source, target, comment)
            target.start_encoding()
            shift_s = self._shift()
            pictures = self._pictures(stream, shift_s)
            copies = _copies(source, copied_streams, shift_s, self._span() if self._is_cut else None)
            for _, packet in heapq.merge(pictures, copies, key=_decoding_time):
                target.mux(packet)

    def _shift(self) -> Fraction:
        """Return seconds to add to all time stamps: no container shows pictures before zero.

        Whole milliseconds, so that rounding stays the same in Matroska.
        """
        first = self._span()[0]
        if self._is_cut:
            return Fraction(math.ceil(-first * 1000), 1000)
        return Fraction(math.ceil(max(Fraction(0), -first) * 1000), 1000)

    def _span(self) -> tuple[Fraction, Fraction]:
        """Return when the first frame is shown and when the last one ends, seconds of the source."""
        packets = self._folder.packets()
        last = packets[packets["pts"].argmax()]
        base: Fraction = self._reader.info.time_base
        return int(packets["pts"].min()) * base, (int(last["pts"]) + self._last_duration(last)) * base

    def notes(self) -> list[str]:
        """Return a line for each thing of the source that the new video lacks."""
        codecs = {index: codec for index, _, codec in self._target.copied}
        notes = [
            f"{self._out.name}: without the {codecs[index]} subtitles, which .mkv can hold" for index in self.left_out
        ]
        if self._target.ignored:
            kinds = ", ".join(self._target.ignored)
            notes.append(f"{self._out.name}: without the other streams of the source ({kinds})")
        return notes

    def _pictures(self, stream: Any, shift_s: Fraction) -> Iterator[tuple[Fraction, Any]]:
        """Yield the packets of the pictures with their decoding times in seconds."""
        from av import Packet as AVPacket

        base: Fraction = self._reader.info.time_base
        shift = round(shift_s / base)
        packets = self._folder.packets()
        stamps = np.sort(packets["pts"])
        last = packets[packets["pts"].argmax()]
        last_duration = self._last_duration(last)
        until_next = np.append(np.diff(stamps), last_duration)[np.searchsorted(stamps, packets["pts"])]
        decoded_at = decoding_times(packets["pts"])
        for number, data in enumerate(self._folder.contents()):
            packet = AVPacket(data)
            packet.pts, packet.dts = int(packets["pts"][number]) + shift, int(decoded_at[number]) + shift
            packet.duration = int(until_next[number])
            if len(packets) - 1 == number and self._container != "matroska":
                packet.duration = last_duration  # with which the decoding times end
            packet.time_base, packet.is_keyframe, packet.stream = base, bool(packets["is_key"][number]), stream
            yield packet.dts * base, packet

    def _last_duration(self, last: np.void) -> int:
        """Return how long the last frame is shown: until the source ends, where it is the source's last too."""
        end, pts = self._reader.info.end, int(last["pts"])
        if pts == self._reader.last_pts and end is not None and end > pts:
            return end - pts
        return int(last["duration"]) or max(1, round(1 / (self._reader.info.rate * self._reader.info.time_base)))


def decoding_times(pts: np.ndarray) -> np.ndarray:
    """Return when each packet is decoded: never after it is shown, each later than the one before, (n,) int64.

    pts: (n,) time stamps in the order in which packets are decoded. The times are the time stamps in order, late by as
    many frames as a packet is at most decoded before its turn. The first ones are spread over as much time as is
    missing at the end: an .mp4 says of its length what its decoding times say.
    """
    stamps = np.sort(pts)
    delay = int((np.arange(len(pts)) - np.searchsorted(stamps, pts)).max(initial=0))
    if not delay:
        return stamps
    missing = int(stamps[-1] - stamps[-1 - delay])
    before = [int(stamps[0]) - missing * (delay - number) // delay for number in range(delay)]
    return np.concatenate([np.array(before, np.int64), stamps[:-delay]])


def _decoding_time(item: tuple[Fraction, Any]) -> Fraction:
    return item[0]


def _full_request(encoding: Encoding, request: dict[str, Any], frames: int) -> dict[str, Any]:
    info = encoding.info
    status = info.path.stat()
    source = [str(info.path.absolute()), status.st_size, status.st_mtime_ns]
    how = [encoding.encoder, encoding.pix_fmt, info.width, info.height, encoding.options, frames]
    return {"source": source, "encoding": how, **request}


def _open_output(file: Any, out: Path) -> Any:
    import av

    return av.open(file, "w", format=check_container(out), container_options=dict(_MUXER_OPTIONS))


@contextlib.contextmanager
def _output(path: Path, out: Path) -> Iterator[Any]:
    with _open_output(f"file:{path.absolute()}", out) as container:
        yield container


def _add_pictures(target: Any, encoding: Encoding) -> Any:
    """Add the stream of the pictures. Its own encoder makes the header, which is that of every segment's."""
    info = encoding.info
    stream = target.add_stream(encoding.encoder, rate=info.rate)
    encoding.set_up(stream.codec_context)
    stream.time_base = info.time_base
    if info.display_matrix is not None:
        stream.set_display_matrix(info.display_matrix)
    return stream


def _add_copies(source: Any, target: Any, info: VideoInfo, left_out: tuple[int, ...]) -> dict[int, Any]:
    """Add a stream for each that is copied: number in the source -> stream."""
    copied_streams = {}
    for index, _, _ in info.copied:
        if index not in left_out:
            template = source.streams[index]
            copied_streams[index] = added = target.add_stream_from_template(template)
            added.metadata.update(template.metadata)
            added.time_base = template.time_base
    return copied_streams


def _check_streams(info: VideoInfo, out: Path) -> tuple[int, ...]:
    """Return the numbers of the streams that the container cannot hold: subtitles. Raises SwapfastError for sound."""
    import io

    from av.error import FFmpegError

    left_out = []
    for index, kind, codec in info.copied:
        with open_video(info.path) as source:
            target = _open_output(io.BytesIO(), out)
            try:
                target.add_stream_from_template(source.streams[index])
                target.start_encoding()
            except (FFmpegError, ValueError) as error:
                if kind == "audio":
                    other = out.with_suffix(".mkv").name
                    raise SwapfastError(f"-o {out}: {out.suffix} cannot hold {codec} sound; give -o {other}") from error
                left_out.append(index)
            finally:
                with contextlib.suppress(FFmpegError, ValueError):
                    target.close()
    return tuple(left_out)


def _copy_metadata(source: Any, target: Any, comment: str) -> None:
    target.metadata.update(source.metadata)
    former = [text for key, text in source.metadata.items() if key.lower() == "comment" and text != comment]
    for key in [key for key in target.metadata if key.lower() in ("comment", "encoder")]:
        del target.metadata[key]
    target.metadata["comment"] = "; ".join([comment, *former])
    if chapters := source.chapters():
        target.set_chapters(chapters)


def _copies(
    source: Any, copied_streams: dict[int, Any], shift_s: Fraction, span: tuple[Fraction, Fraction] | None
) -> Iterator[tuple[Fraction, Any]]:
    """Yield the packets of the copied streams with their decoding times in seconds, for their new streams.

    span: from when to when they are copied, seconds of the source; None for all.
    """
    from av.error import FFmpegError

    if not copied_streams:
        return
    with contextlib.suppress(FFmpegError):  # the end of what can be read
        for packet in source.demux([source.streams[index] for index in copied_streams]):
            if packet.dts is None:
                continue
            base = packet.time_base
            if span is not None and not span[0] <= packet.dts * base < span[1]:
                continue
            shift = round(shift_s / base)
            packet.dts += shift
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.stream = copied_streams[packet.stream_index]
            yield packet.dts * base, packet
