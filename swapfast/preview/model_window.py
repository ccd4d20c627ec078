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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from swapfast.errors import SwapfastError
from swapfast.preview.buffer import PreviewBuffer, TriggerName, Triggers
from swapfast.preview.model_pictures import ModelPictures
from swapfast.stop import SAVE_SIGNAL
from swapfast.watch.follower import LogFollower
from swapfast.watch.lock_holder import find_holder, send_signal

if TYPE_CHECKING:
    from swapfast.preview.window_tk import PreviewTk

POLL_MS = 400
_READ_AT_ONCE = 20  # chunks of the log between two looks at the keyboard
_NICE = 10  # training goes first
_SAVES = "the run saves after the step in progress, and draws a preview"
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
        self.slider = ttk.Scale(self.root, from_=0, to=0, command=self._slide)
        ttk.Label(self.root, textvariable=self._status, padding=(6, 2)).pack(side="bottom", fill="x")
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
        chosen = min(max(at + by, 0), len(steps) - 1)
        self.show(None if chosen == len(steps) - 1 else steps[chosen])

    def show(self, step: int | None) -> None:
        """Show an iteration that is kept, or from here on the newest (None)."""
        self.step = step
        self._refresh()

    def _slide(self, value: str) -> None:
        kept = self.pictures.kept
        index = round(float(value))
        if index < len(kept):
            self.step = None if index == len(kept) - 1 else kept[index].step
            self._refresh(moves_slider=False)

    def _refresh(self, moves_slider: bool = True) -> None:
        """Show the picture that is chosen, and say which one it is."""
        kept = self.pictures.kept
        index = next((i for i, preview in enumerate(kept) if preview.step == self.step), None)
        if index is None:
            self.step = None
            sheet = self.pictures.newest(self.tinted)
        else:
            sheet = self.pictures.sheet(kept[index], self.tinted)
        if sheet is not None:
            self._buffer.add_image(self._folder.resolve().name or "preview", sheet)
        self.slider.configure(to=max(len(kept) - 1, 0))
        if moves_slider:
            position = len(kept) - 1 if index is None else index
            self.slider.configure(command="")
            self.slider.set(max(position, 0))
            self.slider.configure(command=self._slide)
        self._status.set(self._described())

    def _look(self) -> None:
        """Look for what is new, again and again."""
        for _ in range(_READ_AT_ONCE):
            if not self._log.poll():
                break
        if self.pictures.poll():
            self._refresh()
        else:
            self._status.set(self._described())
        self.root.after(POLL_MS, self._look)

    def _described(self) -> str:
        """Return how training goes, in one line."""
        kept, log = self.pictures.kept, self._log
        if not self._folder.is_dir():
            return f"{self._folder} is gone"
        if not kept and self.pictures.newest(self.tinted) is None:
            return "no preview yet: the first comes with the first save"
        parts = []
        if self.step is not None:
            parts.append(f"preview of iteration {self.step:,}")
        elif kept:
            parts.append(f"newest preview, iteration {kept[-1].step:,}")
        if len(kept) > 1:
            parts.append(f"{len(kept)} kept")
        if find_holder(self._folder / ".lock") is not None:
            parts.append("training" if log.step is None else f"training, iteration {log.step:,}")
        elif log.step is not None:
            parts.append(f"not in training, {log.step:,} iterations")
        parts += [
            f"{text} {log.latest[key]:.{digits}f}{unit}"
            for key, text, digits, unit in (
                ("loss_a", "loss A", 4, ""),
                ("loss_b", "B", 4, ""),
                ("iterations_per_s", "", 2, " it/s"),
                ("swap_quality", "swap", 1, " dB"),
            )
            if key in log.latest
        ]
        return "   ".join(part.strip() for part in parts)


def show_model(folder: Path, requests: Requests) -> None:
    """Show a window on a model folder until it is closed: by Tk, or by OpenCV where Tk is not installed.

    Raises SwapfastError where there is no display.
    """
    try:
        import tkinter  # noqa: F401
    except ImportError:
        _show_by_opencv(folder, requests)
        return
    ModelWindow(folder, requests).run()


def _show_by_opencv(folder: Path, requests: Requests) -> None:
    from swapfast.preview.window_cv import PreviewCV

    pictures, buffer = ModelPictures(folder), PreviewBuffer()
    asks: dict[TriggerName, Ask] = {
        "toggle_mask": requests.toggle_mask, "refresh": requests.refresh, "save": requests.save, "quit": requests.quit,
    }  # fmt: skip
    triggers: dict[TriggerName, threading.Event] = {name: _Calling(ask) for name, ask in asks.items()}
    triggers["shutdown"] = requests.shutdown

    def follow() -> None:
        while not requests.shutdown.wait(POLL_MS / 1000):
            if pictures.poll() and (sheet := pictures.newest(True)) is not None:
                buffer.add_image("swapfast preview", sheet)

    window = PreviewCV(buffer, triggers)
    threading.Thread(target=follow, daemon=True).start()
    try:
        window.run()
    finally:
        requests.shutdown.set()


def main(arguments: list[str] | None = None) -> int:
    """Be the window of ``train -p`` on the folder that is given; return the exit code."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    if hasattr(os, "nice"):
        os.nice(_NICE)
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
