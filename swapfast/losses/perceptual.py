"""How different two images look to a person: NVIDIA's FLIP.

Andersson et al., "FLIP: A Difference Evaluator for Alternating Images", HPG 2020, with the constants of that paper.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor

from swapfast.losses.filters import Taps, float32_loss, mix_colors, outside_graphs, safe_power, separable

ColorOrder = Literal["bgr", "rgb"]

PIXELS_PER_DEGREE = 0.7 * 3840 / 0.7 * math.pi / 180  # a 4K screen 0.7 m wide seen from 0.7 m
COLOR_EXPONENT, FEATURE_EXPONENT = 0.7, 0.5
KNEE, KNEE_VALUE = 0.4, 0.95  # colour errors up to this share of the largest are spread over 0..0.95
FEATURE_WIDTH = 0.082  # degrees

# Contrast sensitivity per opponent channel (luminance, red-green, blue-yellow): amounts and widths of Gaussians.
SENSITIVITY = (((1.0, 0.0047),), ((1.0, 0.0053),), ((34.1, 0.04), (13.5, 0.025)))

# Linear sRGB to XYZ, divided by white (D65), so that white is (1, 1, 1).
_XYZ = (
    (10135552 / 24577794, 8788810 / 24577794, 4435075 / 24577794),
    (2613072 / 12288897, 8788810 / 12288897, 887015 / 12288897),
    (1425312 / 73733382, 8788810 / 73733382, 70074185 / 73733382),
)
RGB_TO_XYZ = tuple(tuple(value / sum(row) for value in row) for row in _XYZ)


def _rows(matrix: Tensor) -> tuple[Taps, ...]:
    return tuple(tuple(row) for row in matrix.tolist())


# Luminance, red-green (X - Y) and blue-yellow (Y - Z). The paper's 116, 500, 200 and -16 would only be undone again.
_OPPONENT = torch.tensor([[0, 1, 0], [1, -1, 0], [0, 1, -1]], dtype=torch.float64) @ torch.tensor(
    RGB_TO_XYZ, dtype=torch.float64
)
RGB_TO_OPPONENT, OPPONENT_TO_RGB = _rows(_OPPONENT), _rows(torch.linalg.inv(_OPPONENT))


def _linear(images: Tensor) -> Tensor:
    """Return sRGB as linear light."""
    dark = images <= 0.04045
    return torch.where(dark, images / 12.92, ((torch.where(dark, 1.0, images) + 0.055) / 1.055) ** 2.4)


def _lab(linear: Tensor) -> Tensor:
    """Return (N, 3, H, W) linear RGB as L*, a*, b* with chroma lowered where it is dark (the Hunt effect)."""
    xyz = mix_colors(linear, RGB_TO_XYZ)
    bright = xyz > (6 / 29) ** 3
    x, y, z = torch.where(bright, torch.where(bright, xyz, 1.0) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29).unbind(
        1
    )
    lightness = 116 * y - 16
    return torch.stack((lightness, 0.01 * lightness * 500 * (x - y), 0.01 * lightness * 200 * (y - z)), dim=1)


def _color_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the HyAB distance of two Lab images to the power of 0.7, (N, H, W)."""
    lightness, green, blue = (a - b).unbind(1)
    return safe_power(lightness.abs() + safe_power(green.square() + blue.square(), 0.5), COLOR_EXPONENT)


@outside_graphs
@functools.cache
def _largest_distance() -> float:
    """Return the distance of green and blue, the largest of any two colours."""
    green, blue = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64).view(2, 1, 3, 1, 1)
    return _color_distance(_lab(green), _lab(blue)).item()


@outside_graphs
@functools.cache
def _sensitivity_taps(pixels_per_degree: float) -> tuple[tuple[tuple[float, Taps], ...], ...]:
    """Return per opponent channel (share, weights of a line) of each of its Gaussians."""
    widest = max(width for channel in SENSITIVITY for _, width in channel)
    radius = math.ceil(3 * math.sqrt(widest / (2 * math.pi**2)) * pixels_per_degree)
    degrees = torch.arange(-radius, radius + 1, dtype=torch.float64) / pixels_per_degree
    channels = []
    for parts in SENSITIVITY:
        lines = [torch.exp(-(math.pi**2) * degrees.square() / width) for _, width in parts]
        volumes = [a * math.sqrt(math.pi / width) * line.sum() ** 2 for (a, width), line in zip(parts, lines)]
        channels.append(
            tuple(
                (float(volume / sum(volumes)), tuple((line / line.sum()).tolist()))
                for volume, line in zip(volumes, lines)
            )
        )
    return tuple(channels)


@outside_graphs
@functools.cache
def _feature_taps(pixels_per_degree: float) -> tuple[Taps, Taps, Taps]:
    """Return lines that smooth, find edges (first derivative) and points (second); positive weights add up to 1."""
    sigma = 0.5 * FEATURE_WIDTH * pixels_per_degree
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    smooth = torch.exp(-offsets.square() / (2 * sigma * sigma))

    def balanced(weights: Tensor) -> Taps:
        rising, falling = weights.clamp(min=0), weights.clamp(max=0)
        return tuple((rising / rising.sum() - falling / falling.sum()).tolist())

    edge, point = balanced(-offsets * smooth), balanced((offsets.square() / sigma**2 - 1) * smooth)
    return tuple((smooth / smooth.sum()).tolist()), edge, point


def _as_seen(opponent: Tensor, pixels_per_degree: float) -> Tensor:
    """Return opponent colours blurred as the eye does at that distance, as Lab."""
    channels = []
    for channel, parts in zip(opponent.split(1, dim=1), _sensitivity_taps(pixels_per_degree)):
        channels.append(sum(share * separable(channel, taps, taps, "replicate") for share, taps in parts))
    return _lab(mix_colors(torch.cat(channels, dim=1), OPPONENT_TO_RGB).clamp(0, 1))


def _strength(luminance: Tensor, derivative: Taps, smooth: Taps) -> Tensor:
    x = separable(luminance, smooth, derivative, "replicate")
    y = separable(luminance, derivative, smooth, "replicate")
    return safe_power(x.square() + y.square(), 0.5)


def _features(opponent: Tensor, pixels_per_degree: float) -> tuple[Tensor, Tensor]:
    """Return the strengths of edges and of points, each (N, 1, H, W)."""
    smooth, edge, point = _feature_taps(pixels_per_degree)
    luminance = opponent[:, :1]
    return _strength(luminance, edge, smooth), _strength(luminance, point, smooth)


@float32_loss
def flip(
    y_true: Tensor, y_pred: Tensor, color_order: ColorOrder = "bgr", pixels_per_degree: float = PIXELS_PER_DEGREE
) -> Tensor:
    """Return NVIDIA's LDR-FLIP: (N, 1, H, W) in 0..1, 0 exactly where nothing differs.

    y_true, y_pred: (N, 3, H, W), clamped to 0..1
    color_order: of the images
    pixels_per_degree: of the field of view

    It says how much two images seem to change when they alternate on a screen. Borders repeated.
    """
    views = []
    for images in (y_true, y_pred):
        images = images.flip(1) if color_order == "bgr" else images
        opponent = mix_colors(_linear(images.clamp(0, 1)), RGB_TO_OPPONENT)
        views.append((_as_seen(opponent, pixels_per_degree), *_features(opponent, pixels_per_degree)))
    (lab_true, *features_true), (lab_pred, *features_pred) = views

    largest = _largest_distance()
    distance = _color_distance(lab_true, lab_pred).unsqueeze(1) / largest
    color = torch.where(
        distance < KNEE,
        KNEE_VALUE / KNEE * distance,
        KNEE_VALUE + (distance - KNEE) / (1 - KNEE) * (1 - KNEE_VALUE),
    )
    edges, points = ((a - b).abs() for a, b in zip(features_true, features_pred))
    feature = safe_power(torch.maximum(edges, points) / math.sqrt(2), FEATURE_EXPONENT)
    # Peer: keeps away from 0 by a small number. Ours: 0 there, with slope 0 instead of an infinite one.
    return safe_power(color, 1 - feature)
