"""The losses written as their papers print them: square convolutions, no shortcuts, any float type.

The yardstick of benchmarks/losses.py, and the reference of tests/losses. All take (N, 3, H, W) in 0..1, BGR.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
PIXELS_PER_DEGREE = 3840 * math.pi / 180

SCHARR = (
    (0.0007, 0.0052, 0.0370, 0.0052, 0.0007),
    (0.0037, 0.1187, 0.2589, 0.1187, 0.0037),
    (0.0, 0.0, 0.0, 0.0, 0.0),
    (-0.0037, -0.1187, -0.2589, -0.1187, -0.0037),
    (-0.0007, -0.0052, -0.0370, -0.0052, -0.0007),
)


def square(images: Tensor, kernel: Tensor, border: str) -> Tensor:
    """(N, C, H, W) filtered with one square kernel per output; every channel by itself."""
    pad = kernel.shape[-1] // 2
    channels = images.shape[1]
    kernel = kernel.to(images).expand(channels, 1, *kernel.shape)
    return F.conv2d(F.pad(images, (pad, pad, pad, pad), mode=border), kernel, groups=channels)


def gaussian(size: int, sigma: float) -> Tensor:
    at = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-(at**2) / (2 * sigma**2))
    return torch.outer(line, line) / line.sum() ** 2


def ssim_terms(true: Tensor, pred: Tensor, size: int) -> tuple[Tensor, Tensor]:
    kernel = gaussian(size, 1.5)
    mean_true, mean_pred = square(true, kernel, "reflect"), square(pred, kernel, "reflect")
    squares = square(true**2, kernel, "reflect") + square(pred**2, kernel, "reflect")
    covariance = square(true * pred, kernel, "reflect") - mean_true * mean_pred
    variance = (squares - mean_true**2 - mean_pred**2).clamp(min=0)
    luminance = (2 * mean_true * mean_pred + 0.01**2) / (mean_true**2 + mean_pred**2 + 0.01**2)
    return luminance, (2 * covariance + 0.03**2) / (variance + 0.03**2)


def ssim(true: Tensor, pred: Tensor) -> Tensor:
    luminance, contrast = ssim_terms(true, pred, 11)
    return 1 - luminance * contrast


def ms_ssim(true: Tensor, pred: Tensor, steepest: float = 0.01) -> Tensor:
    full = true.shape[-2:]
    size = min(11, min(full) // 16)
    size -= 1 - size % 2
    similarity = torch.ones_like(true)
    for scale, weight in enumerate(SCALES):
        luminance, term = ssim_terms(true, pred, size)
        term = luminance * term if scale == 4 else term
        term = F.interpolate(term, size=full, mode="bilinear", align_corners=False)
        # The power's slope grows beyond all bounds at 0, where this one ends at that of ``steepest``.
        power = term.detach().clamp(min=0) ** weight
        slope = weight * power / term.detach().clamp(min=steepest)
        similarity = similarity * (power + slope * (term - term.detach()))
        true, pred = F.avg_pool2d(true, 2), F.avg_pool2d(pred, 2)
    return 1 - similarity


def gmsd(true: Tensor, pred: Tensor) -> Tensor:
    down = torch.tensor(SCHARR, dtype=torch.float64)
    similar = []
    for kernel in (down, down.T):
        a, b = square(true, kernel, "reflect"), square(pred, kernel, "reflect")
        similar.append((2 * a * b + 0.0025) / (a**2 + b**2 + 0.0025))
    return 1 - torch.cat(similar, dim=1).mean(dim=1, keepdim=True)


# ---- FLIP --------------------------------------------------------------------------------------------------------


def matrix(rows: list[list[float]], images: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", torch.tensor(rows, dtype=torch.float64).to(images), images)


TO_XYZ = [
    [10135552 / 24577794, 8788810 / 24577794, 4435075 / 24577794],
    [2613072 / 12288897, 8788810 / 12288897, 887015 / 12288897],
    [1425312 / 73733382, 8788810 / 73733382, 70074185 / 73733382],
]
FROM_XYZ = torch.linalg.inv(torch.tensor(TO_XYZ, dtype=torch.float64)).tolist()


def white(images: Tensor) -> Tensor:
    return torch.tensor(TO_XYZ, dtype=torch.float64).sum(dim=1).to(images).view(1, 3, 1, 1)


def to_opponent(bgr: Tensor) -> Tensor:
    """YCxCz."""
    rgb = bgr.flip(1).clamp(0, 1)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = matrix(TO_XYZ, linear) / white(linear)
    x, y, z = xyz.split(1, dim=1)
    return torch.cat((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def sensitivity(parts: list[tuple[float, float]]) -> Tensor:
    radius = math.ceil(3 * math.sqrt(0.04 / (2 * math.pi**2)) * PIXELS_PER_DEGREE)
    at = torch.arange(-radius, radius + 1, dtype=torch.float64) / PIXELS_PER_DEGREE
    squares = at[:, None] ** 2 + at**2
    bells = (a * math.sqrt(math.pi / b) * torch.exp(-(math.pi**2) * squares / b) for a, b in parts)
    kernel = reduce(torch.add, bells)
    return kernel / kernel.sum()


def seen_lab(opponent: Tensor) -> Tensor:
    kernels = [sensitivity(p) for p in ([(1.0, 0.0047)], [(1.0, 0.0053)], [(34.1, 0.04), (13.5, 0.025)])]
    kernel = torch.stack(kernels).unsqueeze(1).to(opponent)
    pad = kernel.shape[-1] // 2
    seen = F.conv2d(F.pad(opponent, (pad, pad, pad, pad), mode="replicate"), kernel, groups=3)
    y = (seen[:, :1] + 16) / 116
    xyz = torch.cat((y + seen[:, 1:2] / 500, y, y - seen[:, 2:] / 200), dim=1) * white(seen)
    linear = matrix(FROM_XYZ, xyz).clamp(0, 1)
    xyz = matrix(TO_XYZ, linear) / white(linear)
    low = (6 / 29) ** 3
    f = torch.where(xyz > low, xyz.clamp(min=low) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.split(1, dim=1)
    lightness = 116 * y - 16
    return torch.cat((lightness, 0.01 * lightness * 500 * (x - y), 0.01 * lightness * 200 * (y - z)), dim=1)


def hyab(a: Tensor, b: Tensor) -> Tensor:
    d = a - b
    return d[:, :1].abs() + (d[:, 1:] ** 2).sum(dim=1, keepdim=True).clamp(min=1e-15).sqrt()


def features(opponent: Tensor) -> list[Tensor]:
    sigma = 0.5 * 0.082 * PIXELS_PER_DEGREE
    radius = math.ceil(3 * sigma)
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    bell = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * sigma**2))
    responses = []
    for kernel in (-at * bell, (at**2 / sigma**2 - 1) * bell):
        positive, negative = kernel.clamp(min=0), -kernel.clamp(max=0)
        kernel = positive / positive.sum() - negative / negative.sum()
        luminance = (opponent[:, :1] + 16) / 116
        squares = square(luminance, kernel, "replicate") ** 2 + square(luminance, kernel.T, "replicate") ** 2
        responses.append(squares.clamp(min=1e-15).sqrt())
    return responses


def flip(true: Tensor, pred: Tensor) -> Tensor:
    opponents = to_opponent(true), to_opponent(pred)
    green, blue = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64).view(2, 1, 3, 1, 1)
    largest = hyab(*(seen_lab(to_opponent(color.expand(1, 3, 21, 21)))[..., 10:11, 10:11] for color in (green, blue)))
    largest = largest.item() ** 0.7
    distance = hyab(*map(seen_lab, opponents)) ** 0.7
    near = 0.95 / (0.4 * largest) * distance
    far = 0.95 + (distance - 0.4 * largest) / (0.6 * largest) * 0.05
    color = torch.where(distance < 0.4 * largest, near, far)
    (edge_true, point_true), (edge_pred, point_pred) = map(features, opponents)
    feature = torch.maximum((edge_true - edge_pred).abs(), (point_true - point_pred).abs()) / math.sqrt(2)
    return color ** (1 - feature.clamp(min=1e-15) ** 0.5)
