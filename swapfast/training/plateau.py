"""Lowers the learning rate where the loss stands still (``--schedule plateau``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from swapfast.optim.optimizer import Optimizer
from swapfast.optim.schedules import Plateau
from swapfast.processes import Processes
from swapfast.training.observers import Observer, Training


class PlateauWatch(Observer):
    """Gives the losses to the optimizer's schedule, and lowers the rate where that says so.

    tag: of the loss, 'validation_total' or 'batch_total'. log: prints a line. Of several processes all need it, and
    what rank 0 finds counts: the others know no validation loss. What is counted so far is the optimizer's to keep.
    """

    def __init__(self, optimizer: Optimizer, tag: str, processes: Processes, log: Callable[[str], None]) -> None:
        self._optimizer, self._tag, self._processes, self._log = optimizer, tag, processes, log

    @property
    def _plateau(self) -> Plateau:
        assert isinstance(self._optimizer.schedule, Plateau)
        return self._optimizer.schedule

    def on_report(self, step: int, values: Mapping[str, float], time: float | None = None) -> None:
        """Count a loss."""
        if self._tag in values:
            self._plateau.add(values[self._tag])

    def on_step(self, training: Training) -> None:
        """Compare where a window ends, at the same iterations however often the run was stopped."""
        if training.step % self._plateau.iterations:
            return
        step = training.step
        training.fetch_losses()
        if training.step != step:  # it went back to a checkpoint, and so did what is counted
            return
        stands_still = self._plateau.end_window() and self._processes.is_first
        if not self._processes.any_on_hosts(stands_still)[0]:
            return
        self._plateau.reduce()
        self._optimizer.apply_schedule()
        self._log(
            f"iteration {training.step}: the loss stands still; learning rate {self._optimizer.learning_rate:.3g}"
        )
