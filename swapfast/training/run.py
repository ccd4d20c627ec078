"""What a training run is given beside the model: where it keeps things, what shows them, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from swapfast.batch import Batch
from swapfast.checkpoints.after_save import AfterSave
from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.logs.steplog import StepLog
from swapfast.logs.tensorboard import TorchTensorBoard
from swapfast.stop import StopRequest
from swapfast.training.nonfinite import NanPolicy
from swapfast.training.progress import ProgressLine
from swapfast.training.validation import OneSided


class Preview(Protocol):
    """What shows the model's work."""

    def __call__(self, step: int) -> None:
        """Replace the picture in the model folder: called at every save."""

    def sheet(self) -> np.ndarray:
        """(H, W, 3) uint8 BGR: what the model makes now."""

    def toggle_mask(self) -> None:
        """Show the mask if it is hidden, hide it if it is shown."""


@dataclass
class Run:
    """Where a training run keeps things and when it does them.

    iterations: train up to this many in all. save_interval: iterations between checkpoints.
    state: kept in every checkpoint's JSON (config, versions, data). tensors: kept beside the model's, by file.
    snapshot_interval: iterations between checkpoints that are kept for good, 0 for none. saved_step: the step of the
    newest checkpoint, and metrics what it says of itself (the average loss since the save before, and the lowest).
    preview, timelapse: called with the step at every save. after_save: a command of the user's.
    nan: what becomes of a step whose loss or gradient is not finite, see nonfinite.py. batches_from: makes the batches
    from a step on; without it a run that goes back to a checkpoint takes what comes next.
    validation: the faces held out, each time the same, whose loss is logged every ``validation_interval`` iterations,
    0 for at every save. Of several processes one has them, and all must be given the interval.
    """

    checkpoints: CheckpointFolder
    iterations: int
    save_interval: int
    state: dict = field(default_factory=dict)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    snapshot_interval: int = 0
    metrics: dict = field(default_factory=dict)
    preview: Preview | None = None
    timelapse: Callable[[int], None] | None = None
    after_save: AfterSave | None = None
    tensorboard: TorchTensorBoard | None = None
    step_log: StepLog | None = None
    validation: Iterable[OneSided] | None = None
    validation_interval: int = 0
    progress: ProgressLine = field(default_factory=ProgressLine)
    stop: StopRequest = field(default_factory=StopRequest)
    saved_step: int | None = None
    nan: NanPolicy = "stop"
    batches_from: Callable[[int], Iterable[Batch]] | None = None
