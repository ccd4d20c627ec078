"""Smoothing and edge filters that losses share, always in full precision."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from swapfast.errors import SwapfastError

# What a window meets beyond the border: the picture mirrored, its last pixel again and again, or zeros. 'valid' keeps
# the windows that lie within the picture, so the result is smaller by a window less a pixel.
Border = Literal["reflect", "replicate", "zeros", "valid"]
Taps = tuple[float, ...]  # weights of a window, odd but for 'valid', the pixel itself in the middle

# Rows of a filter's matrix that are multiplied at once: on a CPU as fast as fewer at 64 to 512 px; a GPU would rather
# multiply zeros than start more kernels.
BLOCK, BLOCK_ELSEWHERE = 64, 128


def float32_loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a loss that works in float32 on half precision and inside autocast, and in float64 on float64.

    Its gradient goes to ``y_pred`` alone: the other is a target.
    """

    @functools.wraps(function)
    def loss(y_true: Tensor, y_pred: Tensor, *args: Any, **options: Any) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(y_true.dtype, y_pred.dtype), torch.float32)
        with torch.autocast(y_pred.device.type, enabled=False):
            return function(y_true.detach().to(dtype), y_pred.to(dtype), *args, **options)

    return loss


def safe_power(base: Tensor, exponent: Tensor | float) -> Tensor:
    """Return base ** exponent, both >= 0: at a base of 0 it is 0, with slope 0 instead of an infinite one.

    NaN stays NaN: a broken prediction must not look like a perfect one.
    """
    zero = base == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, base) ** exponent)


def refuse_smaller(name: str, images: Tensor, smallest: int) -> None:
    """Raise SwapfastError where (N, C, H, W) images have an edge below ``smallest`` px."""
    if min(images.shape[-2:]) < smallest:
        raise SwapfastError(f"loss {name}: an output of {min(images.shape[-2:])} px is smaller than {smallest} px")


@functools.lru_cache(maxsize=64)
def gaussian(size: int, sigma: float) -> Taps:
    """Return ``size`` weights that add up to 1."""
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-offset.square() / (2 * sigma * sigma))
    return tuple((weights / weights.sum()).tolist())


# torch.compile leaves these functions out of its graphs (their Functions switch precision, which it cannot trace).
# torch.compiler.disable would load the compiler, two seconds, already on import; this does when one is first called.
outside_graphs = getattr(torch, "_disable_dynamo", None) or torch.compiler.disable


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Multiply float32 in float32: neither autocast nor TF32, whose 10 bits drown the variances of SSIM.

    A loss multiplies little, so it need not follow where a run lets its convolutions be less precise.
    """
    precision = _product_precision()
    _set_product_precision(["ieee"] * len(_products()) if _products() else "highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _set_product_precision(precision)


def _products() -> tuple[Any, ...]:
    """Return torch's switches for the products a filter is made of, on GPUs and on CPUs; none before torch 2.9."""
    if not hasattr(torch.backends.mkldnn, "matmul"):
        return ()
    cpu: Any = torch.backends.mkldnn  # of neither is ``conv`` in torch's types
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cpu.matmul, cpu.conv


def _product_precision() -> list[str] | str:
    """Return the precision of each product, or of all. Where the new way set it, the old way to read it fails."""
    return [product.fp32_precision for product in _products()] or torch.get_float32_matmul_precision()


def _set_product_precision(precision: list[str] | str) -> None:
    if isinstance(precision, str):
        torch.set_float32_matmul_precision(precision)
        return
    for product, value in zip(_products(), precision):
        product.fp32_precision = value


Band = tuple[tuple[slice, Tensor], ...]  # of rows that follow each other: the columns they need, their weights


def _band(matrix: Tensor, dtype: torch.dtype, device: torch.device) -> Band:
    """Return a banded matrix of the host, cut into rows, each part with no more columns than it needs."""
    block, parts = BLOCK if device.type == "cpu" else BLOCK_ELSEWHERE, []
    for start in range(0, len(matrix), block):
        rows = matrix[start : start + block]
        columns = rows.any(dim=0).nonzero()
        # A derivative's row may be empty: at a border that mirrors, what it takes away is what it adds.
        low, high = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)
        parts.append((slice(low, high), rows[:, low:high].to(device, dtype).contiguous()))
    return tuple(parts)


@functools.lru_cache(maxsize=256)
def _bands(edge: int, taps: Taps, border: Border, dtype: torch.dtype, device: torch.device) -> tuple[Band, Band]:
    """Return the (edge, edge) matrix that filters a line of ``edge`` px, and its transpose; 'valid' has fewer rows."""
    size = len(taps)
    results, first = (edge - size + 1, 0) if border == "valid" else (edge, -(size // 2))
    rows = torch.arange(results).repeat_interleave(size)
    columns = rows + torch.arange(first, first + size).repeat(results)
    weights = torch.tensor(taps, dtype=torch.float64).repeat(results)
    if border == "reflect":
        columns = columns.abs()
        columns = torch.where(columns >= edge, 2 * (edge - 1) - columns, columns)
    elif border == "zeros":
        weights = weights * ((columns >= 0) & (columns < edge))
    matrix = torch.zeros(results, edge, dtype=torch.float64)
    matrix.index_put_((rows, columns.clamp(0, edge - 1)), weights, accumulate=True)
    return _band(matrix, dtype, device), _band(matrix.T, dtype, device)


def _multiply(down: Band, across: Band, images: Tensor) -> Tensor:
    """Return down @ image @ across.T for each image of contiguous (M, H, W)."""
    count, _, width = images.shape
    # Concatenated at the end: into a part of its result torch multiplies image by image, in twice the time.
    strips = [torch.bmm(weights.expand(count, *weights.shape), images[:, columns]) for columns, weights in down]
    lines = _concatenate(strips).view(-1, width)
    filtered = _concatenate([lines[:, columns] @ weights.T for columns, weights in across])
    return filtered.view(count, -1, filtered.shape[-1])


def _concatenate(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class Filter(ABC):
    """A linear filter for images of one size, on contiguous (..., H, W) tensors, outside autograd."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor: ...

    @abstractmethod
    def backward(self, grad: Tensor) -> Tensor:
        """Return the gradient of the images: filtering is linear, so that is the transposed filter."""


@dataclass(frozen=True)
class BandFilter(Filter):
    """The sum of separable filters, each (down, across), by products with banded matrices and their transposes."""

    parts: tuple[tuple[tuple[Band, Band], tuple[Band, Band]], ...]

    def __call__(self, images: Tensor) -> Tensor:
        return self._multiply(0, images)

    def backward(self, grad: Tensor) -> Tensor:
        return self._multiply(1, grad)

    def _multiply(self, transposed: int, images: Tensor) -> Tensor:
        flat = images.reshape(-1, *images.shape[-2:])
        with full_precision(images.device):
            total, *terms = (_multiply(down[transposed], across[transposed], flat) for down, across in self.parts)
        for term in terms:
            total.add_(term)
        return total.view(*images.shape[:-2], *total.shape[-2:])


@dataclass(frozen=True)
class WindowFilter(Filter):
    """A small square window; beyond the border images are mirrored.

    For sums of filters, which are one window: two 5 px ones take a third of the products' time on a CPU, but only with
    every image as a channel of its own. Not for SSIM's variances: sums over a square round more, by 6e-8 and not 1e-8.
    """

    window: Tensor  # (K, K) float32

    def __call__(self, images: Tensor) -> Tensor:
        edge = len(self.window) // 2
        mirrored = F.pad(images.reshape(1, -1, *images.shape[-2:]), [edge] * 4, mode="reflect")
        return self._slide(mirrored, self.window).view(images.shape)

    def backward(self, grad: Tensor) -> Tensor:
        edge = len(self.window) // 2
        flat = grad.reshape(1, -1, *grad.shape[-2:])
        wide = self._slide(flat, self.window.flip(0, 1), padding=2 * edge)
        across = _fold(wide, edge)
        return _fold(across.transpose(-1, -2), edge).transpose(-1, -2).reshape(grad.shape)

    @staticmethod
    def _slide(channels: Tensor, window: Tensor, padding: int = 0) -> Tensor:
        count = channels.shape[1]
        with full_precision(channels.device):
            return F.conv2d(channels, window.expand(count, 1, *window.shape), padding=padding, groups=count)


def _fold(wide: Tensor, edge: int) -> Tensor:
    """Add columns beyond the borders (``edge`` on each side) to those that they mirror, in place, and cut them off."""
    width = wide.shape[-1] - 2 * edge
    wide[..., edge + 1 : 2 * edge + 1] += wide[..., :edge].flip(-1)
    wide[..., width - 1 : width + edge - 1] += wide[..., width + edge :].flip(-1)
    return wide[..., edge : edge + width]


@functools.lru_cache(maxsize=64)
def _window(parts: tuple[tuple[Taps, Taps], ...]) -> Tensor:
    lines = torch.tensor(parts, dtype=torch.float64)
    return torch.einsum("pi,pj->ij", lines[:, 0], lines[:, 1]).float()


def filter_for(images: Tensor, *parts: tuple[Taps, Taps], border: Border = "reflect") -> Filter:
    """Return the sum of separable filters (down H, across W) of one length, for images of that size, type, device."""
    on_cpu = images.device.type == "cpu" and images.dtype == torch.float32
    if on_cpu and border == "reflect" and len(parts) > 1:
        return WindowFilter(_window(parts))
    height, width = images.shape[-2:]
    kind = images.dtype, images.device
    bands = ((_bands(height, down, border, *kind), _bands(width, across, border, *kind)) for down, across in parts)
    return BandFilter(tuple(bands))


@functools.lru_cache(maxsize=64)
def _enlarging_bands(edge: int, to: int, dtype: torch.dtype, device: torch.device) -> tuple[Band, Band]:
    """Return the (to, edge) matrix that enlarges a line, pixels being areas and borders repeated; and its transpose."""
    positions = ((torch.arange(to, dtype=torch.float64) + 0.5) * (edge / to) - 0.5).clamp(min=0)
    lower = positions.long().clamp(max=edge - 1)
    matrix, rows = torch.zeros(to, edge, dtype=torch.float64), torch.arange(to)
    matrix.index_put_((rows, lower), 1 - (positions - lower), accumulate=True)
    matrix.index_put_((rows, (lower + 1).clamp(max=edge - 1)), positions - lower, accumulate=True)
    return _band(matrix, dtype, device), _band(matrix.T, dtype, device)


@outside_graphs
def enlarge(images: Tensor, height: int, width: int) -> Tensor:
    """Return (N, C, h, w) as (N, C, height, width): interpolate(align_corners=False) in a third of its time."""
    kind = images.dtype, images.device
    down = _enlarging_bands(images.shape[-2], height, *kind)
    across = _enlarging_bands(images.shape[-1], width, *kind)
    return _Separable.apply(images.contiguous(), BandFilter(((down, across),)))


class _Separable(torch.autograd.Function):
    """A filter as a Function, because the backward too must be in full precision."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, filter: Filter) -> Tensor:
        ctx.filter = filter
        return filter(images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.filter.backward(grad.contiguous()), None


@outside_graphs
def separable(images: Tensor, down: Taps, across: Taps, border: Border = "reflect") -> Tensor:
    """Return (N, C, H, W) filtered with ``down`` along H and ``across`` along W.

    Correlation, as in conv2d. Banded matrix products equal padding and a square convolution to float rounding (2e-7).
    """
    return _Separable.apply(images.contiguous(), filter_for(images, (down, across), border=border))


@outside_graphs
def blur(images: Tensor, size: int, sigma: float, border: Border = "reflect") -> Tensor:
    """Return (N, C, H, W) blurred by a Gaussian with an odd window."""
    taps = gaussian(size, sigma)
    return separable(images, taps, taps, border)


class _Mix(torch.autograd.Function):
    """A 3x3 matrix on every pixel's colour; a Function for the reason that ``_Separable`` is one."""

    @staticmethod
    def forward(ctx: Any, colors: Tensor, matrix: Tensor) -> Tensor:
        ctx.matrix = matrix
        with full_precision(colors.device):
            return torch.bmm(matrix.expand(len(colors), *matrix.shape), colors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        with full_precision(grad.device):
            return torch.bmm(ctx.matrix.T.expand(len(grad), *ctx.matrix.T.shape), grad), None


@functools.lru_cache(maxsize=32)
def _matrix(rows: tuple[Taps, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).to(device, dtype)


@outside_graphs
def mix_colors(images: Tensor, matrix: tuple[Taps, ...]) -> Tensor:
    """Return (N, C, H, W) with each pixel's colour multiplied by ``matrix``, whose rows give the new channels."""
    mixed = _Mix.apply(images.flatten(2), _matrix(matrix, images.dtype, images.device))
    return mixed.view(len(images), len(matrix), *images.shape[2:])
