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


def unknown_name(kind: str, name: object, known: Iterable[str], listed: str = "") -> SwapfastError:
    """Return the error for a name that is not among ``known``, with the nearest and with all of them.

    kind: what it should name, such as 'model'
    listed: where to find all names, in place of the names themselves
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name)[:_WIDEST], names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return SwapfastError(f"unknown {kind} {shortened(name)}.{hint} Known: {listed or ', '.join(names)}")
