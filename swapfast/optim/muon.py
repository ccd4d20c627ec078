"""Muon (Jordan et al., 2024): kernels and matrices move by their gradient's mean, made orthogonal; the rest by Adam.

All directions of a matrix move alike, also those in which gradients are small, so fewer steps are needed. A step of a
matrix is as large as one of Adam in the root mean square (Liu et al., "Muon is scalable for LLM training", 2025): both
use one learning rate. torch's own Muon takes matrices of two dimensions alone and waits for the host.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import ParamsT

SMALLEST_SIDE = 16  # of a matrix: biases, and kernels that make the 3 colours, move by Adam
ITERATIONS = 5  # of Newton and Schulz
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of their polynomial: steepest at 0, and within 0.7 to 1.2 at 1
ADAMS_RMS = 0.2  # of an update of Adam, about, in units of the learning rate
_TINY = 1e-7
_LEFT = "is_left_to_adam"


def is_matrix(weight: Tensor) -> bool:
    """Return whether Muon itself moves a weight: a kernel (out, in, h, w) is a matrix (out, in * h * w).

    One that was given to ``leave_to_adam`` is not.
    """
    is_left = getattr(weight, _LEFT, False)
    return not is_left and weight.ndim > 1 and min(weight.shape[0], weight[0].numel()) >= SMALLEST_SIDE


def leave_to_adam(weight: Tensor) -> None:
    """Let Adam move a weight whose gradient has the rank of the batch: Muon would make moves of its rounding errors."""
    setattr(weight, _LEFT, True)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix whose singular values are all 1: they come out between 0.68 and 1.14.

    matrix: (m, n), of any scale; float32, or bfloat16 on a GPU, where that is precise enough and far quicker.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.mT if is_tall else matrix
    wide = wide / (torch.linalg.vector_norm(wide) + _TINY)
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.mT if is_tall else wide


class Muon(torch.optim.Optimizer):
    """Muon for the weights that ``is_matrix`` names, Adam with decoupled weight decay for the others.

    momentum: of the matrices' mean gradient, looked ahead by one step (Nesterov). betas, eps: of Adam.
    A step whose ``found_inf`` is 1 changes nothing, as with torch's fused optimizers, and the host is never asked.
    """

    _step_supports_amp_scaling = True  # torch's name for found_inf and grad_scale

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "capturable": False})

    def kind_of(self, weight: Tensor) -> str:
        """Return which weights have the same kinds of averages as this one."""
        return "matrix" if is_matrix(weight) else ""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing here calls a closure
        """Move the weights."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        for group in self.param_groups:
            with_gradient = [weight for weight in group["params"] if weight.grad is not None]
            for weight in with_gradient:
                if is_matrix(weight):
                    self._move_matrix(weight, group, found_inf, grad_scale)
            not_matrices = [weight for weight in with_gradient if not is_matrix(weight)]
            if not_matrices:
                self._move_others(not_matrices, group, found_inf, grad_scale)

    def _move_matrix(
        self, weight: Tensor, group: dict[str, Any], found_inf: Tensor | None, grad_scale: Tensor | None
    ) -> None:
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        if not state:
            state["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        if grad_scale is not None:
            gradient = gradient / grad_scale
        share: float | Tensor = 1 - group["momentum"]
        rate = group["lr"] * ADAMS_RMS * math.sqrt(max(weight.shape[0], weight[0].numel()))
        decay = group["lr"] * group["weight_decay"]
        if found_inf is not None:
            gradient = gradient.masked_fill(found_inf.bool(), 0.0)  # what is not finite stays so times 0
            is_moved = 1 - found_inf
            share, rate, decay = share * is_moved, rate * is_moved, decay * is_moved
        mean: Tensor = state["exp_avg"]
        mean.lerp_(gradient, share)
        ahead = gradient.lerp(mean, group["momentum"]).flatten(1)
        update = orthogonal(ahead.bfloat16() if ahead.is_cuda else ahead.float()).to(weight.dtype)
        if group["weight_decay"]:
            weight.mul_(1 - decay)
        weight.sub_(update.view(weight.shape) * rate)

    def _move_others(
        self, weights: list[Tensor], group: dict[str, Any], found_inf: Tensor | None, grad_scale: Tensor | None
    ) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {
                    "step": torch.zeros((), device=weight.device),
                    "exp_avg": torch.zeros_like(weight, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(weight, memory_format=torch.preserve_format),
                }
        states = [self.state[weight] for weight in weights]
        adam(
            weights,
            [weight.grad for weight in weights if weight.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            capturable=group["capturable"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            decoupled_weight_decay=True,
            grad_scale=grad_scale,
            found_inf=found_inf,
        )
