"""How much a figure has gained over the last iterations, and since when it has not got better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

WINDOW = 0.25  # of all iterations: what counts as the last ones
LEAST = 4  # measurements of a window, where there are so many: one of them says little
AFTER_BEST = 3  # measurements after the best, from which it is said that nothing got better since


@dataclass(frozen=True)
class Gain:
    """How much a figure in dB has risen over a window: a straight line through its measurements.

    iterations: from the first of them to the last. per_1000: dB in 1,000 iterations. per_1000_before: the same of the
    window before, of as many iterations; None where there are less than two measurements of it.
    """

    iterations: int
    per_1000: float
    per_1000_before: float | None

    @property
    def gained(self) -> float:
        """Return the dB over the whole window."""
        return self.per_1000 * self.iterations / 1000

    def to_dict(self) -> dict:
        """Return plain values, as JSON has them."""
        return asdict(self) | {"gained": self.gained}


def gain_of(steps: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray) -> Gain | None:
    """Return what ``values`` have gained over the last WINDOW of all iterations, or the last LEAST measurements.

    steps: (n,) ascending, iterations at which the values were measured. values: (n,) dB; those that are not finite are
    left out. None where there are less than two.
    """
    measured_steps, figures = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    is_finite = np.isfinite(figures)
    measured_steps, figures = measured_steps[is_finite], figures[is_finite]
    if len(measured_steps) < 2:
        return None
    first = _first_of_window(measured_steps)
    span = measured_steps[-1] - measured_steps[first]
    before = slice(int(np.searchsorted(measured_steps, measured_steps[first] - span)), first + 1)
    has_before = first > 0 and measured_steps[before][0] < measured_steps[first]
    return Gain(
        int(span),
        _slope(measured_steps[first:], figures[first:]),
        _slope(measured_steps[before], figures[before]) if has_before else None,
    )


def _first_of_window(measured_steps: np.ndarray) -> int:
    first = int(np.searchsorted(measured_steps, measured_steps[-1] * (1 - WINDOW)))
    return max(0, min(first, len(measured_steps) - LEAST))


def _slope(steps: np.ndarray, values: np.ndarray) -> float:
    """Return the rise in 1,000 steps of the straight line that is nearest to the values."""
    with np.errstate(all="ignore"):
        from_middle = steps - steps.mean()
        slope = 1000 * (from_middle * (values - values.mean())).sum() / (from_middle**2).sum()
    return float(slope) if np.isfinite(slope) else 0.0


def best_step(steps: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray) -> int | None:
    """Return the step of the highest value where AFTER_BEST measurements or more have not got above it since."""
    measured_steps, figures = np.asarray(steps), np.asarray(values, np.float64)
    is_finite = np.isfinite(figures)
    measured_steps, figures = measured_steps[is_finite], figures[is_finite]
    if not len(figures):
        return None
    best = int(figures.argmax())
    return int(measured_steps[best]) if len(figures) - 1 - best >= AFTER_BEST else None


def describe_gains(gains: Mapping[str, Gain], not_better_since: int | None) -> str:
    """Return the sentence that tells when it is done; empty where nothing is known yet.

    "A has gained 0.31 dB in 10,000 iterations (0.031 in 1,000, 0.062 before), B has ...; the swap has not got better
    since 42,000". gains: by side, of held-out faces reconstructed, and as 'swap' of its quality. not_better_since: see
    ``best_step``.
    """
    parts = [", ".join(f"{name.upper()} {_words(gain)}" for name, gain in gains.items() if name != "swap")]
    if not_better_since is not None:
        parts.append(f"the swap has not got better since {not_better_since:,}")
    elif "swap" in gains:
        parts.append(f"the swap {_words(gains['swap'])}")
    return "; ".join(filter(None, parts))


def _words(gain: Gain) -> str:
    verb, amount = ("gained", gain.gained) if gain.gained >= 0 else ("lost", -gain.gained)
    before = "" if gain.per_1000_before is None else f", {gain.per_1000_before:.3g} before"
    return f"has {verb} {amount:.2f} dB in {gain.iterations:,} iterations ({gain.per_1000:.3g} in 1,000{before})"
