"""A film of the previews that a model folder keeps."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from swapfast.errors import SwapfastError
from swapfast.files import cannot_write, put_in_place, temporary_name
from swapfast.preview.history import FOLDER, kept_previews, read_sheet

SUFFIXES = (".mp4", ".gif")
LONGEST = {".mp4": 1920, ".gif": 960}  # px of a frame, unless told
CAPTION = 24  # px of the line that says which iteration it is
MOST_PICTURES = 20_000
_LAST_S = 2.0  # how long the last picture stays
_PICTURE = re.compile(r"([0-9]{8,12})\.(?:jpg|png)")
_PAPER, _INK, _BAR = (24, 24, 24), (235, 235, 235), (190, 140, 60)  # BGR


def find_pictures(model_dir: Path, folder: Path | None = None, plain: bool = False) -> list[tuple[int, Path]]:
    """Return the iterations of which there are pictures, in order, with their files.

    folder: of the pictures; None for those of ``train -z`` where there are more of them than previews that are kept.
    plain: without the mask's tint, which only the kept previews have. Raises SwapfastError where there are none.
    """
    if plain:
        kept = [(preview.step, preview.plain) for preview in kept_previews(model_dir) if preview.plain is not None]
        pictures: list[tuple[int, Path]] = [(step, path) for step, path in kept if path is not None]
        if not pictures:
            raise SwapfastError(f"--no-mask: {model_dir / FOLDER} holds no preview without the mask; leave it out")
        return pictures
    folders = [folder] if folder is not None else [model_dir / FOLDER, model_dir / "timelapse"]
    pictures = max((_listed(folder_path) for folder_path in folders), key=len)
    if not pictures:
        where = f"--pictures {folder}" if folder is not None else str(model_dir)
        raise SwapfastError(
            f"{where}: holds no pictures such as 00000250.jpg; train with --preview-history, or name their folder by "
            "--pictures"
        )
    if len(pictures) > MOST_PICTURES:
        folder = pictures[0][1].parent
        raise SwapfastError(f"{folder}: {len(pictures)} pictures; a film is made of up to {MOST_PICTURES}")
    return pictures


def _listed(folder: Path) -> list[tuple[int, Path]]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted((int(match[1]), folder / name) for name in names if (match := _PICTURE.fullmatch(name)))


def frames(pictures: list[tuple[int, Path]], longest: int) -> Iterator[np.ndarray]:
    """Yield the frames, (H, W, 3) uint8 BGR of one even size of at most ``longest`` px, each with its iteration below.

    The first picture decides over the size. Raises SwapfastError for one that cannot be read.
    """
    width = height = 0
    for step, path in pictures:
        sheet = read_sheet(path)
        if not width:
            scale = min(1.0, longest / max(sheet.shape[0] + CAPTION, sheet.shape[1]))
            width, height = (max(2, round(length * scale / 2) * 2) for length in sheet.shape[1::-1])
            width = max(width, 160)
        frame = np.full((height + CAPTION, width, 3), _PAPER, np.uint8)
        part = min(width / sheet.shape[1], height / sheet.shape[0])
        size = max(1, min(width, round(sheet.shape[1] * part))), max(1, min(height, round(sheet.shape[0] * part)))
        method = cv2.INTER_AREA if part < 1 else cv2.INTER_CUBIC
        x, y = (width - size[0]) // 2, (height - size[1]) // 2
        frame[y : y + size[1], x : x + size[0]] = cv2.resize(sheet, size, interpolation=method)
        share = step / max(1, pictures[-1][0])
        cv2.rectangle(frame, (0, height), (round(share * (width - 1)), height + 2), _BAR, -1)
        text = f"iteration {step:,}"
        cv2.putText(frame, text, (6, height + CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
        yield frame


def write_film(
    out: Path,
    pictures: list[tuple[int, Path]],
    rate: float,
    longest: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write a film, .mp4 or .gif, that appears when it is whole; return its number of frames.

    rate: frames a second. The last picture stays for two seconds.
    """
    stays = max(1, round(_LAST_S * rate))

    def shown() -> Iterator[np.ndarray]:
        frame = None
        for done, frame in enumerate(frames(pictures, longest), 1):
            progress(done, len(pictures))
            yield frame
        for _ in range(stays - 1):
            assert frame is not None
            yield frame

    temporary = temporary_name(out)
    try:
        (_write_gif if out.suffix.lower() == ".gif" else _write_mp4)(temporary, shown(), rate)
        put_in_place(temporary, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return len(pictures) + stays - 1


def _write_mp4(path: Path, frames: Iterator[np.ndarray], rate: float) -> None:
    """Write H.264 that every player takes: yuv420p, the index in front."""
    import av

    options = {"movflags": "+faststart"}
    with av.open(f"file:{path.absolute()}", "w", format="mp4", container_options=options) as target:
        stream = None
        for index, frame in enumerate(frames):
            if stream is None:
                stream = target.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt, stream.options = "yuv420p", {"crf": "18", "preset": "medium"}
                target.metadata["comment"] = "Synthetic media made by swapfast"
            picture = av.VideoFrame.from_ndarray(frame, format="bgr24")
            picture.pts = index
            target.mux(stream.encode(picture))
        assert stream is not None
        target.mux(stream.encode(None))


def _write_gif(path: Path, frames: Iterator[np.ndarray], rate: float) -> None:
    """Write a GIF with colours of its own for each frame, that begins again and again."""
    from PIL import Image

    duration = max(20, round(1000 / rate / 10) * 10)  # ms; a GIF counts in hundredths of a second

    def palette_images() -> Iterator[Image.Image]:
        last = None
        for frame in frames:
            if frame is not last:  # one that stays is the same again and again
                picture, last = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).quantize(256, method=0), frame
            yield picture

    pictures = palette_images()
    first = next(pictures)
    with path.open("wb") as file:
        first.save(file, "GIF", save_all=True, append_images=pictures, duration=duration, loop=0, optimize=False)
