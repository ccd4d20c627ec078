"""Stopping on request: by a signal, a file or a time limit; noticed within one step, saved, and left with code 3."""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from swapfast.errors import EXIT_FAILED, SwapfastError, shortened
from swapfast.printing import hurry

POLL_S = 0.25  # how often the stop file and the clock are looked at
PATIENCE_S = 0.5  # for a wait that a request finds, or that begins behind one
SAME_S = 1.0  # a signal this soon after a request is the same one: schedulers send it to all processes of a run
_PUT_OFF_S = 0.05  # for a request that came within an import, or in what lets nothing be raised
_AGAIN_S = 5.0  # between two times that a request raises: what the first one has to tidy up is not disturbed
_LOOK_S = 0.5  # between two looks at whether what was raised is still on its way
# Not there on Windows: SIGUSR1 asks for a checkpoint; SIGALRM is how our own thread wakes the main one.
SAVE_SIGNAL, WAKE_SIGNAL = getattr(signal, "SIGUSR1", None), getattr(signal, "SIGALRM", None)
HANGUP = getattr(signal, "SIGHUP", None)  # the terminal is gone: a dropped ssh session
_LONGEST_DAYS = 36525  # a hundred years
_LONGEST_TEXT = 60  # characters of a duration
_TORCH = "/torch/"  # in the path of each of its files
Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None  # of a signal
_COMPILER = ("/torch/_dynamo/", "/torch/_inductor/")
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


class Stopped(KeyboardInterrupt):
    """A request to stop that came before the first iteration, so that there is nothing to save. Its text: why."""


def parse_duration(text: str) -> int:
    """Return the seconds, at least 1, of '3h30m', '90m', '1d' or '5400'. Raises ValueError for anything else."""
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"{shortened(text)} is no duration: give seconds or such as 3h30m, up to {_LONGEST_DAYS}d")
    if text.isdecimal():
        seconds = int(text)
    elif text and (match := _DURATION.fullmatch(text)):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        seconds += ((days * 24 + hours) * 60 + minutes) * 60
    else:
        raise ValueError(f"{text!r} is no duration: give seconds or such as 3h30m")
    if seconds < 1:
        raise ValueError(f"{text!r}: give at least one second")
    if seconds > _LONGEST_DAYS * 86400:
        raise ValueError(f"{text!r}: give at most {_LONGEST_DAYS}d, a hundred years")
    return seconds


def stopped_line(error: KeyboardInterrupt) -> str:
    """Return what a person is told of a request that came before there was anything to save."""
    by = f" by {error}" if str(error) else ""
    return f"stopped{by} before anything new was saved; the same command begins again"


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether a module is being imported in ``frame`` or in what called it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _is_below_compiler(frame: FrameType | None) -> bool:
    """Return whether torch's compiler is at work and ``frame`` is in what it calls of torch, and not in itself.

    It calls some of that by way of C++ that lets no exception through: such a one ends the process by an abort.
    """
    is_in_torch = False
    while frame is not None:
        name = frame.f_code.co_filename
        if any(folder in name for folder in _COMPILER):
            return is_in_torch
        is_in_torch = is_in_torch or _TORCH in name
        frame = frame.f_back
    return False


class StalledWait(Stopped):
    """A request to stop that came, or had come, while the main thread waits for what may never come."""


_listener: StopRequest | None = None  # the one that has the signals


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a request to stop end this block ``PATIENCE_S`` after it came, by StalledWait: also while training.

    For waits of the main thread that may never end, such as a read from a network share that is away. It must do no
    harm to leave the block anywhere.
    """
    if _listener is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    with _listener._interrupting():
        yield


class StopRequest:
    """Turns SIGINT, SIGTERM, SIGHUP, a file and a time limit into a request that the training loop reads between steps.

    Before the first iteration (``training`` is False) there is nothing to save, so a request raises Stopped at once,
    wherever the main thread is: reading, decoding, compiling. Only an import is awaited, and what torch's compiler
    calls of the rest of torch: numpy, torch and modules written in C catch, garble or die of what is raised in the
    middle of theirs. SIGUSR1 asks for a checkpoint and for nothing else.

    training: from the first iteration on. leaving: nothing is left to be stopped, so a request does nothing.
    signals: how often somebody asked by a signal. One that follows a request within ``SAME_S`` is not counted.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.training = self.leaving = False
        self.signals = 0
        self.started = time.monotonic()
        self._requested_at = float("-inf")
        self._save = False
        self._limit: str | None = None  # why a thread of ours asks: a stop file, a time limit, a key
        self._listens = False
        self._raised_at = float("-inf")
        self._raised: weakref.ref[Stopped] | None = None
        self._is_put_off = False  # whether it is to raise once an import has ended
        self._outer: StopRequest | None = None  # who had the signals before
        self._interrupts = False  # whether the main thread is where a request may raise

    def request(self, reason: str) -> None:
        """Ask the loop to save and leave after the step in progress."""
        hurry()
        if self.reason is None:
            self.reason, self._requested_at = reason, time.monotonic()

    def __bool__(self) -> bool:
        return self.reason is not None

    def request_from_thread(self, reason: str) -> None:
        """Ask for what a signal asks for, from another thread than the main one: also where that waits."""
        self._limit = reason
        if self._listens and WAKE_SIGNAL is not None:
            main = threading.main_thread().ident
            assert main is not None, "the main thread has started"
            signal.pthread_kill(main, WAKE_SIGNAL)  # it may wait for a file or a compiler
        else:
            self.request(reason)

    def ask_to_save(self) -> None:
        """Ask the loop for a checkpoint after the step in progress."""
        self._save = True

    def save_asked(self) -> bool:
        """Return whether a checkpoint was asked for since the last call."""
        saves, self._save = self._save, False
        return saves

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == SAVE_SIGNAL:
            self.ask_to_save()
            return
        if number == WAKE_SIGNAL and self._interrupts and self and self.training:
            raise StalledWait(self.reason)
        if number == WAKE_SIGNAL and self._raised is not None and not self._is_put_off and not self._interrupts:
            self._look_after(frame)
            return
        if number == WAKE_SIGNAL and self._limit is None and not self._is_put_off:
            return  # not ours
        if number != WAKE_SIGNAL:
            if time.monotonic() - self._requested_at > SAME_S:
                self.signals += 1
            self.request(signal.Signals(number).name)
        elif self._limit is not None:
            self.request(self._limit)
        self._interrupt(frame)
        if self._interrupts:
            self._wake_later()

    def _wake_later(self) -> None:
        if WAKE_SIGNAL is not None:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)

    @contextlib.contextmanager
    def _interrupting(self) -> Iterator[None]:
        former, self._interrupts = self._interrupts, True
        try:
            if self and self.training:
                self._wake_later()
            yield
        finally:
            self._interrupts = former
            if self and self.training and WAKE_SIGNAL is not None:
                signal.setitimer(signal.ITIMER_REAL, PATIENCE_S if former else 0)

    def _interrupt(self, frame: FrameType | None) -> None:
        """Raise Stopped where there is nothing to save: in ``frame``, or once what must not be left there has ended."""
        self._is_put_off = False
        if self.training or self.leaving or time.monotonic() - self._raised_at < _AGAIN_S:
            return
        if WAKE_SIGNAL is not None and (_is_importing(frame) or _is_below_compiler(frame)):
            self._put_off()
            return
        self._raised_at = time.monotonic()
        stopped = Stopped(self.reason)
        self._raised = weakref.ref(stopped)
        if WAKE_SIGNAL is not None:
            signal.setitimer(signal.ITIMER_REAL, _LOOK_S)
        try:
            raise stopped
        finally:
            del stopped  # this frame is part of its traceback and would keep it alive

    def _look_after(self, frame: FrameType | None) -> None:
        """Raise once more if what was raised is gone though nobody has left: torch's compiler swallows some.

        As long as it exists it is on its way, or somebody tidies up because of it.
        """
        if self.training or self.leaving:
            self._raised = None
        elif self._raised is not None and self._raised() is not None:
            signal.setitimer(signal.ITIMER_REAL, _LOOK_S)
        else:
            self._raised_at = float("-inf")
            self._interrupt(frame)

    def _put_off(self) -> None:
        self._is_put_off = True
        signal.setitimer(signal.ITIMER_REAL, _PUT_OFF_S)

    def _on_unraisable(self, former: Callable, unraisable: sys.UnraisableHookArgs) -> None:
        """Raise once more what was raised where Python lets nothing through, such as in a ``__del__``."""
        if WAKE_SIGNAL is None or not isinstance(unraisable.exc_value, Stopped):
            former(unraisable)
            return
        self._raised_at = float("-inf")
        self._put_off()

    def _install(self) -> dict[signal.Signals, Handler]:
        """Install the handlers; return the former ones."""
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM, SAVE_SIGNAL, WAKE_SIGNAL) if n is not None]
        if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:  # nohup lets it be ignored
            numbers.append(HANGUP)
        global _listener
        self._outer, _listener = _listener, self
        self._listens = True
        return {number: signal.signal(number, self._handle) for number in numbers}

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Install the handlers, and put the former ones back at the end; nothing if they are. Main thread only."""
        if self._listens:
            yield self
            return
        global _listener
        former = self._install()
        try:
            yield self
        finally:
            self._listens = False
            if self._raised is not None and WAKE_SIGNAL is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)  # a look that nobody would answer any more
            self._raised, self._is_put_off = None, False
            _listener = self._outer
            for number, handler in former.items():
                signal.signal(number, handler)

    def listen_to_the_end(self) -> None:
        """Install the handlers for as long as the process lives, so that no late signal changes its exit code."""
        numbers = list(self._install())
        sys.unraisablehook = functools.partial(self._on_unraisable, sys.unraisablehook)

        def ignore() -> None:
            # Python gives up its own handlers before the libraries are done with leaving, but lets what is ignored be.
            self.leaving = True
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)

        atexit.register(ignore)

    @contextlib.contextmanager
    def watching(self, stop_file: Path | None = None, max_time_s: float | None = None) -> Iterator[StopRequest]:
        """Stop too when ``stop_file`` appears, or ``max_time_s`` after this object was made.

        Raises SwapfastError where the file is there already: whoever made it meant an earlier run.
        """
        if stop_file is not None and stop_file.exists():
            raise stop_file_exists(stop_file)
        if stop_file is None and max_time_s is None:
            yield self
            return
        end = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stop_file, max_time_s, end), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise SwapfastError(
                "--max-time, --stop-file: the system grants no thread to watch them (ulimit -u, docker --pids-limit)",
                EXIT_FAILED,
            ) from error
        try:
            yield self
        finally:
            end.set()
            thread.join()

    def _watch(self, stop_file: Path | None, max_time_s: float | None, end: threading.Event) -> None:
        limit_s = float("inf") if max_time_s is None else max_time_s
        deadline = self.started + limit_s
        while not end.wait(max(0.0, min(POLL_S, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                self.request_from_thread(f"--max-time {shown_duration(limit_s)}")
            elif stop_file is not None and _exists(stop_file):
                self.request_from_thread(f"--stop-file {stop_file}")
            else:
                continue
            return


def stop_file_exists(path: Path) -> SwapfastError:
    """Return the error for a stop file that is older than the run."""
    return SwapfastError(f"--stop-file {path}: is there already; remove it to train")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a network folder that is gone for a moment
        return False


def shown_duration(seconds: float) -> str:
    """Return a duration as ``parse_duration`` reads it: 12600 -> '3h30m'."""
    parts = []
    remainder = int(seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if remainder >= length:
            parts.append(f"{remainder // length}{unit}")
            remainder %= length
    return "".join(parts) or f"{seconds:g}s"
