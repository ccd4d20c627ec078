"""How the learning rate falls behind its warm-up: over the iterations asked for, or where the loss stands still.

Each schedule gives what the rate of a step is multiplied with, 1 at first. What it is depends on the step and on how
many are to come, not on how often the run was stopped.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from swapfast.config import OptimizerConfig

NEEDS_END = ("cosine", "linear")
PLATEAU_FACTOR = 0.5  # of the rate, for each time the loss stood still
LEAST_GAIN = 1e-3  # of the lowest loss: what is less does not count as lower
WINDOWS = 10  # of which each has its mean loss: so many without a lower one are a plateau


class Schedule(Protocol):
    """What multiplies the learning rate."""

    def factor(self, step: int) -> float:
        """Return the factor of a step of the weights, 0..1. step: counted from 1."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is to be kept with the optimizer's state."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave; from the beginning where it gave nothing."""


class Decay:
    """Lets the rate fall to a share ``final`` of itself at the end of ``steps``, along a cosine or in a line.

    cosine: from the first step on. linear: over the last ``share`` of the steps, which leaves the rate alone until then
    (a trapezoid, with the warm-up), so that a run that is prolonged before has lost nothing. Where ``steps`` is None no
    end is known, and the rate stays.
    """

    def __init__(self, shape: str, share: float, final: float) -> None:
        self.shape, self.share, self.final = shape, share, final
        self.steps: int | None = None

    def factor(self, step: int) -> float:
        """See ``Schedule``. Behind the last step it is ``final``."""
        if self.steps is None:
            return 1.0
        left = max(self.steps - step + 1, 0) / max(self.steps, 1)  # 1 at the first step, one step's share at the last
        if self.shape == "cosine":
            height = (1 - math.cos(math.pi * min(left, 1.0))) / 2
        else:
            height = min(left / self.share, 1.0)
        return self.final + (1 - self.final) * height

    def state_dict(self) -> dict[str, Tensor]:
        """See ``Schedule``: there is nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See ``Schedule``."""


class Plateau:
    """Halves the rate whenever the loss has not fallen over ten windows, but for a share ``final`` of it.

    What is compared are the means of windows of ``iterations`` each; training/plateau.py tells them.
    """

    def __init__(self, patience: int, final: float) -> None:
        self.iterations = max(patience // WINDOWS, 1)
        self.final = final
        self._begin()

    def _begin(self) -> None:
        self.reductions, self._waited = 0, 0
        self._lowest, self._sum, self._count = math.inf, 0.0, 0

    def factor(self, step: int) -> float:
        """See ``Schedule``."""
        return max(PLATEAU_FACTOR**self.reductions, self.final)

    def add(self, loss: float) -> None:
        """Count a loss towards the mean of this window; one that is not finite is left out."""
        if math.isfinite(loss):
            self._sum += loss
            self._count += 1

    def end_window(self) -> bool:
        """Compare the mean of the window that ends here; return whether the loss stands still."""
        if not self._count:
            return False
        mean, self._sum, self._count = self._sum / self._count, 0.0, 0
        is_lower = mean < self._lowest - LEAST_GAIN * abs(self._lowest) if math.isfinite(self._lowest) else True
        self._waited = 0 if is_lower else self._waited + 1
        if is_lower:
            self._lowest = mean
        return self._waited >= WINDOWS

    def reduce(self) -> None:
        """Lower the rate, and wait anew."""
        self.reductions += 1
        self._waited = 0

    def state_dict(self) -> dict[str, Tensor]:
        """See ``Schedule``."""
        values = [self.reductions, self._waited, self._lowest, self._sum, self._count]
        return {"@plateau": torch.tensor(values, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See ``Schedule``."""
        self._begin()
        values = state.get("@plateau", torch.empty(0)).flatten().tolist()
        if len(values) == 5 and all(map(math.isfinite, (*values[:2], *values[3:]))):
            self.reductions, self._waited = int(values[0]), int(values[1])
            self._lowest, self._sum, self._count = values[2], values[3], int(values[4])


def make_schedule(config: OptimizerConfig) -> Decay | Plateau | None:
    """Return the schedule that ``config`` names, None for a rate that stays."""
    final = config.final_rate / 100
    if config.schedule in NEEDS_END:
        return Decay(config.schedule, config.decay_share / 100, final)
    return Plateau(config.plateau_patience, final) if config.schedule == "plateau" else None
