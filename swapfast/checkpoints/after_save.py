"""A command of the user's that runs after every save, such as a copy of the model folder to object storage."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.stop import StopRequest
from swapfast.training.observers import Observer, Training

_SHOWN = 200  # characters of what a failed command said
_WAIT_S = 0.05


class AfterSave(Observer):
    """Runs ``command`` in a shell after each save: beside the training, and never two at once.

    It finds SWAPFAST_MODEL_DIR, SWAPFAST_CHECKPOINT (the path of the checkpoint that was saved) and SWAPFAST_STEP among
    its variables. A save that comes while it runs is answered when it has ended; of several, by one run for the newest.
    That it fails is a warning and no more: ``warn`` is told. Its output is not shown. It runs in a session of its own,
    so that Ctrl-C ends the training and not the copy.
    """

    def __init__(self, command: str, model_dir: Path, warn: Callable[[str], None]) -> None:
        self._command, self._folder, self._warn = command, Path(model_dir), warn
        self._process: subprocess.Popen | None = None
        self._output: BinaryIO | None = None
        self._step = 0
        self._next: int | None = None

    @property
    def checkpoints_in_use(self) -> set[int]:
        """Return the step whose checkpoint the command is reading; empty where none runs."""
        return set() if self._process is None else {self._step}

    def on_step(self, training: Training) -> None:
        """Start the run that waits, where the one before it has ended."""
        self.poll()

    def on_save(self, step: int) -> None:
        """Run the command for the checkpoint of ``step``, at once or when it has ended for an earlier one."""
        self._next = step
        self.poll()

    def poll(self) -> None:
        """Take note of a run that has ended and start the one that waits. Cheap: meant to be called every step."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._end()
        if self._next is not None:
            self._step, self._next = self._next, None
            self._start()

    def on_end(self, training: Training, error: BaseException | None = None) -> None:
        """Wait until nothing runs or waits."""
        self.finish(training.stop)

    def finish(self, stop: StopRequest) -> None:
        """Wait until nothing runs or waits. A signal that comes meanwhile ends the waiting, not the command.

        What only asks for the stop once more does not: a stop file that this process sees after another one has, a time
        limit that is over by now.
        """
        signals = stop.signals
        while True:
            self.poll()
            if self._process is None:
                return
            if stop.signals > signals:
                self._warn(f"warning: --after-save is still running for iteration {self._step}; not waited for")
                return
            time.sleep(_WAIT_S)

    def _start(self) -> None:
        folder = CheckpointFolder(self._folder.resolve())
        variables = {
            **os.environ,
            "SWAPFAST_MODEL_DIR": str(folder.folder),
            "SWAPFAST_CHECKPOINT": str(folder.path(self._step)),
            "SWAPFAST_STEP": str(self._step),
        }
        try:
            self._output = tempfile.TemporaryFile()  # noqa: SIM115  # it is the process' for as long as that runs
            self._process = subprocess.Popen(
                self._command,
                shell=True,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self._warn(f"warning: --after-save could not be started for iteration {self._step} ({error})")

    def _end(self) -> None:
        code = self._process.returncode
        if code:
            self._output.seek(0)
            said = " ".join(self._output.read().decode("utf-8", "replace").split())
            ended = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            self._warn(
                f"warning: --after-save {ended} for iteration {self._step}{': ' if said else ''}{said[-_SHOWN:]}"
            )
        self._output.close()
        self._process = self._output = None
