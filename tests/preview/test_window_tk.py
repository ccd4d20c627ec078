"""The Tk window under Xvfb, driven by real key presses; and every row of its part of the API."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import tkinter as tk
from tkinter import ttk

import cv2
import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.preview import buffer, window_tk
from swapfast.preview.buffer import PreviewBase, PreviewBuffer
from swapfast.preview.window_tk import AUTO, FIT, METHODS, PreviewTk, main
from tests.preview.windows import is_open, pump

pytestmark = pytest.mark.slow  # windows, servers, networks and terminals are waited for

NAMES = ("toggle_mask", "refresh", "save", "quit", "shutdown")


def _quarters() -> np.ndarray:
    """A picture of four colours, BGR."""
    picture = np.zeros((80, 120, 3), np.uint8)
    picture[:40, :60], picture[:40, 60:] = (255, 0, 0), (0, 255, 0)
    picture[40:, :60], picture[40:, 60:] = (0, 0, 255), (255, 255, 255)
    return picture


def _shot(window: tk.Misc) -> np.ndarray:
    """What the screen shows of a widget, (H, W, 3) uint8 RGB."""
    from PIL import ImageGrab

    window.update()
    x, y = window.winfo_rootx(), window.winfo_rooty()
    box = (x, y, x + window.winfo_width(), y + window.winfo_height())
    return np.asarray(ImageGrab.grab(box, xdisplay=os.environ["DISPLAY"]))


@pytest.fixture
def triggers() -> dict[str, threading.Event]:
    return {name: threading.Event() for name in NAMES}


@pytest.fixture
def opened(display, triggers):
    """A window that shows a picture and has the keyboard."""
    buffer = PreviewBuffer()
    buffer.add_image("Training - A, B", _quarters())
    window = PreviewTk(buffer, triggers=triggers)
    root = window.master_frame.winfo_toplevel()
    root.update()
    root.focus_force()
    root.update()
    yield window, root, buffer
    with contextlib.suppress(tk.TclError):  # the test has closed it
        root.destroy()


@pytest.mark.parametrize("key, name", [("m", "toggle_mask"), ("r", "refresh"), ("s", "save"), ("shift+s", "save")])
def test_keys_set_their_triggers_and_no_others(opened, triggers, press, until, key, name):
    _, root, _ = opened
    press(key)
    until(triggers[name].is_set, lambda: pump(root))
    assert [other for other in NAMES if triggers[other].is_set()] == [name] and is_open(root)


def test_enter_asks_to_end_and_closes(opened, triggers, press, until):
    _, root, _ = opened
    press("Return")
    until(lambda: not is_open(root), lambda: pump(root))
    assert [name for name in NAMES if triggers[name].is_set()] == ["quit"]


def test_escape_and_the_window_manager_close_and_ask_nothing(opened, triggers, press, until):
    _, root, _ = opened
    press("Escape")
    until(lambda: not is_open(root), lambda: pump(root))
    assert not any(event.is_set() for event in triggers.values())


def test_shutdown_closes_it(opened, triggers, until):
    _, root, _ = opened
    triggers["shutdown"].set()
    until(lambda: not is_open(root), lambda: pump(root))


def test_f_shows_the_actual_size_and_fits_again(opened, press, until):
    window, root, _ = opened
    assert window.view.scale_name == FIT and window.view.scale > 1
    press("f")
    until(lambda: window.view.scale_name == "100 %", lambda: pump(root))
    shown = _shot(window.view.canvas)
    blue = (shown == (0, 0, 255)).all(-1)  # RGB; 60 x 40 px of the picture
    assert blue.sum() == 60 * 40
    press("shift+f")
    until(lambda: window.view.scale_name == FIT, lambda: pump(root))


def test_plus_and_minus_zoom_and_only_the_visible_part_is_drawn(opened, press, until):
    window, root, _ = opened
    press("f")
    until(lambda: window.view.scale == 1, lambda: pump(root))
    for expected in ("150 %", "200 %", "300 %", "400 %", "800 %", "800 %"):
        press("plus")
        until(lambda expected=expected: window.view.scale_name == expected, lambda: pump(root))
    canvas = window.view.canvas
    assert window.view._photo.width() <= canvas.winfo_width() + 16  # one px more of the picture on either side
    assert window.view._photo.height() <= canvas.winfo_height() + 16
    window.view.pan(99, 99)
    corner = _shot(canvas)[canvas.winfo_height() - 2, canvas.winfo_width() - 2]
    assert corner.tolist() == [255, 255, 255], "the lower right quarter is white"
    press("minus")
    until(lambda: window.view.scale_name == "400 %", lambda: pump(root))


def test_each_interpolation_is_opencvs():
    small = np.random.default_rng(1).integers(0, 256, (9, 9, 3), np.uint8)
    for name, code in METHODS.items():
        expected = cv2.resize(small, (31, 31), interpolation=code)
        assert np.array_equal(window_tk.resized(small, (31, 31), name), expected)
    shrunk, grown = window_tk.resized(small, (4, 4), AUTO), window_tk.resized(small, (20, 20), AUTO)
    assert np.array_equal(shrunk, cv2.resize(small, (4, 4), interpolation=cv2.INTER_AREA))
    assert np.array_equal(grown, cv2.resize(small, (20, 20), interpolation=cv2.INTER_CUBIC))


def test_a_new_picture_is_shown_as_it_comes(opened, until):
    window, root, buffer = opened
    buffer.add_image("Training - A, B", np.full((80, 120, 3), (10, 200, 30), np.uint8))
    until(lambda: not buffer.is_updated, lambda: pump(root))
    canvas = window.view.canvas
    assert _shot(canvas)[canvas.winfo_height() // 2, canvas.winfo_width() // 2].tolist() == [30, 200, 10]


def test_save_writes_every_picture_under_a_new_name(opened, until, tmp_path):
    window, root, buffer = opened
    buffer.add_image("../other", np.full((4, 4, 3), 7, np.uint8))
    until(lambda: not buffer.is_updated, lambda: pump(root))
    window.save(str(tmp_path))
    window.save(str(tmp_path))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4 and all(path.suffix == ".png" for path in files)
    kept = [path for path in files if path.name.startswith("Training___A__B_")]
    assert len(kept) == 2 and np.array_equal(cv2.imread(str(kept[0])), _quarters())
    with pytest.raises(SwapfastError, match="no such folder; give one"):
        window.save(str(tmp_path / "missing"))


def test_it_lives_in_a_widget_of_somebody_else(display, triggers, until):
    """``parent`` and ``taskbar`` of the caller: no window, no keys, no controls but in the taskbar."""
    root = tk.Tk()
    try:
        holder, taskbar = ttk.Frame(root), ttk.Frame(root)
        holder.pack()
        taskbar.pack()
        buffer = PreviewBuffer()
        buffer.add_image("one", _quarters())
        preview = PreviewTk(buffer, holder, taskbar, triggers)
        assert isinstance(preview, PreviewBase) and isinstance(preview.master_frame, ttk.Frame)
        assert preview.master_frame.master is holder and preview.master_frame.winfo_manager() == ""
        preview.pack(side="left", expand=True)
        assert preview.master_frame.pack_info()["side"] == "left"
        assert len(taskbar.winfo_children()) > 3 and not root.bind()
        until(lambda: not buffer.is_updated, root.update)
        shown = _shot(preview.view.canvas)
        assert (shown == (255, 0, 0)).all(-1).any(), "red, in RGB"
        preview.remove_option_controls()
        assert taskbar.winfo_children() == []
        preview.master_frame.destroy()
        root.update()
        assert is_open(root)
    finally:
        root.destroy()


def test_the_viewer_of_a_file_is_closed_by_enter(display, tmp_path, monkeypatch, press):
    """``main`` as ``python -m swapfast.preview.window_tk FILE`` calls it."""
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), _quarters())
    seen = []

    def look(window: PreviewTk) -> None:
        root = window.master_frame.winfo_toplevel()
        root.update()
        root.focus_force()
        seen.append(_shot(window.view.canvas))
        press("Return")
        root.mainloop()

    monkeypatch.setattr(PreviewTk, "run", look)
    monkeypatch.setattr("sys.argv", ["window_tk", str(path)])
    assert main() == 0
    assert (seen[0] == (0, 255, 0)).all(-1).any(), "green"


@pytest.mark.slow
def test_the_program_that_shows_a_file(display, tmp_path, until):
    """It ends with 0 as its window is closed from outside; until then it is on the screen."""
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), _quarters())
    with subprocess.Popen([sys.executable, "-m", "swapfast.preview.window_tk", str(path)]) as viewer:
        search = ["xdotool", "search", "--name", "swapfast preview"]
        found = lambda: subprocess.run(search, capture_output=True, text=True).stdout.split()  # noqa: E731
        until(found)
        subprocess.run(["xdotool", "windowfocus", found()[0]], check=True)
        until(lambda: viewer.poll() is not None, lambda: subprocess.run(["xdotool", "key", "Escape"], check=True))
    assert viewer.returncode == 0


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give one picture"),
        (["a", "b"], "give one picture"),
        (["missing.png"], "missing.png: No such file"),
        (["text.png"], "text.png: is no picture"),
    ],
)
def test_what_is_no_picture_gives_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("swapfast: ")


@pytest.mark.parametrize(
    "name, reason",
    [
        ("", "DISPLAY is not set"),
        (":9876", "does not answer"),
        ("nonsense", "names no display"),
        (":0:99999", "answer"),
    ],
)
def test_no_display_gives_one_line(monkeypatch, name, reason):
    monkeypatch.setenv("DISPLAY", name)
    with pytest.raises(SwapfastError, match=rf"^no window: .*{reason}.*swapfast watch") as caught:
        PreviewTk(PreviewBuffer())
    assert "\n" not in str(caught.value) and caught.value.code == 2


@pytest.mark.slow
@pytest.mark.parametrize("hangs_up", [True, False])
def test_a_display_that_refuses_gives_one_line(monkeypatch, hangs_up):
    """Somebody listens there, and hangs up, as ssh does on whom it does not let in, or never says a word."""
    monkeypatch.setattr(buffer, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(buffer, "_OPENING_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()

        if hangs_up:
            threading.Thread(target=hang_up, daemon=True).start()
        monkeypatch.setenv("DISPLAY", f"127.0.0.1:{server.getsockname()[1] - 6000}")
        with pytest.raises(SwapfastError, match=r"^no window: DISPLAY=127.*does not answer") as caught:
            PreviewTk(PreviewBuffer())
        server.shutdown(socket.SHUT_RDWR)
    assert "\n" not in str(caught.value)
