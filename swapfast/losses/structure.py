"""Losses that compare the structure around each pixel."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from swapfast.errors import SwapfastError
from swapfast.losses.pixel import at_least_float32


@functools.lru_cache(maxsize=32)
def _blur_matrix(edge: int, size: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(edge, edge) float: row i holds the weights of every pixel in blurred pixel i, borders reflected."""
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    kernel = torch.exp(-offset.square() / (2 * sigma * sigma))
    kernel /= kernel.sum()
    rows = torch.arange(edge).repeat_interleave(size)
    columns = (rows + torch.arange(-(size // 2), size // 2 + 1).repeat(edge)).abs()
    columns = torch.where(columns >= edge, 2 * (edge - 1) - columns, columns)
    matrix = torch.zeros(edge, edge, dtype=torch.float64)
    matrix.index_put_((rows, columns), kernel.repeat(edge), accumulate=True)
    return matrix.to(device, dtype)


def blur(images: Tensor, size: int, sigma: float) -> Tensor:
    """Gaussian blur of (N, C, H, W) with an odd window and reflected borders; returns the same shape.

    Two small matrix products equal padding and a square convolution to float rounding (2e-7) and take a third of
    a separable convolution's time at 64 px on a CPU, where depthwise convolutions are slow.
    """
    height, width = images.shape[-2:]
    down = _blur_matrix(height, size, sigma, images.dtype, images.device)
    across = _blur_matrix(width, size, sigma, images.dtype, images.device)
    return down @ images.contiguous() @ across.T


def structural_dissimilarity(
    y_true: Tensor,
    y_pred: Tensor,
    size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """1 - SSIM per channel and pixel (Wang et al., "Image Quality Assessment", IEEE TIP 2004).

    Both (N, C, H, W) in 0..1; returns the same shape, 0 for identical images, at most about 2. Gaussian window,
    borders reflected. Works in float32 inside autocast, in float64 on float64. Raises SwapfastError below
    ``size // 2 + 1`` px, where a border cannot be reflected.
    """
    if min(y_true.shape[-2:]) <= size // 2:
        raise SwapfastError(f"loss ssim: an output of {y_true.shape[-1]} px is smaller than {size // 2 + 1} px")
    y_true, y_pred = at_least_float32(y_true, y_pred)
    c1, c2 = k1 * k1, k2 * k2
    stack = torch.cat((y_true, y_pred, y_true * y_pred, y_true.square() + y_pred.square()), dim=1)
    mean_true, mean_pred, mean_product, mean_squares = blur(stack, size, sigma).chunk(4, dim=1)
    product = mean_true * mean_pred
    squares = mean_true.square() + mean_pred.square()
    luminance = (2 * product + c1) / (squares + c1)
    # The variances' sum is never negative but for rounding on flat areas.
    variance = (mean_squares - squares).clamp(min=0)
    contrast = (2 * (mean_product - product) + c2) / (variance + c2)
    return 1 - luminance * contrast
