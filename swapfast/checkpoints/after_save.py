"""A command of the user's that runs after every save, such as a copy of the model folder to object storage."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.stop import StopRequest
from swapfast.training.observers import Observer, Training

_SHOWN = 200  # characters of what a failed command said
_WAIT_S = 0.05


class _Running(NamedTuple):
    """The command for the checkpoint of ``step``."""

    step: int
    process: subprocess.Popen
    output: BinaryIO


class AfterSave(Observer):
    """Runs ``command`` in a shell after each save: beside the training, and never two at once.

    It finds SWAPFAST_MODEL_DIR, SWAPFAST_CHECKPOINT (the path of the checkpoint that was saved) and SWAPFAST_STEP among
    its variables. A save that comes while it runs is answered when it has ended; of several, by one run for the newest.
    That it fails is a warning and no more: ``warn`` is told. Its output is not shown. It runs in a session of its own,
    so that Ctrl-C ends the training and not the copy.
    """

    def __init__(self, command: str, model_dir: Path, warn: Callable[[str], None]) -> None:
        self._command, self._folder, self._warn = command, Path(model_dir), warn
        self._running: _Running | None = None
        self._next: int | None = None  # the newest step that waits

    @property
    def checkpoints_in_use(self) -> set[int]:
        """Return the step whose checkpoint the command is reading; empty where none runs."""
        return set() if self._running is None else {self._running.step}

    def on_step(self, training: Training) -> None:
        """Start the run that waits, where the one before it has ended."""
        self.poll()

    def on_save(self, step: int) -> None:
        """Run the command for the checkpoint of ``step``, at once or when it has ended for an earlier one."""
        self._next = step
        self.poll()

    def poll(self) -> None:
        """Take note of a run that has ended and start the one that waits. Cheap: meant to be called every step."""
        if self._running is not None:
            if self._running.process.poll() is None:
                return
            self._end(self._running)
            self._running = None
        if self._next is not None:
            step, self._next = self._next, None
            self._running = self._start(step)

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
            if self._running is None:
                return
            if stop.signals > signals:
                self._warn(f"warning: --after-save is still running for iteration {self._running.step}; not waited for")
                return
            time.sleep(_WAIT_S)

    def _start(self, step: int) -> _Running | None:
        folder = CheckpointFolder(self._folder.resolve())
        variables = {
            **os.environ,
            "SWAPFAST_MODEL_DIR": str(folder.folder),
            "SWAPFAST_CHECKPOINT": str(folder.path(step)),
            "SWAPFAST_STEP": str(step),
        }
        try:
            output = tempfile.TemporaryFile()  # noqa: SIM115  # it is the process' for as long as that runs
            process = subprocess.Popen(
                self._command,
                shell=True,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self._warn(f"warning: --after-save could not be started for iteration {step} ({error})")
            return None
        return _Running(step, process, output)

    def _end(self, running: _Running) -> None:
        code = running.process.returncode
        if code:
            running.output.seek(0)
            words = " ".join(running.output.read().decode("utf-8", "replace").split())
            ended = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            self._warn(
                f"warning: --after-save {ended} for iteration {running.step}{': ' if words else ''}{words[-_SHOWN:]}"
            )
        running.output.close()
