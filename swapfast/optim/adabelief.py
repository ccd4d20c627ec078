"""AdaBelief (Zhuang et al., NeurIPS 2020): steps are large where gradients are as expected."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from swapfast.optim.grouped import WeightGroup, by_step_count

_RECTIFIED_FROM = 5  # degrees of freedom from which the variance is trusted


def rectification(step: int, beta_2: float) -> float | None:
    """Return how far the variance after ``step`` steps is trusted (RAdam, Liu et al. 2020), None for not at all.

    The bias correction of the second moment is contained. The peer keeps the results of ten steps by a counter that
    goes on counting, so from step 11 on it uses those of steps 1 to 10 for ever; ours are computed for each step.
    """
    longest = 2 / (1 - beta_2) - 1
    power = beta_2**step
    length = longest - 2 * step * power / (1 - power)
    if length < _RECTIFIED_FROM:
        return None
    grown = (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
    return math.sqrt((1 - power) * grown)


class AdaBelief(torch.optim.Optimizer):
    """AdaBelief with rectification and decoupled weight decay.

    eps: is added to the stored variance and to its root. amsgrad: divide by the largest variance so far. The peer keeps
    track of it and does not use it.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing here calls a closure
        """Move the weights."""
        for group in self.param_groups:
            names = ("exp_avg", "exp_avg_var", *(("max_exp_avg_var",) if group["amsgrad"] else ()))
            for weights in by_step_count(self.state, group["params"], names):
                _step(weights, group)


def update_averages(
    gradients: list[Tensor], mean: list[Tensor], variance: list[Tensor], betas: tuple[float, float]
) -> None:
    """Update, in place, the means of the gradients and of their squared distances to the new means."""
    torch._foreach_lerp_(mean, gradients, 1 - betas[0])
    surprise = torch._foreach_sub(gradients, mean)
    torch._foreach_mul_(variance, betas[1])
    torch._foreach_addcmul_(variance, surprise, surprise, 1 - betas[1])


def _step(weight_group: WeightGroup, group: dict) -> None:
    """Move weights that have had equally many steps. group: torch's, for the rate and its like."""
    step, weights, gradients, (mean, variance, *maximum) = weight_group
    largest = maximum[0] if maximum else None
    beta_1, beta_2 = group["betas"]
    if group["weight_decay"]:
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
    update_averages(gradients, mean, variance, group["betas"])
    torch._foreach_add_(variance, group["eps"])
    if largest is not None:
        torch._foreach_maximum_(largest, variance)
    length = group["lr"] / (1 - beta_1**step)
    trust = rectification(step, beta_2)
    if trust is None:
        torch._foreach_add_(weights, mean, alpha=-length)
        return
    root = torch._foreach_sqrt(variance if largest is None else largest)
    torch._foreach_add_(root, group["eps"])
    torch._foreach_addcdiv_(weights, mean, root, -length * trust)
