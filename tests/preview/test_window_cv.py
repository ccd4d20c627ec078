"""The window that OpenCV shows where there is no Tk, under Xvfb with real key presses."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.preview.buffer import PreviewBuffer
from swapfast.preview.window_cv import PreviewCV, with_lines

pytestmark = pytest.mark.slow  # windows, servers, networks and terminals are waited for

# A process of its own: OpenCV's window system stays in one for good.
PROGRAM = """
import sys, threading
import numpy as np
from swapfast.preview.buffer import PreviewBase, PreviewBuffer
from swapfast.preview.window_cv import PreviewCV
names = ("toggle_mask", "refresh", "save", "quit", "shutdown")
class Told(threading.Event):
    def __init__(self, name):
        super().__init__()
        self.name = name
    def set(self):
        super().set()
        print(self.name, flush=True)
buffer = PreviewBuffer()
buffer.add_image("cv preview", np.full((120, 160, 3), 90, np.uint8))
triggers = {name: Told(name) for name in names}
window = PreviewCV(buffer, triggers)
assert isinstance(window, PreviewBase)
threading.Thread(target=lambda: sys.stdin.read() or threading.Event.set(triggers["shutdown"]), daemon=True).start()
window.run()
print("closed", flush=True)
"""


@pytest.fixture
def shown(display, until):
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as window:
        search = ["xdotool", "search", "--onlyvisible", "--name", "cv preview"]
        found = lambda: subprocess.run(search, capture_output=True, text=True).stdout.split()  # noqa: E731
        until(lambda: found() or window.poll() is not None)
        if window.poll() is not None and "windows" in (error := window.stderr.read()):
            pytest.skip(error.splitlines()[-1])
        subprocess.run(["xdotool", "windowfocus", found()[0]], check=True)
        yield window
        window.kill()


@pytest.mark.slow
def test_keys_set_triggers_and_enter_closes(shown, press):
    told = []
    for key, name in (("m", "toggle_mask"), ("r", "refresh"), ("s", "save"), ("Return", "quit")):
        press(key)
        told.append(shown.stdout.readline().strip())
        assert told[-1] == name
    assert shown.stdout.readline().strip() == "closed" and shown.wait() == 0


@pytest.mark.slow
def test_shutdown_closes_it_and_asks_nothing(shown):
    shown.stdin.close()
    assert shown.stdout.read() == "closed\n" and shown.wait() == 0


def test_no_display_gives_one_line(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(SwapfastError, match=r"^no window: no display"):
        PreviewCV(PreviewBuffer(), {})


@pytest.mark.parametrize("width", [64, 640, 2560])
def test_lines_below_a_picture_are_whole_and_never_without_end(width):
    picture = np.full((40, width, 3), 200, np.uint8)
    shown = with_lines(picture, ["Loss A 0.0234   B 0.0345   5.00 it/s", "", "warning \u00e9 " * 500])
    assert np.array_equal(shown[:40, :width], picture) and shown.shape[1:] == (max(480, width), 3)
    assert shown.dtype == np.uint8 and (shown[:40, width:] == shown[-1, -1]).all()
    strip = shown[40:]
    scale = max(1.0, width / 1280)
    assert round(18 * scale) * 2 < len(strip) <= round(18 * scale) * 6 + round(6 * scale)
    inked = (strip > 150).all(-1)
    assert inked.any(1).sum() > len(strip) // 4
    assert not inked[:, -2:].any(), "no letter is cut off"
    assert np.array_equal(with_lines(picture, [])[:40, :width], picture)
