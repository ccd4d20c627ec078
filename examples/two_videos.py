"""From two videos to a film: the person in the first gets the face of the person in the second.

    python -m examples.two_videos A.mp4 B.mp4 OUT

    OUT/a, OUT/b       the faces, with contact sheets of their tracks
    OUT/inspect.png    what both folders have and lack; OUT/skip.txt, near-duplicates and blurred faces
    OUT/model          the model
    OUT/swapped.mp4    the film, with A's sound; OUT/report.json, how steady it is

The same command goes on where it stopped, and with more --iterations makes a better film. Where A.jsonl lies beside
A.mp4, its landmarks are taken (docs/swap.md); otherwise, and with --backend mesh, the networks of
`swapfast extract --get-models` find the faces.
Where a video shows several people, extract by hand with --tracks first, to OUT/a or OUT/b (docs/extract.md).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from examples.program import Start, swapfast


def main(arguments: list[str] | None = None, start: Start = subprocess.run) -> int:
    """Make the film. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.two_videos", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("video_a", type=Path, metavar="A.mp4", help="whose head and scene stay")
    parser.add_argument("video_b", type=Path, metavar="B.mp4", help="whose face is put in")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder for all that is made")
    parser.add_argument("-t", "--model", default="tiny", help="see `swapfast models`; default tiny, for a first look")
    parser.add_argument("-i", "--iterations", type=int, default=1000, metavar="N", help="in all; default 1000")
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="edge of the faces; default 512")
    parser.add_argument("--backend", choices=("mesh", "json"), help="of extract; default: json where A.jsonl is there")
    parser.add_argument("--skip", action="store_true", help="do not train on near-duplicates and blurred faces")
    options, train_flags = parser.parse_known_args(arguments)
    for video in (options.video_a, options.video_b):
        if not video.is_file():
            print(f"{video}: no such file; give two videos and a folder", file=sys.stderr)
            return 2

    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    for video, faces in ((options.video_a, out / "a"), (options.video_b, out / "b")):
        if not is_done(faces):
            known = video.with_suffix(".jsonl")
            is_known = known.is_file() if options.backend is None else options.backend == "json"
            points = ("--backend", "json", "--landmarks", known) if is_known else ("--backend", "mesh")
            swapfast("extract", "-i", video, "-o", faces, "--size", options.size, *points, start=start)
    skip = out / "skip.txt"
    listed = () if skip.exists() else ("--skip-list", skip)  # lines may have been taken out by hand
    swapfast("inspect", out / "a", out / "b", "-o", out / "inspect.png", *listed, start=start)
    model = ("-A", out / "a", "-B", out / "b", "-m", out / "model", "-t", options.model, "-i", options.iterations)
    swapfast("train", *model, *(("--skip", skip) if options.skip else ()), *train_flags, start=start)
    film = ("-o", out / "swapped.mp4", "--overwrite", "--report", out / "report.json")
    landmarks = out / "a" / "landmarks.jsonl"
    swapfast("swap", "-m", out / "model", "-i", options.video_a, "--landmarks", landmarks, *film, start=start)
    print(f"look at {out / 'swapped.mp4'}, and at {out / 'inspect.png'} before you train longer")
    return 0


def is_done(faces: Path) -> bool:
    """Return whether a folder has all faces of its video: one that extract was stopped at goes on."""
    try:
        return json.loads((faces / "extract.json").read_text()).get("is_stopped") is not True
    except (OSError, ValueError, AttributeError):
        return faces.exists()


if __name__ == "__main__":
    sys.exit(main())
