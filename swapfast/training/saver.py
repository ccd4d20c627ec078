"""Writing the checkpoints of a run, and what they say of its losses."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Collection, Mapping

from torch import Tensor

from swapfast.batch import SIDES
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.checkpoints.requests import SNAPSHOT_REQUEST
from swapfast.checkpoints.snapshots import Snapshots
from swapfast.processes import Processes
from swapfast.swap.quality import QUALITY
from swapfast.training.observers import Observer, Viewer
from swapfast.training.run import Run


class FolderCheck(Observer):
    """Ends a run whose model folder was removed or replaced, before the observers behind it write there."""

    def __init__(self, checkpoints: CheckpointFolder) -> None:
        self._checkpoints = checkpoints

    def flush(self) -> None:
        """Raise SwapfastError (code 1) unless the folder is still the one that was locked: logs are to be written."""
        self._checkpoints.require_lock()

    def on_save(self, step: int) -> None:
        """Look before a picture is written."""
        self._checkpoints.require_lock()

    def on_view(self, viewer: Viewer) -> None:
        """Look before a picture is written that somebody asked for."""
        self._checkpoints.require_lock()

    def on_timelapse(self, step: int) -> None:
        """Look before a picture is written that somebody asked for."""
        self._checkpoints.require_lock()


class Saver:
    """Writes the checkpoints of ``run``; of several processes rank 0 alone writes, and all keep the same counts.

    history: (step, average total loss since the save before) of the saves of this run.
    """

    def __init__(self, run: Run, processes: Processes) -> None:
        self.run, self.processes = run, processes
        self.history: list[tuple[int, float]] = []
        self._losses: list[float] = []  # total loss of each good step since the last save
        self._quality: tuple[int, float] | None = None  # step and swap quality of the last validation

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due at this step."""
        return any(n and step % n == 0 for n in (self.run.save_interval, self.run.snapshot_interval))

    def is_saved(self, step: int) -> bool:
        """Return whether there is nothing to write: this step is saved, or the run keeps no checkpoints."""
        return self.run.checkpoints is None or self.run.saved_step == step

    def add_loss(self, total: float) -> None:
        """Count the total loss of a step towards the average of the next checkpoint."""
        if self.run.checkpoints is not None:
            self._losses.append(total)

    def add_report(self, step: int, values: Mapping[str, float]) -> None:
        """Note the swap quality of a step, where it was measured."""
        if QUALITY in values:
            self._quality = step, values[QUALITY]

    def forget_losses(self) -> None:
        """Drop the losses since the last save, whose steps are undone."""
        self._losses.clear()
        self._quality = None

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], in_use: Collection[int]) -> None:
        """Write the checkpoint of ``step``, then the snapshot and the backup that it asks for.

        tensors: those of the model and its optimizer, by file. in_use: steps whose checkpoints must stay. Raises
        SwapfastError (code 1) where there is no room.
        """
        run = self.run
        average = self._take_average(step)
        self._take_quality(step)
        if self.processes.is_first and run.checkpoints is not None:
            run.checkpoints.save(Checkpoint(step, run.tensors | tensors, self._state(step)), in_use)
        run.saved_step = step
        backed_up = " [Model backed up]" if self.keep_aside() else ""
        loss = (
            "" if average is None else f"[Saved model] - Average total loss since last save: {average:.5f}{backed_up}"
        )
        run.progress.saved(step, loss)

    def _take_average(self, step: int) -> float | None:
        """Return the mean total loss since the last save, noted as the lowest where it is; None where no step was."""
        losses, self._losses = self._losses, []
        metrics = self.run.metrics
        average = metrics["average_loss"] = sum(losses) / len(losses) if losses else None
        if average is not None:
            self.history.append((step, average))
            lowest = metrics.get("lowest_average_loss")
            # That of a few steps is low by chance.
            if 2 * len(losses) >= self.run.save_interval and (lowest is None or average < lowest):
                metrics["lowest_average_loss"] = average
        return average

    def _take_quality(self, step: int) -> None:
        """Note the swap quality of a step that is saved, None where it was not measured then, and the highest."""
        metrics = self.run.metrics
        quality = self._quality[1] if self._quality is not None and self._quality[0] == step else None
        if quality is None and "swap_quality" not in metrics:
            return
        metrics["swap_quality"] = quality
        highest = metrics.get("highest_swap_quality")
        if quality is not None and (highest is None or quality > highest):
            metrics["highest_swap_quality"] = quality

    def _state(self, step: int) -> dict:
        """Return what the checkpoint's JSON says."""
        runs = self.run.state.get("runs")
        if runs:
            runs[-1]["until_iteration"] = step
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        state = self.run.state | {"saved": time, "metrics": self.run.metrics}
        if self.run.drawn_before is not None:
            state["faces_drawn"] = dict.fromkeys(SIDES, self.run.drawn_before(step))
        return state

    def keep_aside(self) -> bool:
        """Make the snapshot and the backup that the newest checkpoint asks for, and return whether it is a backup.

        It says that itself, so a run that was killed before it could keep them does so when it goes on.
        """
        run, step = self.run, self.run.saved_step
        if step is None or run.checkpoints is None or not self.processes.is_first:
            return False
        snapshots = Snapshots(run.checkpoints)
        request = run.checkpoints.folder / SNAPSHOT_REQUEST
        is_asked = request.is_file()
        if is_asked or (step and run.snapshot_interval and step % run.snapshot_interval == 0):
            snapshots.snapshot(step)
        if is_asked:
            with contextlib.suppress(OSError):
                request.unlink()
        is_best = self._is_best()
        if is_best:
            snapshots.back_up(step)
        return is_best

    def _is_best(self) -> bool:
        """Return whether the newest checkpoint is the best: of the highest swap quality, or the lowest loss without."""
        metrics = self.run.metrics
        highest = metrics.get("highest_swap_quality")
        if highest is not None:
            return metrics.get("swap_quality") == highest
        average = metrics.get("average_loss")
        return average is not None and average == metrics.get("lowest_average_loss")

    def newest_tensors(self) -> dict[str, dict[str, Tensor]] | None:
        """Return the tensors of the newest whole checkpoint to every process, None where there is none."""
        checkpoints = self.run.checkpoints
        loaded = checkpoints.load() if checkpoints is not None and self.processes.is_first else None
        # What rank 0 finds, for all: the others may not see its disk.
        return self.processes.broadcast_tensors(loaded and loaded[0].tensors)
