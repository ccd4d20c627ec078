"""The loss functions by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from swapfast.errors import unknown_name
from swapfast.losses import lpips
from swapfast.losses.frequency import focal_frequency_loss, laplacian_pyramid_loss
from swapfast.losses.perceptual import flip
from swapfast.losses.pixel import l_inf_norm, log_cosh, mean_absolute_error, mean_squared_error, smooth_loss
from swapfast.losses.structure import (
    gradient_similarity,
    multi_scale_dissimilarity,
    pixel_gradient_difference,
    structural_dissimilarity,
    windowed_dissimilarity,
)


@dataclass(frozen=True)
class LossFunction:
    """A loss function and what to know of it before calling it.

    function: of (y_true, y_pred), (N, C, H, W) in 0..1
    description: in a few words
    spatial: whether it returns a loss per pixel, (N, C or 1, H, W), or one per item, (N,)
    smallest: px of an image's edge
    takes: further arguments that ``LossCollator`` passes: color_order, weights_folder, windows
    """

    function: Callable[..., Tensor]
    description: str
    spatial: bool = True
    smallest: int = 1
    takes: tuple[str, ...] = ()


def _lpips(name: str, net: str) -> LossFunction:
    return LossFunction(
        partial(lpips.lpips, name=name),
        f"LPIPS, features of {net}; needs the extra lpips and its weights",
        smallest=lpips.SMALLEST,
        takes=("color_order", "weights_folder"),
    )


LOSSES = {
    "dssim": LossFunction(
        windowed_dissimilarity,
        "(1 - SSIM) / 2 in Gaussian windows of a size that grows with the picture, as DeepFaceLab",
        spatial=False,
        smallest=12,
        takes=("windows",),
    ),
    "ffl": LossFunction(focal_frequency_loss, "focal frequency loss", spatial=False),
    "flip": LossFunction(flip, "NVIDIA FLIP, the difference seen when images alternate", takes=("color_order",)),
    "gmsd": LossFunction(gradient_similarity, "1 - similarity of edges, 5 px Scharr operator", smallest=3),
    "l_inf_norm": LossFunction(l_inf_norm, "the worst pixel of each channel", spatial=False),
    "laploss": LossFunction(laplacian_pyramid_loss, "L1 of Laplacian pyramids, 5 levels", smallest=32),
    "logcosh": LossFunction(log_cosh, "log(cosh(difference))"),
    "lpips_alex": _lpips("lpips_alex", "AlexNet"),
    "lpips_squeeze": _lpips("lpips_squeeze", "SqueezeNet 1.1"),
    "lpips_vgg16": _lpips("lpips_vgg16", "VGG-16"),
    "mae": LossFunction(mean_absolute_error, "mean absolute error"),
    "ms_ssim": LossFunction(multi_scale_dissimilarity, "1 - structural similarity at 5 scales", smallest=48),
    "mse": LossFunction(mean_squared_error, "mean squared error"),
    "pixel_gradient_diff": LossFunction(pixel_gradient_difference, "difference of first and second derivatives"),
    "smooth_loss": LossFunction(smooth_loss, "Barron's generalised loss, smooth absolute error"),
    "ssim": LossFunction(structural_dissimilarity, "1 - structural similarity, 11 px Gaussian window", smallest=6),
}


def get_loss(name: str) -> LossFunction:
    """Return the loss called ``name``; raise SwapfastError naming the known ones."""
    if name not in LOSSES:
        raise unknown_name("loss function", name, LOSSES)
    return LOSSES[name]
