"""`swapfast watch`: a page beside training runs."""

from __future__ import annotations

import argparse
import dataclasses
import json

from swapfast.commands.argument_types import path, positive
from swapfast.config import MOST_PORT
from swapfast.errors import EXIT_DONE, SwapfastError
from swapfast.printing import say, shown_name
from swapfast.requirements import check_import
from swapfast.stop import StopRequest, parse_duration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("models", type=path, nargs="+", metavar="MODEL", help="model folders, trained in or not")
    parser.add_argument(
        "--port", type=positive, metavar="N", help="where the page is found; default: the first free one from 8420 on"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="the address to listen at; default 127.0.0.1, which ssh -L reaches. Others are not encrypted",
    )
    parser.add_argument(
        "--leave-after",
        metavar="TIME",
        help="leave when nobody has trained and no page was open for so long, such as 12h; default: never",
    )
    parser.add_argument("--json", action="store_true", help="print the addresses as one JSON object on one line")


def run(arguments: argparse.Namespace, stop: StopRequest) -> int:
    """Serve the page until somebody asks to stop; return the exit code."""
    if arguments.port is not None and arguments.port > MOST_PORT:
        raise SwapfastError(f"--port {arguments.port}: must lie within 1 and {MOST_PORT}")
    leave_after_s: int | None = None
    if arguments.leave_after is not None:
        try:
            leave_after_s = parse_duration(arguments.leave_after)
        except ValueError as error:
            raise SwapfastError(f"--leave-after {error}") from None
    for package in ("Starlette", "uvicorn"):
        check_import(package, "watch")

    from swapfast.watch.start import Addresses, run_until, watch

    def announce(page_addresses: Addresses, names: list[str]) -> None:
        if arguments.json:
            say(json.dumps(dataclasses.asdict(page_addresses)))
            return
        for line in page_addresses.lines([shown_name(name) for name in names]):
            say(line)

    watch(arguments.models, arguments.host, arguments.port, run_until(stop), announce, leave_after_s)
    return EXIT_DONE
