"""Losses that look at one pixel at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, or in float64 where one of them is: losses never work in half precision."""
    dtype = torch.promote_types(torch.promote_types(y_true.dtype, y_pred.dtype), torch.float32)
    return y_true.to(dtype), y_pred.to(dtype)


def mean_absolute_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """|difference| per value. Both (N, C, H, W), 0..1; returns the same shape."""
    y_true, y_pred = at_least_float32(y_true, y_pred)
    return (y_pred - y_true).abs()


def mean_squared_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Squared difference per value. Both (N, C, H, W), 0..1; returns the same shape."""
    y_true, y_pred = at_least_float32(y_true, y_pred)
    return (y_pred - y_true).square()
