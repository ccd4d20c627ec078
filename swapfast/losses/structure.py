"""Losses that compare the structure around each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from swapfast.losses.filters import (
    Border,
    Taps,
    enlarge,
    filter_for,
    float32_loss,
    gaussian,
    outside_graphs,
    refuse_smaller,
)
from swapfast.losses.pixel import general_penalty

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, full size first: the paper's

# The term of MS-SSIM below which the slope of its power grows no further: that is at most 8, for any of the weights.
STEEPEST_TERM = 1e-2

# Smoothing of the 5x5 Scharr operator one and two pixels beside the centre (Jaehne, Scharr, Koerkel, "Principles of
# Filter Design", 1999).
SCHARR_NEAR = (0.0037, 0.1187, 0.2589, 0.1187, 0.0037)
SCHARR_FAR = (0.0007, 0.0052, 0.0370, 0.0052, 0.0007)


class _Similarity(torch.autograd.Function):
    """SSIM's contrast term per pixel, times its luminance term with ``with_luminance``.

    A Function with its derivatives written out: autograd would also blur the target's mean on the way back, and make
    and keep a new tensor at every step of the formula.
    """

    @staticmethod
    def forward(
        ctx: Any, y_true: Tensor, y_pred: Tensor, taps: Taps, c1: float, c2: float, with_luminance: bool, border: Border
    ) -> Tensor:
        filter = filter_for(y_pred, (taps, taps), border=border)
        stack = y_pred.new_empty(4, *y_pred.shape)
        stack[0], stack[1] = y_true, y_pred
        torch.mul(y_true, y_pred, out=stack[2])
        torch.mul(y_true, y_true, out=stack[3]).addcmul_(y_pred, y_pred)
        mean_true, mean_pred, covariance, variance = filter(stack)
        product = mean_true * mean_pred
        squares = torch.addcmul(mean_true.square(), mean_pred, mean_pred)
        contrast = covariance.sub_(product).mul_(2).add_(c2)
        # The variances' sum is never negative but for rounding on flat areas.
        variance = variance.sub_(squares).clamp_(min=0).add_(c2)
        contrast = contrast.div_(variance)
        ctx.filter, ctx.c1, ctx.c2, ctx.with_luminance = filter, c1, c2, with_luminance
        ctx.save_for_backward(y_true, y_pred, mean_true, mean_pred, contrast, variance)
        if not with_luminance:
            return contrast
        return product.mul_(2).add_(c1).div_(squares.add_(c1)).mul_(contrast)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y_true, y_pred, mean_true, mean_pred, contrast, variance = ctx.saved_tensors
        of_blurred = grad.new_empty(3, *grad.shape)  # the gradients of mean, product and squares
        if ctx.with_luminance:
            squares = torch.addcmul(mean_true.square(), mean_pred, mean_pred).add_(ctx.c1)
            luminance = (mean_true * mean_pred).mul_(2).add_(ctx.c1).div_(squares)
            slope = torch.addcmul(mean_true, mean_pred, luminance, value=-1).div_(squares).mul_(2)
            torch.mul(slope, grad, out=of_blurred[0]).mul_(contrast)
            grad = luminance.mul_(grad)
        else:
            of_blurred[0].zero_()
        torch.div(grad, variance, out=of_blurred[1]).mul_(2)
        torch.mul(of_blurred[1], contrast, out=of_blurred[2]).mul_(-0.5)
        of_blurred[2].masked_fill_(variance <= ctx.c2, 0)
        of_blurred[0].addcmul_(mean_true, of_blurred[1], value=-1).addcmul_(mean_pred, of_blurred[2], value=-2)
        mean, product, squares = ctx.filter.backward(of_blurred)
        return None, mean.addcmul_(y_true, product).addcmul_(y_pred, squares, value=2), None, None, None, None, None


@outside_graphs
def _similarity(
    y_true: Tensor,
    y_pred: Tensor,
    size: int,
    sigma: float,
    k1: float,
    k2: float,
    with_luminance: bool = True,
    border: Border = "reflect",
) -> Tensor:
    taps = gaussian(size, sigma)
    return _Similarity.apply(y_true.contiguous(), y_pred.contiguous(), taps, k1 * k1, k2 * k2, with_luminance, border)


@float32_loss
def structural_dissimilarity(
    y_true: Tensor,
    y_pred: Tensor,
    size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """Return 1 - SSIM per channel and pixel: (N, C, H, W), 0 for identical images, at most about 2.

    y_true, y_pred: (N, C, H, W) in 0..1
    size, sigma: of the Gaussian window, px
    k1, k2: the paper's constants

    Borders reflected. Source: Wang et al., "Image Quality Assessment", IEEE TIP 2004. Raises SwapfastError below
    ``size // 2 + 1`` px, where a border cannot be reflected.
    """
    refuse_smaller("ssim", y_true, size // 2 + 1)
    return 1 - _similarity(y_true, y_pred, size, sigma, k1, k2)


def dssim_windows(edge: int) -> tuple[int, ...]:
    """Return the windows in px that ``windowed_dissimilarity`` has at that size: one, and two from 256 px on."""
    return (int(edge / 11.6),) if edge < 256 else (int(edge / 11.6), int(edge / 23.2))


@float32_loss
def windowed_dissimilarity(
    y_true: Tensor,
    y_pred: Tensor,
    windows: Sequence[int] = (),
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """Return (1 - SSIM) / 2 per item, (N,), from 0 for identical images to at most about 1.

    y_true, y_pred: (N, C, H, W) in 0..1
    windows: edges of Gaussian windows in px, over which it is averaged; none for ``dssim_windows`` of the size
    sigma: of each window, px
    k1, k2: the paper's constants

    As DeepFaceLab has it: only windows that lie within the image count, and an even one is centred between pixels.
    Raises SwapfastError for an image smaller than 12 px or than a window.
    """
    windows = tuple(windows) or dssim_windows(min(y_true.shape[-2:]))
    refuse_smaller("dssim", y_true, max(12, *windows))
    similarity = [
        _similarity(y_true, y_pred, size, sigma, k1, k2, border="valid").flatten(1).mean(1) for size in windows
    ]
    return (1 - torch.stack(similarity).mean(0)) / 2


def _window(edge: int, size: int, scales: int) -> int:
    """Return the largest odd window, up to ``size``, that fits the smallest scale of an image with that edge."""
    fits = min(size, edge // 2 ** (scales - 1))
    return fits - 1 + fits % 2


@float32_loss
def multi_scale_dissimilarity(
    y_true: Tensor,
    y_pred: Tensor,
    size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    weights: tuple[float, ...] = MS_SSIM_WEIGHTS,
) -> Tensor:
    """Return 1 - MS-SSIM per channel and pixel: (N, C, H, W), 0..1.

    y_true, y_pred: (N, C, H, W) in 0..1
    size, sigma: of the largest Gaussian window, px
    k1, k2: the paper's constants
    weights: of the scales, full size first

    The terms of the smaller scales are enlarged to full size and multiplied pixel by pixel, which keeps the loss
    spatial. The window shrinks until it fits the smallest scale (64 px: 3, 128 px: 7, from 176 px: 11). Source: Wang
    et al., "Multiscale structural similarity", Asilomar 2003. Raises SwapfastError below 48 px, where not even 3 fits.
    """
    refuse_smaller("ms_ssim", y_true, 3 * 2 ** (len(weights) - 1))
    full = y_true.shape[-2:]
    size = _window(min(full), size, len(weights))
    terms = []
    for scale in range(len(weights)):
        if scale:
            y_true, y_pred = F.avg_pool2d(y_true, 2), F.avg_pool2d(y_pred, 2)
        term = _similarity(y_true, y_pred, size, sigma, k1, k2, with_luminance=scale == len(weights) - 1)
        terms.append(enlarge(term, *full) if scale else term)
    return 1 - _weighted_product(weights, *terms)


class _WeightedProduct(torch.autograd.Function):
    """The product of term ** weight, 0 where a term is not above 0.

    Logarithms, as one exponential is cheaper than five powers.
    """

    # Peer: the slope of such a power grows beyond all bounds just above 0, and a few pixels outweigh the image.
    # Ours: the same values, and a slope that is divided by no less than ``STEEPEST_TERM``.

    @staticmethod
    def forward(ctx: Any, weights: tuple[float, ...], *terms: Tensor) -> Tensor:
        logarithm, divisors = torch.zeros_like(terms[0]), []
        for weight, term in zip(weights, terms):
            logarithm.add_(term.clamp(min=0).log_(), alpha=weight)
            divisors.append(term.clamp(min=STEEPEST_TERM))  # at and below 0 the product is 0, and so is the slope
        product = logarithm.exp_()
        ctx.weights = weights
        ctx.save_for_backward(product, *divisors)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        product, *divisors = ctx.saved_tensors
        slope = grad * product
        return None, *(torch.div(slope, divisor).mul_(weight) for weight, divisor in zip(ctx.weights, divisors))


@outside_graphs
def _weighted_product(weights: tuple[float, ...], *terms: Tensor) -> Tensor:
    return _WeightedProduct.apply(weights, *terms)


# The 5x5 Scharr operator along x and along y, each as the sum of two separable filters (down, across).
NEAR_STEP, FAR_STEP = (0.0, 1.0, 0.0, -1.0, 0.0), (1.0, 0.0, 0.0, 0.0, -1.0)
EDGES = (
    ((SCHARR_NEAR, NEAR_STEP), (SCHARR_FAR, FAR_STEP)),
    ((NEAR_STEP, SCHARR_NEAR), (FAR_STEP, SCHARR_FAR)),
)


class _EdgeDifference(torch.autograd.Function):
    """(a - b)^2 / (a^2 + b^2 + epsilon) of the edges of two (N, C, H, W), averaged to (N, 1, H, W).

    The average is over channels and directions. A Function for the memory and time of autograd's copies.
    """

    @staticmethod
    def forward(ctx: Any, y_true: Tensor, y_pred: Tensor, epsilon: float) -> Tensor:
        ctx.filters = [filter_for(y_pred, *parts) for parts in EDGES]
        images, saved = torch.stack((y_true, y_pred)), []
        total = y_pred.new_zeros(len(y_pred), 1, *y_pred.shape[2:])
        for filter in ctx.filters:
            a, b = filter(images)
            sum_of_squares = torch.addcmul(a.square(), b, b).add_(epsilon)
            difference = a.sub_(b)
            total.add_((difference * difference).div_(sum_of_squares).sum(dim=1, keepdim=True))
            saved += [b, difference, sum_of_squares]
        ctx.save_for_backward(*saved)
        return total.div_(2 * y_pred.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None]:
        total: Tensor | None = None
        for filter, start in zip(ctx.filters, (0, 3)):
            b, difference, sum_of_squares = ctx.saved_tensors[start : start + 3]
            share = difference / sum_of_squares
            slope = torch.addcmul(share, b, share.square())
            slope.mul_(grad).div_(-b.shape[1])
            part = filter.backward(slope)
            total = part if total is None else total.add_(part)
        return None, total, None


@outside_graphs
def _edge_difference(y_true: Tensor, y_pred: Tensor, epsilon: float) -> Tensor:
    return _EdgeDifference.apply(y_true.contiguous(), y_pred.contiguous(), epsilon)


@float32_loss
def gradient_similarity(y_true: Tensor, y_pred: Tensor, epsilon: float = 0.0025) -> Tensor:
    """Return 1 - similarity of edges: (N, 1, H, W), from 0 to about 2.

    y_true, y_pred: (N, C, H, W) in 0..1

    It is the mean over channels and both directions of 1 - (2 a b + epsilon) / (a^2 + b^2 + epsilon). Borders
    reflected. Source: Xue et al., "Gradient Magnitude Similarity Deviation", IEEE TIP 2014; unlike in the paper edges
    have a sign, and no deviation is taken. Raises SwapfastError below 3 px.
    """
    # Peer: its grouped convolution gives the first channel two kernels of one direction, the third two of the other.
    # Ours: every channel has both.
    refuse_smaller("gmsd", y_true, 3)
    return _edge_difference(y_true, y_pred, epsilon)


@float32_loss
def pixel_gradient_difference(y_true: Tensor, y_pred: Tensor, alpha: float = 1.9999, beta: float = 1 / 255) -> Tensor:
    """Return how much first and second derivatives differ, per channel and pixel: (N, C, H, W).

    y_true, y_pred: (N, C, H, W) in 0..1
    alpha, beta: see ``general_penalty``

    It is the mean of the penalties of the first derivatives (x + y) and of the second (xx + yy + 2 xy). Values are
    large (100 on noise). Borders repeated. Source: Lu and Huang, "TV + TV2 regularization", 2014.
    """
    # Peer: its indices are those of NHWC on NCHW data, so its 'x' runs along rows, its 'y' along colours.
    # Ours: along columns and rows.
    d = F.pad(y_pred - y_true, (1, 1, 1, 1), mode="replicate")  # derivatives are linear: those of the difference do
    centre, left, right = d[..., 1:-1, 1:-1], d[..., 1:-1, :-2], d[..., 1:-1, 2:]
    above, below = d[..., :-2, 1:-1], d[..., 2:, 1:-1]
    twist = (d[..., 2:, 2:] - d[..., 2:, :-2] - d[..., :-2, 2:] + d[..., :-2, :-2]) / 4
    first = [(right - left) / 2, (below - above) / 2]
    second = [left + right - 2 * centre, above + below - 2 * centre]
    penalties = sum(general_penalty(change, alpha, beta) for change in first + second)
    return (penalties + 2 * general_penalty(twist, alpha, beta)) / 2
