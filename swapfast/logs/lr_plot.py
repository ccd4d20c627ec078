"""The learning-rate finder's curve as a picture, drawn with OpenCV so that no plotting library is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from swapfast.logs.plot import GRID, INK, line, text

WIDTH, HEIGHT = 960, 540
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 30, 50, 60
_RAW, _CURVE, _FOUND = (205, 190, 170), (170, 90, 20), (40, 40, 200)  # BGR


class _Axes:
    """Where a rate (logarithmic, left to right) and a loss (linear, bottom to top) lie in the picture, px."""

    def __init__(self, rates: Sequence[float], top: float, bottom: float) -> None:
        self.low, self.high = math.log10(rates[0]), math.log10(rates[-1])
        self.high = max(self.high, self.low + 1e-9)
        self.top, self.bottom = top, max(bottom, 0.0)
        if self.top - self.bottom < 1e-12:
            self.top = self.bottom + 1.0

    def x(self, rate: float) -> float:
        return _LEFT + (math.log10(rate) - self.low) / (self.high - self.low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, loss: float) -> float:
        height = HEIGHT - _TOP - _BOTTOM
        return _TOP + min(max((self.top - loss) / (self.top - self.bottom), 0.0), 1.0) * height


def _grid(image: np.ndarray, axes: _Axes) -> None:
    for power in range(math.ceil(axes.low), math.floor(axes.high) + 1):
        x = axes.x(10.0**power)
        line(image, [(x, _TOP), (x, HEIGHT - _BOTTOM)], GRID)
        text(image, f"1e{power}", x, HEIGHT - _BOTTOM + 20)
    for part in np.linspace(0, 1, 6):
        loss = axes.bottom + part * (axes.top - axes.bottom)
        line(image, [(_LEFT, axes.y(loss)), (WIDTH - _RIGHT, axes.y(loss))], GRID)
        text(image, f"{loss:.4g}", _LEFT - 8, axes.y(loss) + 4, right=True)
    cv2.rectangle(image, (_LEFT, _TOP), (WIDTH - _RIGHT, HEIGHT - _BOTTOM), INK, 1)
    text(image, "learning rate", (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 15)


def draw_curve(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], found: float | None
) -> bytes:
    """A PNG: the loss of each step (light), the smoothed loss, and the rate that was found.

    The loss axis ends at twice the first smoothed loss: what blows up leaves the picture.
    """
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    axes = _Axes(rates, min(max(smoothed), 2 * smoothed[0]), min(losses) * 0.95)
    _grid(image, axes)
    for values, color, thickness in ((losses, _RAW, 1), (smoothed, _CURVE, 2)):
        line(image, [(axes.x(rate), axes.y(value)) for rate, value in zip(rates, values)], color, thickness)
    title = "no learning rate was found"
    if found is not None:
        x = axes.x(min(max(found, rates[0]), rates[-1]))
        line(image, [(x, _TOP), (x, HEIGHT - _BOTTOM)], _FOUND, 2)
        title = f"learning rate found: {found:.3g}"
    text(image, f"smoothed loss; {title}", (_LEFT + WIDTH - _RIGHT) / 2, 30, INK if found is None else _FOUND)
    return cv2.imencode(".png", image)[1].tobytes()
