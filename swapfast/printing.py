"""Printing that never decides over what is trained, saved and returned.

The reader of a pipe leaves, a terminal is gone, a disk is full, a service is started without standard output, a name
has characters that the output's encoding lacks. Python answers each with an exception, or with exit code 120 when it
flushes at the end. Here such text is lost, and nothing else.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PATIENCE_S = 1.0  # for a reader that stands still, once nobody may be kept waiting
_CHUNK = 4096  # bytes that a pipe takes at once where it takes any, as POSIX has it
_POLL_S = 0.1
# What moves a terminal's cursor, recolours or reorders what it shows, and what no encoding holds. Lines and tabs stay.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BYTES = range(0xDC80, 0xDD00)  # what Python decodes the bytes of a name to that are no text

_keeps_waiting = True


def hurry() -> None:
    """From here on a reader that stands still holds up nobody: after PATIENCE_S what it does not take is lost."""
    global _keeps_waiting
    _keeps_waiting = False


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if code in _BYTES else match[0].encode("unicode_escape").decode()


def printable(text: str) -> str:
    """Return ``text`` with escapes for what a name or a file may hold and a terminal would obey."""
    return _UNPRINTABLE.sub(_escaped, text)


def shown_name(name: object) -> str:
    """Return the name of a file or folder like ``printable``, on one line."""
    return printable(str(name)).replace("\n", "\\n").replace("\t", "\\t")


def write_text(stream: TextIO | None, text: str) -> None:
    """Write ``text`` at once, as it is, to a stream that may be closed, broken, full or narrow."""
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def say(text: object) -> None:
    """Print whole lines on standard output."""
    write_text(sys.stdout, f"{printable(str(text))}\n")


def complain(text: object) -> None:
    """Print whole lines on standard error."""
    write_text(sys.stderr, f"{printable(str(text))}\n")


class GuardedOutput(io.RawIOBase):
    """An output file that takes all it is given, and loses what ``raw`` does not take.

    It waits for a reader that stands still, as is the custom, until ``hurry`` is called.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._is_stalled = False

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of ``raw``."""
        return self._raw.fileno()

    def isatty(self) -> bool:
        """Return whether it is a terminal, and still there."""
        try:
            return self._raw.isatty()
        except (OSError, ValueError):
            return False

    def write(self, data: ReadableBuffer) -> int:
        """Write ``data`` as far as possible; return its length."""
        view = memoryview(data).cast("B")
        position = 0
        with contextlib.suppress(OSError, ValueError):
            while position < len(view) and self._is_ready():
                position += self._raw.write(view[position : position + _CHUNK]) or 0
        return len(view)

    def _is_ready(self) -> bool:
        """Wait until a chunk is taken. False: nobody takes it, or may be waited for."""
        if not hasattr(select, "poll"):
            return True
        poll = select.poll()
        poll.register(self._raw.fileno(), select.POLLOUT)
        start = time.monotonic()
        while not poll.poll(0 if self._is_stalled else 1000 * _POLL_S):
            if not _keeps_waiting and (self._is_stalled or time.monotonic() - start > PATIENCE_S):
                self._is_stalled = True
                return False
        self._is_stalled = False
        return True


def _open_descriptors() -> None:
    """Open standard input, output and error where they are closed: a model's file would get their numbers.

    And with it whatever a library written in C complains about.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(null, number)
                os.close(null)


def _guarded(stream: TextIO | None) -> TextIO:
    """Return the stream to print on in place of ``stream``; itself where it is no file."""
    if stream is None:
        null = open(os.devnull, "wb", buffering=0)  # noqa: SIM115  # it lasts as long as the process
        return _text_on(null, "utf-8")
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if not isinstance(raw, io.RawIOBase) or isinstance(raw, GuardedOutput):
        return stream
    return _text_on(raw, stream.encoding)


def _text_on(raw: io.RawIOBase, encoding: str) -> TextIO:
    buffered = io.BufferedWriter(GuardedOutput(raw))
    return io.TextIOWrapper(buffered, encoding, errors="backslashreplace", line_buffering=True)


def guard_streams() -> None:
    """Let nothing that is printed raise, by whomever: print, warnings, tracebacks, libraries, Python as it ends."""
    _open_descriptors()
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)
