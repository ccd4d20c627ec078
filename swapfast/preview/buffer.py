"""What preview windows share: the pictures to show, the events they set, and whether there is a display at all."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from swapfast.errors import SwapfastError

TriggerName = Literal["toggle_mask", "refresh", "save", "quit", "shutdown"]
Triggers = Mapping[TriggerName, threading.Event]

_PATIENCE_S = 3.0  # for an X server that does not answer
_OPENING_S = 8.0  # for Tk, where it is tried
_DISPLAY = re.compile(r"(?P<host>.*):(?P<number>\d+)(\.\d+)?")
_INSTEAD = "the preview is also MODEL/preview.png, and `swapfast watch MODEL` shows it in a browser"


class PreviewBuffer:
    """A thread-safe holder of the newest picture of each name."""

    def __init__(self) -> None:
        self._images: dict[str, np.ndarray] = {}
        self._updated = threading.Event()
        self._lock = threading.Lock()

    def add_image(self, name: str, image: np.ndarray) -> None:
        """Put a picture, (H, W, 3) uint8 BGR, in the place of the former one of its name.

        Raises ValueError for what is no such picture.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"{name}: want (H, W, 3) uint8, got {image.shape} {image.dtype}")
        with self._lock:
            self._images[name] = image
            self._updated.set()

    def get_images(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each name with its newest picture, (H, W, 3) uint8 BGR.

        At the end ``is_updated`` is False, unless a picture was added meanwhile.
        """
        with self._lock:
            images = dict(self._images)
        yield from images.items()
        with self._lock:
            if self._images.keys() == images.keys() and all(self._images[n] is image for n, image in images.items()):
                self._updated.clear()

    @property
    def is_updated(self) -> bool:
        """Whether there are pictures that ``get_images`` has not given yet."""
        return self._updated.is_set()


class PreviewBase:
    """A preview window: it shows what is in ``preview_buffer`` until it is closed or told to shut down.

    triggers: events by name. The window sets 'toggle_mask', 'refresh', 'save' and 'quit' as keys are pressed; it closes
        when 'shutdown' is set by somebody else. None for a window that only shows pictures. Closing it sets nothing.
    """

    def __init__(self, preview_buffer: PreviewBuffer, triggers: Triggers | None = None) -> None:
        self._buffer = preview_buffer
        self._triggers: Triggers = {} if triggers is None else triggers

    def run(self) -> None:
        """Show the window until it is closed, in the main thread."""
        raise NotImplementedError

    def _set(self, name: TriggerName) -> bool:
        """Set a trigger; return whether there is one of that name."""
        event = self._triggers.get(name)
        if event is not None:
            event.set()
        return event is not None

    @property
    def _should_close(self) -> bool:
        event = self._triggers.get("shutdown")
        return event is not None and event.is_set()


def no_display(reason: str) -> SwapfastError:
    """Return the error for a window that cannot be shown."""
    return SwapfastError(f"no window: {reason}; {_INSTEAD}")


def check_display() -> None:
    """Raise SwapfastError where no window can be shown: no DISPLAY, or one that does not answer."""
    if sys.platform in ("win32", "darwin"):
        return
    display = os.environ.get("DISPLAY", "")
    if not display:
        raise no_display("no display (DISPLAY is not set)")
    match = _DISPLAY.fullmatch(display)
    if match is None:
        raise no_display(f"DISPLAY={display[:100]!r} names no display, as :0 does")
    try:
        with _connect(match["host"], int(match["number"])) as connection:
            reason = "" if _greets(connection) else _why_not_opened()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = str(error)
    if reason:
        raise no_display(f"DISPLAY={display[:100]} does not answer ({reason})")


def _connect(host: str, number: int) -> socket.socket:
    """Connect to an X server as its library does. Raises OSError where nobody listens."""
    if host not in ("", "unix"):
        return socket.create_connection((host.removeprefix("tcp/"), 6000 + number), _PATIENCE_S)
    path = f"/tmp/.X11-unix/X{number}"
    for address in (f"\0{path}", path):  # the first is Linux's own
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_PATIENCE_S)
        try:
            connection.connect(address)
            return connection
        except OSError:
            connection.close()
            if address == path:
                raise
    raise AssertionError("the last address returns or raises")


def _greets(connection: socket.socket) -> bool:
    """Return whether an X server says anything, be it no: without a cookie some hang up (ssh -X)."""
    with contextlib.suppress(OSError):
        connection.sendall(b"l\0" + struct.pack("<5H", 11, 0, 0, 0, 0))
        return bool(connection.recv(1))
    return False


def _why_not_opened() -> str:
    """Return why Tk cannot open a window, '' where it can: in a process that can be ended if it waits for ever."""
    command = [sys.executable, "-c", "import tkinter; tkinter.Tk().destroy()"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=_OPENING_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"nothing comes for {_OPENING_S:.0f} s"
    last = (tried.stderr.strip().splitlines() or ["no reason is given"])[-1]
    return "" if tried.returncode == 0 or "No module named" in last else last.rpartition("Error: ")[2]
