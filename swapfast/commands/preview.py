"""`swapfast preview`: a window on a model folder, from another terminal or when training is over."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from swapfast.commands.argument_types import path
from swapfast.errors import EXIT_DONE, SwapfastError
from swapfast.files import not_a_folder
from swapfast.stop import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("folder", type=path, metavar="MODEL", help="a model folder, trained in or not")


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """Show the window until it is closed; return the exit code."""
    from swapfast.preview.model_pictures import PREVIEW
    from swapfast.preview.model_window import requests_from_outside, show_model
    from swapfast.watch.lock_holder import find_holder

    folder: Path = arguments.folder
    if not folder.is_dir():
        raise not_a_folder(folder, str(folder), "a model folder")
    is_model = (folder / PREVIEW).is_file() or any(folder.glob("checkpoint-*")) or find_holder(folder / ".lock")
    if not is_model:
        raise SwapfastError(f"{folder}: holds no preview and nobody trains in it; give a model folder")
    with contextlib.suppress(KeyboardInterrupt):  # there is nothing to be saved
        show_model(folder, requests_from_outside(folder))
    return EXIT_DONE
