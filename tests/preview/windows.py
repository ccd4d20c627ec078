"""What the tests of Tk windows share."""

from __future__ import annotations

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
