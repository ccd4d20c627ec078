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
    """One step. step: iterations the model had with it. time: when it was given to the device, since 1970, s.

    faces: their ordinals, where the batch knows them. values: tag -> number.
    """

    step: int
    time: float
    faces: Faces
    values: dict[str, float]


@dataclass
class _Copy:
    """Steps whose scalars are being copied; there once ``made`` has happened. steps: values hold only host numbers."""

    steps: list[Fetched]
    tags: list[list[str]]
    numbers: Tensor
    made: torch.cuda.Event | None

    def done(self) -> bool:
        return self.made is None or self.made.query()

    def fetched(self) -> list[Fetched]:
        if self.made is not None:
            self.made.synchronize()
        numbers = iter(self.numbers.tolist())
        return [
            replace(step, values={tag: next(numbers) for tag in tags} | step.values)
            for step, tags in zip(self.steps, self.tags)
        ]


class Pending:
    """Scalars of the steps since the last report, on the device or on the way from it.

    mean: over all processes, where there are several (``Trainer.mean_over_faces``). They take part together: ``take``
    must then be called at the same steps by all, and waiting.
    """

    def __init__(self, mean: Callable[[Tensor], Tensor] = lambda values: values) -> None:
        self._mean = mean
        self._copies: deque[_Copy] = deque()
        self._steps: list[Fetched] = []
        self._tags: list[list[str]] = []
        self._rows: list[Tensor] = []

    def add(
        self, step: int, time: float, faces: Faces, values: dict[str, Tensor], known: dict[str, float] | None = None
    ) -> None:
        """Keep a step's scalars. known: those that the host has already."""
        self._steps.append(Fetched(step, time, faces, known or {}))
        self._tags.append(list(values))
        self._rows.append(torch.stack([value.detach().float() for value in values.values()]))
        if self._rows[-1].is_cuda and len(self._rows) >= CHUNK:
            self._send()

    def _send(self) -> None:
        """Begin to copy what is on the device. Pinned memory lets the copy run beside the steps that follow."""
        if not self._rows:
            return
        numbers, made = self._mean(torch.cat(self._rows)), None
        if numbers.is_cuda:
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            numbers = host.copy_(numbers, non_blocking=True)
            made = torch.cuda.Event()
            made.record()
        self._copies.append(_Copy(self._steps, self._tags, numbers, made))
        self._steps, self._tags, self._rows = [], [], []

    def take(self, wait: bool = True) -> list[Fetched]:
        """The steps in order, each once. Without ``wait`` only those whose scalars have arrived; on a CPU all have."""
        self._send()
        taken: list[Fetched] = []
        while self._copies and (wait or self._copies[0].done()):
            taken += self._copies.popleft().fetched()
        return taken

    def clear(self) -> None:
        """Forget them all."""
        self.__init__(self._mean)
