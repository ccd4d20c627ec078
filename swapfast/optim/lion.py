"""Lion (Chen et al., 2023): every weight moves by the same amount, in the direction of the gradient's mean."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from swapfast.optim.grouped import by_step_count


class Lion(torch.optim.Optimizer):
    """Lion with decoupled weight decay.

    It wants a rate some ten times smaller than Adam's, and half of Adam's memory.
    """

    def __init__(
        self, params: ParamsT, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing here calls a closure
        """Move the weights."""
        for group in self.param_groups:
            beta_1, beta_2 = group["betas"]
            for _, weights, gradients, (mean,) in by_step_count(self.state, group["params"], ("exp_avg",)):
                if group["weight_decay"]:
                    torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                direction = torch._foreach_lerp(mean, gradients, 1 - beta_1)
                torch._foreach_sign_(direction)
                torch._foreach_add_(weights, direction, alpha=-group["lr"])
                torch._foreach_lerp_(mean, gradients, 1 - beta_2)
