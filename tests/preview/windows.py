"""What the tests of Tk windows share."""

from __future__ import annotations

import ctypes
import ctypes.util
import subprocess
import tkinter as tk


def is_open(root: tk.Misc) -> bool:
    """Return whether a window has not been closed."""
    try:
        return bool(root.winfo_exists())
    except tk.TclError:
        return False


def pump(root: tk.Misc) -> None:
    """Let a window that is open handle its events."""
    if is_open(root):
        root.update()


def windows_named(name: str) -> list[str]:
    """Return the ids of the windows on the display whose title has ``name``."""
    search = ["xdotool", "search", "--onlyvisible", "--name", name]
    return subprocess.run(search, capture_output=True, text=True).stdout.split()


class _ClientMessage(ctypes.Structure):
    """Xlib's XClientMessageEvent."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("serial", ctypes.c_ulong),
        ("send_event", ctypes.c_int),
        ("display", ctypes.c_void_p),
        ("window", ctypes.c_ulong),
        ("message_type", ctypes.c_ulong),
        ("format", ctypes.c_int),
        ("data", ctypes.c_long * 5),
    ]


def click_the_x(window: str) -> None:
    """Send a window what a window manager sends it where somebody clicks its X: WM_DELETE_WINDOW."""
    x = ctypes.CDLL(ctypes.util.find_library("X11"))
    x.XOpenDisplay.restype = ctypes.c_void_p
    x.XInternAtom.restype = ctypes.c_ulong
    x.XInternAtom.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    x.XSendEvent.argtypes = [ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]
    x.XCloseDisplay.argtypes = [ctypes.c_void_p]
    display = x.XOpenDisplay(None)
    assert display, "the display does not answer"
    try:
        protocols, delete = (x.XInternAtom(display, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW"))
        event = ctypes.create_string_buffer(24 * ctypes.sizeof(ctypes.c_long))  # as large as any event
        message = _ClientMessage.from_buffer(event)
        message.type, message.window, message.message_type, message.format = 33, int(window), protocols, 32
        message.data[0] = delete
        assert x.XSendEvent(display, int(window), 0, 0, event)
    finally:
        x.XCloseDisplay(display)  # which sends it off
