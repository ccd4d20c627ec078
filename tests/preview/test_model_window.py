"""The window on a model folder: which picture it shows, what its keys ask for, and that it never decides over a run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import tkinter as tk
from pathlib import Path

import cv2
import numpy as np
import pytest

import cli
from swapfast.files import open_lock, try_lock
from swapfast.preview.history import PreviewHistory
from swapfast.preview.model_pictures import ModelPictures
from swapfast.preview.model_window import ModelWindow, requests_by_words, requests_from_outside
from swapfast.preview.window_process import PreviewWindow
from swapfast.stop import StopRequest
from tests.preview.windows import click_the_x, is_open, pump, windows_named

pytestmark = pytest.mark.slow  # windows, servers, networks and terminals are waited for


def _sheet(shade: int) -> np.ndarray:
    return np.full((40, 60, 3), shade, np.uint8)


def _is(sheet: np.ndarray | None, shade: int) -> bool:
    return sheet is not None and bool((np.abs(sheet.astype(int) - shade) <= 2).all())


@pytest.fixture
def model(tmp_path) -> Path:
    """A model folder with previews of iterations 100, 200 and 300, as bright as that, and 1 less without the mask."""
    folder = tmp_path / "model"
    (folder / "logs").mkdir(parents=True)
    cv2.imwrite(str(folder / "preview.png"), _sheet(240))
    history = PreviewHistory(folder, 10)
    for step in (100, 200, 240):
        history.add(step, _sheet(step), _sheet(step // 4))
    rows = [{"time": 1.0, "run_from": 1}, {"time": 2.0, "step": 240, "loss_a": 0.0234, "loss_b": 0.0345}]
    (folder / "logs" / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_newest_picture_is_the_last_that_was_written(model):
    pictures = ModelPictures(model)
    assert pictures.poll() and not pictures.poll()
    assert _is(pictures.newest(True), 240) and _is(pictures.newest(False), 60) and pictures.has_plain
    cv2.imwrite(str(model / "preview.png"), _sheet(7))  # by a run that keeps none
    os.utime(model / "preview.png", ns=(time.time_ns() + 10**9,) * 2)
    assert pictures.poll() and _is(pictures.newest(True), 7)
    cv2.imwrite(str(model / "preview.png"), _sheet(8))
    os.utime(model / "preview.png", (1.0, 1.0))  # the clock was set back meanwhile
    assert pictures.poll() and _is(pictures.newest(True), 8) and not pictures.poll()
    kept = pictures.kept[0]
    kept.path.write_bytes(b"torn")
    assert pictures.sheet(kept, True) is None and _is(pictures.sheet(kept, False), 25)


def test_a_folder_that_is_being_deleted_shows_nothing(model):
    pictures = ModelPictures(model)
    pictures.poll()
    for path in sorted(model.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
        pictures.poll()
        pictures.newest(True)
    model.rmdir()
    assert not pictures.kept and pictures.newest(True) is None


@pytest.fixture
def opened(display, model):
    requests = requests_from_outside(model)
    window = ModelWindow(model, requests)
    window.root.update()
    window.root.focus_force()
    window.root.update()
    yield window
    with contextlib.suppress(tk.TclError):
        window.root.destroy()


def _shown(window: ModelWindow) -> np.ndarray:
    window.preview._take()
    return window.preview.view.image


def test_keys_go_through_iterations_and_hide_the_mask(opened, press, until):
    root = opened.root
    assert _is(_shown(opened), 240) and "iteration 240" in opened._status.get() and "0.0234" in opened._status.get()
    press("Left")
    until(lambda: opened.step == 200, root.update)
    assert _is(_shown(opened), 200) and opened.slider.get() == 1
    press("m")
    until(lambda: not opened.tinted, root.update)
    assert _is(_shown(opened), 50)
    press("Left")
    until(lambda: opened.step == 100, root.update)
    assert _is(_shown(opened), 25)
    press("End")
    until(lambda: opened.step is None, root.update)
    assert _is(_shown(opened), 60)


def test_a_new_preview_is_shown_unless_an_older_one_is_chosen(opened, model, press, until):
    root, history = opened.root, PreviewHistory(model, 10)
    history.add(241, _sheet(150), _sheet(9))
    until(lambda: _is(opened.preview.view.image, 150), root.update)
    press("Left")
    until(lambda: opened.step == 240, root.update)
    history.add(242, _sheet(160), _sheet(9))
    until(lambda: len(opened.pictures.kept) == 5, root.update)
    assert _is(_shown(opened), 240)


def _add_to_log(model: Path, *rows: dict) -> None:
    with open(model / "logs" / "steps.jsonl", "a") as file:
        file.writelines(json.dumps({"time": 3.0} | row) + "\n" for row in rows)


def test_it_says_when_it_is_done_as_the_run_goes(opened, model, until):
    """Without held-out faces there is no such line; with them it is there, and red where the swap keeps A's skin."""
    root, label = opened.root, opened._verdict
    assert not label.winfo_ismapped() and "swap" not in opened._status.get()
    figures = lambda step: {"step": step, "validation_psnr_a": step / 1000, "swap_quality": 20.0, "swap_leak": 0.1}  # noqa: E731
    _add_to_log(model, *(figures(step) for step in range(300, 700, 100)))
    until(lambda: label.winfo_ismapped(), root.update)
    gains = "A gains 1 dB in 1,000 iterations   the swap has not got better since 300"
    assert label.cget("text") == f"{gains}   the swap keeps 10 % of A's skin" and not str(label.cget("foreground"))
    assert "swap 20.0 dB" in opened._status.get() and "600 iterations" in opened._status.get()
    _add_to_log(model, {"step": 700, "swap_leak": 0.31})
    until(lambda: label.cget("text") == f"{gains}   warning: the swap keeps 31 % of A's skin", root.update)
    assert str(label.cget("foreground")) == "#b00020"
    (model / "logs" / "steps.jsonl").write_text('{"time": 1.0, "step": 5, "loss_a": 0.5}\n')  # another training
    until(lambda: not label.winfo_ismapped(), root.update)


def test_the_line_is_broken_where_the_window_is_narrow(opened, model, until):
    root, label = opened.root, opened._verdict
    _add_to_log(model, *({"step": 300 + step, "validation_psnr_a": 1.0, "validation_psnr_b": 1.0} for step in range(9)))
    until(lambda: label.winfo_ismapped(), root.update)
    root.update()
    one = label.winfo_height()
    root.geometry("300x600")
    until(lambda: label.winfo_height() > one, root.update)
    assert label.winfo_reqwidth() <= 300


def test_keys_that_mean_nothing_break_nothing(opened, press, until):
    press("x", "1", "F1", "Tab", "ctrl+a", "alt+x", "Up", "Next", "udiaeresis", "BackSpace", "space", "comma", "Home")
    press("Left")
    until(lambda: opened.step == 200, opened.root.update)
    assert is_open(opened.root) and _is(_shown(opened), 200)


def test_a_window_from_outside_asks_by_the_signal_and_enter_only_closes(opened, model, press, until):
    """The run is a process that holds the folder's lock, as a run does, and prints what it is sent."""
    said = lambda: opened.preview._status.get()  # noqa: E731
    press("s")
    until(lambda: said() == "no save: nobody trains in this folder", opened.root.update)
    program = (
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "from swapfast.files import open_lock, try_lock\n"
        "lock = open_lock(Path(sys.argv[1])); assert try_lock(lock)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('saved', flush=True))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05)\n"
    )
    command = [sys.executable, "-c", program, str(model / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "ready\n"
        press("s")
        until(lambda: said().startswith("the run saves"), opened.root.update)
        assert run.stdout.readline() == "saved\n"
        until(lambda: "training, iteration 240" in opened._status.get(), opened.root.update)
        press("Return")
        until(lambda: not is_open(opened.root), lambda: pump(opened.root))
        assert run.poll() is None, "the run goes on"
        run.kill()


def test_the_window_of_a_run_prints_words(capsys):
    requests = requests_by_words()
    for ask in (requests.save, requests.refresh, requests.toggle_mask, requests.quit):
        ask()
    assert capsys.readouterr().out.split() == ["save", "refresh", "toggle_mask", "quit"]


class _Training:
    """What a window sees of a run."""

    def __init__(self) -> None:
        self.step, self.stop = 7, StopRequest()


@pytest.mark.slow
def test_a_window_of_its_own_process_asks_the_run(xvfb, display, model, press, until):
    training, drawn, toggled, told = _Training(), [], [], []
    window = PreviewWindow(model, drawn.append, lambda: toggled.append(1), told.append)
    search = ["xdotool", "search", "--name", "swapfast preview: model"]
    found = lambda: subprocess.run(search, capture_output=True, text=True).stdout.split()  # noqa: E731
    until(found)
    subprocess.run(["xdotool", "windowfocus", found()[0]], check=True)
    press("r")
    until(lambda: drawn == [7], lambda: window.on_step(training))
    press("s")
    until(training.stop.save_asked, lambda: window.on_step(training))
    assert not training.stop and not toggled, "without the mask there is a picture already"
    press("Return")
    until(lambda: training.stop, lambda: window.on_step(training))
    assert training.stop.reason == "Enter in the preview window"
    window.on_end(training)
    assert not found() and told == []


@pytest.mark.slow
def test_a_run_outlives_its_window_and_the_window_no_run(display, model, until):
    """Killed, the window ends nothing; and a run that is over closes it."""
    training = _Training()
    search = ["xdotool", "search", "--name", "swapfast preview: model"]
    found = lambda: subprocess.run(search, capture_output=True, text=True).stdout.split()  # noqa: E731
    first, second = (PreviewWindow(model, print, print, print) for _ in range(2))
    until(lambda: len(found()) == 2)
    os.kill(first._process.pid, signal.SIGKILL)
    until(lambda: len(found()) == 1)
    first.on_step(training)
    assert not training.stop
    first.on_end(training)
    second.on_end(training, RuntimeError("the run has failed"))
    assert not found()


def test_a_click_on_the_x_ends_no_run(display, model, until):
    training, told = _Training(), []
    window = PreviewWindow(model, print, print, told.append)
    until(lambda: windows_named("swapfast preview: model"))
    click_the_x(windows_named("swapfast preview: model")[0])
    until(lambda: window._process.poll() is not None)
    assert window._process.returncode == 0, "closed in order"
    window.on_step(training)
    assert not training.stop and not training.stop.save_asked() and not windows_named("swapfast preview: model")
    window.on_end(training)
    assert told == []


# The window of `train -p` where Tk is not installed: a process of its own, for OpenCV's window system stays in one.
WITHOUT_TK = """
import sys
sys.modules["tkinter"] = None
from swapfast.preview.model_window import main
sys.exit(main())
"""


@pytest.fixture
def by_opencv(display, model, until):
    """The window that OpenCV shows of a model folder, with the keyboard."""
    command = [sys.executable, "-c", WITHOUT_TK, str(model)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as window:
        until(lambda: windows_named("swapfast preview") or window.poll() is not None)
        if window.poll() is not None and "made without windows" in (said := window.stdout.read()):
            pytest.skip(said)
        subprocess.run(["xdotool", "windowfocus", windows_named("swapfast preview")[0]], check=True)
        yield window
        window.kill()


def test_opencv_shows_the_folder_where_there_is_no_tk(by_opencv, model, press, until):
    _add_to_log(model, *({"step": 300 + step, "swap_quality": 20.0} for step in range(5)))
    until(lambda: _on_screen(240) > 1500 and _on_screen(48) > 4000)  # the picture, and the strip below it
    PreviewHistory(model, 10).add(310, _sheet(150), _sheet(9))
    until(lambda: _on_screen(150) > 1500 and _on_screen(240) == 0)
    press("x", "F1", "Left", "1")
    for key, word in (("m", "toggle_mask"), ("r", "refresh"), ("s", "save")):
        press(key)
        assert by_opencv.stdout.readline() == f"{word}\n"
    press("Return")
    assert by_opencv.stdout.read() == "quit\n" and by_opencv.wait() == 0


def test_a_click_on_the_x_of_opencvs_window_asks_nothing(by_opencv, until):
    click_the_x(windows_named("swapfast preview")[0])
    assert by_opencv.stdout.read() == "" and by_opencv.wait() == 0


def test_opencvs_window_closes_when_the_run_ends(by_opencv):
    by_opencv.stdin.close()
    assert by_opencv.stdout.read() == "" and by_opencv.wait() == 0


def _on_screen(shade: int) -> int:
    """How many px of the screen are a grey of this shade, to within 2."""
    from PIL import ImageGrab

    shot = np.asarray(ImageGrab.grab(xdisplay=os.environ["DISPLAY"])).astype(int)
    return int((np.abs(shot - shade) <= 2).all(-1).sum())


@pytest.mark.parametrize("name", [":9876", "", "nonsense"])
def test_a_run_without_a_display_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv("DISPLAY", name)
    words = ["train", "-A", tmp_path / "a", "-B", tmp_path / "b", "-m", tmp_path / "m", "-t", "tiny", "-i", 2, "-p"]
    assert cli.main([*map(str, words), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("swapfast: -p/--preview: no window: ") and error.count("\n") == 1 and not [*tmp_path.iterdir()]
    )


def test_the_line_without_a_display(tmp_path, monkeypatch, until):
    monkeypatch.setenv("DISPLAY", "")
    told: list[str] = []
    window = PreviewWindow(tmp_path, print, print, told.append)
    until(lambda: told)
    assert told[0].startswith("warning: -p/--preview: no window: no display") and told[0].endswith("training goes on")
    window.on_end(_Training())
    assert len(told) == 1


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: None, "no such folder; give a model folder"),
        (lambda path: path.write_text("x"), "is a file; give a model folder"),
        (lambda path: path.mkdir(), "holds no preview and nobody trains in it"),
        (lambda path: (path.mkdir(), (path / "checkpoint-00000001").mkdir()), "no window: no display"),
    ],
)
def test_what_cannot_be_shown_gives_one_line(tmp_path, capsys, monkeypatch, make, words):
    monkeypatch.delenv("DISPLAY", raising=False)
    make(tmp_path / "m")
    assert cli.main(["preview", str(tmp_path / "m")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_command_shows_a_finished_model_until_ctrl_c(display, model, until):
    command = [sys.executable, "-m", "swapfast", "preview", str(model)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as window:
        search = ["xdotool", "search", "--name", "swapfast preview: model"]
        shows = lambda: subprocess.run(search, capture_output=True, text=True).stdout.split()  # noqa: E731
        until(lambda: shows() or window.poll() is not None)
        window.send_signal(signal.SIGINT)
        assert window.stderr.read() == "" and window.wait() == 0
    with open_lock(model / ".lock") as lock:
        assert try_lock(lock), "it holds nothing"
