"""How a run writes its logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from swapfast.training.observers import Observer, Training


class ScalarLog(Protocol):
    """A log of scalars, such as TorchTensorBoard and StepLog."""

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float], time: float | None = None) -> None:
        """Log scalars of iteration ``batch``."""

    def flush(self) -> None:
        """Write what was put off."""

    def on_save(self) -> None:
        """Write what was put off."""

    def on_train_end(self) -> None:
        """Write the rest and close the file."""


class LogObserver(Observer):
    """Writes what a run reports to ``log``."""

    def __init__(self, log: ScalarLog) -> None:
        self._log = log

    def on_report(self, step: int, values: Mapping[str, float], time: float | None = None) -> None:
        """Log them; the writing may be put off."""
        self._log.on_train_batch_end(step, values, time)

    def flush(self) -> None:
        """Write what was put off."""
        self._log.flush()

    def on_save(self, step: int) -> None:
        """Write what was put off."""
        self._log.on_save()

    def on_end(self, training: Training, error: BaseException | None = None) -> None:
        """Write the rest and close the file: the steps before a failure are those one wants to see."""
        self._log.on_train_end()
