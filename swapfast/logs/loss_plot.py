"""A model's losses as a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from swapfast.logs.plot import GRID, INK, area, dot, line, text
from swapfast.logs.steplog import History

WIDTH, HEIGHT = 960, 540
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 30, 60, 60
_SIDES = {"a": ((190, 110, 30), (240, 222, 200)), "b": ((40, 100, 220), (205, 220, 248))}  # BGR: line, band
_SMOOTH = 12  # px over which the curve is averaged
_MANY = 80  # validations, from which their dots are small
_LEAST = 1e-9  # a loss of 0 has no logarithm


@dataclass(frozen=True)
class Curve:
    """One side's loss by column of the picture. x: (M,) px; mean, low, high: (M,) of the steps that fall there."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class _Axes:
    """Where an iteration (linear, left to right) and a loss (logarithmic, bottom to top) lie in the picture, px."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, max(last, first + 1)
        self.low, self.high = -1.0, 0.0

    def x(self, step):
        return _LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - _LEFT - _RIGHT)

    def frame(self, values: np.ndarray) -> None:
        """Let all of ``values`` be seen."""
        self.low, self.high = (math.log10(max(float(v), _LEAST)) for v in (values.min(), values.max()))
        margin = max(0.05 * (self.high - self.low), 0.02)
        self.low, self.high = self.low - margin, self.high + margin

    def y(self, loss):
        share = (self.high - np.log10(np.maximum(loss, _LEAST))) / (self.high - self.low)
        return _TOP + np.clip(share, 0, 1) * (HEIGHT - _TOP - _BOTTOM)


def _curve(steps: np.ndarray, values: np.ndarray, axes: _Axes) -> Curve | None:
    there = np.isfinite(values)
    if not there.any():
        return None
    values = values[there]
    columns, first = np.unique(np.round(axes.x(steps[there])).astype(int), return_index=True)
    counts = np.diff(np.append(first, len(values)))
    mean = np.add.reduceat(values, first) / counts
    return Curve(columns, _smoothed(mean), np.minimum.reduceat(values, first), np.maximum.reduceat(values, first))


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over the neighbours, those that there are."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    at = np.arange(len(values))
    first, behind = np.maximum(at - _SMOOTH // 2, 0), np.minimum(at + _SMOOTH // 2 + 1, len(values))
    return (sums[behind] - sums[first]) / (behind - first)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within two logarithms, three at least; evenly spread ones where there are not so many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for mantissas in ((1,), (1, 2, 5), (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [m * 10.0**p for p in powers for m in mantissas if low <= math.log10(m * 10.0**p) <= high]
        if len(ticks) >= 3:
            return ticks
    return [10**v for v in np.linspace(low, high, 6)]


def _step_ticks(first: int, last: int) -> range:
    rough = max((last - first) / 6, 1)
    power = 10 ** math.floor(math.log10(rough))
    stride = int(next(m * power for m in (1, 2, 5, 10) if m * power >= rough))
    return range(-(-first // stride) * stride, last + 1, stride)


def _grid(image: np.ndarray, axes: _Axes) -> None:
    for step in _step_ticks(axes.first, axes.last):
        x = axes.x(step)
        line(image, [(x, _TOP), (x, HEIGHT - _BOTTOM)], GRID)
        text(image, f"{step:,}", x, HEIGHT - _BOTTOM + 20)
    for loss in _ticks(axes.low, axes.high):
        y = float(axes.y(loss))
        line(image, [(_LEFT, y), (WIDTH - _RIGHT, y)], GRID)
        text(image, f"{loss:.3g}", _LEFT - 8, y + 4, right=True)
    text(image, "iteration", (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 15)


def _band(image: np.ndarray, curve: Curve, axes: _Axes, color) -> None:
    """From the lowest to the highest loss of each column; a single column is too thin to be one."""
    if len(curve.x) > 1:
        there = np.column_stack([curve.x, axes.y(curve.high)])
        back = np.column_stack([curve.x, axes.y(curve.low)])[::-1]
        area(image, np.concatenate([there, back]), color)


def draw_losses(history: History, title: str) -> bytes:
    """A PNG: per side the band of its losses, their mean, and a dot per validation; a dashed line where a run began."""
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    steps = np.array(history.steps)
    axes = _Axes(min(int(steps[0]), 1), int(steps[-1]))
    columns = {side: np.array(history.column(f"loss_{side}")) for side in _SIDES}
    curves = {side: curve for side, v in columns.items() if (curve := _curve(steps, v, axes)) is not None}
    dots = {side: np.array(history.column(f"validation_loss_{side}")) for side in _SIDES}
    shown = [bound for curve in curves.values() for bound in (curve.low, curve.high)]
    shown += [v[np.isfinite(v)] for v in dots.values()]
    if sum(map(len, shown)):
        axes.frame(np.concatenate(shown))
    _grid(image, axes)
    for side, curve in curves.items():
        _band(image, curve, axes, _SIDES[side][1])
    for run in history.runs:
        if axes.first < run.step < axes.last:
            _dashed(image, axes.x(run.step))
    for side, curve in curves.items():
        line(image, np.column_stack([curve.x, axes.y(curve.mean)]), _SIDES[side][0], 2)
    for side, values in dots.items():
        there = np.isfinite(values)
        small = there.sum() > _MANY
        for step, value in zip(steps[there], values[there]):
            dot(image, axes.x(step), float(axes.y(value)), _SIDES[side][0], 1 if small else 3)
    cv2.rectangle(image, (_LEFT, _TOP), (WIDTH - _RIGHT, HEIGHT - _BOTTOM), INK, 1)
    _legend(image, title, curves, any(np.isfinite(v).any() for v in dots.values()))
    return cv2.imencode(".png", image)[1].tobytes()


def _dashed(image: np.ndarray, x: float) -> None:
    for y in range(_TOP, HEIGHT - _BOTTOM, 10):
        line(image, [(x, y), (x, y + 5)], (150, 150, 150))


def _legend(image: np.ndarray, title: str, curves: dict[str, Curve], validated: bool) -> None:
    text(image, title, (_LEFT + WIDTH - _RIGHT) / 2, 22)
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    for place, side in zip((-150, 0), curves):
        x = middle + place - (0 if validated else -75)
        line(image, [(x - 75, 42), (x - 45, 42)], _SIDES[side][0], 2)
        text(image, f"loss {side.upper()}", x - 10, 46)
    if validated:
        dot(image, middle + 95, 42, INK)
        text(image, "held out", middle + 135, 46)
