"""Measures a swapped film against its true swap: python -m benchmarks.film FILM, as `make film` leaves it.

    FILM/clips/a.mp4, a.jsonl   person A, and exact landmarks
    FILM/clips/b.mp4            the true swap: the same film with person B
    FILM/swapped.mp4            what was made of a.mp4
    FILM/report.json            of the swap: its flicker
    FILM/a/landmarks.jsonl      as extract found them

PSNR is taken inside the face, the hull of the exact landmarks with the forehead, over all frames. It stands beside that
of A unchanged. The landmarks' error is the mean distance from the exact ones over that of the eyes' outer corners.
--sheet FILE draws frames of all three side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from swapfast.errors import SwapfastError
from swapfast.faces.masks import draw_face
from swapfast.files import check_new_file, write_file
from swapfast.printing import complain, say
from swapfast.swap.face_spool import FoundFace
from swapfast.swap.figures import masked_psnr, match_colors
from swapfast.swap.landmark_file import read_landmark_file
from swapfast.video.reader import VideoReader

ROWS = ("clip of A", "swapped", "true swap")
COLUMNS = 5
_EDGE = 192  # px of a frame of the sheet
_HEAD, _GAP = 22, 4  # px


def measure(film: Path) -> dict[str, float]:
    """Return the figures of a film: PSNR in dB of the swap and of A unchanged, and the flicker in levels of 255.

    matched: with the true swap's mean colour inside the face, which the swap gives up for A's on purpose.

    Raises SwapfastError where a file is missing or the videos differ in length or size.
    """
    landmarks = read_landmark_file(film / "clips" / "a.jsonl").faces.by_index
    db: dict[str, list[float]] = {"swap": [], "swap_matched": [], "unchanged": [], "unchanged_matched": []}
    for index, (source, made, truth) in enumerate(_frames(film)):
        points = np.asarray(landmarks[index][0].landmarks, np.float32)
        mask = draw_face(points, len(source))[None].astype(np.float64) / 255
        expected = truth[None] / 255.0
        for name, picture in (("swap", made[None] / 255.0), ("unchanged", source[None] / 255.0)):
            db[name].append(masked_psnr(picture, expected, mask)[0])
            db[f"{name}_matched"].append(masked_psnr(match_colors(picture, expected, mask), expected, mask)[0])
    figures: dict[str, float] = {"frames": len(db["swap"])} | {
        f"{name}_db": _mean(values) for name, values in db.items()
    }
    try:
        flicker = json.loads((film / "report.json").read_text())["video"]["flicker"]
    except (OSError, ValueError, KeyError):
        raise SwapfastError(f"{film / 'report.json'}: no report of a swap; swap with --report") from None
    return figures | {f"flicker_{name}": value for name, value in flicker.items()} | _landmark_errors(film, landmarks)


def _landmark_errors(film: Path, exact: Mapping[int, Sequence[FoundFace]]) -> dict[str, float]:
    """Return in how many frames of A a face was found, and the mean error of all landmarks and of the inner 51."""
    found = read_landmark_file(film / "a" / "landmarks.jsonl").faces.by_index
    errors = []
    for index in sorted(found.keys() & exact.keys()):
        truth = exact[index][0].landmarks
        distances = [np.linalg.norm(face.landmarks - truth, axis=1) for face in found[index]]
        errors.append(min(distances, key=np.mean) / np.linalg.norm(truth[36] - truth[45]))
    if not errors:
        raise SwapfastError(f"{film / 'a'}: has faces of none of the clip's frames; extract again")
    every = np.array(errors)
    return {
        "frames_found": len(errors),
        "landmark_error": round(float(every.mean()), 4),
        "landmark_error_inner": round(float(every[:, 17:].mean()), 4),
    }


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 2)


def _frames(film: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Give the frames of all three videos together, (H, W, 3) uint8 BGR each."""
    readers = [VideoReader(path) for path in (film / "clips" / "a.mp4", film / "swapped.mp4", film / "clips" / "b.mp4")]
    videos = [(frame.pixels() for frame in reader) for reader in readers]
    count = 0
    try:
        for source, made, truth in zip(*videos, strict=True):
            if not source.shape == made.shape == truth.shape:
                raise SwapfastError(f"{film}: frames of {made.shape} were swapped, the true swap has {truth.shape}")
            count += 1
            yield source, made, truth
    except ValueError:
        raise SwapfastError(f"{film}: the videos have different numbers of frames, after {count}") from None


def draw_sheet(film: Path) -> np.ndarray:
    """Return COLUMNS frames spread over the film, a row for each of ROWS, (H, W, 3) uint8 BGR."""
    triples = list(_frames(film))
    chosen = np.linspace(0, len(triples) - 1, COLUMNS + 2).round().astype(int)[1:-1]
    height = len(ROWS) * (_EDGE + _HEAD)
    sheet = np.full((height, COLUMNS * (_EDGE + _GAP) - _GAP, 3), 255, np.uint8)
    for row, title in enumerate(ROWS):
        top = row * (_EDGE + _HEAD)
        cv2.putText(sheet, title, (2, top + 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
        for column, index in enumerate(chosen.tolist()):
            left = column * (_EDGE + _GAP)
            frame = cv2.resize(triples[index][row], (_EDGE, _EDGE), interpolation=cv2.INTER_AREA)
            sheet[top + _HEAD : top + _HEAD + _EDGE, left : left + _EDGE] = frame
    return sheet


def describe(figures: dict[str, float]) -> str:
    """Return the figures as text."""
    return (
        f"{figures['frames']} frames: {figures['swap_db']:.1f} dB of the true swap inside the face, where A unchanged "
        f"has {figures['unchanged_db']:.1f}; colour-matched {figures['swap_matched_db']:.1f}, "
        f"A {figures['unchanged_matched_db']:.1f}\n"
        f"flicker {figures['flicker_swapped']:.2f} levels of 255, of the clip itself {figures['flicker_source']:.2f}, "
        f"added {figures['flicker_difference']:.2f}\n"
        f"landmarks found in {figures['frames_found']} frames, {figures['landmark_error']:.4f} of the eyes' distance "
        f"from the exact ones, the inner 51 {figures['landmark_error_inner']:.4f}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the figures of a film. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.film", description=__doc__.split("\n")[0])
    parser.add_argument("film", type=Path, metavar="FILM")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw frames of the three videos: .png or .jpg")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args(arguments)
    try:
        figures = measure(options.film)
        if options.sheet is not None:
            check_new_file(options.sheet, "--sheet", (".png", ".jpg"))
            write_file(options.sheet, cv2.imencode(options.sheet.suffix, draw_sheet(options.film))[1].tobytes())
        if options.json is not None:
            write_file(options.json, (json.dumps(figures, indent=1) + "\n").encode())
    except (SwapfastError, OSError) as error:
        complain(str(error))
        return 2
    say(describe(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
