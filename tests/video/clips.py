"""Short drawn videos for the tests, and what a file holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BASE = Fraction(1, 90000)
VARIABLE = tuple(int(n) * 1800 for n in np.random.default_rng(1).integers(1, 5, 40).cumsum())


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A gradient with a square that moves, (H, W, 3) uint8 BGR."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width) * 255 // width
    image[..., 1] = np.arange(height)[:, None] * 255 // height
    image[..., 2] = number * 9 % 256
    image[height // 4 : height // 2, number : number + width // 4] = (250, 240, 230)
    return image


def make_clip(
    path: Path,
    stamps: tuple[int, ...] = VARIABLE[:20],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (66, 50),
    options: dict[str, str] | None = None,
    sound: str | None = None,
    subtitles: bool = False,
    rotation: int = 0,
    tags: tuple[int, int, int, int] | None = None,
    base: Fraction = BASE,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a clip. stamps: in units of ``base``. sound: an encoder. tags: matrix, range, primaries, transfer."""
    width, height = size
    with av.open(str(path), "w") as target:
        target.metadata.update(metadata or {})
        video = target.add_stream(codec, rate=25, options=options or {})
        context = video.codec_context
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        context.time_base = video.time_base = base
        if tags:
            context.colorspace, context.color_range, context.color_primaries, context.color_trc = tags
        if rotation:
            video.set_display_rotation(rotation)
        audio = target.add_stream(sound, rate=48000) if sound else None
        if audio:
            audio.layout = "mono"
        text = target.add_mux_stream("subrip") if subtitles else None
        target.start_encoding()
        for number, pts in enumerate(stamps):
            frame = _frame(picture(number, width, height), pix_fmt, tags)
            frame.pts, frame.time_base = pts, base
            target.mux(video.encode(frame))
        target.mux(video.encode(None))
        if audio:
            _write_sound(target, audio, float(stamps[-1] * base))
        if text:
            for second in range(2):
                packet = av.Packet(f"line {second}".encode())
                packet.pts = packet.dts = second * 300
                packet.duration, packet.time_base, packet.stream = 200, Fraction(1, 1000), text
                target.mux(packet)
    return path


def _frame(image: np.ndarray, pix_fmt: str, tags: tuple[int, int, int, int] | None) -> Any:
    frame = av.VideoFrame.from_ndarray(image, format="bgr24")
    matrix, span = (tags[0], tags[1]) if tags else (5, 1)
    made = frame.reformat(
        format=pix_fmt, dst_colorspace=5 if matrix in (0, 2) else matrix, src_color_range=2, dst_color_range=span or 1
    )
    if tags:
        made.colorspace, made.color_range, made.color_primaries, made.color_trc = tags
    return made


def _write_sound(target: Any, stream: Any, seconds: float) -> None:
    for start in range(0, int(seconds * 48000), 1024):
        wave = (np.sin(np.arange(start, start + 1024) * 0.05) * 0.3).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        target.mux(stream.encode(frame))
    target.mux(stream.encode(None))


@dataclass
class Content:
    """What a file holds: time stamps in seconds, frames of PyAV's, and packets of the other streams by their number."""

    stamps: list[Fraction]
    frames: list[Any]
    packets: dict[int, list[tuple]]
    metadata: dict[str, str]
    stream: dict[str, Any]
    duration: int | None

    @property
    def planes(self) -> list[list[bytes]]:
        """The bytes of each frame's planes without what pads their rows."""
        return [frame_bytes(frame) for frame in self.frames]


def frame_bytes(frame: Any) -> list[bytes]:
    wide = 2 if max(part.bits for part in frame.format.components) > 8 else 1
    packed = len(frame.planes) == 1 and len(frame.format.components) > 1
    columns = len(frame.format.components) if packed else 1
    if frame.format.name in ("bgr0", "rgb0"):
        columns = 4
    rows = [np.frombuffer(p, np.uint8).reshape(-1, p.line_size)[: p.height] for p in frame.planes]
    return [r[:, : p.width * wide * columns].tobytes() for r, p in zip(rows, frame.planes)]


def content(path: Path) -> Content:
    with av.open(str(path)) as source:
        video = source.streams.video[0]
        context = video.codec_context
        names = ("colorspace", "color_range", "color_primaries", "color_trc")
        facts = {"codec": context.name, "pix_fmt": video.pix_fmt, "size": (video.width, video.height)}
        facts["tags"] = tuple(int(getattr(context, name)) for name in names)
        frames = list(source.decode(video))
        stamps = [frame.pts * video.time_base for frame in frames]
        metadata, duration = dict(source.metadata), source.duration
    packets: dict[int, list[tuple]] = {}
    with av.open(str(path)) as source:
        others = [s for s in source.streams if s.type in ("audio", "subtitle")]
        for packet in source.demux(others) if others else ():
            if packet.dts is not None:
                facts_of = (packet.pts, packet.dts, packet.time_base, hashlib.sha256(bytes(packet)).hexdigest())
                packets.setdefault(packet.stream_index, []).append(facts_of)
    return Content(stamps, frames, packets, metadata, facts, duration)
