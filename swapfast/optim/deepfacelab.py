"""The optimizers of DeepFaceLab's SAEHD, in its own arithmetic, so that a model goes on there and here alike."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from swapfast.optim.adabelief import update_averages
from swapfast.optim.grouped import by_step_count

EPSILON = 1e-6  # added to a root, never under it
RMS_DECAY = 0.9


class PlainAdaBelief(torch.optim.Optimizer):
    """AdaBelief without a correction for the first steps, with decoupled weight decay.

    w -= lr m / (sqrt(v) + 1e-6), where m is the mean of the gradients and v that of their squared distance to it.
    """

    def __init__(
        self, params: ParamsT, lr: float = 5e-5, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing here calls a closure
        """Move the weights."""
        for group in self.param_groups:
            names = ("exp_avg", "exp_avg_var")
            for _, weights, gradients, (mean, variance) in by_step_count(self.state, group["params"], names):
                if group["weight_decay"]:
                    torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                update_averages(gradients, mean, variance, group["betas"])
                root = torch._foreach_sqrt(variance)
                torch._foreach_add_(root, EPSILON)
                torch._foreach_addcdiv_(weights, mean, root, -group["lr"])
