"""The terminal that a program runs in: whether it is there, whether it is ours, and single keys from it.

Of a terminal only the program in the foreground may read, and change how it works. Whatever else a shell has started
with ``&`` or stopped by Ctrl-Z leaves it alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Self, TextIO

try:
    import termios
except ImportError:  # not there on Windows: no keys
    termios = None  # type: ignore[assignment]

_POLL_S = 0.25  # between two looks at whether the terminal is ours
_MOST_BYTES = 256  # of what was typed or pasted at once
_ECHO_AND_LINES = 3  # where the local modes are in what tcgetattr returns
_ESCAPE = 0x1B


def is_foreground(stream: TextIO | int | None) -> bool:
    """Return whether ``stream`` is the terminal that this program was started from, and it is in the foreground."""
    try:
        number = stream if isinstance(stream, int) else stream.fileno()  # type: ignore[union-attr]
        return os.isatty(number) and os.tcgetpgrp(number) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # gone, closed, no terminal of this session, or no such call
        return False


def can_redraw(stream: TextIO | None) -> bool:
    """Return whether ``stream`` is a terminal that knows how to move its cursor."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")
    except (OSError, ValueError):
        return False


class TerminalKeys:
    """Reads single keys, without Enter and without showing them, for as long as the block lasts.

    It does nothing unless ``descriptor`` and standard output are the terminal, and only while the program is in the
    foreground. The terminal is as it was at the end of the block, while the program is stopped by Ctrl-Z, and where a
    shell continues it in the background.

    actions: key -> what to do, called in a thread of its own; Enter is "\\n". Letters count in both cases.
    on_other: called with any other key. Keys that send several characters, and what is pasted, are passed over.
    on_continue: called when the program goes on after Ctrl-Z: what it has drawn may be anywhere.
    """

    def __init__(
        self,
        actions: Mapping[str, Callable[[], None]],
        on_other: Callable[[str], None] = lambda key: None,
        on_continue: Callable[[], None] = lambda: None,
        descriptor: int = 0,
    ) -> None:
        self._actions, self._on_other, self._on_continue = actions, on_other, on_continue
        self._descriptor = descriptor
        self._former: list | None = None  # how the terminal worked, while it works otherwise
        self._is_suspended = False
        self._lock = threading.RLock()  # the handler of a signal may come while its own thread has it
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if termios is None or not (os.isatty(self._descriptor) and can_redraw(sys.stdout)):
            return self
        thread = threading.Thread(target=self._read, daemon=True, name="keys")
        try:
            thread.start()
        except RuntimeError:  # the system grants no thread: no keys
            return self
        self._thread = thread
        if threading.current_thread() is threading.main_thread():
            self._install()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        with self._lock:
            self._restore()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # --- Ctrl-Z -----------------------------------------------------------------------------------------------

    def _install(self) -> None:
        answers: dict[int, Any] = {
            signal.SIGTSTP: self._suspend,
            signal.SIGCONT: self._resume,
            signal.SIGTTOU: signal.SIG_IGN,
        }
        for number, handler in answers.items():
            if signal.getsignal(number) != signal.SIG_IGN:  # as whoever has started us wants it
                self._handlers[number] = signal.signal(number, handler)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Give the terminal back, and stop as everybody does. Returns when the program is continued."""
        with self._lock:
            self._is_suspended = True
            self._restore()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._suspend)
        self._is_suspended = False

    def _resume(self, number: int, frame: FrameType | None) -> None:
        self._on_continue()

    # --- how the terminal works -------------------------------------------------------------------------------

    def _take(self) -> bool:
        """Let the terminal give single keys, where it is ours; return whether it does."""
        with self._lock, contextlib.suppress(termios.error, OSError):
            if self._end.is_set() or self._is_suspended or not is_foreground(self._descriptor):
                return False
            modes = termios.tcgetattr(self._descriptor)
            if not modes[_ECHO_AND_LINES] & termios.ICANON and self._former is not None:
                return True
            # The first time, and where a shell has put it back while we were stopped.
            self._former = [*modes]
            modes[_ECHO_AND_LINES] &= ~(termios.ICANON | termios.ECHO)
            # What was typed so far was meant for somebody else.
            termios.tcsetattr(self._descriptor, termios.TCSAFLUSH, modes)
            return True
        return False

    def _restore(self) -> None:
        former, self._former = self._former, None
        if former is not None and is_foreground(self._descriptor):
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, former)

    # --- keys -------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read keys until the block ends or the terminal is gone."""
        # A read from the background then fails; it would stop the whole program.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTIN, signal.SIGTTOU})
        while not self._end.is_set():
            if not self._take():
                self._end.wait(_POLL_S)
                if not _is_there(self._descriptor):
                    return
                continue
            try:
                if not select.select([self._descriptor], [], [], _POLL_S)[0] or not is_foreground(self._descriptor):
                    continue
                typed = os.read(self._descriptor, _MOST_BYTES)
            except (OSError, ValueError):
                if not _is_there(self._descriptor):
                    return
                continue
            if not typed:
                return
            if not self._end.is_set():
                self._answer(typed)

    def _answer(self, typed: bytes) -> None:
        """Do what a key asks for. A key that is held down is one; arrows, function keys and pasted text are none."""
        if len(set(typed)) != 1 or typed[0] == _ESCAPE or typed[0] > 126:
            return
        key = chr(typed[0]).lower().replace("\r", "\n")
        if key in self._actions:
            self._actions[key]()
        elif key.isprintable():
            self._on_other(key)


def _is_there(descriptor: int) -> bool:
    try:
        os.tcgetpgrp(descriptor)
    except OSError:
        return False
    return True
