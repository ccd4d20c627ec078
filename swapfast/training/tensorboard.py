"""Scalars for TensorBoard."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from swapfast.errors import SwapfastError


class TorchTensorBoard:
    """Writes event files under ``log_dir``/train. ``update_freq``: log every that many iterations.

    Logs are worth less than the run: where they cannot be written, ``warn`` is told once and no more is logged.
    """

    def __init__(
        self, log_dir: str | Path = "logs", update_freq: int = 1, warn: Callable[[str], None] = warnings.warn
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # seconds to import: only who logs pays

        self._folder = Path(log_dir) / "train"
        self._update_freq = update_freq
        self._warn = warn
        try:
            self._writer: SummaryWriter | None = SummaryWriter(str(self._folder))
        except OSError as error:
            raise SwapfastError(f"{self._folder}: no logs can be written there ({error.strerror}); use -n") from error

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Log ``logs`` (tag -> value) at iteration ``batch``."""
        if logs and self._writer is not None and batch % self._update_freq == 0:
            with self._giving_up():
                for tag, value in logs.items():
                    self._writer.add_scalar(tag, value, batch)

    def on_save(self) -> None:
        """Put everything on the disk."""
        with self._giving_up():
            if self._writer is not None:
                self._writer.flush()

    def on_train_end(self) -> None:
        """Close the file."""
        with self._giving_up():
            if self._writer is not None:
                self._writer.close()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            self._warn(f"{self._folder}: logs cannot be written any more ({error.strerror or error}); training goes on")
