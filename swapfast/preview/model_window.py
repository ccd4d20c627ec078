"""A window on a model folder: the newest preview, a slider over those that are kept, and how training goes.

``python -m swapfast.preview.model_window MODEL`` is what ``train -p`` starts: it prints a word for each key that asks
the run for something, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.preview.buffer import PreviewBuffer, TriggerName, Triggers
from swapfast.preview.model_pictures import ModelPictures
from swapfast.printing import printable
from swapfast.stop import SAVE_SIGNAL
from swapfast.watch.follower import LogFollower
from swapfast.watch.lock_holder import find_holder, send_signal

if TYPE_CHECKING:
    from swapfast.preview.window_tk import PreviewTk

POLL_MS = 400
_READING_S = 0.1  # of the log between two looks at the keyboard
_AGAIN_MS = 10  # where there is more of it
_ANSWER_S = 5.0  # that an answer to a key is shown by OpenCV's window
_WARNING_INK = "#b00020"
_NICE = 10
_SAVES = "the run saves after the step in progress, and draws a preview"
_FIGURES = (  # key of the log, words, digits, unit
    ("loss_a", "loss A", 4, ""),
    ("loss_b", "B", 4, ""),
    ("iterations_per_s", "", 2, " it/s"),
    ("swap_quality", "swap", 1, " dB"),
)
_LARGEST = 1e9  # figure that is shown
_NO_SHEET = np.full((40, 640, 3), 48, np.uint8)  # BGR, before the first preview
FAILED = "failed "  # begins the line that says why there is no window

Ask = Callable[[], str]  # asks the run for something; returns what to tell a person


@dataclass
class Requests:
    """What the keys of a window ask the run for. enter: what Enter does, for the line of keys."""

    save: Ask
    refresh: Ask
    toggle_mask: Ask
    quit: Ask
    enter: str
    shutdown: threading.Event = field(default_factory=threading.Event)


def requests_from_outside(folder: Path) -> Requests:
    """Return what a window of another terminal can ask: a save, by SIGUSR1. Enter only closes it."""

    def save() -> str:
        if SAVE_SIGNAL is None:
            return "this system has no signal that asks for a save"
        refusal = send_signal(folder / ".lock", signal.Signals(SAVE_SIGNAL))
        return _SAVES if refusal is None else f"no save: {refusal}"

    return Requests(save, save, lambda: "no preview is kept without the mask", lambda: "", "close")


def requests_by_words() -> Requests:
    """Return what the window of ``train -p`` asks: it prints words that the run reads."""

    def word(name: TriggerName, answer: str) -> Ask:
        def ask() -> str:
            with contextlib.suppress(OSError, ValueError):  # the run is gone
                sys.stdout.write(f"{name}\n")
                sys.stdout.flush()
            return answer

        return ask

    return Requests(
        word("save", _SAVES),
        word("refresh", "a new picture follows"),
        word("toggle_mask", "a new picture follows"),
        word("quit", ""),
        "save and end training",
    )


class _Calling(threading.Event):
    """An event that calls something as it is set."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call

    def set(self) -> None:
        super().set()
        self._call()


class ModelWindow:
    """A window on a model folder. Raises SwapfastError where there is no display.

    Keys: those of ``PreviewTk``; M shows the pictures without the mask where they are kept; the arrows go through the
    iterations, End goes to the newest.
    """

    def __init__(self, folder: Path, requests: Requests) -> None:
        import tkinter as tk
        from tkinter import ttk

        from swapfast.preview.window_tk import PreviewTk, open_root

        self._folder, self._requests = folder, requests
        self.pictures = ModelPictures(folder)
        self._log = LogFollower(folder / "logs" / "steps.jsonl")
        self.tinted, self.step = True, None  # type: bool, int | None
        self._buffer = PreviewBuffer()
        self.root = open_root(f"swapfast preview: {folder.resolve().name}")
        self._status = tk.StringVar(self.root, "no preview yet: the first comes with the first save")
        holder, bar = ttk.Frame(self.root), ttk.Frame(self.root, padding=4)
        self.preview: PreviewTk = PreviewTk(self._buffer, holder, bar, self._triggers())
        self.slider = ttk.Scale(self.root, from_=0, to=0, command=self._slide, takefocus=False)
        ttk.Label(self.root, textvariable=self._status, padding=(6, 2)).pack(side="bottom", fill="x")
        self._bar, self._verdict = bar, ttk.Label(self.root, padding=(6, 2))
        self._verdict.bind("<Configure>", lambda event: self._verdict.configure(wraplength=event.width - 12))
        bar.pack(side="bottom", fill="x")
        self.slider.pack(side="bottom", fill="x", padx=6)
        holder.pack(side="top", fill="both", expand=True)
        self.preview.pack(fill="both", expand=True)
        line = "M mask   R refresh   S save   F fit or actual   + - zoom   arrows iterations   Enter "
        self.preview.bind_keys(self.root, line + requests.enter)
        self.root.bind("<KeyPress-Left>", lambda _: self.move(-1))
        self.root.bind("<KeyPress-Right>", lambda _: self.move(1))
        self.root.bind("<KeyPress-End>", lambda _: self.show(None))
        self.root.geometry(f"{min(1280, self.root.winfo_screenwidth())}x{min(860, self.root.winfo_screenheight())}")
        self._look()

    def run(self) -> None:
        """Show the window until it is closed."""
        from swapfast.preview.window_tk import main_loop

        main_loop(self.root)

    def _triggers(self) -> Triggers:
        def calling(ask: Ask) -> threading.Event:
            def call() -> None:
                answer = ask()
                self.root.after_idle(lambda: self._say(answer))  # behind what the preview says of the key

            return _Calling(call)

        return {
            "toggle_mask": _Calling(self._toggle_mask),
            "refresh": calling(self._requests.refresh),
            "save": calling(self._requests.save),
            "quit": _Calling(self._requests.quit),
            "shutdown": self._requests.shutdown,
        }

    def _say(self, answer: str) -> None:
        if answer:
            self.preview.say(answer)

    def _toggle_mask(self) -> None:
        if self.pictures.has_plain:
            self.tinted = not self.tinted
            self._refresh()
            answer = f"mask {'shown' if self.tinted else 'hidden'}"
        else:
            answer = self._requests.toggle_mask()
        self.root.after_idle(lambda: self._say(answer))

    # --- iterations -------------------------------------------------------------------------------------------

    def move(self, by: int) -> None:
        """Show a later or an earlier iteration."""
        steps = [preview.step for preview in self.pictures.kept]
        if not steps:
            return
        at = len(steps) - 1 if self.step not in steps else steps.index(self.step)
        place = min(max(at + by, 0), len(steps) - 1)
        self.show(None if place == len(steps) - 1 else steps[place])

    def show(self, step: int | None) -> None:
        """Show an iteration that is kept, or from here on the newest (None)."""
        self.step = step
        self._refresh()

    def _slide(self, value: str) -> None:
        previews = self.pictures.kept
        index = round(float(value))
        if index < len(previews):
            self.step = None if index == len(previews) - 1 else previews[index].step
            self._refresh(moves_slider=False)

    def _refresh(self, moves_slider: bool = True) -> None:
        """Show the picture that is chosen, and say which one it is."""
        previews = self.pictures.kept
        index = next((i for i, preview in enumerate(previews) if preview.step == self.step), None)
        if index is None:
            self.step = None
            sheet = self.pictures.newest(self.tinted)
        else:
            sheet = self.pictures.sheet(previews[index], self.tinted)
        if sheet is not None:
            self._buffer.add_image(self._folder.resolve().name or "preview", sheet)
        self.slider.configure(to=max(len(previews) - 1, 0))
        if moves_slider:
            position = len(previews) - 1 if index is None else index
            self.slider.configure(command="")
            self.slider.set(max(position, 0))
            self.slider.configure(command=self._slide)
        self._status.set(self._described())

    def _look(self) -> None:
        """Look for what is new, again and again."""
        has_more = _read(self._log)
        if self.pictures.poll():
            self._refresh()
        else:
            self._status.set(self._described())
        self._show_verdict()
        self.root.after(_AGAIN_MS if has_more else POLL_MS, self._look)

    def _show_verdict(self) -> None:
        """Say when it is done, in a line of its own, where faces are held out."""
        text, warns = _when_done(self._log)
        self._verdict.configure(text=text, foreground=_WARNING_INK if warns else "")
        if bool(text) != bool(self._verdict.winfo_manager()):
            self._verdict.pack(side="bottom", fill="x", before=self._bar) if text else self._verdict.pack_forget()

    def _described(self) -> str:
        return describe_run(self._folder, self.pictures, self._log, self.step)


def _read(log: LogFollower) -> bool:
    """Read on in the log for a moment; return whether there is more right now."""
    end = time.monotonic() + _READING_S
    while has_more := log.poll():
        if time.monotonic() > end:
            break
    return has_more


def _when_done(log: LogFollower) -> tuple[str, bool]:
    """Return when it is done, in one line, and whether that is a warning. The line is empty without held-out faces."""
    verdict = log.verdict
    return "   ".join(filter(None, (*verdict.gains, verdict.leak))), verdict.warns


def describe_run(folder: Path, pictures: ModelPictures, log: LogFollower, step: int | None = None) -> str:
    """Return how training goes, in one line. step: the iteration whose picture is shown, None for the newest."""
    if not folder.is_dir():
        return f"{printable(str(folder))} is gone"
    kept, parts = pictures.kept, []
    if step is not None:
        parts.append(f"preview of iteration {step:,}")
    elif kept:
        parts.append(f"newest preview, iteration {kept[-1].step:,}")
    elif pictures.newest(True) is None:
        parts.append("no preview yet: the first comes with the first save")
    if len(kept) > 1:
        parts.append(f"{len(kept)} kept")
    if find_holder(folder / ".lock") is not None:
        parts.append("training" if log.step is None else f"training, iteration {log.step:,}")
    elif log.step is not None:
        parts.append(f"not in training, {log.step:,} iterations")
    if log.progress is not None:
        parts.append(f"reading the log: {100 * log.progress:.0f} %")
    parts += [
        f"{text} {log.latest[key]:.{digits}f}{unit}"
        for key, text, digits, unit in _FIGURES
        if abs(log.latest.get(key, inf)) < _LARGEST
    ]
    return "   ".join(parts)


def show_model(folder: Path, requests: Requests) -> None:
    """Show a window on a model folder until it is closed: by Tk, or by OpenCV where Tk is not installed.

    Raises SwapfastError where there is no display.
    """
    try:
        import tkinter  # noqa: F401
    except ImportError:
        _show_by_opencv(folder, requests)
        return
    window = ModelWindow(folder, requests)
    _give_way()
    window.run()


def _give_way() -> None:
    """Let training go first."""
    if hasattr(os, "nice"):
        os.nice(_NICE)


def _show_by_opencv(folder: Path, requests: Requests) -> None:
    from swapfast.preview.window_cv import PreviewCV, with_lines

    pictures, buffer = ModelPictures(folder), PreviewBuffer()
    log = LogFollower(folder / "logs" / "steps.jsonl")
    answers: deque[tuple[str, float]] = deque(maxlen=1)  # to the last key, and until when it stays

    def answer_event(ask: Ask) -> threading.Event:
        def call() -> None:
            answers.append((ask(), time.monotonic() + _ANSWER_S))

        return _Calling(call)

    triggers: dict[TriggerName, threading.Event] = {
        "toggle_mask": answer_event(requests.toggle_mask),
        "refresh": answer_event(requests.refresh),
        "save": answer_event(requests.save),
        "quit": _Calling(requests.quit),
        "shutdown": requests.shutdown,
    }

    def follow() -> None:
        last_lines: list[str] = []
        while not requests.shutdown.is_set():
            has_more, has_changed = _read(log), pictures.poll()
            replies = [answer for answer, end in answers if time.monotonic() < end]
            lines = list(filter(None, (*replies, _when_done(log)[0], describe_run(folder, pictures, log))))
            sheet = pictures.newest(True)
            if has_changed or lines != last_lines:
                last_lines = lines
                buffer.add_image("swapfast preview", with_lines(_NO_SHEET if sheet is None else sheet, lines))
            requests.shutdown.wait((_AGAIN_MS if has_more else POLL_MS) / 1000)

    window = PreviewCV(buffer, triggers)
    _give_way()
    threading.Thread(target=follow, daemon=True).start()
    try:
        window.run()
    finally:
        requests.shutdown.set()


def main(arguments: list[str] | None = None) -> int:
    """Be the window of ``train -p`` on the folder that is given; return the exit code."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    requests = requests_by_words()

    def wait_for_the_end() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 1024):
                pass
        requests.shutdown.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    try:
        show_model(Path(folder), requests)
    except SwapfastError as error:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(f"{FAILED}{error}\n")
            sys.stdout.flush()
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
