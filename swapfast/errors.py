"""The one error a person can cause, and the exit codes a script can test."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1  # failed while running: disk full, out of memory, non-finite loss
EXIT_REQUEST = 2  # the request was wrong: a flag, folder, file or config
EXIT_STOPPED = 3  # stopped by a signal or limit, and saved


class SwapfastError(Exception):
    """Something the user can put right.

    The message is one line that names the file or flag, the value and the way out. The command line prints
    it without a traceback and leaves with ``code``.
    """

    def __init__(self, message: str, code: int = EXIT_REQUEST) -> None:
        super().__init__(message)
        self.code = code


_WIDEST = 120  # characters that a message shows of a value
_LIKE, _LEAST_LIKE = 0.85, 0.6  # of two names, 0..1: from where they are the same but for a slip, and not unlike
_LEAST_BEGUN = 2  # letters of a name that begins another


class _Shortening(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = _WIDEST

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write numbers of more than 4,300 digits, and nobody reads those of 40.
        return repr(x) if x.bit_length() <= _WIDEST else f"(a whole number of {x.bit_length()} bits)"


def shortened(value: object) -> str:
    """Return ``repr(value)`` with the middle left out where it is long: of any text, number, list or nesting."""
    return _Shortening().repr(value)


def nearest_name(name: object, known: Iterable[str]) -> str | None:
    """Return the known name that ``name`` was probably meant to be, None where none is like it.

    Case does not count, nor whether words are joined by '-' or '_'. A name that begins one of them is near it, and a
    dotted one is known by its last part too: 'learning_rat' is near 'optimizer.learning_rate'.
    """
    names = sorted(known)
    plain_name = _plain(str(name)[:_WIDEST])
    plain = {_plain(candidate): candidate for candidate in reversed(names)}
    if plain_name in plain:
        return plain[plain_name]
    longer = (
        [candidate for candidate in plain if candidate.startswith(plain_name)]
        if len(plain_name.strip("_")) >= _LEAST_BEGUN
        else []
    )
    if longer:
        return plain[min(longer, key=len)]
    near, likeness = _closest(plain_name, plain)
    ends = {candidate.rpartition(".")[2]: candidate for candidate in plain}
    near_end, likeness_of_ends = _closest(plain_name.rpartition(".")[2], ends)
    if likeness < _LIKE <= likeness_of_ends:
        return plain[ends[near_end]]
    return plain[near] if likeness >= _LEAST_LIKE else None


def _closest(name: str, names: Iterable[str]) -> tuple[str, float]:
    """Return the name that is most like another, the first of several, and how much it is: 0..1."""
    likeness = {candidate: difflib.SequenceMatcher(None, candidate, name).ratio() for candidate in sorted(names)}
    nearest = max(likeness, key=likeness.__getitem__, default="")
    return nearest, likeness.get(nearest, 0.0)


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")


def unknown_name(
    kind: str, name: object, known: Iterable[str], listed: str = "", elsewhere: Iterable[str] = ()
) -> SwapfastError:
    """Return the error for a name that is not among ``known``, with the nearest and with all of them.

    kind: what it should name, such as 'model'
    listed: where to find all names, in place of the names themselves
    elsewhere: names of another place, of which one may have been meant; they are not listed
    """
    names = sorted(known)
    near = nearest_name(name, [*names, *elsewhere])
    hint = f" Did you mean {near!r}?" if near else ""
    return SwapfastError(f"unknown {kind} {shortened(name)}.{hint} Known: {listed or ', '.join(names)}")
