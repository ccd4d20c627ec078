"""`swapfast export`: a trained model as a file of another program."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from swapfast.commands.argument_types import checkpoint, path
from swapfast.commands.weights import add_weights
from swapfast.errors import EXIT_DONE
from swapfast.export.targets import TARGETS
from swapfast.printing import complain, say
from swapfast.stop import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("-m", "--model-dir", type=path, required=True, metavar="DIR")
    parser.add_argument(
        "-o",
        "--out",
        type=path,
        default=Path(),
        metavar="FILE",
        help="the file, or a folder for one that is named after model, crop and size; default: the working directory; "
        "for saehd a new folder, always to be given",
    )
    kinds = "; ".join(f"{name}: {target.purpose}" for name, target in TARGETS.items())
    parser.add_argument("--to", required=True, metavar="KIND", help=kinds)
    parser.add_argument("--side", type=str.lower, metavar="SIDE", help="whose face comes out, a or b; default b")
    parser.add_argument("--fp16", action="store_true", help="weights of 16 bits: half the size")
    parser.add_argument(
        "--checkpoint",
        type=checkpoint,
        default="auto",
        metavar="N",
        help="the iteration to export, newest, or best: the backup, see docs/running.md; default: best where "
        "--validation measured the swap, else newest",
    )
    parser.add_argument(
        "--template",
        type=path,
        metavar="FILE",
        help="with --to keras: a .keras of the same network that faceswap saved, for a model that was not imported",
    )
    add_weights(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """Export as the command line asks for; return the exit code."""
    from swapfast.export.export import ExportRequest, export

    result = export(
        ExportRequest(
            arguments.model_dir,
            arguments.to,
            arguments.out,
            arguments.side,
            arguments.fp16,
            arguments.checkpoint,
            arguments.overwrite,
            arguments.template,
            arguments.weights,
            arguments.exchange_codes,
        )
    )
    for remark in result.remarks:
        complain(remark)
    if arguments.json:
        say(json.dumps(result.to_dict(), indent=1))
        return EXIT_DONE
    for note in result.notes:
        say(note)
    say(f"iteration {result.iteration} of {arguments.model_dir} is in {result.path}: {result.bytes / 2**20:.1f} MiB")
    return EXIT_DONE
