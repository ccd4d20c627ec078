"""What a training run is given beside the model: where it is saved, what watches it, and when it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.stop import StopRequest
from swapfast.training.nonfinite import NanPolicy
from swapfast.training.observers import Observer
from swapfast.training.progress import ProgressLine


@dataclass
class Run:
    """Where a training run keeps its checkpoints, what watches it, and when it ends.

    checkpoints        the model folder; without one nothing is saved
    iterations         train up to this many in all
    save_interval      iterations between checkpoints, 0 for none but the last
    snapshot_interval  iterations between checkpoints that are kept for good, 0 for none
    state              kept in every checkpoint's JSON (config, versions, data)
    tensors            kept beside the model's, by file
    saved_step         the step of the newest checkpoint
    drawn_before       returns the faces of each side drawn before a step, where the batches know it
    nan                what becomes of a step whose loss or gradient is not finite, see nonfinite.py
    observers          are told of every step, report and save, in this order
    progress           the loss line, and how often it is shown
    stop               asks the run to save and leave
    """

    checkpoints: CheckpointFolder | None = None
    iterations: int = sys.maxsize
    save_interval: int = 0
    snapshot_interval: int = 0
    state: dict = field(default_factory=dict)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    saved_step: int | None = None
    drawn_before: Callable[[int], int] | None = None
    nan: NanPolicy = "stop"
    observers: Sequence[Observer] = ()
    progress: ProgressLine = field(default_factory=ProgressLine)
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def metrics(self) -> dict:
        """Return what the checkpoints say of their losses: the average since the save before, and the lowest so far."""
        return self.state.setdefault("metrics", {})
