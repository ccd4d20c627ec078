"""`swapfast timelapse`: a film of how a model learned."""

from __future__ import annotations

import argparse

from swapfast.bars import Bars
from swapfast.commands.argument_types import path, positive
from swapfast.errors import EXIT_DONE, SwapfastError
from swapfast.files import check_new_file, not_a_folder
from swapfast.printing import say
from swapfast.requirements import check_import
from swapfast.stop import StopRequest

_SIZES, _RATES = (160, 4096), (0.5, 60.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("folder", type=path, metavar="MODEL", help="a model folder, trained in or not")
    parser.add_argument("-o", "--out", type=path, required=True, metavar="FILE", help="the film: .mp4 or .gif")
    parser.add_argument("--fps", type=float, default=10.0, metavar="N", help="pictures a second; default 10")
    parser.add_argument("--longest", type=positive, metavar="PX", help="longer edge; default 1920, or 960 of a GIF")
    parser.add_argument("--no-mask", action="store_true", help="the pictures without the mask's tint")
    parser.add_argument(
        "--pictures",
        type=path,
        metavar="DIR",
        help="pictures such as 00000250.jpg; default: MODEL/preview_history or MODEL/timelapse, whichever has more",
    )


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """Write the film; return the exit code."""
    from swapfast.preview.timelapse import LONGEST, SUFFIXES, find_pictures, write_film

    folder, out = arguments.folder, arguments.out
    check_new_file(out, "-o/--out", SUFFIXES)
    if out.exists():
        raise SwapfastError(f"-o/--out {out}: is there already; remove it or give another name")
    longest = arguments.longest or LONGEST[out.suffix.lower()]
    if not _SIZES[0] <= longest <= _SIZES[1]:
        raise SwapfastError(f"--longest {longest}: must lie within {_SIZES[0]} and {_SIZES[1]}")
    if not _RATES[0] <= arguments.fps <= _RATES[1]:
        raise SwapfastError(f"--fps {arguments.fps:g}: must lie within {_RATES[0]:g} and {_RATES[1]:g}")
    if arguments.no_mask and arguments.pictures is not None:
        raise SwapfastError("--no-mask with --pictures: only the kept previews have pictures without it; leave one out")
    for given, flag in ((folder, str(folder)), (arguments.pictures, f"--pictures {arguments.pictures}")):
        if given is not None and not given.is_dir():
            raise not_a_folder(given, flag, "a folder")
    if out.suffix.lower() == ".mp4":
        check_import("av", "a film as .mp4", "give -o FILE.gif")
    pictures = find_pictures(folder, arguments.pictures, arguments.no_mask)
    with Bars() as bars:
        count = write_film(out, pictures, arguments.fps, longest, bars("drawing"))
    say(f"{out}: iterations {pictures[0][0]:,} to {pictures[-1][0]:,} in {count / arguments.fps:.1f} s")
    return EXIT_DONE
