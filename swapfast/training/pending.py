"""Losses on their way from the device to the log: fetched many steps at a time, without waiting where that can be."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from swapfast.training.nonfinite import Faces

CHUNK = 8  # steps copied at once on a GPU: what is shown is so many steps behind at most


@dataclass(frozen=True)
class Fetched:
    """The scalars of one step.

    step    iterations the model had with it
    time    when it was given to the device, in seconds since 1970
    faces   their ordinals, where the batch knows them
    values  tag -> number
    """

    step: int
    time: float
    faces: Faces
    values: dict[str, float]


@dataclass
class _Copy:
    """Scalars of several steps that are being copied to the host.

    steps: their values hold only what the host had already. numbers: complete once ``copied`` has happened.
    """

    steps: list[Fetched]
    tags: list[list[str]]
    numbers: Tensor
    copied: torch.cuda.Event | None

    def is_done(self) -> bool:
        return self.copied is None or self.copied.query()

    def fetched(self) -> list[Fetched]:
        if self.copied is not None:
            self.copied.synchronize()
        numbers = iter(self.numbers.tolist())
        return [
            replace(step, values={tag: next(numbers) for tag in tags} | step.values)
            for step, tags in zip(self.steps, self.tags)
        ]


class Pending:
    """Scalars of the steps since the last report, on the device or on the way from it.

    mean: over all processes, where there are several (``Trainer.mean_over_faces``). All processes must then call
    ``take`` at the same steps, and waiting.
    """

    def __init__(self, mean: Callable[[Tensor], Tensor] = lambda values: values) -> None:
        self._mean = mean
        self._copies: deque[_Copy] = deque()  # on their way to the host
        self._steps: list[Fetched] = []
        self._tags: list[list[str]] = []
        self._rows: list[Tensor] = []

    def add(
        self, step: int, time: float, faces: Faces, values: dict[str, Tensor], known: dict[str, float] | None = None
    ) -> None:
        """Add the scalars of a step. known: those that the host has already."""
        self._steps.append(Fetched(step, time, faces, known or {}))
        self._tags.append(list(values))
        self._rows.append(torch.stack([value.detach().float() for value in values.values()]))
        if self._rows[-1].is_cuda and len(self._rows) >= CHUNK:
            self._send()

    def _send(self) -> None:
        """Begin to copy what is on the device. Pinned memory lets the copy run beside the steps that follow."""
        if not self._rows:
            return
        numbers, copied = self._mean(torch.cat(self._rows)), None
        if numbers.is_cuda:
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            numbers = host.copy_(numbers, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._copies.append(_Copy(self._steps, self._tags, numbers, copied))
        self._steps, self._tags, self._rows = [], [], []

    def take(self, wait: bool = True) -> list[Fetched]:
        """Return the steps in their order, each once.

        Without ``wait`` only those whose scalars have arrived; on a CPU all have.
        """
        self._send()
        steps: list[Fetched] = []
        while self._copies and (wait or self._copies[0].is_done()):
            steps += self._copies.popleft().fetched()
        return steps

    def clear(self) -> None:
        """Drop all steps."""
        self._copies.clear()
        self._steps, self._tags, self._rows = [], [], []
