"""Scalars for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class TorchTensorBoard:
    """Writes event files under ``log_dir``/train. ``update_freq``: log every that many iterations."""

    def __init__(self, log_dir: str | Path = "logs", update_freq: int = 1) -> None:
        from torch.utils.tensorboard import SummaryWriter  # seconds to import: only who logs pays

        self._writer = SummaryWriter(str(Path(log_dir) / "train"))
        self._update_freq = update_freq

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Log ``logs`` (tag -> value) at iteration ``batch``."""
        if logs and batch % self._update_freq == 0:
            for tag, value in logs.items():
                self._writer.add_scalar(tag, value, batch)

    def on_save(self) -> None:
        """Put everything on the disk."""
        self._writer.flush()

    def on_train_end(self) -> None:
        """Close the file."""
        self._writer.close()
