"""A model's losses as a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from swapfast.logs.plot import BLUE, INK, LEFT, ORANGE, RIGHT, WIDTH, add_legend, default_style, make_axes, png_of
from swapfast.logs.steplog import History

_COLORS = {"a": BLUE, "b": ORANGE}
_BINS = WIDTH - LEFT - RIGHT  # one a pixel
_SMOOTHED_BINS = 13  # that a point of the curve is the mean of
_MANY_DOTS = 80  # validations, from which their dots are small
_LEAST_LOSS = 1e-9  # a loss of 0 has no logarithm
_LARGEST_LOSS = 1e30  # a training that diverged: where exactly it ended is no matter


@dataclass(frozen=True)
class Curve:
    """The losses of one side in bins of consecutive steps.

    steps: (M,) the middle of each bin. mean: (M,) smoothed. low, high: (M,) the extremes of each bin.
    """

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _curve(steps: np.ndarray, losses: np.ndarray) -> Curve | None:
    is_finite = np.isfinite(losses)
    steps, losses = steps[is_finite], np.clip(losses[is_finite], _LEAST_LOSS, _LARGEST_LOSS)
    if not len(losses):
        return None
    starts = np.unique(np.linspace(0, len(losses), _BINS, endpoint=False).astype(int))
    counts = np.diff(np.append(starts, len(losses)))
    mean = np.add.reduceat(losses, starts) / counts
    low, high = np.minimum.reduceat(losses, starts), np.maximum.reduceat(losses, starts)
    return Curve(np.add.reduceat(steps.astype(float), starts) / counts, _smoothed(mean), low, high)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Return (M,) means over the neighbours; fewer at the ends."""
    window = np.ones(min(_SMOOTHED_BINS, len(values)))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _set_scales(axes: Axes, first: int, last: int, losses: list[np.ndarray]) -> None:
    """Let all steps and losses be seen: iterations linear, losses logarithmic with round numbers at the ticks."""
    axes.set_xlim(first, max(last, first + 1))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:.3g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    if losses:
        low, high = math.log10(min(part.min() for part in losses)), math.log10(max(part.max() for part in losses))
        margin = max(0.05 * (high - low), 0.02)
        axes.set_ylim(10 ** (low - margin), 10 ** (high + margin))


def _draw_validations(axes: Axes, steps: np.ndarray, losses: np.ndarray, color: str, label: str) -> None:
    size = 5 if len(steps) > _MANY_DOTS else 30  # square points
    edge = 0.0 if len(steps) > _MANY_DOTS else 1.0
    axes.scatter(steps, losses, size, color, edgecolors="white", linewidths=edge, label=label, zorder=3, clip_on=False)


def draw_losses(history: History, title: str) -> bytes:
    """Return a PNG of (HEIGHT, WIDTH) px with the losses of both sides by iteration.

    Each side has a band of its losses, their smoothed mean, and a dot per validation. A dashed line marks where a run
    resumed.
    """
    steps = np.array(history.steps)
    first, last = min(int(steps[0]), 1), int(steps[-1])
    bounds: list[np.ndarray] = []
    with default_style():
        figure, axes = make_axes(title, "iteration", "loss (logarithmic)")
        for side, color in _COLORS.items():
            curve = _curve(steps, np.array(history.column(f"loss_{side}")))
            if curve is not None:
                # Its edge is what is seen of it where a bin holds one step.
                axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.25, linewidth=0.8)
                marker = "o" if len(curve.steps) == 1 else None
                axes.plot(curve.steps, curve.mean, color=color, lw=2, marker=marker, label=f"loss {side.upper()}")
                bounds += [curve.low, curve.high]
            validations = np.array(history.column(f"validation_loss_{side}"))
            is_finite = np.isfinite(validations)
            if is_finite.any():
                validations = np.clip(validations[is_finite], _LEAST_LOSS, _LARGEST_LOSS)
                _draw_validations(axes, steps[is_finite], validations, color, f"validation {side.upper()}")
                bounds.append(validations)
        for number, step in enumerate(run.step for run in history.runs if first < run.step < last):
            label = "" if number else "run resumed"
            axes.axvline(step, color=INK, alpha=0.4, linewidth=1, linestyle="--", label=label)
        _set_scales(axes, first, last, bounds)
        add_legend(axes)
        return png_of(figure)
