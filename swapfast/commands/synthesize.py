"""`swapfast synthesize`: faces of two made-up people, or films of them, with exact landmarks, masks and true swaps."""

from __future__ import annotations

import argparse

from swapfast.bars import Bars
from swapfast.commands.argument_types import path, whole
from swapfast.errors import EXIT_DONE, SwapfastError
from swapfast.printing import say
from swapfast.stop import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("out", type=path, metavar="OUT", help="a new folder: OUT/a, OUT/b, OUT/truth/a, OUT/truth/b")
    parser.add_argument("--faces", type=whole, default=300, help="faces per side; default 300")
    parser.add_argument("--size", type=whole, default=256, help="edge in px; default 256")
    parser.add_argument("--pairs", type=whole, default=40, help="true swaps; default 40")
    parser.add_argument("--seed", type=whole, default=1, help="the people follow from it; default 1")
    parser.add_argument(
        "--film",
        type=float,
        metavar="S",
        help="in place of faces a video of S seconds, OUT/a.mp4 with landmarks in a.jsonl, and its true swap OUT/b.mp4",
    )
    parser.add_argument(
        "--clips",
        action="store_true",
        help="with --film: sound, and OUT/person_b.mp4, another film of the second person, to train on",
    )


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """Draw what the command line asks for; return the exit code."""
    if arguments.clips and arguments.film is None:
        raise SwapfastError("--clips: belongs to --film; give --film S too, the seconds of each clip")
    return _draw_faces(arguments) if arguments.film is None else _draw_film(arguments)


def _draw_film(arguments: argparse.Namespace) -> int:
    from swapfast.video.film import draw_film

    out, seconds = arguments.out, arguments.film
    with Bars() as bars:
        show = bars("drawing")
        count = draw_film(out, seconds, arguments.size, arguments.seed, progress=show, clips=arguments.clips)
    more = "; person_b.mp4 to train on, and its landmarks" if arguments.clips else ""
    say(f"{count} frames in {out}: a.mp4, its landmarks a.jsonl, and the true swap b.mp4{more}")
    return EXIT_DONE


def _draw_faces(arguments: argparse.Namespace) -> int:
    from swapfast.synthetic import synthesize

    out, faces, pairs = arguments.out, arguments.faces, arguments.pairs
    with Bars() as bars:
        show = bars("drawing faces")
        spread = synthesize(out, faces, arguments.size, pairs, arguments.seed, progress=show)
    say(f"{faces} faces per side and {pairs} true swaps in {out}: {spread}")
    return EXIT_DONE
