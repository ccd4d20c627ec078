"""The loss functions by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from swapfast.errors import unknown_name
from swapfast.losses.pixel import mean_absolute_error, mean_squared_error
from swapfast.losses.structure import structural_dissimilarity


@dataclass(frozen=True)
class LossFunction:
    """``function(y_true, y_pred)`` takes (N, C, H, W) pairs in 0..1 and returns a loss per pixel."""

    function: Callable[[Tensor, Tensor], Tensor]
    description: str


LOSSES = {
    "mae": LossFunction(mean_absolute_error, "mean absolute error"),
    "mse": LossFunction(mean_squared_error, "mean squared error"),
    "ssim": LossFunction(structural_dissimilarity, "1 - structural similarity, 11 px Gaussian window"),
}


def get_loss(name: str) -> LossFunction:
    """The loss called ``name``; raises SwapfastError naming the known ones."""
    if name not in LOSSES:
        raise unknown_name("loss function", name, LOSSES)
    return LOSSES[name]
