"""What a word of the command line has to be: types of argparse arguments, shared by the commands.

Each returns the value or raises ``argparse.ArgumentTypeError`` with what it must be.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from swapfast.config import MOST_ITERATIONS
from swapfast.errors import SwapfastError, shortened
from swapfast.files import check_path

_MOST_DIGITS = 40
_MOST_INDEX_DIGITS = 9
_MOST_AMOUNT = 1e9


def _whole(text: str) -> int | None:
    """Return the whole number that ``text`` is, None for another text and for more digits than any of ours has."""
    return int(text) if text.removeprefix("-").isdecimal() and len(text) <= _MOST_DIGITS else None


def whole(text: str) -> int:
    """Return a whole number."""
    number = _whole(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"{shortened(text)}: must be a whole number")
    return number


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    number = _whole(text)
    if number is None or number < 1:
        raise argparse.ArgumentTypeError(f"{shortened(text)}: must be a whole number of at least 1")
    return number


def index(text: str) -> int:
    """Return a whole number from 0."""
    if not text.isdecimal() or len(text) > _MOST_INDEX_DIGITS:
        raise argparse.ArgumentTypeError(f"{shortened(text)}: must be a whole number from 0")
    return int(text)


def amount(text: str) -> float:
    """Return a number of at least 0 and below a thousand million."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 <= number < _MOST_AMOUNT:
        raise argparse.ArgumentTypeError(f"{shortened(text)}: must be a number of at least 0")
    return number


def iteration(text: str) -> int:
    """Return a number of iterations."""
    number = _whole(text)
    if number is None or not 0 <= number <= MOST_ITERATIONS:
        raise argparse.ArgumentTypeError(
            f"{shortened(text)}: must be a whole number of at least 0 and at most {MOST_ITERATIONS}"
        )
    return number


def checkpoint(text: str) -> str | int:
    """Return an iteration, or the word that names one: auto, best or newest."""
    if text in ("auto", "best", "newest"):
        return text
    number = _whole(text)
    if number is None or not 0 <= number <= MOST_ITERATIONS:
        raise argparse.ArgumentTypeError(f"{shortened(text)}: give an iteration, best or newest")
    return number


def path(text: str) -> Path:
    """Return a path that a system can have."""
    try:
        check_path(text, "")
    except SwapfastError as error:
        raise argparse.ArgumentTypeError(str(error).strip()) from None
    return Path(text)
