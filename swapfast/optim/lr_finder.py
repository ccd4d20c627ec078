"""Looking for a learning rate: raise it from next to nothing until the loss blows up, and see where it was lowest."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR

from swapfast.errors import SwapfastError, unknown_name
from swapfast.files import write_file
from swapfast.losses import BatchLoss
from swapfast.processes import Processes

MODES = ("set", "graph_and_set", "graph_and_exit")
RESULT, GRAPH = "lr_finder.json", "lr_finder.png"
LOWEST_RATE = 1e-8  # below that nothing was found: the loss never fell by more than its noise


class SweptOptimizer(Protocol):
    """What a search needs of an optimizer. accumulation: batches to a step. report: what the last step was like."""

    accumulation: int
    report: dict[str, Tensor]

    def sweeping(self) -> AbstractContextManager[Callable[[float], None]]:
        """Give a function that sets the rate of the next step."""


class SearchTrainer(Protocol):
    """What a search needs of a trainer."""

    processes: Processes

    @property
    def optimizer(self) -> SweptOptimizer:
        """The optimizer whose rate is looked for."""

    def train_one_batch(self) -> list[BatchLoss]:
        """Move the weights by the next batch; raises StopIteration where there is none."""

    def mean_over_faces(self, values: Tensor) -> Tensor:
        """Turn means over this process' faces into means over all processes' faces."""

    def asked_to_stop(self) -> bool:
        """Return whether any process is asked to stop."""

    def snapshot(self) -> Any:
        """Copy all that training changes."""

    def put_back(self, snapshot: Any) -> None:
        """Be as at the time of ``snapshot``."""


class LRStrength(enum.Enum):
    """What the rate of the lowest loss is divided by."""

    DEFAULT = 10.0
    AGGRESSIVE = 5.0
    EXTREME = 2.5


@dataclass
class LossCurve:
    """Loss over learning rate while the rate rises.

    The loss is smoothed: s = beta * s + (1 - beta) * loss, divided by 1 - beta^i for the beginning. ``rates`` are those
    that the steps were made at; the peer notes each one step late and so takes a rate that is one ratio too high.
    """

    beta: float = 0.98
    stop_factor: float = 4.0
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    best: int | None = None  # where the smoothed loss was lowest
    diverged: bool = False
    _average: float = 0.0

    def add(self, rate: float, loss: float) -> bool:
        """Add the loss of a step made at ``rate``; return False where there is no point in going on."""
        if not math.isfinite(loss):
            self.diverged = True
            return False
        self._average = self.beta * self._average + (1 - self.beta) * loss
        smoothed = self._average / (1 - self.beta ** (len(self.rates) + 1))
        self.rates.append(rate)
        self.losses.append(loss)
        self.smoothed.append(smoothed)
        if self.best is None or smoothed < self.smoothed[self.best]:
            self.best = len(self.rates) - 1
        elif smoothed > self.stop_factor * self.smoothed[self.best]:
            self.diverged = True
        return not self.diverged


def sweep(start_lr: float, end_lr: float, steps: int) -> list[float]:
    """Return ``steps`` rates from ``start_lr`` on, in a constant ratio; one more would be ``end_lr``."""
    return [start_lr * (end_lr / start_lr) ** (step / steps) for step in range(steps)]


def scheduler_range(scheduler: ExponentialLR, steps: int) -> tuple[float, float]:
    """Return the rate at which a scheduler begins, and the one after ``steps`` steps."""
    start, gamma = float(scheduler.base_lrs[0]), float(scheduler.gamma)
    return start, start * gamma**steps


class LearningRateFinder:
    """Trains ``trainer`` for ``steps`` steps at rising rates, notes the loss, and puts everything back to the bit.

    scheduler: gives the rates in place of ``start_lr`` and ``end_lr``: its first base rate, and its ``gamma`` from step
    to step. It is neither stepped nor changed.
    strength: 'default', 'aggressive' or 'extreme', the higher the found rate. mode: 'set', or with a graph
    'graph_and_set' and 'graph_and_exit'; setting and leaving are the caller's (``Optimizer.find_learning_rate``).
    stop_factor: stop where the smoothed loss is so many times the lowest. beta: how much is smoothed.
    folder: where the result goes (lr_finder.json and, if asked for, lr_finder.png), or None.
    progress: called with (done, total). The host waits for every step's loss.
    """

    def __init__(
        self,
        trainer: SearchTrainer,
        scheduler: ExponentialLR | None = None,
        steps: int = 1000,
        strength: str = "default",
        mode: str = "set",
        stop_factor: float = 4,
        beta: float = 0.98,
        start_lr: float = 1e-10,
        end_lr: float = 1e-1,
        folder: Path | None = None,
        progress: Callable[[int, int], None] = lambda count, total: None,
    ) -> None:
        if strength.upper() not in LRStrength.__members__:
            raise unknown_name("--lr-finder-strength", strength, (s.name.lower() for s in LRStrength))
        if mode not in MODES:
            raise unknown_name("--lr-finder-mode", mode, MODES)
        if scheduler is not None:
            start_lr, end_lr = scheduler_range(scheduler, steps)
        if not 0 < start_lr < end_lr < math.inf:
            raise SwapfastError(
                f"--lr-finder-start {start_lr:g} with --lr-finder-end {end_lr:g}: the rate rises from start to end; "
                "give a start above 0 and a larger end"
            )
        if steps < 1 or not 0 <= beta < 1 or not stop_factor > 1:
            raise SwapfastError(
                f"learning-rate finder: {steps} steps, beta {beta:g}, stop factor {stop_factor:g}; give at least one "
                "step, a beta from 0 to below 1 and a factor above 1"
            )
        self.trainer, self.steps, self.mode = trainer, steps, mode
        self.strength = LRStrength[strength.upper()]
        self.start_lr, self.end_lr = start_lr, end_lr
        self.curve = LossCurve(beta, stop_factor)
        self.folder, self.progress = folder, progress
        self.interrupted = False

    @property
    def best_lr(self) -> float | None:
        """The rate of the lowest loss divided by the strength, or None if there was none worth the name."""
        if not self.curve.best or self.interrupted:  # it is 0 where the loss only rose
            return None
        rate = self.curve.rates[self.curve.best] / self.strength.value
        return rate if rate >= LOWEST_RATE else None

    def find(self) -> None:
        """Search, restore, and write the result where there is a folder for it."""
        snapshot = self.trainer.snapshot()
        folder = self.folder if self.trainer.processes.is_first else None
        if folder is not None:
            (folder / GRAPH).unlink(missing_ok=True)  # an older search's
        try:
            with self.trainer.optimizer.sweeping() as set_rate:
                self._search(set_rate)
        finally:
            self.trainer.put_back(snapshot)
        if folder is not None and not self.interrupted:
            self._write(folder)

    def _search(self, set_rate: Callable[[float], None]) -> None:
        for number, rate in enumerate(sweep(self.start_lr, self.end_lr, self.steps), 1):
            if self.trainer.asked_to_stop():
                self.interrupted = True
                return
            set_rate(rate)
            try:
                loss = self._step()
            except StopIteration:
                return
            if not self.curve.add(rate, loss):
                break
            self.progress(number, self.steps)
        self.progress(self.steps, self.steps)

    def _step(self) -> float:
        """Return the mean loss of the batches that one step is made of; NaN where the step was left out."""
        count = self.trainer.optimizer.accumulation
        batches = [self.trainer.train_one_batch() for _ in range(count)]
        total = reduce(torch.add, (loss.total.detach() for losses in batches for loss in losses))
        loss = self.trainer.mean_over_faces(total).item() / count  # all processes look at the same curve
        return math.nan if self.trainer.optimizer.report.get("nonfinite/step", False) else loss

    def _write(self, folder: Path) -> None:
        curve = self.curve
        result = {
            "learning_rate": self.best_lr,
            "lowest_loss_at": None if curve.best is None else curve.rates[curve.best],
            "strength": self.strength.name.lower(),
            "divisor": self.strength.value,
            "start_lr": self.start_lr,
            "end_lr": self.end_lr,
            "steps": self.steps,
            "steps_made": len(curve.rates),
            "diverged": curve.diverged,
            "rates": curve.rates,
            "losses": curve.losses,
            "smoothed": curve.smoothed,
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / RESULT, (json.dumps(result, indent=1) + "\n").encode())
        if self.mode != "set" and curve.rates:
            from swapfast.logs.lr_plot import draw_curve  # Matplotlib takes half a second to import

            write_file(folder / GRAPH, draw_curve(curve.rates, curve.losses, curve.smoothed, self.best_lr))
