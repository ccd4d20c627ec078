"""Writes a drawn film: person A as a video with exact landmarks, and the true swap, the same film with person B.

OUT/a.mp4, OUT/b.mp4    yuv420p, BT.709, limited range
OUT/a.jsonl             landmarks of a.mp4, see docs/swap.md
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
_TAGS = ColourTags(1, 1, 1, 1)
_FORMAT = "yuv420p"


def draw_film(
    out: Path, seconds: float, size: int = 256, seed: int = 1, rate: int = RATE, progress: Progress | None = None
) -> int:
    """Draw a film into the new folder ``out``, which appears when it is complete. Returns its number of frames.

    size: edge of its frames, px, even. rate: frames a second. Raises SwapfastError for what it cannot draw.
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
            lines = [header_line("a.mp4", count, (size, size))]
            for done, name, person in zip((0, count), ("a", "b"), draw_identities(seed)):

                def drawn(frames: int, done: int = done) -> None:
                    if progress is not None:
                        progress(done + frames, 2 * count)

                points = _write_person(folder / f"{name}.mp4", person, Film(seed), count, size, rate, drawn)
                if name == "a":
                    lines += [landmark_line(p, frame=index, track=0) for index, p in enumerate(points)]
            (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
            put_folder_in_place(folder, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    return count


def _write_person(
    path: Path, person: Identity, film: Film, count: int, size: int, rate: int, drawn: Callable[[int], None]
) -> list[np.ndarray]:
    """Write one person's film. Returns the landmarks of each frame, (68, 2) px."""
    landmarks = []

    def pictures() -> Iterator[np.ndarray]:
        for index in range(count):
            face = render(person, film.scene(index / rate), size)
            landmarks.append(face.landmarks)
            drawn(index + 1)
            yield face.image

    write_video(path, pictures(), size, size, rate)
    return landmarks


def write_video(path: Path, pictures: Iterator[np.ndarray], width: int, height: int, rate: int = RATE) -> None:
    """Write (H, W, 3) uint8 BGR pictures of one size as a new video of a steady rate, with hardly any loss."""
    import av

    encoding = new_encoding(path, width, height, rate)
    format = working_format(_FORMAT)
    conversion = Conversion(format, _TAGS, height)
    with av.open(f"file:{path.absolute()}", "w") as target:
        stream: Any = target.add_stream(encoding.encoder, rate=rate)
        encoding.set_up(stream.codec_context)
        for index, picture in enumerate(pictures):
            frame = encoding.frame(conversion.to_planes(picture), format)
            frame.pts, frame.time_base = index, encoding.info.time_base
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))


def new_encoding(path: Path, width: int, height: int, rate: int) -> Encoding:
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
    return choose_encoding(info, path, EncodeSettings("x264", crf=8))
