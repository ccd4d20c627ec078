"""What watches a training run: logs, pictures, validation, copies of the checkpoints, windows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

import numpy as np
import torch

from swapfast.losses import LossCollator
from swapfast.models import FaceAutoencoder
from swapfast.stop import StopRequest

Viewer = Callable[[np.ndarray, str], None]  # is given a sheet (H, W, 3) uint8 BGR and its title


class Training(Protocol):
    """What an observer sees of a trainer.

    step: iterations the model has had. evaluated: the model with the weights that are shown and measured, which may be
    averaged ones. autocast: what the model computes in, None for float32.
    """

    step: int
    model: FaceAutoencoder
    loss: LossCollator
    autocast: torch.dtype | None

    @property
    def evaluated(self) -> FaceAutoencoder:
        """The model with the weights that are shown and measured."""

    @property
    def exit_early(self) -> bool:
        """Whether nothing is left to train."""

    @property
    def stop(self) -> StopRequest:
        """The request to stop, true once somebody has asked."""

    def fetch_losses(self) -> object:
        """Fetch the losses that are still on the device and report them. Every process must call it."""

    def report(self, values: Mapping[str, float]) -> None:
        """Give scalars of this iteration, by TensorBoard's tag, to all observers."""


class Observer:
    """Something that watches a run. A subclass overrides the methods it needs; the others do nothing.

    Observers are called in the order of ``Run.observers``. ``on_step`` is called in every process that has the
    observer, and each of them makes the same calls; only rank 0 has observers that write.
    """

    def on_step(self, training: Training) -> None:
        """An iteration has been made. Its losses are still on the device, and it is not saved yet."""

    def on_report(self, step: int, values: Mapping[str, float], time: float | None = None) -> None:
        """Scalars of iteration ``step``, by TensorBoard's tag, are on the host.

        Losses of several iterations arrive together and in their order. time: when the iteration was made, in seconds
        since 1970, or None for now.
        """

    def flush(self) -> None:
        """Write what was put off: a loss line has been shown, or a checkpoint follows."""

    def on_save(self, step: int) -> None:
        """The checkpoint of iteration ``step`` is whole. Also called where an observer before this one has failed."""

    def on_end(self, training: Training, error: BaseException | None = None) -> None:
        """Training is over. error: why it failed, None where it did not."""

    def on_view(self, viewer: Viewer) -> None:
        """Somebody wants to see what the model makes now."""

    def on_timelapse(self, step: int) -> None:
        """Somebody wants a picture of iteration ``step`` in the timelapse, though nothing is saved."""

    def on_toggle_mask(self) -> None:
        """Somebody wants to see the mask if it is hidden, or hide it if it is shown."""

    def refresh_preview(self) -> None:
        """Somebody wants a new preview in the model folder after the step in progress. Called from any thread."""

    @property
    def checkpoints_in_use(self) -> Collection[int]:
        """Return the steps whose checkpoints must stay, because this observer is reading them."""
        return ()


def call_all(calls: Iterable[Callable[[], object]]) -> None:
    """Make every call, also behind one that fails, and raise the first error at the end."""
    errors: list[BaseException] = []
    for call in calls:
        try:
            call()
        except BaseException as error:  # a request to stop is one, and the others are owed their call all the same
            errors.append(error)
    if errors:
        raise errors[0]
