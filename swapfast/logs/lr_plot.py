"""The learning-rate finder's curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from swapfast.logs.plot import BLUE, RED, add_legend, default_style, make_axes, png_of

_LARGEST_LOSS = 1e30  # the same for the picture as an infinite one


def draw_curve(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], best_rate: float | None
) -> bytes:
    """Return a PNG with the loss of each step (light), the smoothed loss, and the rate that was found.

    rates: ascending. losses, smoothed: one per rate. The loss axis ends at twice the first smoothed loss, so that a
    diverging loss leaves the picture.
    """
    title = "no learning rate was found" if best_rate is None else f"learning rate found: {best_rate:.3g}"
    jagged, smooth = (np.clip(np.nan_to_num(part, nan=_LARGEST_LOSS), 0, _LARGEST_LOSS) for part in (losses, smoothed))
    low, high = 0.95 * jagged.min(), min(smooth.max(), 2 * smooth[0])
    with default_style():
        figure, axes = make_axes(title, "learning rate (logarithmic)", "loss")
        axes.plot(rates, jagged, color=BLUE, alpha=0.4, linewidth=1, label="loss of each step")
        axes.plot(rates, smooth, color=BLUE, linewidth=2, label="smoothed loss")
        if best_rate is not None:
            axes.axvline(min(max(best_rate, rates[0]), rates[-1]), color=RED, linewidth=2, label="learning rate found")
        axes.set_xlim(rates[0], max(rates[-1], rates[0] * (1 + 1e-3)))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:.0e}".replace("e-0", "e-").replace("e+0", "e"))
        axes.set_ylim(low, high if high - low > max(1e-12, 1e-6 * low) else 2 * low + 1)
        add_legend(axes)
        return png_of(figure)
