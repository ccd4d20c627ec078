"""Losses that look at one pixel at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from swapfast.losses.filters import float32_loss


@float32_loss
def mean_absolute_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return |difference| per value; all (N, C, H, W), 0..1."""
    return (y_pred - y_true).abs()


@float32_loss
def mean_squared_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return the squared difference per value; all (N, C, H, W), 0..1."""
    return (y_pred - y_true).square()


@float32_loss
def log_cosh(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return log(cosh(difference)) per value; all (N, C, H, W), 0..1.

    It is half the square where the difference is small, the amount less log 2 where it is large.
    """
    # As log(1 + 2 sinh^2(d / 2)) small differences keep their digits; the usual d + softplus(-2 d) - log 2 cancels.
    amount = (y_pred - y_true).abs()
    near = torch.log1p(2 * torch.sinh(amount.clamp(max=20) / 2).square())
    return torch.where(amount < 20, near, amount - math.log(2))


def general_penalty(difference: Tensor, alpha: float, beta: float) -> Tensor:
    """Return Barron's penalty of a difference d of any shape: beta * |2-a|/a * (((d/beta)^2 / |2-a| + 1)^(a/2) - 1).

    alpha: a; 1 is a smooth |d|, near 2 the square; neither 0 nor 2 itself
    beta: below it |d| counts as small
    """
    width = abs(2 - alpha)
    # expm1 and log1p keep the digits of differences far below beta, which power - 1 loses.
    exponent = alpha / 2 * torch.log1p((difference / beta).square() / width)
    return beta * width / alpha * torch.expm1(exponent)


@float32_loss
def smooth_loss(y_true: Tensor, y_pred: Tensor, alpha: float = 1.0, beta: float = 1 / 255) -> Tensor:
    """Return the generalised robust loss per value; all (N, C, H, W), 0..1.

    alpha, beta: see ``general_penalty``

    Source: Barron, "A General and Adaptive Robust Loss Function", CVPR 2019.
    """
    return general_penalty(y_pred - y_true, alpha, beta)


@float32_loss
def l_inf_norm(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return the worst pixel of each channel, averaged over the channels: (N,) of (N, C, H, W), 0..1."""
    # Peer: its indices are those of NHWC on NCHW data, so it takes the worst of each column over rows and channels.
    # Ours: the worst of each channel over rows and columns, as the peer's code means to.
    return (y_pred - y_true).abs().amax(dim=(2, 3)).mean(dim=1)
