"""Writes a drawn film: person A as a video with exact landmarks, and the true swap, the same film with person B.

OUT/a.mp4, OUT/b.mp4    yuv420p, BT.709, limited range
OUT/a.jsonl             landmarks of a.mp4, see docs/swap.md

With clips, all have sound, a hum that is as loud as the mouth is open, and there are two files more:

OUT/person_b.mp4        person B in another film: to train on
OUT/person_b.jsonl      its landmarks
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from swapfast.bars import Progress
from swapfast.errors import SwapfastError
from swapfast.files import cannot_write
from swapfast.requirements import check_import
from swapfast.swap.landmark_file import header_line, landmark_line
from swapfast.synthetic.dataset import check_new_folder, put_folder_in_place, unfinished_folder
from swapfast.synthetic.film import Film
from swapfast.synthetic.identity import Identity, draw_identities
from swapfast.synthetic.render import render
from swapfast.video.encoding import EncodeSettings, Encoding, choose_encoding
from swapfast.video.pixels import Conversion, working_format
from swapfast.video.probe import ColourTags, VideoInfo

LONGEST_S = 600.0
SIZES = (64, 1024)
RATE = 25
CRF = 8  # shows no loss
SOUND_RATE = 48_000  # samples a second
_PITCHES = {"a": 118.0, "b": 196.0}  # Hz, of both people's voices
_SOUND_FRAME = 1024  # samples that AAC encodes at a time
_TAGS = ColourTags(1, 1, 1, 1)
_FORMAT = "yuv420p"


def draw_film(
    out: Path,
    seconds: float,
    size: int = 256,
    seed: int = 1,
    rate: int = RATE,
    progress: Progress | None = None,
    clips: bool = False,
) -> int:
    """Draw a film into the new folder ``out``, which appears when it is complete. Returns its number of frames.

    size: edge of its frames, px, even. rate: frames a second. clips: with sound, and another film of person B.
    Raises SwapfastError for what it cannot draw.
    """
    if not 0 < seconds <= LONGEST_S:
        raise SwapfastError(f"--film {seconds:g}: give more than 0 and up to {LONGEST_S:g} seconds")
    if not SIZES[0] <= size <= SIZES[1] or size % 2:
        raise SwapfastError(f"--size {size}: frames of a film are {SIZES[0]} to {SIZES[1]} px wide, and an even number")
    check_import("av", "--film")
    check_new_folder(out)
    count = max(1, round(seconds * rate))
    try:
        with unfinished_folder(out) as folder:
            (folder / "a").rmdir()  # of data sets
            person_a, person_b = draw_identities(seed)
            films = [("a", person_a, Film(seed), "a"), ("b", person_b, Film(seed), "a")]
            if clips:
                films.append(("person_b", person_b, Film(seed + 1), "b"))
            for index, (name, person, film, voice) in enumerate(films):

                def drawn(frames: int, done: int = index * count, total: int = len(films) * count) -> None:
                    if progress is not None:
                        progress(done + frames, total)

                sound = hum(film, count / rate, _PITCHES[voice]) if clips else None
                points = _write_person(folder / f"{name}.mp4", person, film, count, size, rate, drawn, sound)
                if name != "b":
                    lines = [header_line(f"{name}.mp4", count, (size, size))]
                    lines += [landmark_line(p, frame=frame, track=0) for frame, p in enumerate(points)]
                    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
            put_folder_in_place(folder, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    return count


def _write_person(
    path: Path,
    person: Identity,
    film: Film,
    count: int,
    size: int,
    rate: int,
    drawn: Callable[[int], None],
    sound: np.ndarray | None,
) -> list[np.ndarray]:
    """Write one person's film. Returns the landmarks of each frame, (68, 2) px."""
    landmarks = []

    def pictures() -> Iterator[np.ndarray]:
        for index in range(count):
            face = render(person, film.scene(index / rate), size)
            landmarks.append(face.landmarks)
            drawn(index + 1)
            yield face.image

    write_video(path, pictures(), size, size, rate, sound)
    return landmarks


def hum(film: Film, seconds: float, pitch: float) -> np.ndarray:
    """Return the sound of a film, (N,) float32 in -1..1 at SOUND_RATE: a hum while the mouth is open. pitch: Hz."""
    times = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE
    looks = np.arange(0, seconds + 0.04, 0.04)
    open_mouth = np.interp(times, looks, [film.scene(time).expression.mouth_open for time in looks])
    overtones = sum(np.sin(2 * np.pi * pitch * n * times) / n**2 for n in range(1, 7))
    return (0.4 * open_mouth * overtones).astype(np.float32)


def write_video(
    path: Path,
    pictures: Iterator[np.ndarray],
    width: int,
    height: int,
    rate: int = RATE,
    sound: np.ndarray | None = None,
    crf: int = CRF,
) -> None:
    """Write (H, W, 3) uint8 BGR pictures of one size as a new video of a steady rate.

    sound: (N,) float32 in -1..1 at SOUND_RATE, one channel. crf: of x264; the default shows no loss.
    """
    import av

    encoding = new_encoding(path, width, height, rate, crf)
    format = working_format(_FORMAT)
    conversion = Conversion(format, _TAGS, height)
    with av.open(f"file:{path.absolute()}", "w") as target:
        stream: Any = target.add_stream(encoding.encoder, rate=rate)
        encoding.set_up(stream.codec_context)
        voice: Any = None if sound is None else target.add_stream("aac", rate=SOUND_RATE, layout="mono")
        for index, picture in enumerate(pictures):
            frame = encoding.frame(conversion.to_planes(picture), format)
            frame.pts, frame.time_base = index, encoding.info.time_base
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
        if sound is not None:
            for first in range(0, len(sound), _SOUND_FRAME):
                samples = np.ascontiguousarray(sound[None, first : first + _SOUND_FRAME])
                heard = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                heard.sample_rate, heard.pts, heard.time_base = SOUND_RATE, first, Fraction(1, SOUND_RATE)
                target.mux(voice.encode(heard))
            target.mux(voice.encode(None))


def new_encoding(path: Path, width: int, height: int, rate: int, crf: int = CRF) -> Encoding:
    """Return the encoder of a new video: H.264 with a quality that shows no loss."""
    info = VideoInfo(
        path=path,
        container="",
        codec="",
        pix_fmt=_FORMAT,
        width=width,
        height=height,
        display_matrix=None,
        rotation=0,
        time_base=Fraction(1, rate),
        rate=Fraction(rate),
        duration_s=None,
        end=None,
        aspect=None,
        tags=_TAGS,
        copied=(),
        ignored=(),
    )
    return choose_encoding(info, path, EncodeSettings("x264", crf=crf))
