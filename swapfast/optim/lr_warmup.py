"""Raising the learning rate over the first steps, and letting it fall, or fall and rise again, later."""

from __future__ import annotations

import torch
from torch import Tensor

from swapfast.optim.lr_dropout import rate_factor
from swapfast.optim.schedules import Schedule


class WarmupScheduler:
    """Raises an optimizer's learning rates over the first ``steps`` of its steps, and leaves them alone afterwards.

    Step n, counted from 1, is made at base * min(1, n / steps), so the first one moves already; the peer makes its
    first at rate 0, and so on one behind. steps: of the optimizer, not batches where gradients are accumulated; 0 is no
    warm-up. A step that is left out, for a loss or gradient that
    is not finite, counts too.
    last_epoch: the last step that was made, counted from 0 (torch's word); -1 for none. The rates the optimizer has
    when this is made are the base ones. tensor_device: keep the rates in float32 scalars there, written in place, as
    fused optimizers take them and a CUDA graph needs them; by default they are numbers. cycles: let the rates follow
    the cosine of learning-rate dropout as well. schedule: what they are multiplied with otherwise, or None.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        steps: int,
        last_epoch: int = -1,
        tensor_device: torch.device | str | None = None,
        cycles: bool = False,
        schedule: Schedule | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.steps = steps
        self.cycles = cycles
        self.schedule = schedule
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch + 1
        self._tensors: list[Tensor] | None = None
        if tensor_device is not None:
            self._tensors = [torch.zeros((), device=tensor_device) for _ in self.base_lrs]
        self.apply()

    def get_lr(self) -> list[float]:
        """Return the rate of each parameter group for the step that comes next."""
        step = self.last_epoch + 1
        factor = 1.0 if step >= self.steps else step / self.steps
        if self.cycles:
            factor *= rate_factor(step)
        if self.schedule is not None:
            factor *= self.schedule.factor(step)
        return [base * factor for base in self.base_lrs]

    def step(self, epoch: None = None) -> None:
        """Set the rates for the next step. epoch: as torch and the peer have it, and not used."""
        self.last_epoch += 1
        if self.last_epoch < self.steps or self.cycles or self.schedule is not None:
            self.apply()

    def set_base(self, lr: float) -> None:
        """Give all groups another base rate."""
        self.base_lrs = [lr] * len(self.base_lrs)
        self.apply()

    def go_to(self, step: int) -> None:
        """Set the rates as after ``step`` steps."""
        self.last_epoch = step
        self.apply()

    def apply(self) -> None:
        """Set the rates for the next step, also after the schedule has changed."""
        rates: list[float] | list[Tensor] = self.get_lr()
        if self._tensors is not None:
            rates = [tensor.fill_(rate) for tensor, rate in zip(self._tensors, self.get_lr(), strict=True)]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
