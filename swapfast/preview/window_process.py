"""The window of ``train -p``: a process of its own, which can neither slow the training nor end it by dying."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from swapfast.preview.model_window import FAILED
from swapfast.training.observers import Observer, Training

_ROOT = Path(__file__).resolve().parents[2]
_CLOSING_S = 3.0
_LONGEST_WORD = 1000  # characters


class PreviewWindow(Observer):
    """Opens a window on the model folder and does what its keys ask for.

    draw: draws the preview of a step anew. toggle_mask: shows the mask in it, or hides it. log: prints a line.
    Where no window can be shown that is one line, and training goes on.
    """

    def __init__(
        self,
        folder: Path,
        draw: Callable[[int], object],
        toggle_mask: Callable[[], object],
        log: Callable[[str], object],
    ) -> None:
        self._draw, self._toggle_mask, self._log = draw, toggle_mask, log
        self._words: deque[str] = deque()
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "swapfast.preview.model_window", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the training
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            )
            threading.Thread(target=self._read, daemon=True).start()
        except (OSError, RuntimeError) as error:
            self._refuse(f"no window: {error}")

    def _refuse(self, reason: str) -> None:
        self._log(f"warning: -p/--preview: {reason}; training goes on")

    def _read(self) -> None:
        """Take the words of the window, in a thread."""
        assert self._process is not None and self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            while line := self._process.stdout.readline(_LONGEST_WORD):
                if line.startswith(FAILED):
                    self._refuse(line.removeprefix(FAILED).strip())
                else:
                    self._words.append(line.strip())

    def on_step(self, training: Training) -> None:
        """Do what was asked for."""
        while self._words:
            word = self._words.popleft()
            if word == "save":
                training.stop.ask_to_save()
            elif word == "quit":
                training.stop.request("Enter in the preview window")
            elif word in ("refresh", "toggle_mask"):
                if word == "toggle_mask":
                    self._toggle_mask()
                self._draw(training.step)

    def on_end(self, training: Training, error: BaseException | None = None) -> None:
        """Close the window."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError, ValueError):
            assert process.stdin is not None
            process.stdin.close()  # which closes it
        try:
            process.wait(_CLOSING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
